// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// noticed is the goal for reporting that a cluster disappeared or came back. A busy machine gets
// more time.
const noticed = 15 * time.Second

// conditionsOf returns the conditions of a cluster as TYPE=STATUS/REASON, as the gateway serves
// them.
func conditionsOf(ctx context.Context, t *testing.T, k *kubectl, name string) string {
	t.Helper()
	var all []string
	for _, c := range parseGateway(t, k.run(ctx, t, "get", "clustergateway", name, "-o", "json")).Status.Conditions {
		if c.Message == "" || c.LastTransitionTime.IsZero() {
			t.Errorf("a condition without a message or a time: %+v", c)
		}
		all = append(all, fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason))
	}
	return strings.Join(all, " ")
}

// becomes waits until a cluster has the wanted conditions.
func becomes(ctx context.Context, t *testing.T, k *kubectl, name, want string) {
	t.Helper()
	took := labtest.Within(t, 4*noticed, name+" to become "+want, func() error {
		if got := conditionsOf(ctx, t, k, name); got != want {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	t.Logf("%s after %s", want, took.Round(10*time.Millisecond))
}

const (
	directIsWell = "Ready=True/Healthy CredentialValid=True/Accepted CertificateValid=True/Verified"
	tunnelIsWell = "Ready=True/Healthy TunnelConnected=True/Connected CredentialValid=True/Accepted CertificateValid=True/Verified"
	notReached   = " CredentialValid=Unknown/NotReached CertificateValid=Unknown/NotReached"
)

// TestHealthOfAgent checks that the gateway reports at once when an agent is killed and when one
// connects. The hub has Events of both, and nothing is written while nothing changes.
func TestHealthOfAgent(t *testing.T) {
	ctx := bounded(t, 2*caseTimeout)
	const name = "health-agent"
	k := newKubectl(t, shared.embedded.RESTConfig(lab.ViaHub))
	registerTunnel(ctx, t, name, shared.edge)
	becomes(ctx, t, k, name, "Ready=False/NoAgent TunnelConnected=False/NoAgent"+notReached)
	_, agent := startEmbeddedAgent(ctx, t, name)
	becomes(ctx, t, k, name, tunnelIsWell)

	table := k.run(ctx, t, "get", "clustergateways", name)
	if row := strings.Fields(strings.Split(table, "\n")[1]); len(row) < 4 || row[0] != name || row[1] != "tunnel" || row[2] != "True" || row[3] != "v1.37.2" {
		t.Errorf("kubectl get clustergateways prints\n%s", table)
	}
	written := parseGateway(t, k.run(ctx, t, "get", "clustergateway", name, "-o", "json")).ResourceVersion
	probesOf(ctx, t, 3)
	if now := parseGateway(t, k.run(ctx, t, "get", "clustergateway", name, "-o", "json")).ResourceVersion; now != written {
		t.Errorf("the Secret was written while nothing changed: from %s to %s", written, now)
	}

	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	becomes(ctx, t, k, name, "Ready=False/NoAgent TunnelConnected=False/NoAgent"+notReached)
	if table := k.run(ctx, t, "get", "clustergateways", name); !strings.Contains(table, " False ") {
		t.Errorf("kubectl get clustergateways prints\n%s", table)
	}
	_, _ = startEmbeddedAgent(ctx, t, name)
	becomes(ctx, t, k, name, tunnelIsWell)

	labtest.Within(t, labtest.Timeout, "the Events", func() error { // Events are created after the Secret is written
		events, err := shared.embeddedHub.Client().CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
			FieldSelector: fields.Set{"involvedObject.kind": v1alpha1.KindName, "involvedObject.name": name}.String(),
		})
		if err != nil {
			return err
		}
		var told []string
		for _, e := range events.Items {
			told = append(told, e.Type+"/"+e.Reason)
		}
		if got := strings.Join(told, " "); strings.Count(got, corev1.EventTypeWarning+"/NoAgent") != 2 || strings.Count(got, corev1.EventTypeNormal+"/Healthy") != 2 {
			return fmt.Errorf("they are %s", got)
		}
		return nil
	})
	if described := k.run(ctx, t, "describe", "clustergateway", name); !strings.Contains(described, "NoAgent") || !strings.Contains(described, "Events:") {
		t.Errorf("kubectl describe prints\n%s", described)
	}
}

// probesOf waits until the gateway has made n more probes of each cluster, on average.
func probesOf(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	count := func() float64 {
		v, err := shared.embedded.Metric(ctx, "cluster_gateway_health_probes_total")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	clusters, err := shared.embedded.Metric(ctx, "cluster_gateway_ready")
	if err != nil {
		t.Fatal(err)
	}
	began := count()
	labtest.Within(t, labtest.Timeout, "probes", func() error {
		if done := count() - began; done < float64(n)*max(clusters, 1) {
			return fmt.Errorf("%v probes of %v clusters", done, clusters)
		}
		return nil
	})
}

// TestIdleFleet checks that nothing is written to the hub for 200 clusters that do not change,
// however often they are probed.
func TestIdleFleet(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	const fleet, cycles = 200, 2
	data := map[string][]byte{
		"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
	}
	for i := range fleet {
		register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: fmt.Sprintf("fleet-%03d", i), Data: data})
	}
	labtest.Within(t, caseTimeout, "the fleet to be ready, with an Event for each cluster", func() error {
		secrets, events := fleetOf(ctx, t)
		for name, secret := range secrets {
			if secret.Annotations[v1alpha1.AnnotationHealthy] != "true" {
				return fmt.Errorf("%s is not, of %d", name, len(secrets))
			}
		}
		if len(events) < fleet || len(secrets) < fleet {
			return fmt.Errorf("%d Secrets, %d Events", len(secrets), len(events))
		}
		return nil
	})
	metric := func(name string) float64 {
		value, err := shared.embedded.Metric(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	const probes, used = "cluster_gateway_health_probes_total", "process_cpu_seconds_total"
	secrets, events := fleetOf(ctx, t)
	began, probed, before := time.Now(), metric(probes), metric(used)
	for metric(probes)-probed < cycles*fleet {
		select {
		case <-ctx.Done():
			t.Fatalf("%v probes", metric(probes)-probed)
		case <-time.After(5 * time.Second): // a look at the fleet costs more than the probes
		}
	}
	t.Logf("the gateway and its probes took %.1f %% of a core (many times that with the race detector)", 100*(metric(used)-before)/time.Since(began).Seconds())
	secretsNow, eventsNow := fleetOf(ctx, t)
	for name, now := range secretsNow {
		if secrets[name].ResourceVersion != now.ResourceVersion {
			t.Errorf("the Secret %s was written while nothing changed", name)
		}
	}
	for name, now := range eventsNow {
		if events[name].ResourceVersion != now.ResourceVersion {
			t.Errorf("an Event while nothing changed: %s of %s", now.Reason, now.InvolvedObject.Name)
		}
	}
}

// fleetOf returns the Secrets of TestIdleFleet, and the Events of its clusters.
func fleetOf(ctx context.Context, t *testing.T) (map[string]corev1.Secret, map[string]corev1.Event) {
	t.Helper()
	core := shared.embeddedHub.Client().CoreV1()
	secrets, err := core.Secrets(namespaceOfSecrets).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	events, err := core.Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fleet, told := map[string]corev1.Secret{}, map[string]corev1.Event{}
	for _, s := range secrets.Items {
		if strings.HasPrefix(s.Name, "fleet-") {
			fleet[s.Name] = s
		}
	}
	for _, e := range events.Items {
		if strings.HasPrefix(e.InvolvedObject.Name, "fleet-") {
			told[e.Name] = e
		}
	}
	return fleet, told
}

// TestHealthReasons checks that each fault has its condition and its reason, and that both change
// back once the fault is repaired.
func TestHealthReasons(t *testing.T) {
	ctx := bounded(t, 3*caseTimeout)
	k := newKubectl(t, shared.embedded.RESTConfig(lab.ViaHub))
	mortal := startMortal(t, "health-mortal")
	account := func() []byte { return token(t, mortal, "health") }
	good := func(name string) lab.SecretOptions {
		return lab.SecretOptions{Name: name, Data: map[string][]byte{
			"endpoint": []byte(mortal.Endpoint()), "ca.crt": mortal.CAPEM(), "token": account(),
		}}
	}
	apply := func(o lab.SecretOptions) {
		t.Helper()
		if err := shared.embeddedHub.ApplySecret(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	const name = "health-reasons"
	register(ctx, t, shared.embeddedHub, good(name))
	becomes(ctx, t, k, name, directIsWell)

	t.Run("wrong CA", func(t *testing.T) {
		wrong := good(name)
		wrong.Data["ca.crt"] = shared.embeddedHub.CAPEM()
		apply(wrong)
		becomes(ctx, t, k, name, "Ready=False/UnknownAuthority CredentialValid=Unknown/NotReached CertificateValid=False/UnknownAuthority")
		apply(good(name))
		becomes(ctx, t, k, name, directIsWell)
	})
	t.Run("revoked token", func(t *testing.T) {
		// kube-apiserver itself accepts a token for 10 s after its ServiceAccount was deleted, because it
		// caches the result.
		if err := mortal.Client().CoreV1().ServiceAccounts(namespaceOfSecrets).Delete(ctx, "health", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		labtest.Within(t, labtest.Timeout, "the API server to reject the token", func() error {
			if r := ask(ctx, t, shared.embedded.ClusterRESTConfig(name, lab.ViaOwnEndpoint), "GET", "/api/v1/namespaces"); r.code != 502 {
				return fmt.Errorf("it responds with %d", r.code)
			}
			return nil
		})
		becomes(ctx, t, k, name, "Ready=False/CredentialRejected CredentialValid=False/CredentialRejected CertificateValid=True/Verified")
		apply(good(name))
		becomes(ctx, t, k, name, directIsWell)
	})
	t.Run("API server down", func(t *testing.T) {
		if err := mortal.KillAPIServer(); err != nil {
			t.Fatal(err)
		}
		becomes(ctx, t, k, name, "Ready=False/APIServerUnreachable"+notReached)
		if err := mortal.StartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
		becomes(ctx, t, k, name, directIsWell)
	})
	t.Run("invalid Secret", func(t *testing.T) {
		invalid := good(name)
		invalid.Data["endpoint"] = []byte("nonsense")
		apply(invalid)
		becomes(ctx, t, k, name, "Ready=False/InvalidSecret")
		apply(good(name))
		becomes(ctx, t, k, name, directIsWell)
	})
}

// TestHealthAcrossLeaders kills the leader. The other replica takes over.
func TestHealthAcrossLeaders(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 2*caseTimeout)
	hub, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-leaders", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, hub)
	gateways := map[string]*lab.Gateway{}
	for _, name := range []string{"gateway-leader-a", "gateway-leader-b"} {
		g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{Name: name, Hub: hub, Binary: shared.binary, TunnelOff: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Stop() }) // one of them was killed
		gateways[name] = g
	}
	// leader returns the running replica that is the leader.
	leader := func() string {
		var led string
		labtest.Within(t, labtest.Timeout, "a leader", func() error {
			for name, g := range gateways {
				text, err := os.ReadFile(g.LogFile())
				if err != nil {
					return err
				}
				if strings.Contains(string(text), "This replica is the leader") {
					led = name
					return nil
				}
			}
			return fmt.Errorf("none of %d replicas is the leader", len(gateways))
		})
		return led
	}
	first := leader()
	if err := gateways[first].Kill(); err != nil {
		t.Fatal(err)
	}
	delete(gateways, first)
	leader()
	register(ctx, t, hub, lab.SecretOptions{Name: "after", Data: map[string][]byte{
		"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
	}})
	labtest.Within(t, labtest.Timeout, "the new leader to probe a new cluster", func() error {
		s, err := hub.Client().CoreV1().Secrets(namespaceOfSecrets).Get(ctx, "after", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s.Annotations[v1alpha1.AnnotationHealthy] != "true" {
			return fmt.Errorf("annotations %v", s.Annotations)
		}
		return nil
	})
}
