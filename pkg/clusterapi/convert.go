// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package clusterapi

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Names that Cluster API uses.
const (
	// secretType is the type of the Secret with a kubeconfig.
	secretType corev1.SecretType = "cluster.x-k8s.io/secret"
	// labelClusterName has the name of the cluster.
	labelClusterName = "cluster.x-k8s.io/cluster-name"
	// suffix follows the name of the cluster in that of the Secret.
	suffix = "-kubeconfig"
	// keyKubeconfig is the key of the kubeconfig.
	keyKubeconfig = "value"
)

// ClusterName returns the name of the cluster whose kubeconfig a Secret has. It returns false for
// any other Secret. Cluster API has more Secrets with the same label and type, for example with the
// keys of a cluster's CA.
func ClusterName(secret *corev1.Secret) (string, bool) {
	name, ok := strings.CutSuffix(secret.Name, suffix)
	return name, ok && secret.Type == secretType && secret.Labels[labelClusterName] == name
}

// Convert returns the Secret of a cluster, in a namespace, for the Secret with its kubeconfig. An
// error does not contain a credential.
func Convert(source *corev1.Secret, namespace string) (*corev1.Secret, error) {
	name, ok := ClusterName(source)
	if !ok {
		return nil, errors.New("it is not a kubeconfig of Cluster API")
	}
	config, err := clientcmd.Load(source.Data[keyKubeconfig])
	if err != nil { // the error may quote the kubeconfig
		return nil, fmt.Errorf("the key %q is not a kubeconfig", keyKubeconfig)
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.Clusters[current.Cluster] == nil || config.AuthInfos[current.AuthInfo] == nil {
		return nil, errors.New("the kubeconfig has no current context with a cluster and a user")
	}
	server, user := config.Clusters[current.Cluster], config.AuthInfos[current.AuthInfo]
	if err := errors.Join(checkServer(server), checkUser(user)); err != nil {
		return nil, err
	}
	credential, data := v1alpha1.CredentialTypeX509, map[string][]byte{
		v1alpha1.SecretKeyCert: user.ClientCertificateData, v1alpha1.SecretKeyPrivateKey: user.ClientKeyData,
	}
	if user.Token != "" {
		credential, data = v1alpha1.CredentialTypeServiceAccountToken, map[string][]byte{v1alpha1.SecretKeyToken: []byte(user.Token)}
	}
	data[v1alpha1.SecretKeyEndpoint] = []byte(server.Server)
	for key, value := range map[string]string{
		v1alpha1.SecretKeyCA: string(server.CertificateAuthorityData), v1alpha1.SecretKeyServerName: server.TLSServerName, v1alpha1.SecretKeyProxyURL: server.ProxyURL,
	} {
		if value != "" {
			data[key] = []byte(value)
		}
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace,
			Labels: map[string]string{
				v1alpha1.LabelManagedBy: v1alpha1.ManagedByClusterAPI, v1alpha1.LabelCredentialType: string(credential),
				v1alpha1.LabelEndpointType: string(v1alpha1.EndpointTypeConst),
			},
			Annotations: map[string]string{v1alpha1.AnnotationClusterAPISecret: source.Namespace + "/" + source.Name},
		},
		Type: corev1.SecretTypeOpaque,
		Data: data,
	}, nil
}

// checkServer refuses what would make the gateway read its own files, or verify nothing.
func checkServer(server *clientcmdapi.Cluster) error {
	switch {
	case server.InsecureSkipTLSVerify:
		return errors.New("insecure-skip-tls-verify is not allowed")
	case server.CertificateAuthority != "":
		return errors.New("certificate-authority names a file: certificate-authority-data is required")
	case len(server.CertificateAuthorityData) == 0:
		return errors.New("certificate-authority-data is missing")
	}
	return nil
}

// checkUser refuses what would make the gateway read its own files or run programs, and credentials
// that the gateway does not have.
func checkUser(user *clientcmdapi.AuthInfo) error {
	var errs []error
	// In this order: a text that changes would be a new refusal, and a new Event.
	for _, refused := range []struct {
		field string
		set   bool
	}{
		{"exec", user.Exec != nil}, {"auth-provider", user.AuthProvider != nil}, {"tokenFile", user.TokenFile != ""},
		{"client-certificate", user.ClientCertificate != ""}, {"client-key", user.ClientKey != ""},
		{"username and password", user.Username != "" || user.Password != ""},
		{"as", user.Impersonate != "" || user.ImpersonateUID != "" || len(user.ImpersonateGroups) > 0 || len(user.ImpersonateUserExtra) > 0},
	} {
		if refused.set {
			errs = append(errs, fmt.Errorf("%s of the user is not allowed", refused.field))
		}
	}
	if user.Token == "" && (len(user.ClientCertificateData) == 0 || len(user.ClientKeyData) == 0) {
		errs = append(errs, errors.New("the user has neither a token nor client-certificate-data with client-key-data"))
	}
	return errors.Join(errs...)
}
