// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Bounds of --ttl: it has to be carried to the cluster, and should not lie about for long.
const (
	minTTL = time.Minute
	maxTTL = 30 * 24 * time.Hour
)

type inviteOptions struct {
	ttl    time.Duration
	revoke bool
}

func (a *app) inviteCommand() *cobra.Command {
	o := &registerOptions{route: routeTunnel, access: registration.AccessAdmin, tokenLifetime: registration.DefaultTokenLifetime, agentLifetime: pki.DefaultAgentLifetime}
	own := inviteOptions{ttl: 24 * time.Hour}
	cmd := &cobra.Command{
		Use:   "invite NAME [flags] > invite.yaml",
		Short: "Create a file that registers the cluster to which it is applied",
		Long: `invite creates an invitation for a cluster whose kubeconfig you do not have. It prints a file. Have
someone with the cluster's kubeconfig run "kubectl apply -f" with it. The cluster then registers itself
as NAME through the gateway's tunnel port, with the rights of --access. It does not have to reach the
hub's API server.

The file contains a private key: keep it secret. Everybody who has it can register one cluster as NAME,
until --ttl has passed or you revoke the invitation. A new invitation for NAME revokes the previous one.

With --out-dir, the agent runs as a process. The gateway cannot give it another certificate, so it uses
the invitation as its certificate for --certificate-lifetime, or until you revoke the invitation or
remove the cluster. "rotate NAME --out-dir" replaces it with an agent's certificate.`,
		Example: `  agent-bootstrap invite edge-1 > invite.yaml

  # Someone with the cluster's kubeconfig applies the file:
  kubectl apply -f invite.yaml

  # The agent runs as a process beside the API server, not in Pods.
  agent-bootstrap invite edge-1 --out-dir ./edge-1-agent --endpoint https://10.0.7.2:6443 > invite.yaml

  # See whether the cluster has been registered.
  agent-bootstrap status edge-1

  # Revoke the invitation.
  agent-bootstrap invite edge-1 --revoke`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			i := &invitation{registerRun: registerRun{app: a, o: o, name: args[0]}, own: own}
			return i.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	fs.DurationVar(&own.ttl, "ttl", own.ttl, "How long a cluster can be registered with the invitation, from 1m to 720h.")
	fs.BoolVar(&own.revoke, "revoke", own.revoke, "Revoke the invitation for NAME. A cluster that was registered with it stays registered.")
	fs.StringVar(&o.access, "access", o.access, accessHelp)
	fs.StringVar(&o.tunnelAddress, "tunnel-address", o.tunnelAddress, "host:port of the tunnel server, which agents dial. Default: the address that the gateway publishes on the hub.")
	fs.StringVar(&o.outDir, "out-dir", o.outDir, "Folder for the files of an agent that runs as a process. Requires --endpoint. The file to apply then contains no agent.")
	fs.StringVar(&o.endpoint, "endpoint", o.endpoint, "With --out-dir: URL of the cluster's API server, as the agent reaches it.")
	fs.DurationVar(&o.tokenLifetime, "token-lifetime", o.tokenLifetime, "Lifetime of the gateway's token. The cluster may shorten it.")
	fs.DurationVar(&o.agentLifetime, "certificate-lifetime", o.agentLifetime, "Lifetime of the agent's certificate.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Change nothing, and write the file without its secret parts.")
	a.addOutput(fs, "the file")
	return cmd
}

// invitation is one run of invite.
type invitation struct {
	registerRun
	own inviteOptions
}

func (i *invitation) validate() error {
	// It is not asked for here.
	o := *i.o
	o.cluster.kubeconfig = "-"
	errs := []error{o.validate(i.name), i.checkOutput()}
	if registration.ValidateName(i.name) == nil {
		errs = append(errs, registration.ValidateInvitationName(i.name))
	}
	if i.own.ttl < minTTL || i.own.ttl > maxTTL {
		errs = append(errs, fmt.Errorf("--ttl must be between %s and %s, and is %s", minTTL, maxTTL, i.own.ttl))
	}
	switch {
	case i.o.outDir == "" && i.o.endpoint != "":
		errs = append(errs, errors.New("--endpoint is for --out-dir: an agent in a Pod knows its API server as "+registration.DefaultTunnelEndpoint))
	case i.o.outDir != "" && i.o.endpoint == "":
		errs = append(errs, errors.New("--out-dir needs --endpoint, the https URL of the cluster's API server as the agent sees it"))
	}
	return errors.Join(errs...)
}

func (i *invitation) run(ctx context.Context) error {
	if err := i.validate(); err != nil {
		return err
	}
	if i.own.revoke {
		return i.revoke(ctx)
	}
	i.say("Inviting a cluster to be %q", i.name)
	if err := i.checkHub(ctx); err != nil {
		return err
	}
	if err := i.hub.identify(ctx); err != nil {
		return err
	}
	if err := i.checkFree(ctx); err != nil {
		return err
	}
	if err := i.findTunnel(ctx); err != nil {
		return err
	}
	all, err := i.invite(ctx)
	if err != nil {
		return err
	}
	if err := i.write(all); err != nil {
		return err
	}
	if i.o.dryRun {
		i.say("\nNothing was changed. The printed file does not work.")
		return nil
	}
	if i.o.outDir != "" {
		i.sayProcess()
		return nil
	}
	i.say(`
The file contains a private key: keep it secret. Have someone with the cluster's kubeconfig apply it:
  kubectl apply -f invite.yaml
The cluster is registered within seconds. To see the result:
  agent-bootstrap status %s`, i.name)
	return nil
}

// checkFree refuses a name that is taken, and finds out whether the caller may invite.
func (i *invitation) checkFree(ctx context.Context) error {
	if i.registered != nil {
		return fmt.Errorf("the name %q is taken: there is a Secret %s/%s on the hub already. Choose another name, or, if it is registered, remove it first: agent-bootstrap unregister %s",
			i.name, i.registered.Namespace, i.name, i.name)
	}
	record, err := i.hub.readInvitation(ctx, i.app.hub.namespace, i.name)
	if err != nil {
		return err
	}
	if record != nil {
		verb := "is"
		if i.o.dryRun {
			verb = "would be"
		}
		i.say("  %-12s the previous one %s revoked", "invitation", verb)
	}
	var rights []authorizationv1.ResourceAttributes
	for _, verb := range []string{"create", "patch"} {
		rights = append(rights, authorizationv1.ResourceAttributes{Verb: verb, Resource: "secrets", Namespace: i.app.hub.namespace})
	}
	return i.hub.requireRights(ctx, rights)
}

// invite makes the invitation, and returns what is to be applied to the cluster.
func (i *invitation) invite(ctx context.Context) ([]*unstructured.Unstructured, error) {
	lifetime, process := i.own.ttl, i.o.outDir != ""
	if process {
		lifetime = i.o.agentLifetime // it goes on being the agent's certificate
	}
	cert, key, err := i.authority.IssueInvitation(i.name, lifetime)
	if err != nil {
		return nil, fmt.Errorf("issuing the invitation's certificate: %w", err)
	}
	chain, err := pki.ParseCertificates(cert)
	if err != nil {
		return nil, err
	}
	record := &registration.Invitation{
		Name: i.name, Fingerprint: registration.Fingerprint(chain[0].Raw), Chain: len(chain), Expires: i.Now().Add(i.own.ttl), Address: i.tunnel.address, HubUID: i.hub.uid,
		Endpoint: cmp.Or(i.o.endpoint, registration.DefaultTunnelEndpoint), Process: process,
		Access: i.o.access, TokenLifetime: i.o.tokenLifetime, CertificateLifetime: i.o.agentLifetime, State: registration.InvitationOpen,
	}
	pair := registration.AgentPair{Certificate: cert, Key: key, CA: i.tunnel.bundle}
	all, err := record.Objects(pair, i.own.ttl)
	if err != nil {
		return nil, err
	}
	o, err := registration.ToUnstructured(record.Secret(i.app.hub.namespace))
	if err != nil {
		return nil, err
	}
	result, _, err := i.hub.apply(ctx, o, i.o.dryRun)
	if err != nil {
		return nil, fmt.Errorf("writing the invitation's record: %w", err)
	}
	if process && !i.o.dryRun {
		if err := i.writeFiles(pair); err != nil {
			return nil, err
		}
	}
	return all, i.step(ctx, "invitation", "Secret %s/%s on the hub: %s. It is valid for one cluster, until %s", o.GetNamespace(), o.GetName(),
		summary(map[registration.Outcome]int{result: 1}, i.o.dryRun), day(record.Expires))
}

// Further files of an agent that is to enrol its cluster: what makes them is said to who runs invite.
const (
	fileToken = "token"
	fileChain = "chain.crt"
)

// writeFiles writes the agent's. It shows the cluster's CA along with its certificate, and has a token: both it is given in the cluster.
func (i *invitation) writeFiles(pair registration.AgentPair) error {
	dir, err := filepath.Abs(i.o.outDir)
	if err != nil {
		return err
	}
	args, err := registration.AgentArgs(i.tunnel.address, dir)
	if err != nil {
		return err
	}
	for n, arg := range args {
		if strings.HasPrefix(arg, "--agent-cert=") {
			args[n] = "--agent-cert=" + filepath.Join(dir, fileChain)
		}
	}
	_, err = writeAgentFiles(dir, i.name, append(args, "--service-account-token-path="+filepath.Join(dir, fileToken)), pair)
	return err
}

func (i *invitation) sayProcess() {
	dir := i.o.outDir
	i.say(`
%s contains a private key: keep it secret. Have someone with the cluster's kubeconfig run:
  kubectl apply -f invite.yaml
  printf %%s "$(kubectl -n %s create token %s --duration 1h)" > %s/%s
  { cat %s/%s; kubectl -n %s get configmap kube-root-ca.crt -o jsonpath='{.data.ca\.crt}'; } > %s/%s
Then start the agent on a machine that can reach %s:
  proxy-agent $(cat %s/%s)
or install %s/%s. The files contain the path of this folder: keep them there, or change it. To see the result:
  agent-bootstrap status %s`, dir, registration.AgentNamespace, registration.GatewayAccount, dir, fileToken, dir, fileCert, registration.AgentNamespace, dir, fileChain,
		i.o.endpoint, dir, fileFlags, dir, fileUnit, i.name)
}

// write writes what is to be applied: documents of YAML, or a list in JSON, which kubectl wants in one piece.
func (i *invitation) write(all []*unstructured.Unstructured) error {
	var documents []any
	for _, o := range all {
		if i.o.dryRun {
			o = registration.Redacted(o)
		}
		documents = append(documents, o.Object)
	}
	if i.output == "json" {
		return i.print(map[string]any{"apiVersion": "v1", "kind": "List", "items": documents})
	}
	return i.print(documents...)
}

func (i *invitation) revoke(ctx context.Context) (err error) {
	if i.hub, err = i.connectHub(ctx); err != nil {
		return err
	}
	removed, err := i.hub.deleteInvitation(ctx, i.app.hub.namespace, i.name, i.o.dryRun)
	if err != nil {
		return err
	}
	text := "revoked: it can no longer be used"
	switch {
	case removed == nil:
		text = "there is none"
	case i.o.dryRun:
		text = "would be revoked"
	case removed.State == registration.InvitationDone && removed.Process:
		text = "revoked; an agent that has it for a certificate is let go, and its cluster stays registered: agent-bootstrap rotate " + i.name +
			" --cluster-kubeconfig FILE --out-dir DIR gives it another"
	case removed.State == registration.InvitationDone:
		text = "revoked. It was used, and its cluster stays registered. To remove the cluster: agent-bootstrap unregister " + i.name
	}
	return i.step(ctx, "invitation", "%s", text)
}

// readInvitation reads the record of an invitation; nil if there is none.
func (s *clusterClient) readInvitation(ctx context.Context, namespace, name string) (*registration.Invitation, error) {
	secret, err := s.invitationSecret(ctx, namespace, name)
	if err != nil || secret == nil {
		return nil, err
	}
	return invitationOf(secret, name), nil
}

// invitationSecret is what the record is kept in; nil if there is none.
func (s *clusterClient) invitationSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	secret, err := s.kube.CoreV1().Secrets(namespace).Get(ctx, registration.InvitationSecret(name), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, s.explain(err)
	case secret.Labels[v1alpha1.LabelInvitation] != name:
		return nil, fmt.Errorf("the Secret %s/%s on the hub is in the way: it is no invitation", namespace, secret.Name)
	}
	return secret, nil
}

