// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	routeTunnel = string(cluster.RouteTunnel)
	routeDirect = string(cluster.RouteDirect)
)

type registerOptions struct {
	cluster                 clusterOptions
	route, access, endpoint string
	tunnelAddress           string
	outDir                  string
	wait                    time.Duration
	tokenLifetime           time.Duration
	agentLifetime           time.Duration
	dryRun, adopt           bool
}

// accessHelp explains --access.
const accessHelp = "Rights of the gateway in the cluster, and so of everybody who may use the cluster on the hub: admin, view, the name of a ClusterRole of the cluster, " +
	"or impersonate (only the right to act as other users, for other programs: the gateway itself does not do this)."

func (a *app) registerCommand() *cobra.Command {
	o := &registerOptions{route: routeTunnel, access: registration.AccessAdmin, wait: 2 * time.Minute, tokenLifetime: registration.DefaultTokenLifetime, agentLifetime: pki.DefaultAgentLifetime}
	cmd := &cobra.Command{
		Use:   "register NAME --cluster-kubeconfig FILE",
		Short: "Register a cluster, and wait until it can be reached",
		Long: `register makes a cluster reachable through the gateway as NAME:

  - In the cluster, it applies a ServiceAccount for the gateway with the rights of --access, and an
    agent that connects out to the gateway (not with --route=direct).
  - On the hub, it writes a Secret with the cluster's address, CA and token.

Then it waits until the cluster answers. You can run it again at any time: it keeps certificates and
tokens that are still good.

--route=tunnel requires the gateway's own tunnel server (gateway --tunnel-mode=embedded). For stock
konnectivity-servers, set up the agent by hand: see docs/operating.md.`,
		Example: `  # Behind a firewall. The agent runs in the cluster.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # The agent runs as a process: its certificate, flags and a systemd unit are written to a folder.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig --out-dir ./edge-1-agent

  # A cluster that the gateway can reach; users may only read.
  agent-bootstrap register nearby --cluster-kubeconfig nearby.kubeconfig --route direct --access view

  # Print what the command would apply, and change nothing.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig --dry-run -o yaml`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &registerRun{app: a, o: o, name: args[0]}
			return r.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Required")
	fs.StringVar(&o.route, "route", o.route, "How the gateway reaches the cluster. tunnel: an agent in the cluster connects out to the gateway. direct: the gateway connects to the cluster.")
	fs.StringVar(&o.access, "access", o.access, accessHelp)
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint,
		"URL of the cluster's API server, as the agent (tunnel) or the gateway (direct) reaches it. Default: https://kubernetes.default.svc:443 for an agent in Pods, otherwise the server in --cluster-kubeconfig.")
	fs.StringVar(&o.tunnelAddress, "tunnel-address", o.tunnelAddress, "host:port of the tunnel server, which agents dial. Default: the address that the gateway publishes on the hub.")
	fs.StringVar(&o.outDir, "out-dir", o.outDir, "Folder for the files of an agent that runs as a process: certificate, key, flags and a systemd unit. No agent is applied to the cluster.")
	fs.DurationVar(&o.wait, "wait", o.wait, "How long to wait until the cluster answers through the gateway. 0: do not wait.")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", o.tokenLifetime, "Lifetime of the gateway's token. The cluster may shorten it.")
	fs.DurationVar(&o.agentLifetime, "certificate-lifetime", o.agentLifetime, "Lifetime of the agent's certificate.")
	fs.BoolVar(&o.adopt, "adopt", o.adopt, "Take over a Secret of this name that somebody wrote by hand.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Change nothing, and print what the command would do.")
	a.addOutput(fs, "the objects that are applied, without their secret parts,")
	return cmd
}

