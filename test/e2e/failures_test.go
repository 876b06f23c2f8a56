// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// failure is the expected response to a request that does not reach the cluster.
type failure struct {
	name    string
	gateway *lab.Gateway
	hub     *lab.Cluster
	// secret registers the cluster under its name. If it has no data, the cluster is not registered.
	secret lab.SecretOptions
	// code, reason and cause are those of the Status. message is a regular expression for the whole
	// message.
	code       int32
	reason     metav1.StatusReason
	cause      metav1.CauseType
	message    string
	retryAfter bool
}

// TestFailures compares the whole Status of each failure, at both endpoints.
func TestFailures(t *testing.T) {
	for _, f := range failures(t) {
		t.Run(f.name, func(t *testing.T) {
			ctx := bounded(t, caseTimeout)
			if f.secret.Data != nil {
				register(ctx, t, f.hub, f.secret)
				waitKnown(t, f.gateway, f.secret.Name)
			}
			for _, door := range doors() {
				t.Run(string(door), func(t *testing.T) { f.want(ctx, t, f.gateway.ClusterRESTConfig(f.secret.Name, door)) })
			}
		})
	}
}

// want sends the request and compares the response.
func (f failure) want(ctx context.Context, t *testing.T, config *rest.Config) {
	t.Helper()
	r := ask(ctx, t, config, http.MethodGet, "/api/v1/namespaces")
	got := r.status(t)
	if !regexp.MustCompile(`^(?s:` + f.message + `)$`).MatchString(got.Message) {
		t.Errorf("the message is\n%s\nwant\n%s", got.Message, f.message)
	}
	want := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: f.code, Reason: f.reason, Message: got.Message,
		Details: &metav1.StatusDetails{Group: "cluster.core.oam.dev", Kind: "clustergateways", Name: f.secret.Name},
	}
	if f.cause != "" {
		want.Details.Causes = []metav1.StatusCause{{Type: f.cause, Message: got.Message}}
	}
	retryAfter := ""
	if f.retryAfter {
		want.Details.RetryAfterSeconds = 1
		retryAfter = "1"
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the Status is\n%+v\nwant\n%+v", got, want)
	}
	if r.retryAfter != retryAfter {
		t.Errorf("Retry-After is %q, want %q", r.retryAfter, retryAfter)
	}
}

// endpoint returns a regular expression for the address of an API server.
func endpoint(c *lab.Cluster) string {
	return regexp.QuoteMeta(strings.TrimPrefix(c.Endpoint(), "https://"))
}

