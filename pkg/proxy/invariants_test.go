// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// The tests below show that what must never happen does not happen. See also headers_test.go.

// A request for one cluster never reaches another, whatever its path is, even while their endpoints
// are swapped.
func TestRequestNeverReachesAnotherCluster(t *testing.T) {
	g := newGateway(t, nil)
	servers := map[string]*apiServer{}
	for _, name := range []string{"a", "b"} {
		servers[name] = newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, "%s %s", name, r.Header.Get("Authorization"))
		})
		g.set(servers[name].secret(name, "token", "token-of-"+name))
	}
	for _, path := range []string{
		"/", "/../../b/proxy/api", "/%2e%2e/%2e%2e/b/proxy/", "/..%2f..%2fb%2fproxy", "//b/proxy", "/api?x=/../b", "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/b/proxy/x",
	} {
		conn := g.raw("GET " + basePath + "a/proxy" + path + " HTTP/1.1\r\nHost: b\r\nX-Forwarded-Host: b\r\nConnection: close\r\n\r\n")
		text, err := io.ReadAll(conn)
		if err != nil || !strings.Contains(string(text), "a Bearer token-of-a") {
			t.Errorf("%s: %v: %s", path, err, text)
		}
	}
	// The endpoints are swapped under load, together with the credentials.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, name := range []string{"a", "b"} {
					_, body := g.get(name, "/")
					at, token, _ := strings.Cut(body, " Bearer token-of-")
					// The token that arrives is the one that was registered with this endpoint for
					// this cluster.
					if token != name+"-at-"+at && token != name {
						t.Errorf("asked for %s: %q", name, body)
					}
				}
			}
		})
	}
	for i := range 40 {
		first, second := servers["a"], servers["b"]
		at := []string{"a", "b"}
		if i%2 == 1 {
			first, second, at = second, first, []string{"b", "a"}
		}
		g.set(first.secret("a", "token", "token-of-a-at-"+at[0]))
		g.set(second.secret("b", "token", "token-of-b-at-"+at[1]))
		if _, body := g.get("a", "/"); body != at[0]+" Bearer token-of-a-at-"+at[0] {
			t.Errorf("after change %d: %q", i, body)
		}
	}
	close(stop)
	wg.Wait()
}

// No credential is in an error, in a log of the highest verbosity, or in a metric.
func TestCredentialsNeverLeak(t *testing.T) {
	var log logs
	logger := funcr.New(log.write, funcr.Options{Verbosity: 100, LogCaller: funcr.All})
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/401":
			w.WriteHeader(401)
		case "/break":
			panic(http.ErrAbortHandler)
		case "/break-later":
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(make([]byte, 50000))
			panic(http.ErrAbortHandler)
		case "/redirect":
			http.Redirect(w, r, "https://elsewhere.example", http.StatusFound)
		}
	}, askForCertificates)
	g := newGateway(t, func(c *Config) { c.Logger, c.DialTimeout = logger, 200*time.Millisecond })
	cert, key := pemOf(t, dialertest.NewCA(t, "clients").Client(t, "the-gateway"))
	dir, config := plugin(t)
	answer(t, dir, map[string]any{"token": "token-of-the-plugin"})
	proxied := "http://proxy-user:proxy-password@127.0.0.1:1"
	g.parse.ExecCredentialDir = dir
	for name, c := range map[string]*cluster.Cluster{
		"token":      g.set(s.secret("token")),
		"x509":       g.set(ofType(s.secret("x509", "tls.crt", cert, "tls.key", key, "token", ""), v1alpha1.CredentialTypeX509)),
		"plugin":     g.set(ofType(s.secret("plugin", "exec", config, "token", ""), v1alpha1.CredentialTypeDynamic)),
		"proxied":    g.set(s.secret("proxied", "proxy-url", proxied)),
		"wrong-name": g.set(s.secret("wrong-name", "tls-server-name", "x.example")),
		"broken":     g.set(s.secret("broken", "endpoint", "https://127.0.0.1:1")),
		"invalid":    g.set(ofType(s.secret("invalid", "tls.crt", cert, "tls.key", key[:len(key)/2], "token", ""), v1alpha1.CredentialTypeX509)),
		"bad-token":  g.set(s.secret("bad-token", "token", testToken+" \x01 ")),
	} {
		logger.Info("a cluster", "name", name, "value", c, "credential", c.Credential, "text", fmt.Sprintf("%v %+v %#v", c, c, c.Credential))
	}
	var said strings.Builder
	for _, name := range []string{"token", "x509", "plugin", "proxied", "wrong-name", "broken", "invalid", "bad-token", "unknown"} {
		for _, path := range []string{"/", "/401", "/break", "/redirect", "/break-later"} {
			req, _ := http.NewRequest(http.MethodGet, g.url(name, path), nil)
			req.Header.Set("Authorization", "Bearer "+secretOfCaller)
			resp, err := g.client.Do(req)
			if err != nil {
				fmt.Fprintln(&said, err)
				continue
			}
			_ = resp.Header.Write(&said)
			_, _ = io.Copy(&said, resp.Body)
			_ = resp.Body.Close()
		}
	}
	all := map[string]string{"answers": said.String(), "logs": log.String(), "metrics": g.metrics()}
	for where, text := range all {
		if len(text) < 200 {
			t.Errorf("the %s are too short to be complete: %q", where, text)
		}
		for _, secret := range []string{testToken, "token-of-the-plugin", "proxy-password", secretOfCaller, strings.Split(key, "\n")[1], "PRIVATE KEY"} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%q is in the %s: %s", secret, where, text[max(0, i-200):i+len(secret)])
			}
		}
	}
}

