// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/inventory"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Values of --format of export.
const (
	exportKubeconfig = "kubeconfig"
	exportArgoCD     = "argocd"
	exportFlux       = "flux"
	exportHeadlamp   = "headlamp"
	exportProfile    = "clusterprofile"
)

// podTokenFile is the token of a Pod's ServiceAccount. The kubelet renews it.
const podTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path, not a credential

type exportOptions struct {
	endpointOptions
	format, server, tokenFile, command, namespace string
}

func (a *app) exportCommand() *cobra.Command {
	o := &exportOptions{tokenFile: podTokenFile, command: defaultProgram}
	cmd := &cobra.Command{
		Use:   "export NAME",
		Short: "Print what Argo CD, Flux, Headlamp or another program needs to reach a cluster",
		Long: `export prints what another program needs to reach the cluster NAME through the gateway. The result has no
credential: neither yours, nor the cluster's, nor the gateway's. The program uses its own token for the
hub, and needs the rights on the hub that every user of the cluster needs. The formats are:

  kubeconfig  a kubeconfig that refers to the file in --token-file
  argocd      a cluster Secret for Argo CD. Argo CD gets the token from "agent-bootstrap credential", which
              must be in its Pods, at the path in --command
  flux        a Secret for the field kubeConfig.secretRef of a Kustomization or HelmRelease. It has the same
              kubeconfig, and the token file is that of the controller's Pod
  headlamp    a kubeconfig without a user: Headlamp asks each user for a token of the hub
  clusterprofile
              a ClusterProfile of the Cluster Inventory API, with the access provider "cluster-gateway". Its
              status has to be applied, too: kubectl apply --server-side --subresource=status -f FILE`,
		Example: `  agent-bootstrap export edge-1 --format argocd | kubectl apply -f -

  # For a program in a Pod of the hub.
  agent-bootstrap export edge-1 --format kubeconfig --server https://kubernetes.default.svc > edge-1.kubeconfig`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.export(cmd.Context(), args[0], o) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.format, "format", o.format, "What to print: kubeconfig, argocd, flux, headlamp or clusterprofile. Required.")
	fs.StringVar(&o.server, "server", o.server, "URL of the hub's API server, as the program reaches it. Default: the one in your kubeconfig.")
	fs.StringVar(&o.tokenFile, "token-file", o.tokenFile, "File with the program's token for the hub, where the program runs.")
	fs.StringVar(&o.command, "command", o.command, "Path of agent-bootstrap in the Pods of Argo CD. Only for --format=argocd.")
	fs.StringVarP(&o.namespace, "namespace", "n", o.namespace, "Namespace of the Secret or ClusterProfile. Default: argocd, flux-system or cluster-inventory.")
	o.endpointOptions.addFlags(fs)
	return cmd
}

func (o *exportOptions) validate(name string) error {
	errs := []error{registration.ValidateName(name), o.endpointOptions.validate()}
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Contains([]string{exportKubeconfig, exportArgoCD, exportFlux, exportHeadlamp, exportProfile}, o.format) {
		add("invalid --format %q: must be kubeconfig, argocd, flux, headlamp or clusterprofile", o.format)
	}
	if o.server != "" {
		if u, err := url.Parse(o.server); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			add("invalid --server %q: must be an https URL", o.server)
		}
		if o.endpoint == endpointGateway {
			add("--server is the hub's API server: it cannot be used with --endpoint=gateway")
		}
	}
	if !strings.HasPrefix(o.tokenFile, "/") && !filepath.IsAbs(o.tokenFile) {
		add("invalid --token-file %q: must be an absolute path", o.tokenFile)
	}
	return errors.Join(errs...)
}

func (a *app) export(ctx context.Context, name string, o *exportOptions) error {
	if err := o.validate(name); err != nil {
		return err
	}
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return err
	}
	hub, err := newClusterClient("the hub", "--kubeconfig", config, raw)
	if err != nil {
		return err
	}
	if err := a.checkExists(ctx, hub, name); err != nil {
		return err
	}
	target, err := newGatewayTarget(ctx, hub, &o.endpointOptions)
	if err != nil {
		return err
	}
	entries, err := target.entries(name, name)
	if err != nil {
		return err
	}
	cluster, err := o.publicCluster(entries.cluster, name)
	if err != nil {
		return err
	}
	if o.format == exportProfile {
		return a.writeProfile(ctx, hub, name, cluster, o)
	}
	return a.writeExport(name, cluster, o)
}