func failures(t *testing.T) []failure {
	t.Helper()
	direct, edge, g, hub := shared.direct, shared.edge, shared.embedded, shared.embeddedHub
	closed, err := shared.lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	closedPort := net.JoinHostPort("127.0.0.1", strconv.Itoa(closed))
	credential := token(t, direct, "cluster-gateway")
	// The data of a working direct cluster, except for the given keys.
	data := func(key, value string) map[string][]byte {
		all := map[string][]byte{"endpoint": []byte(direct.Endpoint()), "ca.crt": direct.CAPEM(), "token": credential}
		all[key] = []byte(value)
		return all
	}
	tunnel := map[string][]byte{"endpoint": []byte(edge.Endpoint()), "ca.crt": edge.CAPEM(), "token": credential}
	const unavailable, badGateway = metav1.StatusReasonServiceUnavailable, metav1.StatusReason("BadGateway")

	ctx := bounded(t, caseTimeout)
	// startAgent starts an agent that is killed when the test ends.
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return g.AgentOptions("f-agent", edge) })
	// An agent that was connected a moment ago.
	if err := startAgent(ctx, t, func() (lab.AgentOptions, error) { return g.AgentOptions("f-no-agent", edge) }).Kill(); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the gateway to notice that the agent is gone", func() error {
		n, err := g.Metric(ctx, "cluster_gateway_tunnel_agents", `cluster="f-no-agent"`)
		if err == nil && n > 0 {
			err = fmt.Errorf("%v are connected", n)
		}
		return err
	})

	all := []failure{
		{
			name: "unknown cluster", secret: lab.SecretOptions{Name: "f-unknown"},
			code: 404, reason: metav1.StatusReasonNotFound, message: `clustergateways\.cluster\.core\.oam\.dev "f-unknown" not found`,
		},
		{
			name: "invalid Secret", secret: lab.SecretOptions{Name: "f-invalid", Data: data("ca.crt", "-----BEGIN CERTIFICATE-----\nnonsense")},
			code: 503, reason: unavailable, cause: "InvalidSecret", message: `cluster "f-invalid" cannot be used: its Secret is invalid: .*ca\.crt.*`,
		},
		{
			name: "no agent", secret: lab.SecretOptions{Name: "f-no-agent", Tunnel: true, Data: tunnel},
			code: 503, reason: unavailable, cause: "Tunnel", retryAfter: true,
			message: `cluster "f-no-agent": no agent is connected; the last agent disconnected at \S+Z; check that the agent runs in the cluster, ` +
				`that it can reach the gateway's tunnel port, and that its certificate is for "f-no-agent"`,
		},
		{
			name: "wrong CA", secret: lab.SecretOptions{Name: "f-ca", Data: data("ca.crt", string(hub.CAPEM()))},
			code: 502, reason: badGateway, cause: "TLS",
			message: `cluster "f-ca": TLS with the API server at ` + endpoint(direct) +
				` failed: expected a certificate signed by a CA in the Secret's ca\.crt, but got one for "CN=kube-apiserver" signed by "CN=lab cluster direct"`,
		},
		{
			name: "wrong server name", secret: lab.SecretOptions{Name: "f-name", Data: data("tls-server-name", "elsewhere.example")},
			code: 502, reason: badGateway, cause: "TLS",
			message: `cluster "f-name": TLS with the API server at .* failed: expected a certificate for "elsewhere\.example", but got one for kubernetes, .*; ` +
				`tls-server-name in the Secret sets the expected name`,
		},
		{
			name: "rejected credential", secret: lab.SecretOptions{Name: "f-credential", Data: data("token", string(token(t, hub, "e2e-client")))},
			code: 502, reason: badGateway, cause: "Credential",
			message: `cluster "f-credential" rejected the gateway's credential \(401\): the ServiceAccountToken in its Secret has expired or been revoked, ` +
				`or belongs to another cluster; this is not about your own credential`,
		},
		{
			name: "closed port", secret: lab.SecretOptions{Name: "f-closed", Data: data("endpoint", "https://"+closedPort)},
			code: 502, reason: badGateway, cause: "Endpoint",
			message: `cluster "f-closed": the API server at ` + closedPort + ` cannot be reached: .*connection refused`,
		},
		{
			name: "closed port behind an agent",
			secret: lab.SecretOptions{Name: "f-agent", Tunnel: true, Data: map[string][]byte{
				"endpoint": []byte("https://127.0.0.1:1"), "ca.crt": edge.CAPEM(), "token": credential,
			}},
			code: 502, reason: badGateway, cause: "Endpoint",
			message: `cluster "f-agent": the API server at 127\.0\.0\.1:1 cannot be reached: the agent cannot dial it: .*connection refused`,
		},
	}
	for i := range all {
		all[i].gateway, all[i].hub = g, hub
	}
	return append(all, failure{
		name: "no agent at a stock server", gateway: shared.external, hub: shared.externalHub,
		secret: lab.SecretOptions{Name: "f-no-agent", Tunnel: true, Data: map[string][]byte{
			"endpoint": []byte("https://f-no-agent:443"), "ca.crt": edge.CAPEM(), "token": credential,
		}},
		code: 503, reason: unavailable, cause: "Tunnel", retryAfter: true,
		message: `cluster "f-no-agent": the konnectivity-server has no agent for it; check that the agent runs in the cluster, ` +
			`that it can reach the konnectivity-server, and that its --agent-identifiers contain host=f-no-agent`,
	})
}

// TestAnswersInTime checks requests that the cluster does not answer: at a firewall, and if an API
// server hangs.
func TestAnswersInTime(t *testing.T) {
	const limit = 4 * time.Second
	ctx := bounded(t, caseTimeout)
	r := shared.impatientRoutes(t, limit)[0]
	credential := token(t, shared.direct, "cluster-gateway")
	guard := func(t *testing.T, f failure, c *lab.Cluster) {
		t.Helper()
		f.secret.Data = map[string][]byte{"endpoint": []byte(c.Endpoint()), "ca.crt": c.CAPEM(), "token": credential}
		register(ctx, t, shared.embeddedHub, f.secret)
		waitKnown(t, r.gateway, f.secret.Name)
		began := time.Now()
		f.want(ctx, t, r.gateway.ClusterRESTConfig(f.secret.Name, r.door))
		if took := time.Since(began); took > limit+hang {
			t.Errorf("the response took %s", took)
		} else {
			t.Logf("the response took %s", took.Round(time.Millisecond))
		}
	}
	t.Run("firewall", func(t *testing.T) {
		if !shared.edge.Firewalled() {
			t.Skipf("there is no firewalled cluster: %v", shared.edge.FirewallSkipped())
		}
		guard(t, failure{
			secret: lab.SecretOptions{Name: "f-firewall"}, code: 504, reason: metav1.StatusReasonTimeout, cause: "Endpoint",
			message: `cluster "f-firewall": connecting to ` + endpoint(shared.edge) + ` timed out: .*`,
		}, shared.edge)
	})
	t.Run("API server hangs", func(t *testing.T) {
		c := startMortal(t, "hanging")
		if err := c.APIServer().Pause(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.APIServer().Resume(); err != nil {
				t.Error(err)
			}
		}()
		// The kernel accepts the connection. The TLS handshake gets no response.
		guard(t, failure{
			secret: lab.SecretOptions{Name: "f-hanging"}, code: 504, reason: metav1.StatusReasonTimeout, cause: "TLS",
			message: `cluster "f-hanging": the TLS handshake with ` + endpoint(c) + ` timed out: .*`,
		}, c)
	})
}

