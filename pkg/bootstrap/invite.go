// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Bounds of --ttl: an invitation has to be carried to the cluster, but should not lie around for
// long.
const (
	minTTL = time.Minute
	maxTTL = 30 * 24 * time.Hour
)

type inviteOptions struct {
	credentialOptions
	identityOptions
	endpoint    string
	agentValues agentValuesFlag
	ttl         time.Duration
	revoke      bool
	many        manyOptions
}

func (a *app) inviteCommand() *cobra.Command {
	o := &inviteOptions{credentialOptions: newCredentialOptions(), identityOptions: identityOptions{forInvitation: true}, ttl: 24 * time.Hour}
	cmd := &cobra.Command{
		Use:   "invite NAME [flags] > invite.yaml",
		Short: "Create a file that registers the cluster to which it is applied",
		Long: `invite creates an invitation for a cluster whose kubeconfig you do not have. It prints a file. Have
someone with the cluster's kubeconfig run "kubectl apply -f" with it. The cluster then registers itself
as NAME through the gateway's tunnel port, with the rights of --access. It does not need
access to the hub's API server.

The file contains a private key: keep it secret. Anyone who has it can register one cluster as NAME,
until --ttl has passed or you revoke the invitation. A new invitation for NAME revokes the previous one.

With --out-dir, the agent runs as a process, and the gateway cannot renew its certificate. The agent uses
the certificate of the invitation until --certificate-lifetime has passed, you revoke the invitation, or
you remove the cluster. "rotate NAME --out-dir" replaces it with a certificate of an agent.

With --from, invite creates an invitation for each name in a file and writes the files to apply into
--invitations-dir. It prints a line for each name. The exit code is 1 if one of them failed, and 2 if none
was tried, because of the file or a flag. Lines that begin with # are comments.`,
		Example: `  agent-bootstrap invite edge-1 > invite.yaml

  # Someone with the cluster's kubeconfig applies the file:
  kubectl apply -f invite.yaml

  # The agent runs as a process beside the API server, not in Pods.
  agent-bootstrap invite edge-1 --out-dir ./edge-1-agent --endpoint https://10.0.7.2:6443 > invite.yaml

  # See whether the cluster has been registered.
  agent-bootstrap status edge-1

  # Invite the clusters whose names are in a file, one on each line.
  agent-bootstrap invite --from names.txt --invitations-dir ./invitations

  # Revoke the invitation.
  agent-bootstrap invite edge-1 --revoke`,
		Args: inviteArgs(o),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.many.from != "" {
				return a.inviteMany(cmd.Context(), o)
			}
			if o.many.dir != "" {
				return errors.New("--invitations-dir requires --from")
			}
			r := &inviteRun{app: a, o: o, name: args[0]}
			return r.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	fs.DurationVar(&o.ttl, "ttl", o.ttl, "How long a cluster can be registered with the invitation, from 1m to 720h.")
	fs.BoolVar(&o.revoke, "revoke", o.revoke, "Revoke the invitation for NAME. A cluster that was registered with it stays registered.")
	fs.StringVar(&o.many.from, "from", o.many.from, "File with the names of clusters to invite, one on each line.")
	fs.StringVar(&o.many.dir, "invitations-dir", o.many.dir, "With --from: folder for the files to apply, NAME.yaml. It must exist. The files are secret.")
	o.identityOptions.addFlags(fs)
	o.credentialOptions.addFlags(fs, "Folder for the files of an agent that runs as a process. Requires --endpoint. The file to apply then contains no agent.")
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint, "With --out-dir: URL of the cluster's API server, as the agent reaches it.")
	o.agentValues.addFlag(fs, "They also apply to the Job that registers the cluster.")
	a.addOutput(fs, "the file")
	return cmd
}

