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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

func (a *app) rotateCommand() *cobra.Command {
	o := &registerOptions{wait: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace a cluster's token and its agent's certificate now",
		Long: `rotate requests a new token for the gateway from the cluster, issues a new certificate for the agent,
and restarts the agent's Pods. It reaches the cluster through the gateway, or with --cluster-kubeconfig.
It waits until the gateway uses the new token. The Pods are replaced one after the other, which can
continue after the command has ended.

The previous token and certificate stay valid until they expire, so requests in flight do not fail.`,
		Example: `  agent-bootstrap rotate edge-1

  # The agent runs as a process.
  agent-bootstrap rotate edge-1 --out-dir ./edge-1-agent`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &renewal{registerRun: registerRun{app: a, o: o, name: args[0]}}
			return r.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Default: reach the cluster through the gateway")
	fs.StringVar(&o.tunnelAddress, "tunnel-address", o.tunnelAddress, "host:port of the tunnel server, which agents dial. Default: the address that the gateway publishes on the hub.")
	fs.StringVar(&o.outDir, "out-dir", o.outDir, "Folder with the files of an agent that runs as a process. Restart the agent afterwards.")
	fs.DurationVar(&o.wait, "wait", o.wait, "How long to wait until the gateway uses the new token. 0: do not wait.")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", o.tokenLifetime, "Lifetime of the new token. The cluster may shorten it. 0: as long as the previous one.")
	fs.DurationVar(&o.agentLifetime, "certificate-lifetime", o.agentLifetime, "Lifetime of the new certificate. 0: as long as the previous one.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Change nothing, and print what the command would do.")
	return cmd
}

// renewal is one run of rotate.
type renewal struct {
	registerRun
	// used is the token that the gateway is to use from now on; "" before there is one.
	used string
}

func (r *renewal) run(ctx context.Context) (err error) {
	if err := errors.Join(checkName(r.name), r.validate()); err != nil {
		return err
	}
	r.say("Rotating the credentials of cluster %q", r.name)
	if err := r.checkHub(ctx); err != nil {
		return err
	}
	if r.registered == nil || !cluster.IsCluster(r.registered) {
		return fmt.Errorf("cluster %q is not registered: agent-bootstrap list shows what is", r.name)
	}
	if kind := r.registered.Labels[v1alpha1.LabelCredentialType]; kind != string(v1alpha1.CredentialTypeServiceAccountToken) {
		return fmt.Errorf("cluster %q has a credential of type %s, which this command cannot renew", r.name, kind)
	}
	if err := r.reachCluster(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{r.rotateToken}
	if r.registered.Labels[v1alpha1.LabelEndpointType] == string(v1alpha1.EndpointTypeClusterProxy) {
		steps = append(steps, r.findTunnel, r.rotateCertificate)
	}
	if !r.o.dryRun && r.o.wait > 0 {
		steps = append(steps, r.waitUsed)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if r.o.dryRun {
		r.say("\nNothing was changed.")
	}
	return nil
}

func (r *renewal) validate() error {
	var errs []error
	if r.o.tunnelAddress != "" {
		if err := cluster.CheckAddress(r.o.tunnelAddress); err != nil {
			errs = append(errs, fmt.Errorf("--tunnel-address %q: %w", r.o.tunnelAddress, err))
		}
	}
	if r.o.tokenLifetime != 0 && r.o.tokenLifetime < registration.MinTokenLifetime {
		errs = append(errs, fmt.Errorf("--token-lifetime must be at least %s, which is what Kubernetes gives out, and is %s", registration.MinTokenLifetime, r.o.tokenLifetime))
	}
	if r.o.agentLifetime < 0 {
		errs = append(errs, errors.New("--certificate-lifetime must not be negative"))
	}
	return errors.Join(errs...)
}

func (r *renewal) reachCluster(ctx context.Context) (err error) {
	if r.o.cluster.kubeconfig != "" {
		if r.cluster, err = r.identifyCluster(ctx, r.name, r.o.cluster); err != nil {
			return err
		}
		if uid, known := r.registered.Annotations[v1alpha1.AnnotationClusterUID]; known && uid != string(r.cluster.uid) {
			return fmt.Errorf("--cluster-kubeconfig is another cluster's: %q is %s, and this one is %s", r.name, uid, r.cluster.uid)
		}
		return nil
	}
	if _, err := r.hub.reach(ctx, r.name); err != nil {
		return fmt.Errorf("the cluster cannot be reached through the gateway: %w\nGive --cluster-kubeconfig, or find out why: agent-bootstrap doctor %s", err, r.name)
	}
	r.cluster, err = throughGateway(r.hub, r.name)
	return err
}

func (r *renewal) rotateToken(ctx context.Context) error {
	if r.o.dryRun {
		return r.step(ctx, "token", "would be replaced")
	}
	token, err := requestToken(ctx, r.cluster, r.tokenLifetime())
	if err != nil {
		return err
	}
	if err := r.storeToken(ctx, token); err != nil {
		return err
	}
	r.used = token
	return r.step(ctx, "token", "replaced, valid until %s", day(registration.ParseToken(token).Expires))
}

func (r *renewal) storeToken(ctx context.Context, token string) error {
	// The gateway writes the cluster's health to the Secret, so its resource version does not matter: only
	// that it is still the same registration.
	read := &metav1.ObjectMeta{UID: r.registered.UID}
	patch, err := registration.MergePatch(read, map[string]any{"data": map[string][]byte{v1alpha1.SecretKeyToken: []byte(token)}})
	if err != nil {
		return err
	}
	_, err = r.hub.kube.CoreV1().Secrets(r.registered.Namespace).Patch(ctx, r.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.FieldManager})
	return r.hub.explain(err)
}

func (r *renewal) rotateCertificate(ctx context.Context) error {
	if r.o.outDir == "" {
		_, err := r.cluster.kube.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the token is new, the agent's certificate is not: no agent runs in the cluster as Pods. If it runs as a process, give --out-dir")
		}
		if err != nil {
			return r.cluster.explain(err)
		}
	}
	if r.o.agentLifetime == 0 {
		var err error
		if r.o.agentLifetime, err = r.certificateLifetime(ctx); err != nil {
			return err
		}
	}
	if r.o.dryRun {
		return r.step(ctx, "certificate", "would be replaced, and the agent would be restarted")
	}
	pair, text, err := r.issue()
	if err != nil {
		return err
	}
	if err := r.step(ctx, "certificate", "%s", text); err != nil {
		return err
	}
	if r.o.outDir != "" {
		dir, err := filepath.Abs(r.o.outDir)
		if err != nil {
			return err
		}
		if _, err := writeAgentDir(dir, r.name, r.tunnel.address, pair); err != nil {
			return err
		}
		return r.step(ctx, "agent", "files written to %s: restart the agent", dir)
	}
	if err := registration.DeliverAgentCertificate(ctx, r.cluster.kube, nil, pair); err != nil {
		return r.cluster.explain(err)
	}
	return r.step(ctx, "agent", "Deployment %s/%s is being restarted", registration.AgentNamespace, registration.AgentName)
}

// tokenLifetime is what the flag says, or that of the token which is replaced.
func (r *renewal) tokenLifetime() time.Duration {
	if r.o.tokenLifetime != 0 {
		return r.o.tokenLifetime
	}
	claims := registration.ParseToken(string(r.registered.Data[v1alpha1.SecretKeyToken]))
	if claims.Expires.IsZero() {
		return registration.DefaultTokenLifetime
	}
	return max(claims.Expires.Sub(claims.IssuedAt), registration.MinTokenLifetime)
}

// certificateLifetime is that of the agent's certificate which is replaced, but for one that was cut short by the end of its CA. 0: there is none that
// can be read.
func (r *renewal) certificateLifetime(ctx context.Context) (time.Duration, error) {
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
	lifetime, _ := registration.CertificateLifetime(chain[0], r.authority)
	return lifetime, nil
}

// waitUsed waits until the cluster answers, and knows the gateway by the new token.
func (r *renewal) waitUsed(ctx context.Context) error {
	target, err := throughGateway(r.hub, r.name)
	if err != nil {
		return err
	}
	id := registration.ParseToken(r.used).ID
	return r.waitReachable(ctx, "the credentials are new", "the cluster was not reached with them", func(ctx context.Context) (string, error) {
		version, err := r.hub.reach(ctx, r.name)
		if err != nil {
			return "", err
		}
		// Who may not ask, or whose cluster does not say it, has to do with an answer.
		if current := target.credentialID(ctx); id != "" && current != "" && current != "JTI="+id {
			return "", errors.New("the gateway still uses the token of before")
		}
		return version, nil
	})
}
