// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// Spec is what a registration is to be.
type Spec struct {
	// Name is the name of the cluster.
	Name string
	Form Form
	// Access is the value of --access. Empty means the default.
	Access string
	// Identity is who the cluster sees: v1alpha1.IdentityCredential or v1alpha1.IdentityImpersonate.
	// Empty keeps what the Secret says. Impersonation is for v1alpha1.IdentityImpersonate. Nil, and a
	// nil list, keep what the Secret says. See [Spec.WithIdentity].
	Identity      string
	Impersonation *Impersonation
	// Endpoint is the URL of the API server, as the agent or, for FormDirect, the gateway sees it.
	// Empty means the default of the form.
	Endpoint string
	// ServerName is the name in the certificate of the API server, and ProxyURL the proxy between the
	// gateway and it. Nil means what the kubeconfig says.
	ServerName, ProxyURL *string
	// Adopt takes over a Secret that agent-bootstrap did not write. TakeOver takes over a cluster that
	// is registered with another hub.
	Adopt, TakeOver bool
	// AgentValues adapt an agent that runs as Pods. Nil keeps those of the earlier registration.
	AgentValues *AgentValues
	// Now is the time at which credentials must be valid.
	Now time.Time
}

// Side is where a step changes something.
type Side string

// The sides.
const (
	SideHub     Side = "hub"
	SideCluster Side = "cluster"
	// SideLocal is the folder of an agent that runs as a process.
	SideLocal Side = "local"
)

// StepName names a step of a plan.
type StepName string

// The steps of plans.
const (
	StepNamespace StepName = "namespace"
	StepAccount   StepName = "account"
	// StepProbe finds out whether the cluster has constrained impersonation.
	StepProbe       StepName = "probe"
	StepAccess      StepName = "access"
	StepSecret      StepName = "secret"
	StepCertificate StepName = "certificate"
	StepAgent       StepName = "agent"
	// StepWait waits until the cluster can be reached.
	StepWait StepName = "reachable"
	// StepPrevious removes the agent of an earlier registration.
	StepPrevious   StepName = "previous"
	StepInvitation StepName = "invitation"
)

// Step is one step of a plan.
type Step struct {
	Name StepName
	Side Side
	// Apply are the objects that it applies, Remove the ones that it removes (by name only).
	Apply, Remove []*unstructured.Unstructured
}

// Plan is everything that a registration will change, in the order in which it is done. It depends
// only on the spec and the state, so it can be tested without a cluster. Credentials that do not
// exist yet are placeholders in its objects.
type Plan struct {
	Spec  Spec
	Steps []Step
	// Secret is the cluster's Secret. Its tokens are the ones that are kept, or placeholders if
	// NewToken or NewMaintenanceToken.
	Secret                        ClusterSecret
	NewToken, NewMaintenanceToken bool
	// Pair is the agent's certificate: the one that is kept, or a placeholder if NewCertificate. It is
	// nil for FormDirect.
	Pair           *AgentPair
	NewCertificate bool
	// Address is what the agent dials.
	Address string
	// Notes are for the user.
	Notes []string
	// Invitation is the record of an invitation, HandOver what somebody else applies to its cluster.
	// Both are empty for other plans.
	Invitation *Invitation
	HandOver   []*unstructured.Unstructured

	agentValues AgentValues
	readRights  []Right
}

// placeholder stands for a credential that does not exist yet.
const placeholder = "dry-run"