// TLS is verified unless the annotation has exactly the value that disables it. Nothing at all may
// arrive over an unverified connection, because it would carry the credential.
func TestTLSIsVerified(t *testing.T) {
	arrived := make(chan string, 100)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.Header.Get("Authorization")
		echoUpgrade(w, r)
	})
	g := newGateway(t, nil)
	wrong := newCAPEM(t)
	for name, pairs := range map[string][]string{
		"no-ca":      {"ca.crt", ""},
		"wrong-ca":   {"ca.crt", wrong},
		"wrong-name": {"tls-server-name", "api.example.org"},
		"noise":      {"ca.crt", "noise"},
	} {
		g.set(s.secret(name, pairs...))
		want := 502
		if name == "noise" {
			want = 503
		}
		if resp, body := g.get(name, "/"); resp.StatusCode != want {
			t.Errorf("%s: %s: %s", name, resp.Status, body)
		}
		if _, _, resp := g.upgrade(name, "/"); resp.StatusCode != want {
			t.Errorf("%s: upgrade: %s", name, resp.Status)
		}
		for value, insecure := range map[string]bool{"true": true, "True": false, "yes": false, "1": false, "": false, "false": false} {
			secret := s.secret(name+"-"+strings.ToLower(value)+"x"+itoa(len(value)), pairs...)
			secret.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = value
			c := g.set(secret)
			resp, body := g.get(c.Name, "/refuse")
			if reached := resp.StatusCode == 400; reached != (insecure && name != "noise") {
				t.Errorf("%s with the annotation %q: %s: %s", name, value, resp.Status, body)
			}
			for len(arrived) > 0 {
				<-arrived
				if !insecure {
					t.Errorf("%s with the annotation %q: the credential has arrived", name, value)
				}
			}
		}
	}
}

// A cluster that is stuck, at any stage, does not delay the requests of another.
func TestStuckClusterDelaysNoOther(t *testing.T) {
	never := make(chan struct{})
	entered := make(chan struct{}, 1000)
	silent := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-never:
		case <-r.Context().Done():
		}
	})
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	const limit = 20
	g := newGateway(t, func(c *Config) {
		c.MaxInFlight = limit
		inner := c.Dialers
		c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			if c.Name != "slow-build" {
				return inner(c, purpose)
			}
			entered <- struct{}{}
			<-never // a transport that takes for ever to make
			return nil, context.Canceled
		}
	})
	healthy := newAPIServer(t, ok)
	g.set(healthy.secret("healthy"))
	g.get("healthy", "/")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	send := func(name, path string) {
		wg.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url(name, path), nil)
				resp, err := g.client.Do(req)
				if err != nil {
					return
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusTooManyRequests {
					return
				}
				// The request below, which checks that the limit is reached, took its place for a
				// moment.
			}
		})
	}
	defer wg.Wait()
	defer close(never)
	defer cancel()
	for name, endpoint := range map[string]string{"silent": silent.URL, "mute": "https://" + mute.Addr().String()} {
		g.set(silent.secret(name, "endpoint", endpoint))
		for range limit {
			send(name, "/")
		}
		for range limit {
			send(name, "/api/v1/pods?watch=1")
		}
		eventually(t, "the limit is reached", func() bool {
			_, body := g.getWithin(name, 100*time.Millisecond)
			return strings.Contains(body, "which is the limit")
		})
	}
	g.set(silent.secret("slow-build"))
	send("slow-build", "/")
	<-entered
	for i := range 100 {
		within(t, maxWait, "a GET to the healthy cluster", func() {
			resp, body := g.get("healthy", "/")
			if resp.StatusCode != 200 {
				t.Errorf("%d: %s: %s", i, resp.Status, body)
			}
		})
	}
	// The same holds for the first request to a cluster.
	g.set(healthy.secret("another"))
	within(t, maxWait, "the first GET to another cluster", func() { g.get("another", "/") })
}

