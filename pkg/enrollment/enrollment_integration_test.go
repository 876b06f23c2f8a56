// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package enrollment_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/enrollment"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The tests in this file call the enroller itself, with API servers on both sides and without the
// tunnel. So they can stop it after each step, give it another clock, and hand over what no agent
// would.

// site is what the integration tests of this package share.
var site bootstraptest.Site

func TestMain(m *testing.M) { bootstraptest.Main(m, &site) }

// visit is one attempt of a cluster to enroll.
type visit struct {
	config  enrollment.Config
	invited tunnel.Invited
}

// newVisit returns an attempt with an invitation that has been applied to the cluster.
func newVisit(ctx context.Context, t *testing.T, c *lab.Cluster, file string) *visit {
	t.Helper()
	cert := invitationCertificate(t, file)
	ca, err := pki.ParseCertificates(c.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Client().CoreV1().ServiceAccounts(bootstraptest.AgentNamespace).CreateToken(ctx, registration.MaintenanceAccount, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(c.Endpoint(), "https://")
	hub := site.Hub.Client().CoreV1()
	return &visit{
		config: enrollment.Config{Secrets: hub.Secrets(bootstraptest.HubNamespace), Namespace: bootstraptest.HubNamespace, Events: hub.Events("default")},
		invited: tunnel.Invited{
			Name: cert[0].Subject.CommonName, Certificate: cert[0], Chain: append(cert[1:], ca...), Token: token.Status.Token,
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return c.DialContext(ctx, "tcp", address) },
		},
	}
}

func (v *visit) enroll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tunnel.EnrollmentTimeout)
	defer cancel()
	_, err := enrollment.New(v.config).Enroll(ctx, v.invited)
	return err
}

// invitationCertificate returns the certificates in the Secret of an invitation.
func invitationCertificate(t *testing.T, file string) []*x509.Certificate {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
		secret := &corev1.Secret{}
		if err := yaml.Unmarshal(document, secret); err != nil {
			t.Fatal(err)
		}
		if secret.Kind != "Secret" {
			continue
		}
		certs, err := pki.ParseCertificates(secret.Data["tls.crt"])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := base64.StdEncoding.DecodeString(string(secret.Data["tls.key"])); err == nil {
			t.Error("the key is encoded twice")
		}
		return certs
	}
	t.Fatal("the invitation has no Secret")
	return nil
}

// TestEnrollmentRefused checks that each fault is named, to the cluster and on the hub, and that
// nothing is half done: no cluster is registered, and the same invitation works once the fault is
// gone.
func TestEnrollmentRefused(t *testing.T) {
	ctx := site.Begin(t)
	file := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, file)
	foreign, err := pki.ParseCertificates(site.Hub.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	unreachable, err := kubernetes.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	powerless, err := site.Near.ServiceAccountToken(ctx, "default", "powerless", "")
	if err != nil {
		t.Fatal(err)
	}
	clock := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	nearby := withoutVersion(labtest.Objects(ctx, t, site.Near), "Namespace /"+bootstraptest.AgentNamespace)
	for _, c := range []struct {
		name   string
		change func(v *visit)
		want   string
	}{
		{"expired", func(v *visit) { v.config.Now = clock(25 * time.Hour) }, "expired at"},
		{"gateway's clock ahead", func(v *visit) { v.config.Now = clock(10 * time.Minute) }, "clock and the gateway's are about 10m"},
		{"gateway's clock behind", func(v *visit) { v.config.Now = clock(-10 * time.Minute) }, "clock and the gateway's are about 10m"},
		{"no token", func(v *visit) { v.invited.Token = "" }, "no token"},
		{"garbage for a token", func(v *visit) { v.invited.Token = "garbage" }, "does not accept the token"},
		{"somebody else's token", func(v *visit) { v.invited.Token = powerless }, "the gateway may not"},
		{"no CA", func(v *visit) { v.invited.Chain = nil }, "sent no CA"},
		{"another CA", func(v *visit) { v.invited.Chain = foreign }, "cannot be verified with the cluster's CA"},
		{"a certificate that is no CA", func(v *visit) { v.invited.Chain = []*x509.Certificate{v.invited.Certificate} }, "cannot be verified with the cluster's CA"},
		{"API server that cannot be dialed", func(v *visit) {
			v.invited.Dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("the agent says no") }
		}, "the agent says no"},
		{"hub that does not answer", func(v *visit) { v.config.Secrets = unreachable.CoreV1().Secrets(bootstraptest.HubNamespace) }, "the hub says"},
		{"another certificate of that name", func(v *visit) { v.invited.Certificate = foreign[0] }, "revoked, and there is a later one"},
		{"a name that was not invited", func(v *visit) { v.invited.Name = "stranger" }, "has been revoked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVisit(ctx, t, site.Near, file)
			c.change(v)
			err := v.enroll(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v; want that it says %q", err, c.want)
			}
			if strings.Contains(err.Error(), v.invited.Token) && len(v.invited.Token) > 20 {
				t.Error("the refusal shows the token")
			}
			bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "near-1")
			if r := bootstraptest.Invitation(ctx, t, site.Hub, "near-1"); r.State != registration.InvitationOpen {
				t.Errorf("the invitation is %s", r.State)
			}
			if c.name != "hub that does not answer" {
				told(ctx, t, v.invited.Name, err.Error())
			}
			labtest.Same(t, "the cluster", nearby, withoutVersion(labtest.Objects(ctx, t, site.Near), "Namespace /"+bootstraptest.AgentNamespace))
		})
	}
	if err := newVisit(ctx, t, site.Near, file).enroll(ctx); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	if r := bootstraptest.Invitation(ctx, t, site.Hub, "near-1"); r.State != registration.InvitationDone || r.Message != "" {
		t.Errorf("the invitation is %+v", r)
	}
}