func (o *inviteOptions) validate(name string) error {
	errs := append(o.credentialOptions.validate(), validateAccess(o.access, o.endpoint)...)
	errs = append(errs, registration.ValidateInvitationName(name), o.identityOptions.validate())
	if o.ttl < minTTL || o.ttl > maxTTL {
		errs = append(errs, fmt.Errorf("invalid --ttl %q: must be between %s and %s", o.ttl, minTTL, maxTTL))
	}
	errs = append(errs, o.agentValues.validate(o.outDir == ""))
	switch {
	case o.outDir == "" && o.endpoint != "":
		errs = append(errs, errors.New("--endpoint requires --out-dir: an agent in a Pod reaches its API server at "+registration.DefaultTunnelEndpoint))
	case o.outDir != "" && o.endpoint == "":
		errs = append(errs, errors.New("--out-dir requires --endpoint, the https URL of the cluster's API server as the agent sees it"))
	}
	return errors.Join(errs...)
}

// inviteRun is one run of invite.
type inviteRun struct {
	*app
	o    *inviteOptions
	name string

	hub          *clusterClient
	certificates *tunnelCertificates
	state        registration.HubState
}

func (r *inviteRun) run(ctx context.Context) error {
	values, err := r.o.agentValues.read()
	if err := errors.Join(r.o.validate(r.name), r.checkOutput(), err); err != nil {
		return err
	}
	if r.o.revoke {
		return r.revoke(ctx)
	}
	r.say("Inviting a cluster to register as %q", r.name)
	if err := r.read(ctx); err != nil {
		return err
	}
	objects, err := r.invite(ctx, ptr.Deref(values, registration.AgentValues{}))
	if err != nil {
		return err
	}
	if err := r.printFile(objects); err != nil {
		return err
	}
	switch {
	case r.o.dryRun:
		r.say("\nNothing was changed. The file that was printed cannot be used.")
	case r.o.outDir != "":
		r.printNextForProcess()
	default:
		r.say(`
The file holds a key: keep it secret. Have somebody with the cluster's kubeconfig apply it:
  kubectl apply -f invite.yaml
The cluster is registered some seconds later. To see its state, or why it was refused:
  agent-bootstrap status %s`, r.name)
	}
	return nil
}

func (r *inviteRun) read(ctx context.Context) (err error) {
	if r.hub, r.state.Secret, err = r.readHubSecret(ctx, r.name); err != nil {
		return err
	}
	if err := r.step(ctx, "hub", "%s (%s)", r.hub.config.Host, r.hub.version); err != nil {
		return err
	}
	if err := r.hub.identify(ctx); err != nil {
		return err
	}
	r.state.UID, r.state.Namespace = r.hub.uid, r.app.hub.namespace
	if err := registration.CheckInvitedName(r.name, r.state.Secret); err != nil {
		return err
	}
	previous, err := r.hub.readInvitation(ctx, r.state.Namespace, r.name)
	if err != nil {
		return err
	}
	if previous != nil {
		verb := "is"
		if r.o.dryRun {
			verb = "would be"
		}
		r.say("  %-12s the previous invitation %s revoked", "invitation", verb)
	}
	if r.state.TunnelAddress, r.certificates, err = r.hub.readTunnel(ctx, r.state.Namespace, r.o.tunnelAddress); err != nil {
		return err
	}
	r.state.TunnelCA = r.certificates.bundle
	return r.step(ctx, "tunnel", "agents connect to %s", r.state.TunnelAddress)
}

// invite creates the invitation, and returns the objects for the cluster.
func (r *inviteRun) invite(ctx context.Context, values registration.AgentValues) ([]*unstructured.Unstructured, error) {
	given, err := r.o.into(registration.Spec{}).WithIdentity(nil)
	if err != nil {
		return nil, err
	}
	r.reportIdentity(&r.o.identityOptions, given)
	spec := registration.InvitationSpec{
		Name: r.name, Access: given.Access, Impersonation: given.Impersonation, Process: r.o.outDir != "", Endpoint: r.o.endpoint, TTL: r.o.ttl,
		TokenLifetime: r.o.tokenLifetime, CertificateLifetime: r.o.agentLifetime, AgentValues: values, Now: r.Now(),
	}
	if err := r.hub.requireRights(ctx, r.certificates.rights(r.name)); err != nil {
		return nil, err
	}
	pair, err := r.certificates.forInvitation(ctx, r.name, spec.CertificateTTL())
	if err != nil {
		return nil, err
	}
	plan, err := registration.NewInvitationPlan(spec, r.state, pair)
	if err != nil {
		return nil, err
	}
	rights, err := plan.Rights()
	if err != nil {
		return nil, err
	}
	if err := r.hub.requireRights(ctx, rights.Hub); err != nil {
		return nil, err
	}
	applier := &registration.Applier{Cluster: r.hub.dyn, DryRun: r.o.dryRun}
	for _, step := range plan.Steps {
		result, err := applier.Apply(ctx, step)
		if err != nil {
			return nil, r.hub.explain(err)
		}
		if spec.Process && !r.o.dryRun {
			if err := r.writeFiles(pair); err != nil {
				return nil, err
			}
		}
		err = r.step(ctx, string(step.Name), "Secret %s/%s on the hub: %s; valid for one cluster, until %s", r.state.Namespace,
			registration.InvitationSecret(r.name), outcomeText(result.Outcomes, r.o.dryRun), day(plan.Invitation.Expires))
		if err != nil {
			return nil, err
		}
	}
	return plan.HandOver, nil
}

