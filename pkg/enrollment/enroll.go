// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package enrollment

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// maxClockSkew is the difference of clocks that certificates allow for: they are valid from that
// long before they are issued.
const maxClockSkew = 5 * time.Minute

// Config is what an Enroller needs.
type Config struct {
	// Secrets are those of the hub's namespace that holds clusters and records of invitations;
	// Namespace is its name.
	Secrets   corev1client.SecretInterface
	Namespace string
	// Events records outcomes. If it is nil, there are no Events.
	Events corev1client.EventInterface
	// Logger logs outcomes. Its zero value logs nothing.
	Logger klog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	// AfterStep, if set, is called after each step. If it returns an error, the enrollment ends with
	// it. Tests use it to show that every step can be repeated.
	AfterStep func(step string) error
}

// Enroller registers clusters that present an invitation. It is safe for concurrent use.
type Enroller struct {
	cfg Config

	mu       sync.Mutex
	reported map[string]report
}

var _ tunnel.Enroller = (*Enroller)(nil)

// New returns an Enroller.
func New(cfg Config) *Enroller {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Enroller{cfg: cfg, reported: map[string]report{}}
}

// Enroll implements tunnel.Enroller.
func (e *Enroller) Enroll(ctx context.Context, invited tunnel.Invited) (serves bool, err error) {
	a := &attempt{Enroller: e, invited: invited}
	err = a.run(ctx)
	if err == nil && a.serves {
		return true, nil
	}
	// The outcome is reported even if the cluster has disconnected.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	e.report(ctx, a, err)
	return false, err
}

// Serves implements tunnel.Enroller.
func (e *Enroller) Serves(ctx context.Context, invited tunnel.Invited) error {
	a := &attempt{Enroller: e, invited: invited}
	err := a.checkServes(ctx)
	if errors.Is(err, errHub) || ctx.Err() != nil {
		return nil
	}
	return err
}

// errHub means that the hub did not answer.
var errHub = errors.New("the hub says")

// attempt is one attempt to enroll, on one stream of a cluster.
type attempt struct {
	*Enroller
	invited tunnel.Invited

	// record is the record of the invitation, read the Secret that it was read from. Both are nil
	// until the record is known to be about this certificate.
	record *registration.Invitation
	read   *corev1.Secret
	ca     []byte
	target *target
	// namespace is the agent's namespace in the cluster.
	namespace *corev1.Namespace
	// token is for callers, maintenanceToken for the gateway itself.
	token, maintenanceToken string
	// secret is the UID of the cluster's Secret, after this attempt has written it.
	secret types.UID
	// serves is whether the invitation is the certificate of a registered cluster's agent.
	serves bool
	// again is whether the invitation had registered this cluster before.
	again bool
}

func (a *attempt) run(ctx context.Context) error {
	if err := a.steps(ctx, []step{{"invitation", a.readRecord}, {"name", a.checkName}}); err != nil {
		return err
	}
	if a.record.Process && a.record.State == registration.InvitationDone {
		a.serves = true
		return a.checkServes(ctx)
	}
	if err := a.steps(ctx, []step{{"credentials", a.readCredentials}, {"cluster", a.connect}}); err != nil {
		return err
	}
	defer a.target.close()
	if a.record.State == registration.InvitationDone {
		a.again = true
		// An earlier attempt stopped before this step, or the invitation was applied again. The rights
		// that the step needs may be gone.
		if err := a.leave(ctx); err != nil {
			return fmt.Errorf("%w: %w", errDone, err)
		}
		return nil
	}
	return a.steps(ctx, []step{
		{"registrations", a.checkRegistrations}, {"claim", a.claim}, {"namespace", a.claimNamespace}, {"owners", a.setOwners}, {"token", a.requestToken},
		{"registering", a.markRegistering}, {"secret", a.register}, {"agent", a.applyAgent}, {"done", a.markDone}, {"leave", a.leave},
	})
}

// checkServes returns an error unless the invitation is the certificate of a registered cluster's
// agent.
func (a *attempt) checkServes(ctx context.Context) error {
	if err := a.readRecord(ctx); err != nil {
		return err
	}
	secret, err := a.registered(ctx)
	switch {
	case err != nil:
		return err
	case secret == nil || !a.record.Process || a.record.State != registration.InvitationDone:
		return fmt.Errorf("the invitation was for cluster %q, which is not registered any more", a.invited.Name)
	}
	return nil
}

// errDone means that there is nothing left to do.
var errDone = errors.New("the invitation has been used, and its cluster is registered; the objects of the invitation that are left in the cluster can be deleted")

// step is a step of an enrollment.
type step struct {
	name string
	do   func(context.Context) error
}

