// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The tests in this file have the enroller in their own process, with the real hub on one side and a real cluster on the other, and nothing but
// the tunnel left out: so it can be stopped at each step, given another clock, or things that no agent would hand over.

// visit is one attempt of a cluster to enrol.
type visit struct {
	config  enrollment.Config
	invited tunnel.Invited
}

// newVisit is an attempt with an invitation that has been applied to the cluster.
func newVisit(ctx context.Context, t *testing.T, c *lab.Cluster, file string) *visit {
	t.Helper()
	cert := invitationCertificate(t, file)
	ca, err := pki.ParseCertificates(c.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Client().CoreV1().ServiceAccounts(agentNamespace).CreateToken(ctx, "cluster-gateway", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(c.Endpoint(), "https://")
	hub := shared.hub.Client().CoreV1()
	return &visit{
		config: enrollment.Config{Secrets: hub.Secrets(hubNamespace), Namespace: hubNamespace, Events: hub.Events("default")},
		invited: tunnel.Invited{
			Name: cert[0].Subject.CommonName, Certificate: cert[0], Chain: append(cert[1:], ca...), Token: token.Status.Token,
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return c.DialContext(ctx, "tcp", address) },
		},
	}
}

func (v *visit) enrol(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tunnel.EnrollmentTimeout)
	defer cancel()
	_, err := enrollment.New(v.config).Enroll(ctx, v.invited)
	return err
}

// invitationCertificate is what an invitation has in its Secret.
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

// visitable makes invitations for the cluster that the tests visit, and leaves nothing of them there.
func visitable(ctx context.Context, t *testing.T, args ...string) (file string) {
	t.Helper()
	if len(args) == 0 {
		args = []string{"near-1"}
	}
	out, _ := must(ctx, t, append([]string{"invite"}, args...)...)
	file = t.TempDir() + "/invite.yaml"
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func record(ctx context.Context, t *testing.T, name string) *registration.Invitation {
	t.Helper()
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, registration.InvitationSecret(name), noOptions)
	if err != nil {
		t.Fatal(err)
	}
	i, err := registration.ReadInvitation(secret)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func unregistered(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	if _, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, noOptions); !apierrors.IsNotFound(err) {
		t.Errorf("there is a Secret %s on the hub, or: %v", name, err)
	}
}

// TestEnrolmentRefused shows that each fault is named, to the cluster and on the hub, and that nothing is half done: there is no cluster, and the
// same invitation works when the fault is not there any more.
func TestEnrolmentRefused(t *testing.T) {
	ctx := begin(t)
	file := visitable(ctx, t)
	apply(ctx, t, shared.nearby, file)
	foreign, err := pki.ParseCertificates(shared.hub.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	unreachable, err := kubernetes.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	powerless, err := shared.nearby.ServiceAccountToken(ctx, "default", "powerless", "")
	if err != nil {
		t.Fatal(err)
	}
	clock := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	nearby := withoutVersion(dump(ctx, t, shared.nearby), "Namespace /"+agentNamespace)
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
		{"no CA", func(v *visit) { v.invited.Chain = nil }, "handed over no CA"},
		{"another CA", func(v *visit) { v.invited.Chain = foreign }, "vouches for"},
		{"a certificate that is no CA", func(v *visit) { v.invited.Chain = []*x509.Certificate{v.invited.Certificate} }, "vouches for"},
		{"API server that cannot be dialled", func(v *visit) {
			v.invited.Dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("the agent says no") }
		}, "the agent says no"},
		{"hub that does not answer", func(v *visit) { v.config.Secrets = unreachable.CoreV1().Secrets(hubNamespace) }, "the hub says"},
		{"another certificate of that name", func(v *visit) { v.invited.Certificate = foreign[0] }, "revoked, and there is a later one"},
		{"a name that was not invited", func(v *visit) { v.invited.Name = "stranger" }, "has been revoked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVisit(ctx, t, shared.nearby, file)
			c.change(v)
			err := v.enrol(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v; want that it says %q", err, c.want)
			}
			if strings.Contains(err.Error(), v.invited.Token) && len(v.invited.Token) > 20 {
				t.Error("the refusal shows the token")
			}
			unregistered(ctx, t, "near-1")
			if r := record(ctx, t, "near-1"); r.State != registration.InvitationOpen {
				t.Errorf("the invitation is %s", r.State)
			}
			if c.name != "hub that does not answer" {
				told(ctx, t, v.invited.Name, err.Error())
			}
			same(t, "the cluster", nearby, withoutVersion(dump(ctx, t, shared.nearby), "Namespace /"+agentNamespace))
		})
	}
	out, _ := must(ctx, t, "status", "near-1")
	if !strings.Contains(out, "open, expires in") || !strings.Contains(out, "last refusal: ") {
		t.Errorf("status says\n%s", out)
	}
	if out, _, err := invoke(ctx, bootstrap.Config{}, "doctor", "near-1"); err == nil || !strings.Contains(out, "is invited, but it is not registered yet") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if out, _ := must(ctx, t, "list"); !strings.Contains(out, "INVITATION") || !strings.Contains(out, "near-1") {
		t.Errorf("list says\n%s", out)
	}
	if err := newVisit(ctx, t, shared.nearby, file).enrol(ctx); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	if r := record(ctx, t, "near-1"); r.State != registration.InvitationDone || r.Message != "" {
		t.Errorf("the invitation is %+v", r)
	}
}