func (o *registerOptions) validate(name string) error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := checkName(name); err != nil {
		errs = append(errs, err)
	}
	if o.cluster.kubeconfig == "" {
		add("--cluster-kubeconfig is required: the kubeconfig of the cluster that is to be registered")
	}
	if o.route != routeTunnel && o.route != routeDirect {
		add("--route must be tunnel or direct, and is %q", o.route)
	}
	if o.route == routeDirect && o.outDir != "" {
		add("--out-dir is for the files of an agent, and --route=direct has none")
	}
	if o.access == "" {
		add("--access must be admin, view, impersonate or the name of a ClusterRole")
	}
	if o.tunnelAddress != "" {
		if err := cluster.CheckAddress(o.tunnelAddress); err != nil {
			add("--tunnel-address %q: %w", o.tunnelAddress, err)
		}
	}
	if o.endpoint != "" {
		if err := cluster.CheckEndpoint(o.endpoint); err != nil { // not shown: there may be a password in it
			add("--endpoint: %w", err)
		}
	}
	if o.wait < 0 {
		add("--wait must not be negative")
	}
	if o.tokenLifetime < 10*time.Minute {
		add("--token-lifetime must be at least 10m, which is what Kubernetes gives out")
	}
	if o.agentLifetime <= 0 {
		add("--certificate-lifetime must be more than 0")
	}
	return errors.Join(errs...)
}

// registerRun is one run of register.
type registerRun struct {
	*app
	o    *registerOptions
	name string

	hub, cluster *clusterClient
	// tunnel is where agents dial, and the CA of both sides.
	tunnel    tunnelInfo
	authority *pki.Authority
	// namespaceUID is of the namespace in the managed cluster.
	namespaceUID types.UID
	// registered is the Secret on the hub, if there is one.
	registered *corev1.Secret
	// secret is what it is to be.
	secret registration.ClusterSecret
	// applied are the objects, for -o.
	applied []any
}

func (r *registerRun) run(ctx context.Context) error {
	if err := errors.Join(r.o.validate(r.name), r.checkOutput()); err != nil {
		return err
	}
	if r.o.dryRun {
		r.say("Registering cluster %q (dry run: nothing is changed)", r.name)
	} else {
		r.say("Registering cluster %q", r.name)
	}
	steps := []func(context.Context) error{r.checkHub, r.checkCluster}
	if r.o.route == routeTunnel {
		steps = append(steps, r.findTunnel)
	}
	steps = append(steps, r.checkRights)
	// The Secret before the agent: who finds the name taken there has given nobody a certificate for it.
	steps = append(steps, r.applyNamespace, r.applyAccount, r.applyAccess, r.applySecret)
	if r.o.route == routeTunnel {
		steps = append(steps, r.applyAgent)
	}
	if !r.o.dryRun && r.o.wait > 0 {
		steps = append(steps, r.waitRegistered)
	}
	if r.o.route == routeDirect || r.o.outDir != "" {
		steps = append(steps, r.removeAgent)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if r.output != "" {
		return r.print(r.applied...)
	}
	r.farewell()
	return nil
}

func (r *registerRun) checkHub(ctx context.Context) (err error) {
	if r.hub, err = r.connectHub(ctx); err != nil {
		return err
	}
	if err := r.requireGateway(ctx, r.hub); err != nil {
		return err
	}
	secret, err := r.hub.kube.CoreV1().Secrets(r.app.hub.namespace).Get(ctx, r.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return r.hub.explain(err)
	default:
		r.registered = secret
	}
	return r.step(ctx, "hub", "%s (%s)", r.hub.config.Host, r.hub.version)
}

// requireGateway finds out whether the hub has a gateway that answers.
func (a *app) requireGateway(ctx context.Context, hub *clusterClient) error {
	_, err := hub.kube.Discovery().ServerResourcesForGroupVersion(v1alpha1.SchemeGroupVersion.String())
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no gateway on the hub at %s: it serves no %s. Install it (manifests/gateway), or use another --kubeconfig or --context",
			hub.config.Host, v1alpha1.SchemeGroupVersion)
	case apierrors.IsServiceUnavailable(err):
		return fmt.Errorf("the gateway of the hub at %s does not answer: kubectl get apiservice v1alpha1.%s says why", hub.config.Host, v1alpha1.GroupName)
	default:
		return hub.explain(err)
	}
}