func (a *attempt) steps(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			return err
		}
		if a.cfg.AfterStep != nil {
			if err := a.cfg.AfterStep(s.name); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// readRecord reads the record, and returns an error unless the invitation can be used.
func (a *attempt) readRecord(ctx context.Context) error {
	name := a.invited.Name
	secret, err := a.cfg.Secrets.Get(ctx, registration.InvitationSecret(name), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return a.errRevoked()
	case err != nil:
		return a.hubFault("read the invitation", err)
	}
	record, err := registration.ReadInvitation(secret)
	if err != nil {
		return fmt.Errorf("%w; ask for another invitation (agent-bootstrap invite %s)", err, name)
	}
	if record.Fingerprint != registration.Fingerprint(a.invited.Certificate.Raw) {
		return fmt.Errorf("this invitation of cluster %q has been revoked, and there is a later one: apply that", name)
	}
	a.record, a.read = record, secret
	// As the certificate of an agent it can be used until the certificate expires.
	serves := record.Process && record.State == registration.InvitationDone
	if now := a.cfg.Now(); !serves && !now.Before(record.Expires) || now.After(a.invited.Certificate.NotAfter) {
		return fmt.Errorf("the invitation of cluster %q expired at %s: ask for a new one (agent-bootstrap invite %s)", name, record.Expires.UTC().Format(time.RFC3339), name)
	}
	return nil
}

// checkName refuses a name that is taken. Whether it is taken by this cluster turns out later.
func (a *attempt) checkName(ctx context.Context) error {
	_, err := a.registered(ctx)
	return err
}

// registered returns the Secret of the invitation's name, or nil. It is an error if the Secret is
// not that of the cluster to which the invitation belongs.
func (a *attempt) registered(ctx context.Context) (*corev1.Secret, error) {
	name := a.invited.Name
	secret, err := a.cfg.Secrets.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, a.hubFault("find out whether the name is free", err)
	}
	if err := registration.CheckName(secret, a.record.ClusterUID); err != nil {
		return nil, err
	}
	return secret, nil
}

// readCredentials reads the CA and the token that the cluster sent.
func (a *attempt) readCredentials(context.Context) error {
	// The chain begins with the certificates of the invitation.
	if own := a.record.Chain - 1; len(a.invited.Chain) > own {
		for _, cert := range a.invited.Chain[own:] {
			a.ca = append(a.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		}
	}
	switch {
	case len(a.ca) == 0:
		return fmt.Errorf("the cluster sent no CA: it must be in its ConfigMap %s/kube-root-ca.crt, which kube-controller-manager writes", registration.AgentNamespace)
	case a.invited.Token == "":
		return fmt.Errorf("the cluster sent no token of ServiceAccount %s/%s", registration.AgentNamespace, registration.MaintenanceAccount)
	}
	return nil
}

// connect finds out which cluster it is.
func (a *attempt) connect(ctx context.Context) (err error) {
	if a.target, err = newTarget(a.invited, a.record.Endpoint, a.ca, a.cfg.Now); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.target.close()
		}
	}()
	system, err := a.target.kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if a.record.State == registration.InvitationDone && (apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)) {
		return errDone
	}
	if err != nil {
		return a.target.explain("find out which cluster it is", err)
	}
	if skew := a.target.skew(); skew.Abs() > maxClockSkew {
		return fmt.Errorf("the cluster's clock and the gateway's are about %s apart, so that new certificates and tokens would not be accepted: correct the clock that is wrong",
			skew.Abs().Round(time.Minute)) // rounded, so that the text is the same each time
	}
	if a.record.ClusterUID != "" && a.record.ClusterUID != system.UID {
		return fmt.Errorf("the invitation of cluster %q has been used, by another cluster (%s) at %s: request another invitation",
			a.invited.Name, a.record.ClusterUID, a.record.UsedAt.UTC().Format(time.RFC3339))
	}
	a.target.uid = system.UID
	if a.namespace, err = a.target.kube.CoreV1().Namespaces().Get(ctx, registration.AgentNamespace, metav1.GetOptions{}); err != nil {
		return a.target.explain("read namespace "+registration.AgentNamespace, err)
	}
	return nil
}

// checkRegistrations refuses a cluster that is registered already, under another name or with
// another hub.
func (a *attempt) checkRegistrations(ctx context.Context) error {
	if err := registration.CheckNamespace(a.namespace, a.invited.Name, a.record.HubUID); err != nil {
		return err
	}
	list, err := a.cfg.Secrets.List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelCredentialType})
	if err != nil {
		return a.hubFault("find out whether the cluster is registered", err)
	}
	return registration.CheckSecrets(list.Items, a.invited.Name, a.target.uid)
}

