// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	hubNamespace   = "cluster-gateway-system"
	agentNamespace = "cluster-gateway-agent"
	accountPrefix  = "system:serviceaccount:"
	// The accounts of the manifests: the gateway's on the hub, the gateway's own in a managed
	// cluster, and the agent's in a managed cluster.
	hubAccount     = accountPrefix + hubNamespace + ":cluster-gateway"
	clusterAccount = accountPrefix + agentNamespace + ":cluster-gateway-maintenance"
	agentAccount   = accountPrefix + agentNamespace + ":konnectivity-agent"
	// clusterName is the name of the managed cluster.
	clusterName = "edge-1"
)

// record contains what an account does in a cluster, and what the manifests allow it to do.
type record struct {
	cluster *lab.Cluster
	account string
	// objects are the applied manifests.
	objects []*unstructured.Unstructured
	// apart maps bindings of the account that need not be needed to the reason.
	apart map[string]string
	// until, if set, is the last event that counts.
	until func(event) bool
}

// base returns the objects of a kustomize base.
func base(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := manifests.Objects(name)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// TestEveryRuleIsNeeded has the gateway do everything it does, with exactly the accounts and the
// rules of the manifests. None of its requests may be denied, and each verb of each rule must be
// needed by one. Then the test removes a rule from the cluster.
func TestEveryRuleIsNeeded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	s := newSite(ctx, t)
	s.exercise(ctx, t)

	onHub := record{cluster: s.hub, objects: append(base(t, manifests.Gateway), base(t, manifests.GatewayClusterAPI)...), account: hubAccount}
	onEdge := record{cluster: s.edge, objects: base(t, manifests.KonnectivityAgent), account: clusterAccount}
	for _, r := range []record{onHub, onEdge, s.invitation} {
		if r.cluster == nil {
			continue // the log contains the reason
		}
		t.Run(r.cluster.Name(), func(t *testing.T) {
			units := s.enrolling // the previous rules, of the invitation
			if r.cluster != s.invited {
				units = unitsOf(r.grants(ctx, t))
			}
			// Scheduled tasks may still be running.
			labtest.Within(t, labtest.Timeout, "what "+r.account+" does and what it may do to be the same", func() error {
				if findings := Check(units, r.events(t)); len(findings) > 0 {
					return errors.New(strings.Join(findings, "\n"))
				}
				return nil
			})
			r.withoutEach(t, units)
		})
	}
	t.Run("the agent sends no requests", func(t *testing.T) {
		for _, c := range []*lab.Cluster{s.edge, s.invited} {
			events, err := c.AuditEvents()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				if e.User.Username == agentAccount {
					t.Errorf("%s: %s %s", c.Name(), e.Verb, e.RequestURI)
				}
			}
		}
	})
	t.Run("a rule is removed", func(t *testing.T) { s.takeOut(ctx, t, onHub) })
}

// unitsOf is Units, without the need for what only a hub of an earlier version is asked for: lists
// of Leases and of the kubeconfigs of Cluster API, where a watch does not begin with what exists.
func unitsOf(grants []Grant) []Unit {
	units := Units(grants)
	for i := range units {
		if name := units[i].Name; strings.HasSuffix(name, ": list leases.coordination.k8s.io") || strings.HasSuffix(name, "cluster-gateway:clusterapi: list secrets") {
			units[i].Needed = false
		}
	}
	return units
}

// events returns the recorded events of the account.
func (r record) events(t *testing.T) []event {
	t.Helper()
	all, err := r.cluster.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(e event) bool { return e.User.Username != r.account })
	if r.until != nil {
		if i := slices.IndexFunc(all, r.until); i >= 0 {
			all = all[:i+1]
		}
	}
	if len(all) == 0 {
		t.Fatalf("the API server of %s has no record of %s", r.cluster.Name(), r.account)
	}
	return all
}

// withoutEach checks that the events would not fit if any one unit were missing.
func (r record) withoutEach(t *testing.T, units []Unit) {
	t.Helper()
	events, tried := r.events(t), 0
	for i, u := range units {
		if !u.Needed {
			continue
		}
		tried++
		if findings := Check(slices.Delete(slices.Clone(units), i, i+1), events); len(findings) == 0 {
			t.Errorf("without %q, nothing would be missing", u.Name)
		}
		t.Log(u.Name)
	}
	if tried < 5 {
		t.Errorf("only %d rules were checked", tried)
	}
}

// grants reads from the cluster all roles that are bound to the account. Those that are bound to it
// by name must be exactly those of the manifests.
func (r record) grants(ctx context.Context, t *testing.T) []Grant {
	t.Helper()
	client := r.cluster.Client()
	ofManifests := r.ofManifests(t)
	var grants []Grant
	for _, b := range bindings(ctx, t, client) {
		byName, applies := bound(b.subjects, r.account)
		if !applies {
			continue
		}
		g := Grant{Binding: b.name, Namespace: b.namespace}
		builtIn := false
		g.Rules, builtIn = rules(ctx, t, client, b)
		_, apart := r.apart[b.name]
		switch {
		case !byName, apart:
		case !ofManifests[b.name]:
			t.Errorf("%s is bound to %s, but not in the manifests", b.name, r.account)
		case builtIn:
			g.Need = NeedEachRule
		default:
			g.Need = NeedEverything
		}
		if byName {
			delete(ofManifests, b.name)
		}
		grants = append(grants, g)
	}
	for name := range ofManifests {
		t.Errorf("%s is in the manifests, but not in the cluster", name)
	}
	return grants
}