// NewPlan plans a registration. It refuses what cannot work: a name or a cluster that is registered
// already, a ClusterRole that does not exist, and a Secret that the gateway could not use.
//
// The spec must be complete: see [Spec.WithIdentity].
func NewPlan(spec Spec, state State) (*Plan, error) {
	if err := checkState(spec, state); err != nil {
		return nil, err
	}
	p := &Plan{Spec: spec, Address: state.Hub.TunnelAddress}
	if err := p.planSecret(state); err != nil {
		return nil, err
	}
	if err := p.planValues(state); err != nil {
		return nil, err
	}
	p.planCertificate(state)
	p.planReads(state)
	for _, plan := range []func(State) error{p.planNamespace, p.planAccount, p.planProbe, p.planAccess, p.planSecretStep, p.planAgent, p.planRemoval} {
		if err := plan(state); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// checkState refuses a name that another cluster has, a cluster that has another name, and an
// access that does not exist.
func checkState(spec Spec, state State) error {
	if err := CheckTaken(spec, state.Hub.Secret, state.Cluster.UID); err != nil {
		return err
	}
	if err := CheckRegistered(spec, state.Cluster.Namespace, state.Hub.UID); err != nil {
		return err
	}
	if state.Cluster.AccessRoleMissing {
		return fmt.Errorf("invalid --access %q: the cluster has no ClusterRole of that name. Use admin, view or a name from: kubectl get clusterroles", spec.Access)
	}
	return nil
}

// CheckRegistered returns a *RegisteredError if the registration cannot have a cluster with this
// agent's namespace: because it is registered under another name or, without TakeOver, with another
// hub.
func CheckRegistered(spec Spec, namespace *corev1.Namespace, hub types.UID) error {
	err := CheckNamespace(namespace, spec.Name, hub)
	var registered *RegisteredError
	if errors.As(err, &registered) && registered.HubUID != "" && spec.TakeOver {
		return nil
	}
	return err
}

// CheckTaken returns an error if the registration cannot have the name of the Secret: because it is
// another cluster's or, without Adopt, because agent-bootstrap did not write the Secret.
func CheckTaken(spec Spec, secret *corev1.Secret, uid types.UID) error {
	err := CheckName(secret, uid)
	var taken *NameTakenError
	if errors.As(err, &taken) && (taken.Holder == HolderOtherCluster || !spec.Adopt) {
		return err
	}
	if secret != nil && secret.Type != corev1.SecretTypeOpaque {
		return fmt.Errorf("the Secret %s/%s on the hub has the type %s, which cannot be changed: delete it first", secret.Namespace, secret.Name, secret.Type)
	}
	return nil
}

// planSecret decides what the cluster's Secret will hold, and whether the gateway can use that.
func (p *Plan) planSecret(state State) error {
	server := state.Cluster.Server
	p.Secret = ClusterSecret{
		Name: p.Spec.Name, Namespace: state.Hub.Namespace, Tunnel: p.Spec.Form != FormDirect, UID: state.Cluster.UID,
		Access: p.Spec.Access, Identity: p.Spec.Identity, Impersonation: p.Spec.Impersonation, Endpoint: p.Spec.Endpoint, CA: server.CA, // without a CA: the roots of the system
	}
	if p.Secret.AgentCertificatesSince = p.Spec.Now; state.Hub.Secret != nil {
		p.Secret.AgentCertificatesSince = AgentCertificatesSince(state.Hub.Secret)
	}
	switch {
	case p.Secret.Endpoint != "":
	case p.Spec.Form == FormPods:
		p.Secret.Endpoint = DefaultTunnelEndpoint
	default:
		p.Secret.Endpoint = server.URL
	}
	if p.Spec.Form != FormPods { // in the cluster, the API server has other names
		p.Secret.ServerName = server.ServerName
	}
	if !p.Secret.Tunnel {
		p.Secret.ProxyURL = server.ProxyURL
	}
	p.Secret.ServerName = ptr.Deref(p.Spec.ServerName, p.Secret.ServerName)
	p.Secret.ProxyURL = ptr.Deref(p.Spec.ProxyURL, p.Secret.ProxyURL)
	if NeedsRootCA(p.Spec.Form, server) {
		if len(state.Cluster.RootCA) > 0 {
			p.Secret.CA, p.Secret.FollowCA = state.Cluster.RootCA, true
		}
		if len(p.Secret.CA) == 0 && !slices.Contains(state.Cluster.Unread, getRootCA) {
			return errors.New("the cluster's CA is not known: neither the kubeconfig nor ConfigMap kube-system/kube-root-ca.crt has it. Put certificate-authority-data into the kubeconfig")
		}
	}
	p.Secret.Token, p.Secret.MaintenanceToken = placeholder, placeholder
	parsed := cluster.Parse(p.Secret.Secret(), cluster.ParseOptions{})
	if parsed.Err() != nil && !slices.Contains(state.Cluster.Unread, getRootCA) {
		return fmt.Errorf("the gateway could not use what would be registered, and nothing was changed: %s. What no flag sets is from --cluster-kubeconfig; --endpoint, --tls-server-name and --proxy-url override it",
			parsed.Message())
	}
	if err := p.checkReachable(server); err != nil {
		return err
	}
	p.NewToken = true
	if token := keptToken(p.Secret, state); token != "" {
		p.Secret.Token, p.NewToken = token, false
	}
	p.NewMaintenanceToken = true
	if current := state.Hub.Secret; current != nil && state.Cluster.MaintenanceTokenAccepted {
		p.Secret.MaintenanceToken, p.NewMaintenanceToken = string(current.Data[v1alpha1.SecretKeyMaintenanceToken]), false
	}
	return nil
}

// planValues decides on the values of the agent, which the Secret keeps. Without an agent that runs
// as Pods, the Secret keeps what it has.
func (p *Plan) planValues(state State) (err error) {
	if p.Spec.AgentValues != nil {
		p.agentValues = *p.Spec.AgentValues
		p.Secret.AgentValues, err = p.agentValues.Encode()
		return err
	}
	if state.Hub.Secret == nil {
		return nil
	}
	p.Secret.AgentValues = state.Hub.Secret.Data[v1alpha1.SecretKeyAgentValues]
	if p.Spec.Form != FormPods || len(p.Secret.AgentValues) == 0 {
		return nil
	}
	if p.agentValues, err = ParseAgentValues(p.Secret.AgentValues); err != nil {
		return fmt.Errorf("the key %s of the Secret %s/%s on the hub cannot be used: %w. Replace it with --agent-values FILE, or remove it with --agent-values ''",
			v1alpha1.SecretKeyAgentValues, state.Hub.Namespace, p.Spec.Name, err)
	}
	p.Notes = append(p.Notes, "the agent's values of the earlier registration are kept (--agent-values '' removes them)")
	return nil
}

// keptToken returns the token in the hub's Secret if the registration goes on using it. It is
// replaced if it expires soon, and if anything else changes that the gateway connects with: then
// the token tells an answer that the gateway got with the new Secret from one that it got with the
// old one.
func keptToken(wanted ClusterSecret, state State) string {
	current := state.Hub.Secret
	if current == nil || !state.Cluster.TokenAccepted {
		return ""
	}
	secret := wanted.Secret()
	for _, key := range cluster.DataKeys() {
		if key != v1alpha1.SecretKeyToken && key != v1alpha1.SecretKeyMaintenanceToken && string(secret.Data[key]) != string(current.Data[key]) {
			return ""
		}
	}
	for _, label := range []string{v1alpha1.LabelEndpointType, v1alpha1.LabelCredentialType} {
		if secret.Labels[label] != current.Labels[label] {
			return ""
		}
	}
	if _, insecure := current.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify]; insecure {
		return ""
	}
	return string(current.Data[v1alpha1.SecretKeyToken])
}

// TokenIsFresh is whether a token need not be renewed yet. One that cannot be read is not fresh.
func TokenIsFresh(token string, now time.Time) bool {
	claims := ParseToken(token)
	return !claims.Expires.IsZero() && now.Before(pki.RenewBetween(claims.IssuedAt, claims.Expires, 0))
}

// planCertificate keeps the agent's certificate if the gateway accepts it and it need not be
// renewed yet. A new registration never accepts a certificate of an earlier one.
func (p *Plan) planCertificate(state State) {
	if p.Spec.Form == FormDirect {
		return
	}
	p.Pair = &AgentPair{Certificate: []byte(placeholder), Key: []byte(placeholder), CA: state.Hub.TunnelCA}
	p.NewCertificate = true
	if current := state.Cluster.Pair; current != nil {
		cert, err := current.Verify(state.Hub.TunnelCA, p.Spec.Name, p.Spec.Now)
		if err == nil && p.Spec.Now.Before(pki.RenewAt(cert)) && state.Hub.Secret != nil && CheckAgentCertificate(cert, AgentCertificatesSince(state.Hub.Secret)) == nil {
			p.Pair = &AgentPair{Certificate: current.Certificate, Key: current.Key, CA: state.Hub.TunnelCA}
			p.NewCertificate = false
		}
	}
}

// planReads lists the rights with which the state was read.
func (p *Plan) planReads(state State) {
	p.readRights = append(p.readRights, listBindings)
	if access := AccessOf(p.Spec.Access); access.Name != AccessImpersonate {
		p.readRights = append(p.readRights, getAccessRole(access))
	}
	if NeedsRootCA(p.Spec.Form, state.Cluster.Server) {
		p.readRights = append(p.readRights, getRootCA)
	}
	for _, o := range state.Cluster.AgentUnread {
		p.Notes = append(p.Notes, fmt.Sprintf("%s %s of an earlier agent, if there is one, is not removed: you may not read it", o.GetKind(), o.GetName()))
	}
}

func (p *Plan) add(step Step) { p.Steps = append(p.Steps, step) }

func (p *Plan) planNamespace(state State) error {
	var registered *RegisteredError
	if errors.As(CheckNamespace(state.Cluster.Namespace, p.Spec.Name, state.Hub.UID), &registered) {
		p.Notes = append(p.Notes, fmt.Sprintf("the registration as %q with another hub (%s) is taken over: if that hub still exists, the cluster's agent no longer connects to it",
			registered.Name, registered.HubUID))
	}
	o, err := Namespace(p.Spec.Name, state.Hub.UID)
	if err != nil {
		return err
	}
	p.add(Step{Name: StepNamespace, Side: SideCluster, Apply: []*unstructured.Unstructured{o}})
	return nil
}

// planAccount applies the accounts of the gateway, and takes from the account for callers the
// rights that earlier versions gave it.
func (p *Plan) planAccount(state State) error {
	objects, err := AgentBase(IsGatewayAccount)
	if err != nil {
		return err
	}
	p.add(Step{Name: StepAccount, Side: SideCluster, Apply: objects, Remove: state.Cluster.SharedRights})
	return nil
}

// planProbe finds out in which form the cluster has to be given the right to impersonate. The
// objects are removed at once.
func (p *Plan) planProbe(State) error {
	if p.Spec.Impersonation == nil {
		return nil
	}
	objects, err := ProbeObjects()
	if err != nil {
		return err
	}
	p.add(Step{Name: StepProbe, Side: SideCluster, Apply: objects, Remove: objects})
	return nil
}

// SetUnconstrained sets what the probe has found out: whether the cluster lacks constrained
// impersonation.
func (p *Plan) SetUnconstrained(unconstrained bool) error {
	p.Spec.Impersonation.Unconstrained = unconstrained
	objects, err := accessOf(p.Spec.Access, p.Spec.Impersonation).Objects("")
	if err != nil {
		return err
	}
	for i := range p.Steps {
		if p.Steps[i].Name == StepAccess {
			p.Steps[i].Apply = objects
		}
	}
	return nil
}

// planAccess binds --access, and removes what an earlier --access bound.
func (p *Plan) planAccess(state State) error {
	objects, err := accessOf(p.Spec.Access, p.Spec.Impersonation).Objects("")
	if err != nil {
		return err
	}
	step := Step{Name: StepAccess, Side: SideCluster, Apply: objects}
	for _, b := range state.Cluster.Bindings {
		if slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "ClusterRoleBinding" && o.GetName() == b.Name
		}) {
			continue
		}
		const group = "rbac.authorization.k8s.io/v1"
		step.Remove = append(step.Remove, reference(group, "ClusterRoleBinding", "", b.Name))
		if strings.HasPrefix(b.RoleRef.Name, AccessPrefix) { // the role was made for the binding
			step.Remove = append(step.Remove, reference(group, "ClusterRole", "", b.RoleRef.Name))
		}
	}
	p.add(step)
	return nil
}