func (r *registerRun) checkCluster(ctx context.Context) (err error) {
	if err := r.hub.identify(ctx); err != nil {
		return err
	}
	if r.cluster, err = r.identifyCluster(ctx, r.name, r.o.cluster); err != nil {
		return err
	}
	if err := r.checkRegistered(); err != nil {
		return err
	}
	if err := r.checkNamespace(ctx); err != nil {
		return err
	}
	return r.step(ctx, "cluster", "%s (%s)", r.cluster.config.Host, r.cluster.version)
}

// checkRegistered refuses a name that is another cluster's.
func (r *registerRun) checkRegistered() error {
	if r.registered == nil {
		return nil
	}
	err := registration.CheckName(r.registered, r.cluster.uid)
	var taken *registration.NameTakenError
	switch {
	case errors.As(err, &taken) && (taken.Holder == registration.HolderOtherCluster || !r.o.adopt):
		return err
	case r.registered.Type != corev1.SecretTypeOpaque:
		return fmt.Errorf("the Secret %s/%s on the hub is of type %s, which cannot be changed: delete it first", r.registered.Namespace, r.name, r.registered.Type)
	}
	return nil
}

// checkNamespace refuses a cluster that is registered under another name or with another hub, and waits for an earlier unregister.
func (r *registerRun) checkNamespace(ctx context.Context) error {
	namespace, err := r.cluster.kube.CoreV1().Namespaces().Get(ctx, registration.AgentNamespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.cluster.explain(err)
	}
	if namespace.DeletionTimestamp != nil {
		if r.o.dryRun {
			return fmt.Errorf("the cluster's namespace %s is still being deleted: try again in a moment", registration.AgentNamespace)
		}
		r.say("  %-12s namespace %s is still being deleted; waiting", "cluster", registration.AgentNamespace)
		u, err := registration.ToUnstructured(namespace)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, max(r.o.wait, connectTimeout))
		defer cancel()
		return r.cluster.gone(ctx, u)
	}
	return registration.CheckNamespace(namespace, r.name, r.hub.uid)
}

// externalNote is for what only the embedded tunnel server puts on the hub.
const externalNote = "If it runs with --tunnel-mode=external, agents connect to konnectivity-servers, and are set up by hand: see docs/operating.md"

func (r *registerRun) findTunnel(ctx context.Context) (err error) {
	if r.tunnel, err = r.hub.tunnel(ctx, r.app.hub.namespace, r.o.tunnelAddress); err != nil {
		return err
	}
	r.authority, err = pki.Load(ctx, r.hub.kube.CoreV1().Secrets(r.app.hub.namespace))
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the tunnel's CA is not on the hub: there is no Secret %s/%s. The gateway makes it when it is started without --tunnel-cert-file; a CA of your own goes there as tls.crt, tls.key and ca.crt. %s",
			r.app.hub.namespace, pki.CASecret, externalNote)
	}
	if err != nil {
		return r.hub.explain(err)
	}
	r.tunnel.bundle = r.authority.Bundle()
	return r.step(ctx, "tunnel", "agents dial %s", r.tunnel.address)
}

// tunnelInfo is where agents dial, and the CAs that they and the gateway trust.
type tunnelInfo struct {
	address string
	bundle  []byte
}

