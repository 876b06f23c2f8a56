// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// read reads the state of both sides, each part of it once.
func (r *registerRun) read(ctx context.Context) error {
	if err := r.readHub(ctx); err != nil {
		return err
	}
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	if r.o.route == routeTunnel {
		return r.readTunnel(ctx)
	}
	return nil
}

func (r *registerRun) readHub(ctx context.Context) (err error) {
	if r.hub, r.state.Hub.Secret, err = r.readHubSecret(ctx, r.name); err != nil {
		return err
	}
	r.state.Hub.Namespace = r.app.hub.namespace
	if err := r.makeSpec(); err != nil {
		return err
	}
	return r.step(ctx, "hub", "%s (%s)", r.hub.config.Host, r.hub.version)
}

// readHubSecret connects to a hub that has a gateway, and reads the Secret of a cluster's name, or
// nil.
func (a *app) readHubSecret(ctx context.Context, name string) (*clusterClient, *corev1.Secret, error) {
	hub, err := a.connectHub(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return nil, nil, err
	}
	secret, err := hub.kube.CoreV1().Secrets(a.hub.namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return hub, nil, nil
	case err != nil:
		return nil, nil, hub.explain(err)
	}
	return hub, secret, nil
}

// requireGateway returns an error unless the hub has a gateway that answers.
func (a *app) requireGateway(ctx context.Context, hub *clusterClient) error {
	list, err := hub.kube.Discovery().ServerResourcesForGroupVersion(v1alpha1.SchemeGroupVersion.String())
	if err == nil {
		hub.issuesCertificates = slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool {
			return r.Name == v1alpha1.ResourceName+"/"+v1alpha1.AgentCertificateSubresource
		})
	}
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no gateway on the hub at %s: it does not serve %s. Install the gateway (manifests/gateway), or use another --kubeconfig or --context",
			hub.config.Host, v1alpha1.SchemeGroupVersion)
	case apierrors.IsServiceUnavailable(err):
		return fmt.Errorf("the gateway of the hub at %s does not answer. To find out why: kubectl get apiservice v1alpha1.%s", hub.config.Host, v1alpha1.GroupName)
	default:
		return hub.explain(err)
	}
}

func (r *registerRun) readCluster(ctx context.Context) (err error) {
	if err := r.hub.identify(ctx); err != nil {
		return err
	}
	if r.cluster, err = r.identifyCluster(ctx, r.name, r.o.cluster); err != nil {
		return err
	}
	r.state.Hub.UID = r.hub.uid
	// Before anything else is read, or waited for: whether the name and the cluster are free.
	if err := registration.CheckTaken(r.spec, r.state.Hub.Secret, r.cluster.uid); err != nil {
		return err
	}
	namespace, err := r.readNamespace(ctx)
	if err != nil {
		return err
	}
	server, err := r.cluster.serverInfo()
	if err != nil {
		return err
	}
	state, err := registration.ReadCluster(ctx, r.cluster.kube, r.cluster.dyn, r.spec, server)
	if err != nil {
		return r.cluster.explain(err)
	}
	state.UID, state.Namespace = r.cluster.uid, namespace
	if r.o.outDir != "" {
		dir, err := filepath.Abs(r.o.outDir)
		if err != nil {
			return err
		}
		if state.Pair, err = readAgentDir(dir); err != nil {
			return err
		}
	}
	if state.TokenAccepted, err = r.tokenAccepted(ctx, v1alpha1.SecretKeyToken, registration.GatewayUser); err != nil {
		return err
	}
	if state.MaintenanceTokenAccepted, err = r.tokenAccepted(ctx, v1alpha1.SecretKeyMaintenanceToken, registration.MaintenanceUser); err != nil {
		return err
	}
	r.state.Cluster = state
	return r.step(ctx, "cluster", "%s (%s)", r.cluster.config.Host, r.cluster.version)
}

