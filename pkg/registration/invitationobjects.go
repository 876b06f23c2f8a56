// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"fmt"
	"net"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Objects returns the objects of the invitation that are applied to the cluster: the objects that
// register applies there, except those that the agent of a registered cluster depends on, and the
// objects that enroll the cluster. So an invitation cannot break a cluster that is already
// registered. lifetime is how long the Job tries. The files of an agent that runs as a process are
// not included.
func (i *Invitation) Objects(pair AgentPair, lifetime time.Duration) ([]*unstructured.Unstructured, error) {
	all, err := AgentBase(func(o *unstructured.Unstructured) bool {
		return IsNamespace(o) || IsGatewayAccount(o) || !i.Process && o.GetKind() != "Deployment"
	})
	if err != nil {
		return nil, err
	}
	access, err := i.AccessObjects()
	if err != nil {
		return nil, err
	}
	all = append(all, access...)
	if !i.Process {
		secret, err := i.enrollSecret(pair)
		if err != nil {
			return nil, err
		}
		all = append(all, secret)
	}
	enroll, err := manifests.Objects(manifests.KonnectivityInvitation)
	if err != nil {
		return nil, err
	}
	for _, o := range enroll {
		if i.Process && o.GetNamespace() != "" { // there is no agent to apply, and no Job
			continue
		}
		if err := i.complete(setManaged(o), access, lifetime); err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return i.AgentValues.applyTo(all)
}

// AccessObjects returns the objects that bind the access to the account for callers, without an
// owner.
func (i *Invitation) AccessObjects() ([]*unstructured.Unstructured, error) {
	return accessOf(i.Access, i.Impersonation).Objects("")
}

// Identity is who the cluster will see, as the cluster's Secret says it. Empty means the default.
func (i *Invitation) Identity() string {
	if i.Impersonation == nil {
		return ""
	}
	return v1alpha1.IdentityImpersonate
}

// JobName returns the name of the invitation's Job. A Job cannot be changed, so each invitation has
// one of its own.
func (i *Invitation) JobName() string { return EnrollName + "-" + i.Fingerprint[:8] }

func (i *Invitation) enrollSecret(pair AgentPair) (*unstructured.Unstructured, error) {
	host, port, err := net.SplitHostPort(i.Address)
	if err != nil {
		return nil, err
	}
	data := pair.Data()
	data["host"], data["port"] = []byte(host), []byte(port)
	return ToUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: EnrollName, Namespace: AgentNamespace, Labels: ManagedLabels(nil)},
		Type:       corev1.SecretTypeTLS,
		Data:       data,
	})
}

// complete adds to an object of the base what differs between invitations.
func (i *Invitation) complete(o *unstructured.Unstructured, access []*unstructured.Unstructured, lifetime time.Duration) error {
	switch o.GetKind() {
	case "Job":
		o.SetName(i.JobName())
		return unstructured.SetNestedField(o.Object, int64(max(lifetime, time.Second).Seconds()), "spec", "activeDeadlineSeconds")
	case "Role":
		return setResourceNames(o, func(_, resource string, names []any) []any {
			if resource == "jobs" {
				return []any{i.JobName()}
			}
			return names
		})
	case "ClusterRole":
		return setResourceNames(o, func(verb, resource string, names []any) []any {
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

// setResourceNames replaces the resource names in each rule of a role, given the rule's first verb
// and its first resource.
func setResourceNames(o *unstructured.Unstructured, names func(verb, resource string, names []any) []any) error {
	rules, _, err := unstructured.NestedSlice(o.Object, "rules")
	if err != nil {
		return err
	}
	for _, r := range rules {
		rule, ok := r.(map[string]any)
		if !ok {
			return fmt.Errorf("%s %s has a rule that is not an object", o.GetKind(), o.GetName())
		}
		resources, _, err := unstructured.NestedStringSlice(rule, "resources")
		if err != nil || len(resources) == 0 {
			return fmt.Errorf("%s %s has a rule without a resource: %w", o.GetKind(), o.GetName(), err)
		}
		verbs, _, err := unstructured.NestedStringSlice(rule, "verbs")
		if err != nil || len(verbs) == 0 {
			return fmt.Errorf("%s %s has a rule without a verb: %w", o.GetKind(), o.GetName(), err)
		}
		current, _, err := unstructured.NestedSlice(rule, "resourceNames")
		if err != nil {
			return err
		}
		rule["resourceNames"] = names(verbs[0], resources[0], current)
	}
	return unstructured.SetNestedSlice(o.Object, rules, "rules")
}