// Further files of an agent that enrolls its cluster. Their content comes from the cluster; the
// user of invite is told how to write them.
const (
	fileToken = "token"
	fileChain = "chain.crt"
)

// writeFiles writes the agent's files. The agent presents the cluster's CA along with its
// certificate, and a token: both are given to it in the cluster.
func (r *inviteRun) writeFiles(pair registration.AgentPair) error {
	dir, err := filepath.Abs(r.o.outDir)
	if err != nil {
		return err
	}
	args, err := registration.AgentArgs(r.state.TunnelAddress, dir)
	if err != nil {
		return err
	}
	for n, arg := range args {
		if strings.HasPrefix(arg, "--agent-cert=") {
			args[n] = "--agent-cert=" + filepath.Join(dir, fileChain)
		}
	}
	_, err = writeFiles(dir, r.name, append(args, "--service-account-token-path="+filepath.Join(dir, fileToken)), pair)
	return err
}

func (r *inviteRun) printNextForProcess() {
	dir := r.o.outDir
	r.say(`
The folder %s holds a key: keep it secret. Have somebody with the cluster's kubeconfig run:
  kubectl apply -f invite.yaml
  printf %%s "$(kubectl -n %s create token %s --duration 1h)" > %s/%s
  { cat %s/%s; kubectl -n %s get configmap kube-root-ca.crt -o jsonpath='{.data.ca\.crt}'; } > %s/%s
Then run the agent, where it can reach %s:
  proxy-agent $(cat %s/%s)
or install the systemd unit %s/%s. If the agent runs on another machine, copy the folder there, to the same path. To see the state:
  agent-bootstrap status %s`, dir, registration.AgentNamespace, registration.MaintenanceAccount, dir, fileToken, dir, fileCert, registration.AgentNamespace, dir, fileChain,
		r.o.endpoint, dir, fileFlags, dir, fileUnit, r.name)
}

// printFile prints the objects to apply: YAML documents or, in JSON, the list that kubectl needs.
func (r *inviteRun) printFile(objects []*unstructured.Unstructured) error {
	var documents []any
	for _, o := range objects {
		if r.o.dryRun {
			o = registration.Redacted(o)
		}
		documents = append(documents, o.Object)
	}
	if r.output == "json" {
		return r.print(map[string]any{"apiVersion": "v1", "kind": "List", "items": documents})
	}
	return r.print(documents...)
}

func (r *inviteRun) revoke(ctx context.Context) (err error) {
	if r.hub, err = r.connectHub(ctx); err != nil {
		return err
	}
	removed, err := r.hub.deleteInvitation(ctx, r.app.hub.namespace, r.name, r.o.dryRun)
	if err != nil {
		return err
	}
	text := "revoked: it cannot be used any more"
	switch {
	case removed == nil:
		text = "there is none"
	case r.o.dryRun:
		text = "would be revoked"
	case removed.State == registration.InvitationDone && removed.Process:
		text = "revoked. The agent that uses its certificate is disconnected; the cluster remains registered. For another certificate: agent-bootstrap rotate " + r.name +
			" --cluster-kubeconfig FILE --out-dir DIR"
	case removed.State == registration.InvitationDone:
		text = "revoked. It has been used, and its cluster remains registered. To remove the cluster: agent-bootstrap unregister " + r.name
	}
	return r.step(ctx, "invitation", "%s", text)
}