// planSecretStep comes before the agent's: if the name turns out to be taken, no certificate was
// issued for it.
func (p *Plan) planSecretStep(State) error {
	o, err := ToUnstructured(p.Secret.Secret())
	if err != nil {
		return err
	}
	p.add(Step{Name: StepSecret, Side: SideHub, Apply: []*unstructured.Unstructured{o}})
	return nil
}

func (p *Plan) planAgent(State) error {
	switch p.Spec.Form {
	case FormProcess:
		p.add(Step{Name: StepCertificate, Side: SideLocal})
		p.add(Step{Name: StepAgent, Side: SideLocal})
	case FormPods:
		objects, err := Agent(p.Address, *p.Pair, p.agentValues)
		if err != nil {
			return err
		}
		p.add(Step{Name: StepCertificate, Side: SideCluster})
		p.add(Step{Name: StepAgent, Side: SideCluster, Apply: objects})
	}
	p.add(Step{Name: StepWait})
	return nil
}

// planRemoval removes an agent that runs as Pods and is of no use any more. It comes after the
// wait, so that the cluster is reached one way or the other all the time.
func (p *Plan) planRemoval(state State) error {
	if len(state.Cluster.Agent) > 0 {
		p.add(Step{Name: StepPrevious, Side: SideCluster, Remove: state.Cluster.Agent})
	}
	return nil
}

// Objects returns every object that the plan applies, without secrets.
func (p *Plan) Objects() []*unstructured.Unstructured {
	var all []*unstructured.Unstructured
	for _, step := range p.Steps {
		for _, o := range step.Apply {
			all = append(all, Redacted(o))
		}
	}
	return all
}
