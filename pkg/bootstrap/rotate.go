// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

type rotateOptions struct {
	credentialOptions
	cluster clusterOptions
	revoke  bool
	wait    time.Duration
}

func (a *app) rotateCommand() *cobra.Command {
	o := &rotateOptions{wait: 2 * time.Minute} // lifetimes of 0: those of the credentials that are replaced
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace a cluster's tokens and its agent's certificate now",
		Long: `rotate requests new tokens for the gateway from the cluster, issues a new certificate for the agent,
and restarts the agent's Pods. It waits until the gateway uses the new tokens. The Pods are replaced one
after the other, which can continue after the command has ended.

With --cluster-kubeconfig, the command does this itself. Without it, the command asks the gateway to do it,
and waits.

The previous tokens and certificate stay valid until they expire, so requests in flight do not fail. With
--revoke, the gateway refuses the agent's previous certificates as soon as there is a new one, and closes
the connections of agents that use them. If an
earlier version of this program registered the cluster, the gateway has only one ServiceAccount there.
rotate adds a second one, which the gateway uses only to renew its credentials.`,
		Example: `  agent-bootstrap rotate edge-1

  # The agent runs as a process.
  agent-bootstrap rotate edge-1 --out-dir ./edge-1-agent

  # The key of an agent was stolen.
  agent-bootstrap rotate edge-1 --revoke`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &rotateRun{app: a, o: o, name: args[0]}
			return r.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Default: ask the gateway to replace the credentials")
	fs.StringVar(&o.tunnelAddress, "tunnel-address", o.tunnelAddress, tunnelAddressHelp)
	fs.StringVar(&o.outDir, "out-dir", o.outDir, "Folder with the files of an agent that runs as a process. The command does not restart this agent: do that afterwards.")
	fs.BoolVar(&o.revoke, "revoke", o.revoke, "Revoke the previous certificates of the agent. Requests in flight fail while it connects again.")
	fs.DurationVar(&o.wait, "wait", o.wait, "How long to wait until the gateway uses the new token. 0: do not wait.")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", o.tokenLifetime, "Lifetime of the new token. The cluster can issue a token with a shorter lifetime. 0: as long as the previous one.")
	fs.DurationVar(&o.agentLifetime, "certificate-lifetime", o.agentLifetime, "Lifetime of the new certificate. 0: as long as the previous one.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, dryRunHelp)
	return cmd
}

// validate returns an error for flags that cannot be used.
func (o *rotateOptions) validate() error {
	explicit := o.credentialOptions
	if explicit.tokenLifetime == 0 {
		explicit.tokenLifetime = registration.DefaultTokenLifetime
	}
	if explicit.agentLifetime == 0 {
		explicit.agentLifetime = pki.DefaultAgentLifetime
	}
	return errors.Join(explicit.validate()...)
}

// rotateRun is one run of rotate.
type rotateRun struct {
	*app
	o    *rotateOptions
	name string

	hub, cluster *clusterClient
	// secret is the cluster's Secret.
	secret *corev1.Secret
	// address is what agents dial, certificates are for them. They are set for a tunnel only.
	address      string
	certificates *tunnelCertificates
	// token is the new token, or empty before there is one.
	token string
	// revoked is set once the previous certificates of the agent are refused.
	revoked bool
	// request is what the gateway is asked for.
	request cluster.RotationRequest
}

func (r *rotateRun) run(ctx context.Context) (err error) {
	if err := errors.Join(checkName(r.name), r.o.validate()); err != nil {
		return err
	}
	r.say("Rotating the credentials of cluster %q", r.name)
	if r.hub, r.secret, err = r.readHubSecret(ctx, r.name); err != nil {
		return err
	}
	if err := r.step(ctx, "hub", "%s (%s)", r.hub.config.Host, r.hub.version); err != nil {
		return err
	}
	if r.secret == nil || !cluster.IsCluster(r.secret) {
		return notRegistered(r.name)
	}
	if credential := r.secret.Labels[v1alpha1.LabelCredentialType]; credential != string(v1alpha1.CredentialTypeServiceAccountToken) {
		return fmt.Errorf("cluster %q has a credential of type %s, which rotate cannot replace", r.name, credential)
	}
	tunnel := r.secret.Labels[v1alpha1.LabelEndpointType] == string(v1alpha1.EndpointTypeClusterProxy)
	if r.o.revoke && !tunnel {
		return fmt.Errorf("--revoke cannot be used with cluster %q: it has no agent, because its route is direct", r.name)
	}
	steps := []func(context.Context) error{r.reachCluster, r.applyAccounts, r.rotateTokens}
	if r.o.cluster.kubeconfig == "" {
		steps = []func(context.Context) error{r.checkReachable, r.requestRotation, r.awaitTokens}
	}
	if tunnel {
		if r.o.cluster.kubeconfig == "" && r.o.outDir == "" {
			steps = append(steps, r.awaitCertificate)
		} else {
			steps = append(steps, r.readTunnel, r.rotateCertificate)
		}
	}
	steps = append(steps, r.waitUsed)
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return r.explainRevocation(err)
		}
	}
	if r.o.dryRun {
		r.say("\nNothing was changed.")
	}
	return nil
}