// errChanged means that somebody else has written to the record.
var errChanged = errors.New("the invitation has just been used or changed; it is checked when the cluster connects again")

// claim reserves the invitation for this cluster.
func (a *attempt) claim(ctx context.Context) error {
	if a.record.ClusterUID == a.target.uid {
		return nil
	}
	a.record.State, a.record.ClusterUID, a.record.UsedAt = registration.InvitationUsed, a.target.uid, a.cfg.Now()
	return a.writeState(ctx, "claim the invitation")
}

// markRegistering records that the cluster's Secret is about to be written. If the invitation was
// revoked before, it is not written.
func (a *attempt) markRegistering(ctx context.Context) error {
	if a.record.State == registration.InvitationRegistering {
		return nil
	}
	a.record.State = registration.InvitationRegistering
	return a.writeState(ctx, "record that the cluster is being registered")
}

// writeState writes the record, unless it has changed since it was read.
func (a *attempt) writeState(ctx context.Context, what string) error {
	switch err := a.writeRecord(ctx); {
	case apierrors.IsConflict(err):
		a.record, a.read = nil, nil
		return errChanged
	case apierrors.IsNotFound(err):
		a.record, a.read = nil, nil
		return a.errRevoked()
	default:
		return a.hubFault(what, err)
	}
}

func (a *attempt) errRevoked() error {
	return fmt.Errorf("the invitation of cluster %q has been revoked: ask for a new one (agent-bootstrap invite %s)", a.invited.Name, a.invited.Name)
}

// writeRecord writes the state of the invitation. If the record has changed since it was read, the
// error is a Conflict.
func (a *attempt) writeRecord(ctx context.Context) error {
	patch, err := registration.MergePatch(a.read, map[string]any{"metadata": map[string]any{"annotations": a.record.Annotations()}})
	if err != nil {
		return err
	}
	after, err := a.cfg.Secrets.Patch(ctx, a.read.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err == nil {
		a.read = after
	}
	return err
}

// fieldManager writes the records of invitations.
const fieldManager = "cluster-gateway-enrollment"

// claimNamespace records in the cluster under which name it is registered. Of two invitations for
// one cluster, one is first.
func (a *attempt) claimNamespace(ctx context.Context) error {
	if a.namespace.Annotations[v1alpha1.AnnotationClusterName] == a.invited.Name {
		return nil
	}
	o, err := registration.Namespace(a.invited.Name, a.record.HubUID)
	if err != nil {
		return err
	}
	patch, err := registration.MergePatch(a.namespace, map[string]any{"metadata": map[string]any{"labels": o.GetLabels(), "annotations": o.GetAnnotations()}})
	if err != nil {
		return err
	}
	_, err = a.target.kube.CoreV1().Namespaces().Patch(ctx, registration.AgentNamespace, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.FieldManager})
	return a.target.explain("record in namespace "+registration.AgentNamespace+" under which name the cluster is registered", err)
}

// requestToken requests tokens of both accounts. They are not bound to a Pod, unlike the one that
// the cluster sent. An invitation that an earlier version made has no account for maintenance.
func (a *attempt) requestToken(ctx context.Context) (err error) {
	if a.token, err = registration.RequestToken(ctx, a.target.kube, registration.GatewayAccount, a.record.TokenLifetime); err != nil {
		return a.target.explain("request a token of the gateway's account for callers", err)
	}
	a.maintenanceToken, err = registration.RequestToken(ctx, a.target.kube, registration.MaintenanceAccount, a.record.TokenLifetime)
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		a.cfg.Logger.Info("The cluster has no account for maintenance: an earlier version made the invitation", "cluster", a.invited.Name)
		return nil
	}
	return a.target.explain("request a token of the gateway's account for maintenance", err)
}

// applyAgent applies the agent to the cluster.
func (a *attempt) applyAgent(ctx context.Context) error {
	if a.record.Process {
		return nil
	}
	authority, err := pki.Load(ctx, a.cfg.Secrets)
	if err != nil {
		return a.hubFault("read the CA of the tunnel", err)
	}
	pair, issued, err := registration.IssueAgentPair(authority, a.invited.Name, a.record.CertificateLifetime, a.cfg.Now())
	if err != nil {
		return err
	}
	if err := registration.AcceptAgentCertificate(ctx, a.cfg.Secrets, a.invited.Name, a.secret, issued); err != nil {
		return a.hubFault("accept the agent's certificate", err)
	}
	all, err := registration.Agent(a.record.Address, pair, a.record.AgentValues)
	if err != nil {
		return err
	}
	for _, o := range all {
		switch o.GetKind() {
		case "ConfigMap", "Secret", "Deployment": // the others are in the invitation
			if _, err := registration.ServerSideApply(ctx, a.target.dyn, o, false); err != nil {
				return a.target.explain(fmt.Sprintf("apply %s %s", o.GetKind(), o.GetName()), err)
			}
		}
	}
	return nil
}