func invitationOf(secret *corev1.Secret, name string) *registration.Invitation {
	record, err := registration.ReadInvitation(secret)
	if err != nil { // somebody changed it: it cannot be used, and can be replaced
		return &registration.Invitation{Name: name}
	}
	return record
}

// deleteInvitation removes the record of an invitation, and returns what it was; nil if there was none. A cluster that was being registered with it is not
// any more: the gateway goes by the record until that says that it is done.
func (s *clusterClient) deleteInvitation(ctx context.Context, namespace, name string, dryRun bool) (*registration.Invitation, error) {
	var options metav1.DeleteOptions
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	secrets := s.kube.CoreV1().Secrets(namespace)
	for {
		secret, err := s.invitationSecret(ctx, namespace, name)
		if err != nil || secret == nil {
			return nil, err
		}
		// As it was read: the gateway may just be going on with it.
		options.Preconditions = &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion}
		err = secrets.Delete(ctx, secret.Name, options)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, s.explain(err)
		}
		record := invitationOf(secret, name)
		if record.State == registration.InvitationRegistering {
			err = s.deleteHalfRegistered(ctx, record, secrets, options.DryRun)
		}
		return record, err
	}
}

// deleteHalfRegistered deletes the Secret of a cluster that was being registered. The gateway does so itself, unless it has ended in between.
func (s *clusterClient) deleteHalfRegistered(ctx context.Context, record *registration.Invitation, secrets corev1client.SecretInterface, dryRun []string) error {
	secret, err := secrets.Get(ctx, record.Name, metav1.GetOptions{})
	if err == nil && secret.Annotations[v1alpha1.AnnotationClusterUID] == string(record.ClusterUID) {
		err = secrets.Delete(ctx, record.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}, DryRun: dryRun})
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return s.explain(err)
}