// getWithin gives up after limit, and then returns an empty body.
func (g *gateway) getWithin(name string, limit time.Duration) (int, string) {
	ctx, cancel := context.WithTimeout(g.t.Context(), limit)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url(name, "/"), nil)
	resp, err := g.client.Do(req)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// The numbers of goroutines and connections do not grow with the number of requests and upgrades.
func TestNothingGrowsWithRequests(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echoUpgrade(w, r)
		} else if r.URL.Path == "/401" {
			w.WriteHeader(401)
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	round := func(requests, upgrades int) {
		for i := range requests {
			g.get("a", []string{"/", "/api/v1/pods", "/401", "/x?y"}[i%4])
		}
		for i := range upgrades {
			conn, br, resp := g.upgrade("a", []string{"/", "/refuse", "/other"}[i%3])
			if resp.StatusCode == 101 {
				_ = conn.CloseWrite()
				_, _ = io.ReadAll(br)
			}
			_ = conn.Close()
		}
		eventually(t, "nothing in flight", func() bool { return strings.Contains(g.metrics(), "requests_in_flight{cluster=a,route=direct} 0\n") })
	}
	round(100, 20)
	goroutines, connections := runtime.NumGoroutine(), s.connections()
	round(1000, 200)
	eventually(t, "goroutines and connections have not grown", func() bool {
		return runtime.NumGoroutine() <= goroutines+10 && s.connections() <= connections+2
	})
}

// A cluster behind a tunnel is never dialed directly: a listener on its address sees no connection.
func TestTunneledClusterIsNeverDialedDirectly(t *testing.T) {
	s := newAPIServer(t, echoUpgrade)
	dialed := make(chan string, 100)
	behind := newAPIServer(t, echoUpgrade)
	g := newGateway(t, func(c *Config) {
		direct := c.Dialers
		c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			if c.Route == cluster.RouteDirect {
				return direct(c, purpose)
			}
			return dialer.New(c.Name, func(ctx context.Context, network, address string) (net.Conn, error) {
				dialed <- address
				if c.Name == "no-agent" {
					return nil, &dialer.Error{Cluster: c.Name, Stage: dialer.StageTunnel, Address: address, Err: &dialer.NoAgentError{}}
				}
				var d net.Dialer
				return d.DialContext(ctx, network, behind.Listener.Addr().String()) // what the agent would do
			}), nil
		}
	})
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("NO_PROXY", "")
	for _, name := range []string{"works", "no-agent"} {
		g.set(throughTunnel(s.secret(name, "ca.crt", s.ca()+behind.ca())))
		if want := map[string]int{"works": 400, "no-agent": 503}[name]; want != 0 {
			if resp, body := g.get(name, "/"); resp.StatusCode != want {
				t.Errorf("%s: %s: %s", name, resp.Status, body)
			}
		}
		if _, _, resp := g.upgrade(name, "/"); resp.StatusCode != map[string]int{"works": 101, "no-agent": 503}[name] {
			t.Errorf("%s: upgrade: %s", name, resp.Status)
		}
		_, _ = g.handler.Ready(t.Context(), name)
	}
	if n := s.accepted.Load(); n != 0 {
		t.Errorf("%d connections to the endpoint's address", n)
	}
	close(dialed)
	for address := range dialed {
		if "https://"+address != s.URL {
			t.Errorf("the tunnel was asked to dial %s", address)
		}
	}
	if g.dials.Load() != 0 {
		t.Error("the direct dialer was used")
	}
}

// The labels of metrics stay bounded, whatever callers send.
func TestMetricsAreBounded(t *testing.T) {
	s := newAPIServer(t, ok)
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for i := range 30 {
		g.do("ODD"+strings.Repeat("D", i), "a", "/", nil)
		g.get("unknown-"+itoa(i), "/")
		g.get("a", "/api/v1/namespaces/n"+itoa(i)+"/pods/p")
		g.get("a", "/odd/"+itoa(i)+"?x="+itoa(i))
	}
	want := map[string]bool{"other": true, "get": true}
	for line := range strings.Lines(g.metrics()) {
		name, rest, _ := strings.Cut(line, "{")
		labels, _, _ := strings.Cut(rest, "}")
		for _, label := range strings.Split(labels, ",") {
			key, value, _ := strings.Cut(label, "=")
			if key == "cluster" && value != "a" || key == "verb" && !want[value] {
				t.Errorf("%s has %s", name, label)
			}
		}
	}
	if m := g.metrics(); !strings.Contains(m, "requests_total{cluster=a,code=200,route=direct,verb=other} 30\n") ||
		!strings.Contains(m, "dials_total{cluster=a,result=success,route=direct,stage=} 1\n") ||
		!strings.Contains(m, "connections{cluster=a,route=direct} 1\n") ||
		!strings.Contains(m, "requests_in_flight{cluster=a,route=direct} 0\n") {
		t.Error(m)
	}
}
