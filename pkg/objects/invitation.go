// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

const (
	// LabelInvitation on a Secret of the hub says that it is the record of an invitation; the value is the cluster's name.
	LabelInvitation = v1alpha1.GroupName + "/invitation"

	// What became of an invitation, as annotations of its record: the gateway writes them. There is a cluster's UID ([AnnotationClusterUID])
	// from the moment on that the invitation is that cluster's.
	annotationState   = v1alpha1.GroupName + "/invitation-state"
	annotationUsedAt  = v1alpha1.GroupName + "/invitation-used-at"
	annotationMessage = v1alpha1.GroupName + "/invitation-message"

	// EnrolName is what the objects are called that enrol a cluster; the Job's name has the beginning of the invitation's fingerprint, too.
	EnrolName = "konnectivity-agent-enrol"
	// EnrolBinding is the ClusterRoleBinding with which all of them go.
	EnrolBinding = AccessPrefix + "enrol"
)

// InvitationState is how far an invitation has come.
type InvitationState string

// The states of an invitation. It expires whatever its state is.
const (
	// InvitationOpen has not been used.
	InvitationOpen InvitationState = "Open"
	// InvitationUsed is a cluster's, which is being registered: that cluster may come again, and no other.
	InvitationUsed InvitationState = "Used"
	// InvitationRegistering is Used, and the cluster's Secret may be on the hub: who revokes it in this state deletes that as well.
	InvitationRegistering InvitationState = "Registering"
	// InvitationDone has registered its cluster.
	InvitationDone InvitationState = "Done"
)

// Invitation is the hub's record of an invitation. It has nothing that is secret: the key is in the invitation alone.
type Invitation struct {
	// Name is what the cluster will be called.
	Name string
	// Fingerprint is that of the certificate (see [Fingerprint]); Chain is how many certificates the invitation has, itself included.
	Fingerprint string
	Chain       int
	Expires     time.Time
	// Address is where agents dial, HubUID which hub this is, Access what --access said.
	Address string
	HubUID  types.UID
	Access  string
	// Endpoint is the URL of the cluster's API server as the agent sees it. With Process the agent is no Pod: the gateway cannot give it another
	// certificate, and the invitation's goes on being the agent's once the cluster is registered.
	Endpoint string
	Process  bool
	// TokenLifetime and CertificateLifetime are those of what the cluster is registered with.
	TokenLifetime, CertificateLifetime time.Duration

	// State says how far it has come; ClusterUID whose it is, unless it is open, since UsedAt. Message is why the last attempt was
	// refused, or "".
	State      InvitationState
	ClusterUID types.UID
	UsedAt     time.Time
	Message    string
}

// InvitationSecret is the name of the record of an invitation. No cluster that agent-bootstrap registers can be called so, since its name
// has no dot.
func InvitationSecret(name string) string { return "invitation." + name }

// Fingerprint is the SHA-256 of a certificate in DER.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Secret is the record as it is kept on the hub.
func (i *Invitation) Secret(namespace string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: InvitationSecret(i.Name), Namespace: namespace, Labels: Managed(map[string]string{LabelInvitation: i.Name}), Annotations: i.Annotations(),
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{
			"fingerprint": []byte(i.Fingerprint), "chain": []byte(strconv.Itoa(i.Chain)), "expires": []byte(i.Expires.UTC().Format(time.RFC3339)),
			"address": []byte(i.Address), "endpoint": []byte(i.Endpoint), "process": []byte(strconv.FormatBool(i.Process)), "hub-uid": []byte(i.HubUID), "access": []byte(i.Access),
			"token-lifetime": []byte(i.TokenLifetime.String()), "certificate-lifetime": []byte(i.CertificateLifetime.String()),
		},
	}
}

// Annotations are what the record says of the invitation's state.
func (i *Invitation) Annotations() map[string]string {
	a := map[string]string{annotationState: string(i.State), AnnotationClusterUID: string(i.ClusterUID), annotationUsedAt: "", annotationMessage: i.Message}
	if !i.UsedAt.IsZero() {
		a[annotationUsedAt] = i.UsedAt.UTC().Format(time.RFC3339)
	}
	return a
}