// invitationText says in a line how far an invitation has come.
func (a *app) invitationText(i *registration.Invitation) string {
	text := ""
	switch {
	case i.Expires.IsZero():
		return "the record on the hub cannot be read: invite again"
	case i.State == registration.InvitationDone:
		text = fmt.Sprintf("used at %s", day(i.UsedAt))
	case !a.Now().Before(i.Expires):
		text = fmt.Sprintf("expired at %s", day(i.Expires))
	case i.State == registration.InvitationUsed, i.State == registration.InvitationRegistering:
		text = fmt.Sprintf("being used since %s", day(i.UsedAt))
	default:
		text = fmt.Sprintf("open, expires %s (%s)", a.until(i.Expires), day(i.Expires))
	}
	if i.Message != "" {
		text += "; last refusal: " + i.Message
	}
	return text
}

// invitations are the records of the hub.
func (s *clusterClient) invitations(ctx context.Context, namespace string) ([]*registration.Invitation, error) {
	list, err := s.kube.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelInvitation})
	if err != nil {
		return nil, s.explain(err)
	}
	var all []*registration.Invitation
	for i := range list.Items {
		record, err := registration.ReadInvitation(&list.Items[i])
		if err != nil {
			record = &registration.Invitation{Name: list.Items[i].Labels[v1alpha1.LabelInvitation]}
		}
		all = append(all, record)
	}
	return all, nil
}
