// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// InvitationState says how far an invitation has been used.
type InvitationState string

// The states of an invitation. It expires in every state.
const (
	// InvitationOpen has not been used.
	InvitationOpen InvitationState = "Open"
	// InvitationUsed belongs to a cluster that is being registered. That cluster may try again, and no
	// other cluster may use it.
	InvitationUsed InvitationState = "Used"
	// InvitationRegistering is like InvitationUsed, and the cluster's Secret may exist. If you revoke
	// the invitation in this state, delete the Secret as well.
	InvitationRegistering InvitationState = "Registering"
	// InvitationDone has registered its cluster.
	InvitationDone InvitationState = "Done"
)

// Invitation is the record of an invitation on the hub. It does not hold the key, which is in the
// invitation alone.
type Invitation struct {
	// Name is the name under which the cluster will be registered.
	Name string
	// Fingerprint identifies the invitation's certificate (see [Fingerprint]). Chain is the number of
	// certificates in the invitation, that one included.
	Fingerprint string
	Chain       int
	Expires     time.Time
	// Address is the address that agents connect to, HubUID identifies the hub, and Access is the
	// value of --access. Impersonation is that of --identity=impersonate, or nil.
	Address       string
	HubUID        types.UID
	Access        string
	Impersonation *Impersonation
	// Endpoint is the URL of the cluster's API server as the agent sees it. With Process, the agent
	// does not run as Pods: the gateway cannot replace its certificate, so that the certificate of the
	// invitation remains the agent's once the cluster is registered.
	Endpoint string
	Process  bool
	// TokenLifetime and CertificateLifetime are those of the credentials that the registration
	// creates.
	TokenLifetime, CertificateLifetime time.Duration
	// AgentValues adapt the Job of the invitation, and the agent that is applied afterwards.
	AgentValues AgentValues

	// State says how far it has been used. Unless it is open, ClusterUID identifies the cluster that
	// it belongs to since UsedAt. Message is why the last attempt was refused, or empty.
	State      InvitationState
	ClusterUID types.UID
	UsedAt     time.Time
	Message    string
}

// The keys in the data of a record.
const (
	recordFingerprint         = "fingerprint"
	recordChain               = "chain"
	recordExpires             = "expires"
	recordAddress             = "address"
	recordEndpoint            = "endpoint"
	recordProcess             = "process"
	recordHubUID              = "hub-uid"
	recordAccess              = "access"
	recordTokenLifetime       = "token-lifetime"
	recordCertificateLifetime = "certificate-lifetime"
	recordAgentValues         = "agent-values"
	recordImpersonation       = "impersonation"
)

// InvitationSecret returns the name of the Secret that is the record of an invitation.
// [ValidateName] keeps clusters from being called so.
func InvitationSecret(name string) string { return invitationPrefix + name }

// Fingerprint is the SHA-256 of a certificate in DER.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Secret returns the record as it is stored on the hub.
func (i *Invitation) Secret(namespace string) (*corev1.Secret, error) {
	values, err := i.AgentValues.Encode()
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: InvitationSecret(i.Name), Namespace: namespace,
			Labels:      ManagedLabels(map[string]string{v1alpha1.LabelInvitation: i.Name}),
			Annotations: i.Annotations(),
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{
			recordFingerprint:         []byte(i.Fingerprint),
			recordChain:               []byte(strconv.Itoa(i.Chain)),
			recordExpires:             []byte(i.Expires.UTC().Format(time.RFC3339)),
			recordAddress:             []byte(i.Address),
			recordEndpoint:            []byte(i.Endpoint),
			recordProcess:             []byte(strconv.FormatBool(i.Process)),
			recordHubUID:              []byte(i.HubUID),
			recordAccess:              []byte(i.Access),
			recordTokenLifetime:       []byte(i.TokenLifetime.String()),
			recordCertificateLifetime: []byte(i.CertificateLifetime.String()),
		},
	}
	if len(values) > 0 {
		secret.Data[recordAgentValues] = values
	}
	if i.Impersonation != nil {
		secret.Data[recordImpersonation] = []byte(i.Impersonation.text())
	}
	return secret, nil
}

// Annotations returns the state of the invitation as the record stores it.
func (i *Invitation) Annotations() map[string]string {
	a := map[string]string{
		v1alpha1.AnnotationInvitationState: string(i.State), v1alpha1.AnnotationClusterUID: string(i.ClusterUID),
		v1alpha1.AnnotationInvitationUsedAt: "", v1alpha1.AnnotationInvitationMessage: i.Message,
	}
	if !i.UsedAt.IsZero() {
		a[v1alpha1.AnnotationInvitationUsedAt] = i.UsedAt.UTC().Format(time.RFC3339)
	}
	return a
}

// ReadInvitation reads a record.
func ReadInvitation(secret *corev1.Secret) (*Invitation, error) {
	text := func(key string) string { return string(secret.Data[key]) }
	a := secret.Annotations
	i := &Invitation{
		Name: secret.Labels[v1alpha1.LabelInvitation], Fingerprint: text(recordFingerprint), Address: text(recordAddress),
		Endpoint: text(recordEndpoint), HubUID: types.UID(text(recordHubUID)), Access: text(recordAccess),
		State: InvitationState(a[v1alpha1.AnnotationInvitationState]), ClusterUID: types.UID(a[v1alpha1.AnnotationClusterUID]),
		Message: a[v1alpha1.AnnotationInvitationMessage],
	}
	var errs [8]error
	i.Chain, errs[0] = strconv.Atoi(text(recordChain))
	i.Expires, errs[1] = time.Parse(time.RFC3339, text(recordExpires))
	i.TokenLifetime, errs[2] = time.ParseDuration(text(recordTokenLifetime))
	i.CertificateLifetime, errs[3] = time.ParseDuration(text(recordCertificateLifetime))
	i.Process, errs[5] = strconv.ParseBool(text(recordProcess))
	i.AgentValues, errs[6] = ParseAgentValues(secret.Data[recordAgentValues])
	if recorded, has := secret.Data[recordImpersonation]; has {
		var impersonation Impersonation
		impersonation, errs[7] = ParseImpersonation(string(recorded))
		i.Impersonation = &impersonation
	}
	if at := a[v1alpha1.AnnotationInvitationUsedAt]; at != "" {
		i.UsedAt, errs[4] = time.Parse(time.RFC3339, at)
	}
	err := errors.Join(errs[:]...)
	if err == nil && (InvitationSecret(i.Name) != secret.Name || len(i.Fingerprint) != 2*sha256.Size || i.Chain < 1 || i.HubUID == "" || i.Access == "" || i.Endpoint == "") {
		err = errors.New("a value is missing")
	}
	if err != nil {
		return nil, fmt.Errorf("the Secret %s is not the record of an invitation: %w", secret.Name, err)
	}
	return i, nil
}