// ReadInvitation reads the record.
func ReadInvitation(secret *corev1.Secret) (*Invitation, error) {
	text := func(key string) string { return string(secret.Data[key]) }
	a := secret.Annotations
	i := &Invitation{
		Name: secret.Labels[LabelInvitation], Fingerprint: text("fingerprint"), Address: text("address"), Endpoint: text("endpoint"), HubUID: types.UID(text("hub-uid")), Access: text("access"),
		State: InvitationState(a[annotationState]), ClusterUID: types.UID(a[AnnotationClusterUID]), Message: a[annotationMessage],
	}
	var errs [6]error
	i.Chain, errs[0] = strconv.Atoi(text("chain"))
	i.Expires, errs[1] = time.Parse(time.RFC3339, text("expires"))
	i.TokenLifetime, errs[2] = time.ParseDuration(text("token-lifetime"))
	i.CertificateLifetime, errs[3] = time.ParseDuration(text("certificate-lifetime"))
	i.Process, errs[5] = strconv.ParseBool(text("process"))
	if at := a[annotationUsedAt]; at != "" {
		i.UsedAt, errs[4] = time.Parse(time.RFC3339, at)
	}
	err := errors.Join(errs[:]...)
	if err == nil && (InvitationSecret(i.Name) != secret.Name || len(i.Fingerprint) != 2*sha256.Size || i.Chain < 1 || i.HubUID == "" || i.Access == "" || i.Endpoint == "") {
		err = errors.New("something is missing")
	}
	if err != nil {
		return nil, fmt.Errorf("the Secret %s is no record of an invitation: %w", secret.Name, err)
	}
	return i, nil
}

// Objects are what is applied to the cluster that is invited: what register applies there but for what the agent of a registered cluster depends on,
// and what enrols the cluster. So nothing breaks a cluster that turns out to be registered already. lifetime is how long the Job tries. An
// agent that is a process has its files elsewhere.
func (i *Invitation) Objects(pair rotation.AgentPair, lifetime time.Duration) ([]*unstructured.Unstructured, error) {
	all, err := AgentBase(func(o *unstructured.Unstructured) bool {
		return IsNamespace(o) || IsGatewayAccount(o) || !i.Process && o.GetKind() != "Deployment"
	})
	if err != nil {
		return nil, err
	}
	access, err := AccessOf(i.Access).Objects("")
	if err != nil {
		return nil, err
	}
	all = append(all, access...)
	if !i.Process {
		secret, err := i.enrolSecret(pair)
		if err != nil {
			return nil, err
		}
		all = append(all, secret)
	}
	enrol, err := manifests.Objects(manifests.KonnectivityInvitation)
	if err != nil {
		return nil, err
	}
	for _, o := range enrol {
		if i.Process && o.GetNamespace() != "" { // there is no agent to be applied, and no Job
			continue
		}
		if err := i.complete(mark(o), access, lifetime); err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}

// JobName is what the Job is called: a Job cannot be changed, so that each invitation has one of its own.
func (i *Invitation) JobName() string { return EnrolName + "-" + i.Fingerprint[:8] }

func (i *Invitation) enrolSecret(pair rotation.AgentPair) (*unstructured.Unstructured, error) {
	host, port, err := net.SplitHostPort(i.Address)
	if err != nil {
		return nil, err
	}
	data := pair.Data()
	data["host"], data["port"] = []byte(host), []byte(port)
	return ToUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: EnrolName, Namespace: AgentNamespace, Labels: Managed(nil)},
		Type:       corev1.SecretTypeTLS,
		Data:       data,
	})
}

// complete adds what differs between invitations to an object of the base.
func (i *Invitation) complete(o *unstructured.Unstructured, access []*unstructured.Unstructured, lifetime time.Duration) error {
	switch o.GetKind() {
	case "Job":
		o.SetName(i.JobName())
		return unstructured.SetNestedField(o.Object, int64(max(lifetime, time.Second).Seconds()), "spec", "activeDeadlineSeconds")
	case "Role":
		return eachRule(o, func(_, resource string, names []any) []any {
			if resource == "jobs" {
				return []any{i.JobName()}
			}
			return names
		})
	case "ClusterRole":
		return eachRule(o, func(verb, resource string, names []any) []any {
			for _, a := range access {
				if verb == "patch" && resource == strings.ToLower(a.GetKind())+"s" {
					names = append(names, a.GetName())
				}
			}
			return names
		})
	}
	return nil
}

// eachRule changes the names of the resources in the rules of a role, by the first verb and the first resource of each.
func eachRule(o *unstructured.Unstructured, names func(verb, resource string, names []any) []any) error {
	rules, _, err := unstructured.NestedSlice(o.Object, "rules")
	if err != nil {
		return err
	}
	for _, r := range rules {
		rule, ok := r.(map[string]any)
		if !ok {
			return fmt.Errorf("%s %s has a rule that is none", o.GetKind(), o.GetName())
		}
		resources, _, err := unstructured.NestedStringSlice(rule, "resources")
		if err != nil || len(resources) == 0 {
			return fmt.Errorf("%s %s has a rule for no resource: %w", o.GetKind(), o.GetName(), err)
		}
		verbs, _, err := unstructured.NestedStringSlice(rule, "verbs")
		if err != nil || len(verbs) == 0 {
			return fmt.Errorf("%s %s has a rule for no verb: %w", o.GetKind(), o.GetName(), err)
		}
		before, _, err := unstructured.NestedSlice(rule, "resourceNames")
		if err != nil {
			return err
		}
		rule["resourceNames"] = names(verbs[0], resources[0], before)
	}
	return unstructured.SetNestedSlice(o.Object, rules, "rules")
}