// told looks for the Event that tells of a refusal.
func told(ctx context.Context, t *testing.T, name, text string) {
	t.Helper()
	events, err := shared.hub.Client().CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=EnrolmentRefused,involvedObject.name=" + name})
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

// TestInvitationRevoked shows that neither a revoked invitation nor one that was replaced works, and that the later one does.
func TestInvitationRevoked(t *testing.T) {
	ctx := begin(t)
	first := visitable(ctx, t)
	apply(ctx, t, shared.nearby, first)
	second := visitable(ctx, t)
	if err := newVisit(ctx, t, shared.nearby, first).enrol(ctx); err == nil || !strings.Contains(err.Error(), "there is a later one") {
		t.Errorf("the first of two: %v", err)
	}
	_, said := must(ctx, t, "invite", "near-1", "--revoke")
	if !strings.Contains(said, "revoked") {
		t.Errorf("revoking says\n%s", said)
	}
	must(ctx, t, "invite", "near-1", "--revoke") // nothing to do
	if err := newVisit(ctx, t, shared.nearby, second).enrol(ctx); err == nil || !strings.Contains(err.Error(), "has been revoked") {
		t.Errorf("one that was revoked: %v", err)
	}
	unregistered(ctx, t, "near-1")
	if _, _, err := invoke(ctx, bootstrap.Config{}, "status", "near-1"); err == nil || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("status: %v", err)
	}
	third := visitable(ctx, t)
	apply(ctx, t, shared.nearby, third)
	if err := newVisit(ctx, t, shared.nearby, third).enrol(ctx); err != nil {
		t.Errorf("the last: %v", err)
	}
}

// TestInvitationOfAnother shows that an invitation gives a cluster that is registered no second name, and does it no harm.
func TestInvitationOfAnother(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs("--access", "view")...)
	hub := dump(ctx, t, shared.hub)
	file := visitable(ctx, t, "other", "--access", "view")
	t.Cleanup(func() { must(context.WithoutCancel(ctx), t, "invite", "other", "--revoke") })
	before := dump(ctx, t, shared.nearby)
	apply(ctx, t, shared.nearby, file)
	err := newVisit(ctx, t, shared.nearby, file).enrol(ctx)
	if err == nil || !strings.Contains(err.Error(), `this cluster is registered already, as "near-1"`) {
		t.Fatalf("%v", err)
	}
	unregistered(ctx, t, "other")
	if r := record(ctx, t, "other"); r.State != registration.InvitationOpen || !strings.Contains(r.Message, "near-1") {
		t.Errorf("the invitation is %+v", r)
	}
	must(ctx, t, "doctor", "near-1")
	after := dump(ctx, t, shared.hub)
	delete(after, "Secret "+hubNamespace+"/invitation.other")
	same(t, "the hub", hub, after)
	for name := range before {
		if _, still := dump(ctx, t, shared.nearby)[name]; !still {
			t.Errorf("%s is gone from the cluster", name)
		}
	}
	// Nor does the Secret on the hub tell alone: the cluster itself has forgotten.
	if _, err := shared.nearby.Kubectl(ctx, "annotate", "namespace", agentNamespace, "cluster.core.oam.dev/cluster-name-", "cluster.core.oam.dev/hub-uid-").Output(); err != nil {
		t.Fatal(err)
	}
	if err := newVisit(ctx, t, shared.nearby, file).enrol(ctx); err == nil || !strings.Contains(err.Error(), `this cluster is registered already, as "near-1"`) {
		t.Errorf("by the hub's Secret alone: %v", err)
	}
}