// readNamespace reads the agent's namespace. If an earlier unregister is still deleting it, it
// waits.
func (r *registerRun) readNamespace(ctx context.Context) (*corev1.Namespace, error) {
	namespace, err := r.cluster.kube.CoreV1().Namespaces().Get(ctx, registration.AgentNamespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, r.cluster.explain(err)
	case namespace.DeletionTimestamp == nil:
		return namespace, registration.CheckRegistered(r.spec, namespace, r.hub.uid)
	case r.o.dryRun:
		return nil, fmt.Errorf("the cluster's namespace %s is still being deleted: try again in a moment", registration.AgentNamespace)
	}
	r.say("  %-12s namespace %s is still being deleted; waiting", "cluster", registration.AgentNamespace)
	o, err := registration.ToUnstructured(namespace)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, max(r.o.wait, connectTimeout))
	defer cancel()
	return nil, r.cluster.waitDeleted(ctx, o)
}

// tokenAccepted is whether the cluster accepts the token under this key on the hub as that of this
// user, and will for a while.
func (r *registerRun) tokenAccepted(ctx context.Context, key, user string) (bool, error) {
	secret := r.state.Hub.Secret
	if secret == nil {
		return false, nil
	}
	token := string(secret.Data[key])
	if !registration.TokenIsFresh(token, r.Now()) {
		return false, nil
	}
	config := rest.AnonymousClientConfig(r.cluster.config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false, err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		// It is rejected, or the cluster does not say whose it is: then there is to be a new one, too.
		return false, nil
	case err != nil:
		return false, r.cluster.explain(err)
	}
	return review.Status.UserInfo.Username == user, nil
}

func (r *registerRun) readTunnel(ctx context.Context) (err error) {
	hub := &r.state.Hub
	if hub.TunnelAddress, r.certificates, err = r.hub.readTunnel(ctx, hub.Namespace, r.o.tunnelAddress); err != nil {
		return err
	}
	hub.TunnelCA = r.certificates.bundle
	return r.step(ctx, "tunnel", "agents connect to %s", hub.TunnelAddress)
}

// externalNote is for what only the gateway's own tunnel server puts on the hub.
const externalNote = "If the gateway runs with --tunnel-mode=external, agents connect to konnectivity-servers and are set up by hand: see docs/register.md"

// readTunnel reads what is needed to get a certificate for an agent and to tell it what to dial.
// address overrides the address that the gateway publishes.
func (c *clusterClient) readTunnel(ctx context.Context, namespace, address string) (string, *tunnelCertificates, error) {
	published, err := c.publishedTunnel(ctx, namespace)
	if err != nil {
		return "", nil, err
	}
	if address == "" {
		address = published.address
	}
	if address == "" {
		return "", nil, fmt.Errorf("the address that agents connect to is not known: the gateway does not publish it (ConfigMap %s/%s on the hub). Start the gateway with --tunnel-advertise-address=HOST:PORT, or set --tunnel-address. %s",
			namespace, pki.ConfigMap, externalNote)
	}
	certificates, err := newTunnelCertificates(ctx, c, namespace, published.bundle)
	return address, certificates, err
}

// tunnelInfo is what the gateway publishes for agents.
type tunnelInfo struct {
	address string
	// bundle are the CAs that agents and gateway trust, in PEM.
	bundle []byte
}

// publishedTunnel reads what the gateway publishes for agents; its fields are empty if it publishes
// nothing.
func (c *clusterClient) publishedTunnel(ctx context.Context, namespace string) (tunnelInfo, error) {
	config, err := c.kube.CoreV1().ConfigMaps(namespace).Get(ctx, pki.ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return tunnelInfo{}, nil
	case err != nil:
		return tunnelInfo{}, c.explain(err)
	}
	return tunnelInfo{address: config.Data[pki.KeyAddress], bundle: []byte(config.Data[pki.KeyBundle])}, nil
}

// serverInfo is what the kubeconfig says about the API server.
func (c *clusterClient) serverInfo() (registration.ServerInfo, error) {
	base, _, err := rest.DefaultServerUrlFor(c.config)
	if err != nil {
		return registration.ServerInfo{}, err
	}
	loaded := rest.CopyConfig(c.config)
	if err := rest.LoadTLSFiles(loaded); err != nil {
		return registration.ServerInfo{}, err
	}
	info := registration.ServerInfo{
		URL: strings.TrimSuffix(base.String(), "/"), ServerName: c.config.ServerName, CA: loaded.CAData, Insecure: loaded.Insecure,
	}
	if kubeconfig := c.kubeconfigCluster(); kubeconfig != nil {
		info.ProxyURL = kubeconfig.ProxyURL
	}
	return info, nil
}
