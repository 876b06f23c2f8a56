// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"cmp"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// InvitationSpec describes an invitation.
type InvitationSpec struct {
	Name, Access string
	// Impersonation is that of --identity=impersonate, and nil otherwise.
	Impersonation *Impersonation
	// Process means that the agent runs as a process. Endpoint is then required.
	Process  bool
	Endpoint string
	// TTL is how long a cluster can use the invitation.
	TTL                                time.Duration
	TokenLifetime, CertificateLifetime time.Duration
	// AgentValues adapt an agent that runs as Pods.
	AgentValues AgentValues
	Now         time.Time
}

// CertificateTTL returns how long the invitation's certificate is valid. It remains the certificate
// of an agent that runs as a process.
func (s InvitationSpec) CertificateTTL() time.Duration {
	if s.Process {
		return s.CertificateLifetime
	}
	return s.TTL
}

// CheckInvitedName returns an error if there is a Secret with the name: an invitation is for a
// cluster that is not registered.
func CheckInvitedName(name string, secret *corev1.Secret) error {
	if secret == nil {
		return nil
	}
	return fmt.Errorf("the name %q is taken: there is a Secret %s/%s on the hub. Choose another name or, if it is a registered cluster, remove that first: agent-bootstrap unregister %s",
		name, secret.Namespace, secret.Name, name)
}

// NewInvitationPlan plans an invitation with this certificate. The plan writes the record to the
// hub. Its field HandOver contains the objects that somebody else applies to the cluster.
func NewInvitationPlan(spec InvitationSpec, hub HubState, pair AgentPair) (*Plan, error) {
	if err := CheckInvitedName(spec.Name, hub.Secret); err != nil {
		return nil, err
	}
	chain, err := pki.ParseCertificates(pair.Certificate)
	if err != nil {
		return nil, err
	}
	record := &Invitation{
		Name: spec.Name, Fingerprint: Fingerprint(chain[0].Raw), Chain: len(chain), Expires: spec.Now.Add(spec.TTL),
		Address: hub.TunnelAddress, HubUID: hub.UID, Endpoint: cmp.Or(spec.Endpoint, DefaultTunnelEndpoint), Process: spec.Process,
		Access: spec.Access, TokenLifetime: spec.TokenLifetime, CertificateLifetime: spec.CertificateLifetime, State: InvitationOpen,
		AgentValues: spec.AgentValues, Impersonation: spec.Impersonation,
	}
	secret, err := record.Secret(hub.Namespace)
	if err != nil {
		return nil, err
	}
	o, err := ToUnstructured(secret)
	if err != nil {
		return nil, err
	}
	plan := &Plan{Invitation: record, Steps: []Step{{Name: StepInvitation, Side: SideHub, Apply: []*unstructured.Unstructured{o}}}}
	plan.HandOver, err = record.Objects(pair, spec.TTL)
	return plan, err
}