// startMortal starts a cluster whose API server a test may stop. It runs nothing else.
func startMortal(t *testing.T, name string) *lab.Cluster {
	t.Helper()
	c, err := shared.lab.StartCluster(bounded(t, caseTimeout), lab.ClusterOptions{Name: name, NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, c)
	return c
}

// underWay is a request in flight. ended receives its outcome.
type underWay struct {
	what  string
	ended chan string
}

// slowRequest is an ordinary request that takes almost the minute that the gateway allows.
const slowRequest = "/debug/pprof/mutex?seconds=55"

// hang bounds a wait for something that takes moments on an idle machine. It is shorter than the
// time limit of one minute that ends any request.
const hang = 40 * time.Second

// begin starts a watch and an ordinary request at each endpoint, and waits until the gateway has
// them in flight. others requests are already in flight.
func begin(ctx context.Context, t *testing.T, g *lab.Gateway, cluster string, others int) []underWay {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	var all []underWay
	for _, door := range doors() {
		client, err := rest.HTTPClientFor(g.ClusterRESTConfig(cluster, door))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/api/v1/namespaces?watch=1", slowRequest} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.ClusterRESTConfig(cluster, door).Host+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			u := underWay{what: path + " by " + string(door), ended: make(chan string, 1)}
			go func() { u.ended <- outcome(client, req) }()
			all = append(all, u)
		}
	}
	labtest.Within(t, labtest.Timeout, "the requests to be in flight", func() error {
		n, err := g.Metric(ctx, "cluster_gateway_requests_in_flight", `cluster="`+cluster+`"`)
		if err == nil && n != float64(len(all)+others) {
			err = fmt.Errorf("%v are", n)
		}
		return err
	})
	return all
}

// outcome sends a request and returns how it ended.
func outcome(client *http.Client, req *http.Request) string {
	resp, err := client.Do(req)
	if err != nil {
		return "failed: " + err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Sprintf("broke off after %d: %v", resp.StatusCode, err)
	default:
		return fmt.Sprintf("%d %s", resp.StatusCode, shorten(string(body)))
	}
}

// mustEnd waits until every request has ended. The ordinary requests must have this code; the
// watches can end in any way.
func mustEnd(t *testing.T, since time.Time, all []underWay, code string) {
	t.Helper()
	for _, u := range all {
		select {
		case end := <-u.ended:
			t.Logf("%s: after %s: %s", u.what, time.Since(since).Round(time.Millisecond), end)
			if strings.HasPrefix(u.what, slowRequest) && !strings.HasPrefix(end, code+" ") {
				t.Errorf("%s: %s; want a %s", u.what, end, code)
			}
		case <-time.After(hang):
			t.Errorf("%s: still in flight after %s", u.what, time.Since(since))
		}
	}
}

// works waits until a cluster can be reached again, and returns how long that took.
func works(ctx context.Context, t *testing.T, g *lab.Gateway, cluster string, door lab.Via) time.Duration {
	t.Helper()
	return labtest.Within(t, labtest.Timeout, "the next request to be served", func() error {
		return wantCode(ask(ctx, t, g.ClusterRESTConfig(cluster, door), http.MethodGet, "/version"), http.StatusOK)
	})
}