// explainRevocation adds to the error of --revoke how to refuse certificates without a new one.
func (r *rotateRun) explainRevocation(err error) error {
	if !r.o.revoke || r.revoked {
		return err
	}
	return fmt.Errorf("%w\nThe previous certificates of the agent are still accepted. To refuse them anyway, which disconnects the cluster until it is registered again:\n  kubectl -n %s annotate secret %s --overwrite %s=%s",
		err, r.secret.Namespace, r.name, v1alpha1.AnnotationAgentCertificatesSince, r.Now().UTC().Format(time.RFC3339))
}

// reachCluster connects to the cluster with its own kubeconfig.
func (r *rotateRun) reachCluster(ctx context.Context) (err error) {
	if r.cluster, err = r.identifyCluster(ctx, r.name, r.o.cluster); err != nil {
		return err
	}
	return checkSameCluster(r.secret, r.cluster)
}

// checkSameCluster returns an error if --cluster-kubeconfig is not that of the cluster that is
// registered.
func checkSameCluster(secret *corev1.Secret, target *clusterClient) error {
	if secret == nil {
		return nil
	}
	if uid := secret.Annotations[v1alpha1.AnnotationClusterUID]; uid != "" && uid != string(target.uid) {
		return fmt.Errorf("--cluster-kubeconfig is another cluster's: %q is %s, and this one is %s", secret.Name, uid, target.uid)
	}
	return nil
}

// applyAccounts makes sure that the cluster has both accounts of the gateway, and that the one for
// callers has no rights of the other one.
func (r *rotateRun) applyAccounts(ctx context.Context) error {
	objects, err := registration.AgentBase(registration.IsGatewayAccount)
	if err != nil {
		return err
	}
	applier := &registration.Applier{Cluster: r.cluster.dyn, DryRun: r.o.dryRun}
	result, err := applier.Apply(ctx, registration.Step{Apply: objects, Remove: registration.SharedRights()})
	if err != nil {
		return r.cluster.explain(err)
	}
	return r.step(ctx, string(registration.StepAccount), "%s", accountText(result, r.o.dryRun))
}

func (r *rotateRun) rotateTokens(ctx context.Context) error {
	if r.o.dryRun {
		return r.step(ctx, "token", "would be requested")
	}
	maintenance, err := r.cluster.requestToken(ctx, registration.MaintenanceAccount, r.tokenLifetime())
	if err != nil {
		return err
	}
	token, err := r.cluster.requestToken(ctx, registration.GatewayAccount, r.tokenLifetime())
	if err != nil {
		return err
	}
	// The gateway writes the cluster's health to the Secret, so its resource version does not
	// matter: only that it is still the same registration.
	patch, err := registration.MergePatch(&metav1.ObjectMeta{UID: r.secret.UID}, map[string]any{
		"data": map[string][]byte{v1alpha1.SecretKeyToken: []byte(token), v1alpha1.SecretKeyMaintenanceToken: []byte(maintenance)},
	})
	if err != nil {
		return err
	}
	if _, err = r.patchSecret(ctx, patch); err != nil {
		return err
	}
	r.token = token
	return r.step(ctx, "token", "new, until %s", day(registration.ParseToken(token).Expires))
}

// tokenLifetime returns the lifetime of the new token.
func (r *rotateRun) tokenLifetime() time.Duration {
	if r.o.tokenLifetime != 0 {
		return r.o.tokenLifetime
	}
	claims := registration.ParseToken(string(r.secret.Data[v1alpha1.SecretKeyToken]))
	if claims.Expires.IsZero() {
		return registration.DefaultTokenLifetime
	}
	return max(claims.Expires.Sub(claims.IssuedAt), registration.MinTokenLifetime)
}