// told looks for the Event about a refusal.
func told(ctx context.Context, t *testing.T, name, text string) {
	t.Helper()
	events, err := site.Hub.Client().CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=EnrollmentRefused,involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.Message == text {
			return
		}
	}
	t.Errorf("of %d Events about %s none says %q", len(events.Items), name, text)
}

func withoutVersion(all map[string]string, name string) map[string]string {
	all = maps.Clone(all)
	if _, ok := all[name]; ok {
		all[name] = ""
	}
	return all
}

// TestInvitationRevoked checks that a revoked or replaced invitation does not work, and that a
// later one does.
func TestInvitationRevoked(t *testing.T) {
	ctx := site.Begin(t)
	first := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, first)
	second := site.Invite(ctx, t)
	if err := newVisit(ctx, t, site.Near, first).enroll(ctx); err == nil || !strings.Contains(err.Error(), "there is a later one") {
		t.Errorf("the first of two: %v", err)
	}
	_, said := site.Must(ctx, t, "invite", "near-1", "--revoke")
	if !strings.Contains(said, "revoked") {
		t.Errorf("revoking says\n%s", said)
	}
	site.Must(ctx, t, "invite", "near-1", "--revoke") // nothing to do
	if err := newVisit(ctx, t, site.Near, second).enroll(ctx); err == nil || !strings.Contains(err.Error(), "has been revoked") {
		t.Errorf("one that was revoked: %v", err)
	}
	bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "near-1")
	third := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, third)
	if err := newVisit(ctx, t, site.Near, third).enroll(ctx); err != nil {
		t.Errorf("the last: %v", err)
	}
}

// TestInvitationOfAnother checks that an invitation gives a registered cluster no second name, and
// does not harm it.
func TestInvitationOfAnother(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear("--access", "view")...)
	hub := labtest.Objects(ctx, t, site.Hub)
	file := site.Invite(ctx, t, "other", "--access", "view")
	t.Cleanup(func() { site.Must(context.WithoutCancel(ctx), t, "invite", "other", "--revoke") })
	before := labtest.Objects(ctx, t, site.Near)
	bootstraptest.Apply(ctx, t, site.Near, file)
	err := newVisit(ctx, t, site.Near, file).enroll(ctx)
	if err == nil || !strings.Contains(err.Error(), `this cluster is registered already, as "near-1"`) {
		t.Fatalf("%v", err)
	}
	bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "other")
	if r := bootstraptest.Invitation(ctx, t, site.Hub, "other"); r.State != registration.InvitationOpen || !strings.Contains(r.Message, "near-1") {
		t.Errorf("the invitation is %+v", r)
	}
	after := labtest.Objects(ctx, t, site.Hub)
	delete(after, "Secret "+bootstraptest.HubNamespace+"/invitation.other")
	labtest.Same(t, "the hub", hub, after)
	for name := range before {
		if _, still := labtest.Objects(ctx, t, site.Near)[name]; !still {
			t.Errorf("%s is gone from the cluster", name)
		}
	}
	// Nor does the Secret on the hub tell alone: the cluster itself has forgotten.
	if _, err := site.Near.Kubectl(ctx, "annotate", "namespace", bootstraptest.AgentNamespace, "cluster.core.oam.dev/cluster-name-", "cluster.core.oam.dev/hub-uid-").Output(); err != nil {
		t.Fatal(err)
	}
	if err := newVisit(ctx, t, site.Near, file).enroll(ctx); err == nil || !strings.Contains(err.Error(), `this cluster is registered already, as "near-1"`) {
		t.Errorf("by the hub's Secret alone: %v", err)
	}
}

