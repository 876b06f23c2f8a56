// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// tokenLifetime is the lifetime of the tokens that the lab requests.
const tokenLifetime = 24 * time.Hour

func (c *Cluster) writeKubeconfig() error {
	config := clientcmdapi.NewConfig()
	name := c.opts.Name
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.Endpoint(), CertificateAuthorityData: c.CAPEM()}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.AdminCertPEM(), ClientKeyData: c.AdminKeyPEM()}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	c.kubeconfig = filepath.Join(c.dir, "admin.kubeconfig")
	if err := clientcmd.WriteToFile(*config, c.kubeconfig); err != nil {
		return fmt.Errorf("write the administrator's kubeconfig: %w", err)
	}
	return nil
}

// connect creates the administrator's client. Its dialer is set once, here, because client-go keeps
// a transport for every dialer.
func (c *Cluster) connect() error {
	c.rest = &rest.Config{
		Host: c.Endpoint(),
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   c.CAPEM(),
			CertData: c.AdminCertPEM(),
			KeyData:  c.AdminKeyPEM(),
		},
		// No rate limit: a lab measures the servers, not the client.
		QPS: -1,
	}
	if c.ns != nil {
		c.rest.Dial = c.ns.dial
	}
	client, err := kubernetes.NewForConfig(c.rest)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	c.client = client
	return nil
}

// RESTConfig returns a configuration for clients of the administrator, without a rate limit. It
// reaches a firewalled cluster from the inside.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.rest) }

// Client returns the administrator's client. It is the same one each time.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// ServiceAccountToken returns a token of a ServiceAccount that is bound to a ClusterRole. It
// creates the ServiceAccount and the binding if needed. If clusterRole is empty, it binds none.
func (c *Cluster) ServiceAccountToken(ctx context.Context, namespace, name, clusterRole string) (string, error) {
	token, err := c.serviceAccountToken(ctx, namespace, name, clusterRole)
	if err != nil {
		return "", fmt.Errorf("get a token of ServiceAccount %s/%s in cluster %s: %w", namespace, name, c.opts.Name, err)
	}
	return token, nil
}

func (c *Cluster) serviceAccountToken(ctx context.Context, namespace, name, clusterRole string) (string, error) {
	if err := c.EnsureNamespace(ctx, namespace); err != nil {
		return "", err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	if err := ignoreExists(err); err != nil {
		return "", err
	}
	if err := c.bind(ctx, namespace, name, clusterRole); err != nil {
		return "", err
	}
	lifetime := int64(tokenLifetime.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &lifetime}}
	response, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return response.Status.Token, nil
}

func (c *Cluster) bind(ctx context.Context, namespace, name, clusterRole string) error {
	if clusterRole == "" {
		return nil
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: strings.Join([]string{"lab", namespace, name, clusterRole}, ":")},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
	}
	_, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	if err := ignoreExists(err); err != nil {
		return err
	}
	return c.awaitBinding(ctx, "system:serviceaccount:"+namespace+":"+name, clusterRole)
}

// awaitBinding waits until the API server uses a binding, which takes a moment. Before that, it
// denies requests, and a gateway caches the denial for some seconds.
func (c *Cluster) awaitBinding(ctx context.Context, user, clusterRole string) error {
	role, err := c.client.RbacV1().ClusterRoles().Get(ctx, clusterRole, metav1.GetOptions{})
	if err != nil {
		return err
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user}}
	for _, rule := range role.Rules {
		if len(rule.Resources) > 0 && len(rule.APIGroups) > 0 {
			resource, subresource, _ := strings.Cut(rule.Resources[0], "/")
			review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
				Verb: rule.Verbs[0], Group: rule.APIGroups[0], Resource: resource, Subresource: subresource,
				Name: strings.Join(rule.ResourceNames[:min(len(rule.ResourceNames), 1)], ""),
			}
			break
		}
	}
	if review.Spec.ResourceAttributes == nil {
		return nil // an aggregated role that no controller has filled yet
	}
	return wait.PollUntilContextCancel(ctx, readyInterval, true, func(ctx context.Context) (bool, error) {
		answer, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		return err == nil && answer.Status.Allowed, err
	})
}

// EnsureNamespace creates a namespace unless it exists.
func (c *Cluster) EnsureNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	return ignoreExists(err)
}