func (r *rotateRun) readTunnel(ctx context.Context) (err error) {
	if r.address, r.certificates, err = r.hub.readTunnel(ctx, r.secret.Namespace, r.o.tunnelAddress); err != nil {
		return err
	}
	return r.step(ctx, "tunnel", "agents connect to %s", r.address)
}

func (r *rotateRun) rotateCertificate(ctx context.Context) error {
	if r.o.outDir == "" {
		_, err := r.cluster.kube.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return errors.New("the token was replaced, but the agent's certificate was not: no agent runs in the cluster as Pods. If the agent runs as a process, set --out-dir")
		}
		if err != nil {
			return r.cluster.explain(err)
		}
	}
	lifetime, err := r.certificateLifetime(ctx)
	if err != nil {
		return err
	}
	if r.o.dryRun {
		return r.step(ctx, "certificate", "would be issued, and the agent restarted")
	}
	if r.o.revoke {
		if err := registration.AwaitNextSecond(ctx); err != nil {
			return err
		}
	}
	pair, issued, err := r.certificates.forAgent(ctx, r.name, lifetime, r.Now())
	if err != nil {
		return err
	}
	if err := r.step(ctx, "certificate", "issued for %q, until %s", r.name, day(issued.NotAfter)); err != nil {
		return err
	}
	secrets := r.hub.kube.CoreV1().Secrets(r.secret.Namespace)
	if err := registration.AcceptAgentCertificate(ctx, secrets, r.name, r.secret.UID, issued); err != nil {
		return r.hub.explain(err)
	}
	if err := r.deliver(ctx, pair); err != nil {
		return err
	}
	if !r.o.revoke {
		return nil
	}
	if err := registration.RevokeAgentCertificates(ctx, secrets, r.name, r.secret.UID, issued); err != nil {
		return r.hub.explain(err)
	}
	r.revoked = true
	return r.step(ctx, "revoke", "%s", revokedText)
}

// revokedText reports that certificates were revoked.
const revokedText = "the previous certificates of the agent are refused"

// deliver gives the agent its new certificate.
func (r *rotateRun) deliver(ctx context.Context, pair registration.AgentPair) error {
	if r.o.outDir != "" {
		dir, err := filepath.Abs(r.o.outDir)
		if err != nil {
			return err
		}
		if _, err := writeAgentDir(dir, r.name, r.address, pair); err != nil {
			return err
		}
		return r.step(ctx, "agent", "files written to %s: restart the agent", dir)
	}
	if err := registration.DeliverAgentCertificate(ctx, r.cluster.kube, nil, pair); err != nil {
		return r.cluster.explain(err)
	}
	return r.step(ctx, "agent", "the Pods of Deployment %s/%s are restarting", registration.AgentNamespace, registration.AgentName)
}

// certificateLifetime returns the lifetime of the new certificate. 0 means the default: there is no
// previous certificate that can be read, or its lifetime was cut short by its CA.
func (r *rotateRun) certificateLifetime(ctx context.Context) (time.Duration, error) {
	if r.o.agentLifetime != 0 {
		return r.o.agentLifetime, nil
	}
	var pair *registration.AgentPair
	var err error
	if r.o.outDir != "" {
		pair, err = readAgentDir(r.o.outDir)
	} else {
		pair, err = readAgentSecret(ctx, r.cluster)
	}
	if err != nil || pair == nil {
		return 0, err
	}
	chain, err := pki.ParseCertificates(pair.Certificate)
	if err != nil {
		return 0, nil //nolint:nilerr // it is replaced, whatever it is
	}
	cas, err := pki.ParseCertificates(r.certificates.bundle)
	if err != nil {
		return 0, fmt.Errorf("the tunnel's CA bundle on the hub cannot be read: %w", err)
	}
	lifetime, _ := registration.CertificateLifetime(chain[0], cas)
	return lifetime, nil
}

// waitUsed waits until the cluster answers, and knows the gateway by the new token.
func (r *rotateRun) waitUsed(ctx context.Context) error {
	if r.o.dryRun || r.o.wait == 0 {
		return nil
	}
	w := &waiter{
		app: r.app, hub: r.hub, name: r.name, token: r.token, timeout: r.o.wait,
		done: "the credentials were replaced", missing: "the cluster did not answer with the new token", clusterKubeconfig: r.o.cluster.kubeconfig,
	}
	return w.run(ctx)
}