// TestInvitationForTwo enrolls two clusters with one invitation at the same time. Exactly one is
// registered; the other gets an error that says why.
func TestInvitationForTwo(t *testing.T) {
	ctx := site.Begin(t)
	file := site.Invite(ctx, t, "edge-1")
	clusters := []*lab.Cluster{site.Edge, site.Near}
	errs := make([]error, len(clusters))
	var group sync.WaitGroup
	for i, c := range clusters {
		bootstraptest.Apply(ctx, t, c, file)
		v := newVisit(ctx, t, c, file)
		group.Go(func() { errs[i] = v.enroll(ctx) })
	}
	group.Wait()
	// Who was told to come again does so.
	for i, c := range clusters {
		if errs[i] != nil {
			errs[i] = newVisit(ctx, t, c, file).enroll(ctx)
		}
	}
	winner := bootstraptest.Invitation(ctx, t, site.Hub, "edge-1").ClusterUID
	won := 0
	for i, c := range clusters {
		system, err := c.Client().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case system.UID == winner:
			won++
			if errs[i] != nil {
				t.Errorf("who the invitation is of was not registered: %v", errs[i])
			}
		case errs[i] == nil || !strings.Contains(errs[i].Error(), "by another cluster"):
			t.Errorf("the other one: %v", errs[i])
		}
	}
	if won != 1 {
		t.Errorf("%d clusters are who the invitation is of", won)
	}
	// The one that lost has the invitation's objects, or the one that won is nearby under a name that
	// the clean-up does not expect.
	for _, c := range clusters {
		if _, err := c.Kubectl(ctx, "delete", "namespace", bootstraptest.AgentNamespace).CombinedOutput(); err != nil {
			t.Error(err)
		}
	}
}

// TestEnrollmentResumes ends the enrollment after each of its steps. Another replica continues,
// with the same result as an enrollment without an interruption.
func TestEnrollmentResumes(t *testing.T) {
	ctx := site.Begin(t)
	var steps []string
	run := func(t *testing.T, stopAfter int) (hub, nearby map[string]string) {
		t.Helper()
		file := site.Invite(ctx, t, "near-1", "--access", "impersonate")
		bootstraptest.Apply(ctx, t, site.Near, file)
		v := newVisit(ctx, t, site.Near, file)
		stopped := errors.New("stopped by the test")
		done := 0
		v.config.AfterStep = func(step string) error {
			if done++; done == stopAfter {
				return stopped
			}
			if stopAfter == 0 {
				steps = append(steps, step)
			}
			return nil
		}
		if err := v.enroll(ctx); stopAfter == 0 && err != nil || stopAfter > 0 && !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		if stopAfter > 0 {
			if err := newVisit(ctx, t, site.Near, file).enroll(ctx); err != nil && bootstraptest.Invitation(ctx, t, site.Hub, "near-1").State != registration.InvitationDone {
				t.Fatalf("the second attempt: %v", err)
			}
		}
		hub, nearby = labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
		for name := range nearby {
			if strings.Contains(name, "enrol") {
				t.Errorf("%s is left of the enrollment", name)
			}
		}
		if r := bootstraptest.Invitation(ctx, t, site.Hub, "near-1"); r.State != registration.InvitationDone {
			t.Errorf("the invitation is %s", r.State)
		}
		site.Must(ctx, t, "unregister", "near-1", "--wait", "4s", "--cluster-kubeconfig", site.Near.Kubeconfig())
		return hub, nearby
	}
	hub, nearby := run(t, 0)
	if len(steps) < 12 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d-%s", i+1, step), func(t *testing.T) {
			gotHub, gotNearby := run(t, i+1)
			labtest.SameNames(t, "the hub", hub, gotHub)
			labtest.SameNames(t, "the cluster", nearby, gotNearby)
		})
	}
}