// TestInvitationForTwo shows that of two clusters with one invitation at the same moment exactly one is registered, and the other is told.
func TestInvitationForTwo(t *testing.T) {
	ctx := begin(t)
	file := visitable(ctx, t, "edge-1")
	clusters := []*lab.Cluster{shared.edge, shared.nearby}
	errs := make([]error, len(clusters))
	var group sync.WaitGroup
	for i, c := range clusters {
		apply(ctx, t, c, file)
		v := newVisit(ctx, t, c, file)
		group.Go(func() { errs[i] = v.enrol(ctx) })
	}
	group.Wait()
	// Who was told to come again does so.
	for i, c := range clusters {
		if errs[i] != nil {
			errs[i] = newVisit(ctx, t, c, file).enrol(ctx)
		}
	}
	winner := record(ctx, t, "edge-1").ClusterUID
	won := 0
	for i, c := range clusters {
		system, err := c.Client().CoreV1().Namespaces().Get(ctx, "kube-system", noOptions)
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
	// The one that lost has the invitation's objects, or the one that won is nearby under a name that the clean-up does not expect.
	for _, c := range clusters {
		if _, err := c.Kubectl(ctx, "delete", "namespace", agentNamespace).CombinedOutput(); err != nil {
			t.Error(err)
		}
	}
}

// TestEnrolmentResumes ends the enrolment after each of its steps; another replica goes on and ends up with what an undisturbed one makes.
func TestEnrolmentResumes(t *testing.T) {
	ctx := begin(t)
	var steps []string
	run := func(t *testing.T, stopAfter int) (hub, nearby map[string]string) {
		t.Helper()
		file := visitable(ctx, t, "near-1", "--access", "impersonate")
		apply(ctx, t, shared.nearby, file)
		v := newVisit(ctx, t, shared.nearby, file)
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
		if err := v.enrol(ctx); stopAfter == 0 && err != nil || stopAfter > 0 && !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		if stopAfter > 0 {
			if err := newVisit(ctx, t, shared.nearby, file).enrol(ctx); err != nil && record(ctx, t, "near-1").State != registration.InvitationDone {
				t.Fatalf("the second attempt: %v", err)
			}
		}
		labtest.Within(t, time.Minute, "what enrolled is gone", func() error {
			for name := range dump(ctx, t, shared.nearby) {
				if strings.Contains(name, "enrol") {
					return errors.New(name)
				}
			}
			return nil
		})
		hub, nearby = dump(ctx, t, shared.hub), dump(ctx, t, shared.nearby)
		if r := record(ctx, t, "near-1"); r.State != registration.InvitationDone {
			t.Errorf("the invitation is %s", r.State)
		}
		must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)
		return hub, nearby
	}
	hub, nearby := run(t, 0)
	if len(steps) < 12 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d-%s", i+1, step), func(t *testing.T) {
			gotHub, gotNearby := run(t, i+1)
			sameNames(t, "the hub", hub, gotHub)
			sameNames(t, "the cluster", nearby, gotNearby)
		})
	}
}