// register writes the cluster's Secret, and deletes it again if the invitation was revoked
// meanwhile.
func (a *attempt) register(ctx context.Context) error {
	uid, err := a.writeSecret(ctx)
	if err != nil {
		return err
	}
	a.secret = uid
	// Even if the cluster disconnects now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return a.confirm(ctx)
}

// undoTimeout bounds removing the Secret of an invitation that was revoked.
const undoTimeout = 10 * time.Second

// writeSecret writes the cluster's Secret as agent-bootstrap register does, and returns its UID.
func (a *attempt) writeSecret(ctx context.Context) (types.UID, error) {
	values, err := a.record.AgentValues.Encode()
	if err != nil {
		return "", err
	}
	wanted := registration.ClusterSecret{
		Name: a.invited.Name, Namespace: a.cfg.Namespace, Tunnel: true, UID: a.target.uid, Access: a.record.Access,
		Identity: a.record.Identity(), Impersonation: a.record.Impersonation,
		Endpoint: a.record.Endpoint, CA: a.ca, FollowCA: true, Token: a.token, MaintenanceToken: a.maintenanceToken, AgentValues: values,
		AgentCertificatesSince: a.cfg.Now(),
	}
	current, err := a.registered(ctx)
	if err != nil {
		return "", err
	}
	// If there is one, an earlier attempt that was interrupted wrote it, or another replica.
	written, _, _, err := wanted.Write(ctx, a.cfg.Secrets, current, false)
	switch {
	case apierrors.IsAlreadyExists(err), current != nil && (apierrors.IsConflict(err) || apierrors.IsNotFound(err)):
		return "", errors.New("the cluster's Secret has just been written by somebody else; it is checked when the cluster connects again")
	case err != nil:
		return "", a.hubFault("write the cluster's Secret", err)
	}
	return written.UID, nil
}

// confirm reads the record again, and deletes the cluster's Secret if the invitation has been
// revoked or replaced. Nobody else would do it later, so it retries until the hub answers or ctx is
// done.
func (a *attempt) confirm(ctx context.Context) error {
	for {
		err := a.tryConfirm(ctx)
		if !errors.Is(err, errHub) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(confirmAgain):
		}
	}
}

// confirmAgain is the time between two attempts to read the record.
const confirmAgain = 200 * time.Millisecond

func (a *attempt) tryConfirm(ctx context.Context) error {
	err := a.readRecord(ctx)
	switch {
	case errors.Is(err, errHub):
		return err
	case err == nil && a.record.ClusterUID == a.target.uid:
		return nil
	case err == nil:
		err = a.errRevoked()
	}
	undo := a.cfg.Secrets.Delete(ctx, a.invited.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &a.secret}})
	if undo != nil && !apierrors.IsNotFound(undo) && !apierrors.IsConflict(undo) { // gone, or another registration's
		return a.hubFault("remove the Secret of a cluster whose invitation was revoked", undo)
	}
	a.record, a.read = nil, nil
	return fmt.Errorf("the cluster is not registered any more: %w", err)
}

// markDone records that the invitation has been used.
func (a *attempt) markDone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for ctx.Err() == nil {
		a.record.State, a.record.Message = registration.InvitationDone, ""
		err := a.writeRecord(ctx)
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return a.hubFault("record that the invitation has been used", err)
		}
		// It has been revoked, or another replica has written why it refused a cluster, or that it is
		// done.
		if err := a.confirm(ctx); err != nil {
			return err
		}
	}
	return a.hubFault("record that the invitation has been used", ctx.Err())
}

// leave deletes the objects of the enrollment.
func (a *attempt) leave(ctx context.Context) error {
	// Again, in case the invitation has been applied again.
	if err := a.setOwners(ctx); err != nil {
		return err
	}
	return a.target.explain("delete the objects of the enrollment", a.target.deleteEnrollment(ctx))
}

// setOwners sets the owners of the objects in the invitation: of those that stay, the namespace; of
// the others, a ClusterRoleBinding.
func (a *attempt) setOwners(ctx context.Context) error {
	return a.target.explain("set the owners of what was applied", a.target.setOwners(ctx, a.record, a.namespace.UID))
}

func (a *attempt) hubFault(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the gateway cannot %s: %w: %w", what, errHub, err)
}