// TestEnrollmentTwice has two replicas enroll one cluster at the same time.
func TestEnrollmentTwice(t *testing.T) {
	ctx := site.Begin(t)
	file := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, file)
	var group sync.WaitGroup
	for range 2 {
		v := newVisit(ctx, t, site.Near, file)
		group.Go(func() {
			for ctx.Err() == nil && v.enroll(ctx) != nil { // an agent connects again
				// When the other replica is done, the rights of the invitation are gone.
				if bootstraptest.Invitation(ctx, t, site.Hub, "near-1").State == registration.InvitationDone {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	group.Wait()
	if r := bootstraptest.Invitation(ctx, t, site.Hub, "near-1"); r.State != registration.InvitationDone {
		t.Errorf("the invitation is %+v", r)
	}
	secret, err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Get(ctx, "near-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The token that was stored is one that works.
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: site.Near.Endpoint(), BearerToken: string(secret.Data["token"]), TLSClientConfig: rest.TLSClientConfig{CAData: secret.Data["ca.crt"]},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// TestEnrollmentRevoked revokes the invitation after each step of an enrollment, in each possible
// way. The enrollment must not report a revocation as done and register the cluster afterward.
func TestEnrollmentRevoked(t *testing.T) {
	ctx := site.Begin(t)
	revoke := map[string]func(t *testing.T){
		"revoke": func(t *testing.T) { site.Must(ctx, t, "invite", "near-1", "--revoke") },
		// The gateway is on its own.
		"delete": func(t *testing.T) {
			if err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Delete(ctx, registration.InvitationSecret("near-1"), metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		},
		"reinvite": func(t *testing.T) {
			_, _, err := site.Run(ctx, bootstrap.Config{}, "invite", "near-1")
			if err != nil && !strings.Contains(err.Error(), "is taken") {
				t.Error(err)
			}
		},
		"unregister": func(t *testing.T) { site.Must(ctx, t, "unregister", "near-1", "--keep-agent") },
	}
	for _, step := range []string{"claim", "token", "registering", "secret", "agent"} {
		for _, way := range slices.Sorted(maps.Keys(revoke)) {
			if way == "reinvite" && (step == "secret" || step == "agent") {
				continue // the name is taken by then: it is refused
			}
			t.Run(step+"-"+way, func(t *testing.T) {
				file := site.Invite(ctx, t)
				bootstraptest.Apply(ctx, t, site.Near, file)
				v := newVisit(ctx, t, site.Near, file)
				v.config.AfterStep = func(done string) error {
					if done == step {
						revoke[way](t)
					}
					return nil
				}
				if err := v.enroll(ctx); err == nil || !strings.Contains(err.Error(), "revoked") && !strings.Contains(err.Error(), "changed") {
					t.Errorf("the enrollment: %v", err)
				}
				bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "near-1")
				// Nor when it comes again.
				v.config.AfterStep = nil
				if err := v.enroll(ctx); err == nil || !strings.Contains(err.Error(), "revoked") {
					t.Errorf("the enrollment, again: %v", err)
				}
				bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "near-1")
				// Not the default wait: no garbage collector runs on a bare API server, so that what the
				// namespace owned stays.
				site.Must(ctx, t, "unregister", "near-1", "--wait", "4s", "--cluster-kubeconfig", site.Near.Kubeconfig())
			})
		}
	}
}

// enrollUntilSecret runs an enrollment that ends after the cluster's Secret has been written.
func enrollUntilSecret(ctx context.Context, t *testing.T, file string) {
	t.Helper()
	v := newVisit(ctx, t, site.Near, file)
	stopped := errors.New("stopped by the test")
	v.config.AfterStep = func(step string) error {
		if step == "secret" {
			return stopped
		}
		return nil
	}
	if err := v.enroll(ctx); !errors.Is(err, stopped) {
		t.Fatal(err)
	}
}

// TestEarlierInvitation shows that an invitation that an earlier version made, with one account,
// still works. The cluster then shares one credential.
func TestEarlierInvitation(t *testing.T) {
	ctx := site.Begin(t)
	file := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, file)
	v := newVisit(ctx, t, site.Near, file)
	labtest.ShareAccount(ctx, t, site.Near)
	const ns, account = bootstraptest.AgentNamespace, "cluster-gateway"
	rbac := site.Near.Client().RbacV1()
	local, err := rbac.RoleBindings(ns).Get(ctx, "konnectivity-agent-enrol", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	global, err := rbac.ClusterRoleBindings().Get(ctx, "cluster-gateway-agent:enrol", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	local.Subjects[0].Name, global.Subjects[0].Name = account, account
	if _, err := rbac.RoleBindings(ns).Update(ctx, local, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Update(ctx, global, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := site.Near.Client().CoreV1().ServiceAccounts(ns).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v.invited.Token = token.Status.Token
	if err := v.enroll(ctx); err != nil {
		t.Fatal(err)
	}
	secret := site.HubSecret(ctx, t, "near-1")
	if len(secret.Data["token"]) == 0 || len(secret.Data["maintenance-token"]) != 0 {
		t.Errorf("the Secret has the keys %q", slices.Sorted(maps.Keys(secret.Data)))
	}
}

// TestRevokedWithoutGateway revokes the invitation of an enrollment that ended halfway. Only the
// command can then remove what was written.
func TestRevokedWithoutGateway(t *testing.T) {
	ctx := site.Begin(t)
	for _, args := range [][]string{{"invite", "near-1", "--revoke"}, {"unregister", "near-1", "--keep-agent"}} {
		file := site.Invite(ctx, t)
		bootstraptest.Apply(ctx, t, site.Near, file)
		enrollUntilSecret(ctx, t, file)
		if s := bootstraptest.Invitation(ctx, t, site.Hub, "near-1").State; s != registration.InvitationRegistering {
			t.Errorf("the invitation is %s", s)
		}
		site.HubSecret(ctx, t, "near-1")
		site.Must(ctx, t, args...)
		bootstraptest.CheckNotRegistered(ctx, t, site.Hub, "near-1")
		site.Must(ctx, t, "unregister", "near-1", "--wait", "4s", "--cluster-kubeconfig", site.Near.Kubeconfig())
	}
}

// TestEnrollmentWritesAll checks that fields which somebody added to the Secret of an enrolling
// cluster have no effect.
func TestEnrollmentWritesAll(t *testing.T) {
	ctx := site.Begin(t)
	file := site.Invite(ctx, t)
	bootstraptest.Apply(ctx, t, site.Near, file)
	enrollUntilSecret(ctx, t, file)
	bootstraptest.PatchSecret(ctx, t, site.Hub, "near-1", bootstraptest.UnwantedFields)
	if err := newVisit(ctx, t, site.Near, file).enroll(ctx); err != nil {
		t.Fatal(err)
	}
	bootstraptest.CheckUnwantedFields(t, site.HubSecret(ctx, t, "near-1"))
}

// TestEnrollmentAppliesAgentValues checks that the values of an invitation reach the Job, the agent
// and the cluster's Secret.
func TestEnrollmentAppliesAgentValues(t *testing.T) {
	ctx := site.Begin(t)
	values := filepath.Join(t.TempDir(), "values.yaml")
	content := "image: mirror.example.com/agent\nomitUser: true\nenv: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]\n"
	if err := os.WriteFile(values, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file := site.Invite(ctx, t, "near-1", "--agent-values", values)
	bootstraptest.Apply(ctx, t, site.Near, file)
	jobs, err := site.Near.Client().BatchV1().Jobs(bootstraptest.AgentNamespace).List(ctx, metav1.ListOptions{})
	if err != nil || len(jobs.Items) != 1 {
		t.Fatalf("%d Jobs, %v", len(jobs.Items), err)
	}
	if err := newVisit(ctx, t, site.Near, file).enroll(ctx); err != nil {
		t.Fatal(err)
	}
	agent, err := site.Near.Client().AppsV1().Deployments(bootstraptest.AgentNamespace).Get(ctx, "konnectivity-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, pod := range map[string]corev1.PodSpec{"Job": jobs.Items[0].Spec.Template.Spec, "Deployment": agent.Spec.Template.Spec} {
		c := pod.Containers[0]
		if c.Image != "mirror.example.com/agent" || c.Env[len(c.Env)-1].Value != "http://proxy:3128" || pod.SecurityContext.RunAsUser != nil {
			t.Errorf("the values are not in the %s: %+v", name, pod)
		}
	}
	if stored := site.HubSecret(ctx, t, "near-1").Data["agent-values"]; !strings.Contains(string(stored), "mirror.example.com/agent") {
		t.Errorf("the hub stores %q", stored)
	}
	site.Must(ctx, t, "register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--wait", "0")
	again, err := site.Near.Client().AppsV1().Deployments(bootstraptest.AgentNamespace).Get(ctx, "konnectivity-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again.Spec.Template.Spec.Containers[0].Image != "mirror.example.com/agent" {
		t.Error("register does not keep the values of the invitation")
	}
}