// TestEnrolmentTwice has two replicas enrol one cluster at the same moment.
func TestEnrolmentTwice(t *testing.T) {
	ctx := begin(t)
	file := visitable(ctx, t)
	apply(ctx, t, shared.nearby, file)
	var group sync.WaitGroup
	for range 2 {
		v := newVisit(ctx, t, shared.nearby, file)
		group.Go(func() {
			for ctx.Err() == nil && v.enrol(ctx) != nil { // an agent comes again
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	group.Wait()
	if r := record(ctx, t, "near-1"); r.State != registration.InvitationDone {
		t.Errorf("the invitation is %+v", r)
	}
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, "near-1", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	// The token that was stored is one that works.
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: shared.nearby.Endpoint(), BearerToken: string(secret.Data["token"]), TLSClientConfig: rest.TLSClientConfig{CAData: secret.Data["ca.crt"]},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
}

// TestEnrolmentRevoked revokes the invitation after each step of an enrolment, in each way that there is: nobody is told that it is done, and then there is a
// cluster. Only what was done when it was revoked stays.
func TestEnrolmentRevoked(t *testing.T) {
	ctx := begin(t)
	revoke := map[string]func(t *testing.T){
		"revoke": func(t *testing.T) { must(ctx, t, "invite", "near-1", "--revoke") },
		// The gateway is on its own.
		"delete": func(t *testing.T) {
			if err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Delete(ctx, registration.InvitationSecret("near-1"), metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		},
		"reinvite": func(t *testing.T) {
			_, _, err := invoke(ctx, bootstrap.Config{}, "invite", "near-1")
			if err != nil && !strings.Contains(err.Error(), "is taken") {
				t.Error(err)
			}
		},
		"unregister": func(t *testing.T) { must(ctx, t, "unregister", "near-1", "--keep-agent") },
	}
	for _, step := range []string{"claim", "token", "registering", "secret", "agent"} {
		for _, way := range slices.Sorted(maps.Keys(revoke)) {
			if way == "reinvite" && (step == "secret" || step == "agent") {
				continue // the name is taken by then: it is refused
			}
			t.Run(step+"-"+way, func(t *testing.T) {
				file := visitable(ctx, t)
				apply(ctx, t, shared.nearby, file)
				v := newVisit(ctx, t, shared.nearby, file)
				v.config.AfterStep = func(done string) error {
					if done == step {
						revoke[way](t)
					}
					return nil
				}
				if err := v.enrol(ctx); err == nil || !strings.Contains(err.Error(), "revoked") && !strings.Contains(err.Error(), "changed") {
					t.Errorf("the enrolment: %v", err)
				}
				unregistered(ctx, t, "near-1")
				// Nor when it comes again.
				v.config.AfterStep = nil
				if err := v.enrol(ctx); err == nil || !strings.Contains(err.Error(), "revoked") {
					t.Errorf("the enrolment, again: %v", err)
				}
				unregistered(ctx, t, "near-1")
				must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)
			})
		}
	}
}

// enrolUntilSecret is an enrolment that ends when the cluster's Secret has been written.
func enrolUntilSecret(ctx context.Context, t *testing.T, file string) {
	t.Helper()
	v := newVisit(ctx, t, shared.nearby, file)
	stopped := errors.New("stopped by the test")
	v.config.AfterStep = func(step string) error {
		if step == "secret" {
			return stopped
		}
		return nil
	}
	if err := v.enrol(ctx); !errors.Is(err, stopped) {
		t.Fatal(err)
	}
}

// TestRevokedWithoutGateway revokes the invitation of an enrolment that ended in the middle: there is nobody but the command to take back what was written.
func TestRevokedWithoutGateway(t *testing.T) {
	ctx := begin(t)
	for _, args := range [][]string{{"invite", "near-1", "--revoke"}, {"unregister", "near-1", "--keep-agent"}} {
		file := visitable(ctx, t)
		apply(ctx, t, shared.nearby, file)
		enrolUntilSecret(ctx, t, file)
		if s := record(ctx, t, "near-1").State; s != registration.InvitationRegistering {
			t.Errorf("the invitation is %s", s)
		}
		hubSecret(ctx, t, "near-1")
		must(ctx, t, args...)
		unregistered(ctx, t, "near-1")
		must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)
	}
}

// TestEnrolmentWritesAll shows that what somebody put into the Secret of a cluster that is enrolling is not heeded.
func TestEnrolmentWritesAll(t *testing.T) {
	ctx := begin(t)
	file := visitable(ctx, t)
	apply(ctx, t, shared.nearby, file)
	enrolUntilSecret(ctx, t, file)
	patchSecret(ctx, t, "near-1", strange)
	if err := newVisit(ctx, t, shared.nearby, file).enrol(ctx); err != nil {
		t.Fatal(err)
	}
	checkStrange(t, hubSecret(ctx, t, "near-1"))
}