// TestAgentKilledMidRequest checks that requests in flight fail when their agent dies, and that the
// next agent serves the next request.
func TestAgentKilledMidRequest(t *testing.T) {
	for name, start := range map[string]func(context.Context, *testing.T, string) (*lab.Gateway, *lab.Agent){
		"embedded": startEmbeddedAgent, "external": startExternalAgent,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t, caseTimeout)
			registerTunnel(ctx, t, "victim", shared.edge)
			g, agent := start(ctx, t, "victim")
			works(ctx, t, g, "victim", lab.ViaHub)
			requests := begin(ctx, t, g, "victim", 0)
			killed := time.Now()
			if err := agent.Kill(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, killed, requests, "502")
			if r := ask(ctx, t, g.ClusterRESTConfig("victim", lab.ViaOwnEndpoint), http.MethodGet, "/version"); r.code != http.StatusServiceUnavailable {
				t.Errorf("without an agent: %+v", r)
			}
			start(ctx, t, "victim")
			for _, door := range doors() {
				t.Logf("the next agent serves %s after %s", door, works(ctx, t, g, "victim", door).Round(time.Millisecond))
			}
		})
	}
}

// registerTunnel registers a cluster with both hubs, reachable only through an agent.
func registerTunnel(ctx context.Context, t *testing.T, name string, c *lab.Cluster) {
	t.Helper()
	data := map[string][]byte{"endpoint": []byte(c.Endpoint()), "ca.crt": c.CAPEM(), "token": token(t, c, "cluster-gateway")}
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: true, Data: data})
	// A stock server chooses the agent by the host that is dialed.
	data["endpoint"] = []byte("https://" + net.JoinHostPort(name, strconv.Itoa(c.Port())))
	data["tls-server-name"] = []byte("kubernetes.default.svc")
	register(ctx, t, shared.externalHub, lab.SecretOptions{Name: name, Tunnel: true, Data: data})
	waitKnown(t, shared.embedded, name)
	waitKnown(t, shared.external, name)
}

func startEmbeddedAgent(ctx context.Context, t *testing.T, name string) (*lab.Gateway, *lab.Agent) {
	t.Helper()
	return shared.embedded, startAgent(ctx, t, func() (lab.AgentOptions, error) {
		return shared.embedded.AgentOptions(name, shared.edge)
	})
}

func startExternalAgent(ctx context.Context, t *testing.T, name string) (*lab.Gateway, *lab.Agent) {
	t.Helper()
	return shared.external, startAgent(ctx, t, func() (o lab.AgentOptions, err error) {
		o = lab.AgentOptions{
			Name: "agent-external-" + name, Cluster: shared.edge, ServerPort: shared.konnectivity.AgentPort(), CAFile: shared.konnectivity.CAFile(),
			Identifiers: []string{"host=" + name}, Hosts: map[string]string{name: shared.edge.Address()},
		}
		o.CertFile, o.KeyFile, err = shared.konnectivity.AgentFiles(name)
		return o, err
	})
}

// startAgent starts an agent, which is killed when the test ends.
func startAgent(ctx context.Context, t *testing.T, options func() (lab.AgentOptions, error)) *lab.Agent {
	t.Helper()
	o, err := options()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := shared.lab.StartAgent(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-agent.Done():
		default:
			if err := agent.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return agent
}

// TestAPIServerKilledMidRequest checks that requests in flight fail when the API server dies, with
// and without a tunnel.
func TestAPIServerKilledMidRequest(t *testing.T) {
	ctx := bounded(t, 2*caseTimeout)
	c := startMortal(t, "mortal")
	credential := token(t, c, "cluster-gateway")
	data := map[string][]byte{"endpoint": []byte(c.Endpoint()), "ca.crt": c.CAPEM(), "token": credential}
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: "mortal", Data: data})
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: "mortal-tunnel", Tunnel: true, Data: data})
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return shared.embedded.AgentOptions("mortal-tunnel", c) })
	names := []string{"mortal", "mortal-tunnel"}
	var requests []underWay
	for _, name := range names {
		waitKnown(t, shared.embedded, name)
		works(ctx, t, shared.embedded, name, lab.ViaHub)
		requests = append(requests, begin(ctx, t, shared.embedded, name, 0)...)
	}
	killed := time.Now()
	if err := c.KillAPIServer(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, killed, requests, "502")
	for _, name := range names {
		if r := ask(ctx, t, shared.embedded.ClusterRESTConfig(name, lab.ViaOwnEndpoint), http.MethodGet, "/version"); r.code != http.StatusBadGateway {
			t.Errorf("without an API server: %+v", r)
		}
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		for _, door := range doors() {
			t.Logf("%s works by %s after %s", name, door, works(ctx, t, shared.embedded, name, door).Round(time.Millisecond))
		}
	}
}