// tunnel reads what the gateway publishes for agents.
func (s *clusterClient) tunnel(ctx context.Context, namespace, address string) (tunnelInfo, error) {
	config, err := s.kube.CoreV1().ConfigMaps(namespace).Get(ctx, pki.ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		config = &corev1.ConfigMap{}
	case err != nil:
		return tunnelInfo{}, s.explain(err)
	}
	if address == "" {
		address = config.Data[pki.KeyAddress]
	}
	if address == "" {
		return tunnelInfo{}, fmt.Errorf("it is not known where agents dial: the gateway publishes no address (ConfigMap %s/%s on the hub). Start it with --tunnel-advertise-address=HOST:PORT, or give --tunnel-address. %s",
			namespace, pki.ConfigMap, externalNote)
	}
	return tunnelInfo{address: address, bundle: []byte(config.Data[pki.KeyBundle])}, nil
}

// applyAll applies objects to a cluster and sums up the outcomes.
func (r *registerRun) applyAll(ctx context.Context, s *clusterClient, all []*unstructured.Unstructured) (string, error) {
	count := map[registration.Outcome]int{}
	for _, o := range all {
		result, _, err := s.apply(ctx, o, r.o.dryRun)
		if err != nil {
			return "", fmt.Errorf("applying %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		count[result]++
		r.applied = append(r.applied, registration.Redacted(o).Object)
	}
	return summary(count, r.o.dryRun), nil
}

func summary(count map[registration.Outcome]int, dryRun bool) string {
	var parts []string
	for _, o := range []registration.Outcome{registration.Created, registration.Changed, registration.Unchanged} {
		switch n := count[o]; {
		case n == 0:
		case n == 1 && len(count) == 1:
			parts = append(parts, string(o))
		default:
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	text := strings.Join(parts, ", ")
	if dryRun && count[registration.Created]+count[registration.Changed] > 0 {
		text = "would be " + text
	}
	return text
}

func (r *registerRun) applyNamespace(ctx context.Context) error {
	o, err := registration.Namespace(r.name, r.hub.uid)
	if err != nil {
		return err
	}
	result, after, err := r.cluster.apply(ctx, o, r.o.dryRun)
	if err != nil {
		return err
	}
	r.applied = append(r.applied, registration.Redacted(o).Object)
	if !r.o.dryRun || result != registration.Created {
		r.namespaceUID = after.GetUID()
	}
	return r.step(ctx, "namespace", "%s: %s", registration.AgentNamespace, summary(map[registration.Outcome]int{result: 1}, r.o.dryRun))
}

func (r *registerRun) applyAccount(ctx context.Context) error {
	all, err := registration.AgentBase(registration.IsGatewayAccount)
	if err != nil {
		return err
	}
	text, err := r.applyAll(ctx, r.cluster, all)
	if err != nil {
		return err
	}
	return r.step(ctx, "account", "%s/%s: %s", registration.AgentNamespace, registration.GatewayAccount, text)
}

func (r *registerRun) applyAccess(ctx context.Context) error {
	access := registration.AccessOf(r.o.access)
	all, err := access.Objects(r.namespaceUID)
	if err != nil {
		return err
	}
	text, err := r.applyAll(ctx, r.cluster, all)
	if err != nil {
		return err
	}
	removed, err := r.removeOtherAccess(ctx)
	if err != nil {
		return err
	}
	if removed > 0 {
		text += fmt.Sprintf("; %d earlier removed", removed)
	}
	return r.step(ctx, "access", "%s (ClusterRole %s): %s", access.Name, access.Role, text)
}

// removeOtherAccess removes what an earlier --access bound.
func (r *registerRun) removeOtherAccess(ctx context.Context) (removed int, err error) {
	options := metav1.DeleteOptions{}
	if r.o.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	rbac := r.cluster.kube.RbacV1()
	others, err := r.otherAccess(ctx)
	if err != nil {
		return 0, err
	}
	for _, b := range others {
		if err := rbac.ClusterRoleBindings().Delete(ctx, b.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return removed, r.cluster.explain(err)
		}
		removed++
		if !ownRole(b) {
			continue
		}
		if err := rbac.ClusterRoles().Delete(ctx, b.RoleRef.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return removed, r.cluster.explain(err)
		}
	}
	return removed, nil
}

// otherAccess are the bindings of an --access that is not this one.
func (r *registerRun) otherAccess(ctx context.Context) ([]rbacv1.ClusterRoleBinding, error) {
	wanted, err := registration.AccessOf(r.o.access).Objects("")
	if err != nil {
		return nil, err
	}
	list, err := r.cluster.kube.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy + "=" + registration.FieldManager})
	if err != nil {
		return nil, r.cluster.explain(err)
	}
	return slices.DeleteFunc(list.Items, func(b rbacv1.ClusterRoleBinding) bool {
		return !strings.HasPrefix(b.Name, registration.AccessPrefix) ||
			slices.ContainsFunc(wanted, func(o *unstructured.Unstructured) bool {
				return o.GetKind() == "ClusterRoleBinding" && o.GetName() == b.Name
			})
	}), nil
}

// ownRole is whether a binding's role was made for it.
func ownRole(b rbacv1.ClusterRoleBinding) bool {
	return strings.HasPrefix(b.RoleRef.Name, registration.AccessPrefix)
}

// trust finds out the endpoint and how it is verified. It never switches the verification off, whatever the kubeconfig does.
func (r *registerRun) trust(ctx context.Context, s *registration.ClusterSecret) error {
	switch {
	case s.Endpoint != "":
	case r.hasPods():
		s.Endpoint = registration.DefaultTunnelEndpoint
	default:
		base, _, err := rest.DefaultServerUrlFor(r.cluster.config)
		if err != nil {
			return err
		}
		s.Endpoint = strings.TrimSuffix(base.String(), "/")
		s.ServerName = r.cluster.config.ServerName
	}
	if kubeconfig := r.cluster.kubeconfigCluster(); !s.Tunnel && kubeconfig != nil {
		s.ProxyURL = kubeconfig.ProxyURL
	}
	loaded := rest.CopyConfig(r.cluster.config)
	if err := rest.LoadTLSFiles(loaded); err != nil {
		return err
	}
	if !r.needsRootCA(loaded) {
		s.CA = loaded.CAData // none: the system's roots
		return nil
	}
	root, err := r.cluster.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, rootCA, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return r.cluster.explain(err)
	default:
		s.CA = []byte(root.Data["ca.crt"])
	}
	if len(s.CA) == 0 {
		s.CA = loaded.CAData
	}
	if len(s.CA) == 0 {
		return errors.New("the cluster's CA is not known: neither the kubeconfig nor ConfigMap kube-system/kube-root-ca.crt has it. Put certificate-authority-data into the kubeconfig")
	}
	return nil
}

// needsRootCA is whether the cluster says what its CA is: inside a cluster its own is what counts, and a kubeconfig may have that of a load balancer.
func (r *registerRun) needsRootCA(loaded *rest.Config) bool {
	return r.hasPods() || len(loaded.CAData) == 0 && (r.o.route == routeTunnel || loaded.Insecure)
}

// hasPods is whether the agent runs in the cluster.
func (r *registerRun) hasPods() bool { return r.o.route == routeTunnel && r.o.outDir == "" }

func (r *registerRun) farewell() {
	if r.o.dryRun {
		r.say("\nNothing was changed.")
		return
	}
	r.say("\nCluster %q is registered.", r.name)
	if r.o.outDir != "" {
		r.say("\nThe agent's files are in %s. Run it with\n  proxy-agent $(cat %s/agent.flags)\nor install %s/konnectivity-agent.service.", r.o.outDir, r.o.outDir, r.o.outDir)
	}
	flags := ""
	if r.app.hub.kubeconfig != "" {
		flags = " --kubeconfig " + r.app.hub.kubeconfig
	}
	r.say("\nUse it with your own credential for the hub:\n  agent-bootstrap kubeconfig %s%s -o %s.kubeconfig\n  kubectl --kubeconfig %s.kubeconfig get namespaces", r.name, flags, r.name, r.name)
}