// ofManifests returns the bindings of the account that were applied, and checks that all Roles that
// were applied are in the cluster unchanged.
func (r record) ofManifests(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, o := range r.objects {
		switch o.GetKind() {
		case "RoleBinding", "ClusterRoleBinding":
			subjects, _, err := unstructured.NestedSlice(o.Object, "subjects")
			if err != nil || len(subjects) != 1 {
				t.Fatalf("%s %s has the subjects %v", o.GetKind(), o.GetName(), subjects)
			}
			if name, _, _ := unstructured.NestedString(subjects[0].(map[string]any), "name"); strings.HasSuffix(r.account, ":"+name) {
				found[bindingName(o.GetKind(), o.GetNamespace(), o.GetName())] = true
			}
		case "Role", "ClusterRole":
			r.sameRules(t, o)
		}
	}
	if len(found) == 0 {
		t.Fatal("the manifests contain no bindings")
	}
	return found
}

func (r record) sameRules(t *testing.T, want *unstructured.Unstructured) {
	t.Helper()
	args := []string{"get", strings.ToLower(want.GetKind()), want.GetName(), "-o", "json"}
	if want.GetNamespace() != "" {
		args = append(args, "-n", want.GetNamespace())
	}
	out, err := r.cluster.Kubectl(t.Context(), args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := &unstructured.Unstructured{}
	if err := got.UnmarshalJSON(out); err != nil {
		t.Fatal(err)
	}
	if w, g := fmt.Sprint(want.Object["rules"]), fmt.Sprint(got.Object["rules"]); w != g {
		t.Errorf("%s %s has the rules\n%s\nand in the manifests\n%s", want.GetKind(), want.GetName(), g, w)
	}
}

// binding is a RoleBinding or a ClusterRoleBinding.
type binding struct {
	name, namespace string
	role            rbacv1.RoleRef
	subjects        []rbacv1.Subject
}

func bindingName(kind, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return kind + " " + name
}

func bindings(ctx context.Context, t *testing.T, client kubernetes.Interface) []binding {
	t.Helper()
	var all []binding
	local, err := client.RbacV1().RoleBindings("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range local.Items {
		all = append(all, binding{bindingName("RoleBinding", b.Namespace, b.Name), b.Namespace, b.RoleRef, b.Subjects})
	}
	everywhere, err := client.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range everywhere.Items {
		all = append(all, binding{bindingName("ClusterRoleBinding", "", b.Name), "", b.RoleRef, b.Subjects})
	}
	return all
}

// bound reports whether an account is among subjects, and whether by its own name.
func bound(subjects []rbacv1.Subject, account string) (byName, applies bool) {
	namespace, name, _ := strings.Cut(strings.TrimPrefix(account, accountPrefix), ":")
	groups := []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + namespace}
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			byName = byName || s.Namespace == namespace && s.Name == name
		case rbacv1.UserKind:
			byName = byName || s.Name == account
		case rbacv1.GroupKind:
			applies = applies || slices.Contains(groups, s.Name)
		}
	}
	return byName, byName || applies
}

// rules returns the rules of a binding's role, and whether it is one of Kubernetes' own roles.
func rules(ctx context.Context, t *testing.T, client kubernetes.Interface, b binding) (_ []rbacv1.PolicyRule, builtIn bool) {
	t.Helper()
	const label = "kubernetes.io/bootstrapping"
	if b.role.Kind == "Role" {
		role, err := client.RbacV1().Roles(b.namespace).Get(ctx, b.role.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return role.Rules, role.Labels[label] != ""
	}
	role, err := client.RbacV1().ClusterRoles().Get(ctx, b.role.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return role.Rules, role.Labels[label] != ""
}

// takeOut removes the rule for Events from the gateway's Role on the hub, and checks that this is
// found.
func (s *site) takeOut(ctx context.Context, t *testing.T, hub record) {
	units := unitsOf(hub.grants(ctx, t))
	roles := s.hub.Client().RbacV1().Roles(metav1.NamespaceDefault)
	role, err := roles.Get(ctx, "cluster-gateway:events", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role.Rules = nil
	if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the hub to use the change", func() error {
		answer, err := s.hub.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: hub.account, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: metav1.NamespaceDefault, Verb: "create", Resource: "events"},
		}}, metav1.CreateOptions{})
		if err == nil && answer.Status.Allowed {
			err = errors.New(answer.Status.Reason)
		}
		return err
	})
	// The certificate cannot be parsed, so an Event must be recorded.
	if err := s.hub.ApplySecret(ctx, lab.SecretOptions{Name: "invalid"}); err != nil {
		t.Fatal(err)
	}
	const want = "denied: create events in namespace default"
	labtest.Within(t, labtest.Timeout, "the record to show the missing rule", func() error {
		if findings := Check(units, hub.events(t)); !slices.Equal(findings, []string{want}) {
			return fmt.Errorf("findings: %q", findings)
		}
		return nil
	})
}

// newLab starts a lab that is closed when the test ends.
func newLab(ctx context.Context, t *testing.T) *lab.Lab {
	t.Helper()
	binaries, err := lab.FindBinaries(ctx, lab.BinariesOptions{Out: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, lab.Options{Binaries: binaries, KeepLogs: t.Failed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