// writeProfile writes the ClusterProfile that the gateway would write, with the hub or the gateway
// as the caller reaches it.
func (a *app) writeProfile(ctx context.Context, hub *clusterClient, name string, to *clientcmdapi.Cluster, o *exportOptions) error {
	if to.TLSServerName != "" {
		return fmt.Errorf("a ClusterProfile cannot name the server %q of tls-server-name: set --server to a URL whose host is in the hub's certificate", to.TLSServerName)
	}
	gateway, err := hub.clusterGateway(ctx, name)
	if err != nil {
		return hub.explain(err)
	}
	described := inventory.Cluster{
		Name: name, UID: gateway.UID, Labels: gateway.Labels, Version: gateway.Status.Version, Route: gateway.Status.Route, Identity: gateway.Status.Identity,
	}
	if ready := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		described.Ready = *ready
	}
	if described.Ready.LastTransitionTime.IsZero() { // the API requires one
		described.Ready.LastTransitionTime = metav1.NewTime(a.Now())
	}
	access := inventory.Access{Server: strings.TrimSuffix(to.Server, v1alpha1.ProxyPath(name)), CAData: to.CertificateAuthorityData}
	return a.print(inventory.New(described, access, cmp.Or(o.namespace, "cluster-inventory"), inventory.DefaultManager))
}

// publicCluster returns how to reach a cluster, without anything that is the caller's own: a proxy,
// whose URL can have a password, and extensions, which can have settings of a credential plugin.
func (o *exportOptions) publicCluster(from *clientcmdapi.Cluster, name string) (*clientcmdapi.Cluster, error) {
	if from.InsecureSkipTLSVerify {
		return nil, errors.New("--kubeconfig: it does not verify the hub (insecure-skip-tls-verify). A program would send its token to anyone: use a kubeconfig with the hub's CA")
	}
	to := clientcmdapi.NewCluster()
	to.Server, to.TLSServerName, to.CertificateAuthorityData = from.Server, from.TLSServerName, from.CertificateAuthorityData
	if o.server != "" {
		to.Server, to.TLSServerName = strings.TrimSuffix(o.server, "/")+v1alpha1.ProxyPath(name), ""
	}
	return to, nil
}

func (a *app) writeExport(name string, cluster *clientcmdapi.Cluster, o *exportOptions) error {
	user := clientcmdapi.NewAuthInfo()
	if o.format != exportHeadlamp {
		user.TokenFile = o.tokenFile
	}
	config := clientcmdapi.NewConfig()
	config.Clusters[name], config.AuthInfos[name] = cluster, user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	text, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	switch o.format {
	case exportArgoCD:
		secret, err := o.argoCDSecret(name, cluster)
		if err != nil {
			return err
		}
		return a.print(secret)
	case exportFlux:
		secret := o.secret(name, "flux-system")
		secret.StringData = map[string]string{"value": string(text)}
		return a.print(secret)
	default:
		_, err = a.Out.Write(text)
		return err
	}
}

// exportedSecret is a Secret as it is written: without the fields that only a server sets.
type exportedSecret struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        exportedMetadata  `json:"metadata"`
	Type            corev1.SecretType `json:"type"`
	StringData      map[string]string `json:"stringData"`
}

type exportedMetadata struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func (o *exportOptions) secret(name, namespace string) *exportedSecret {
	if o.namespace != "" {
		namespace = o.namespace
	}
	return &exportedSecret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Type: corev1.SecretTypeOpaque,
		Metadata: exportedMetadata{Name: "cluster-gateway-" + name, Namespace: namespace},
	}
}

// The types of the key config in a cluster Secret of Argo CD, as far as they are used.
type (
	argoCDConfig struct {
		TLS  argoCDTLS  `json:"tlsClientConfig"`
		Exec argoCDExec `json:"execProviderConfig"`
	}
	argoCDTLS struct {
		Insecure   bool   `json:"insecure"`
		ServerName string `json:"serverName,omitempty"`
		CAData     []byte `json:"caData,omitempty"`
	}
	argoCDExec struct {
		Command    string   `json:"command"`
		Args       []string `json:"args"`
		APIVersion string   `json:"apiVersion"`
	}
)

func (o *exportOptions) argoCDSecret(name string, cluster *clientcmdapi.Cluster) (*exportedSecret, error) {
	config, err := json.Marshal(argoCDConfig{
		TLS:  argoCDTLS{ServerName: cluster.TLSServerName, CAData: cluster.CertificateAuthorityData},
		Exec: argoCDExec{Command: o.command, Args: []string{"credential", "--token-file", o.tokenFile}, APIVersion: clientauthv1.SchemeGroupVersion.String()},
	})
	if err != nil {
		return nil, err
	}
	secret := o.secret(name, "argocd")
	secret.Metadata.Labels = map[string]string{"argocd.argoproj.io/secret-type": "cluster"}
	secret.StringData = map[string]string{"name": name, "server": cluster.Server, "config": string(config)}
	return secret, nil
}
