// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

const basePath = v1alpha1.BasePath

func TestMain(m *testing.M) {
	dialertest.Main(m,
		// client-go's logger runs as long as the process.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// nolog is for servers whose errors are expected.
var nolog = log.New(io.Discard, "", 0)

// maxWait limits how long a test waits for something that should happen at once.
const maxWait = 20 * time.Second

// clusters is a ClusterGetter that a test fills.
type clusters struct {
	mu     sync.RWMutex
	byName map[string]*cluster.Cluster
}

func (c *clusters) Get(name string) (*cluster.Cluster, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found, ok := c.byName[name]
	return found, ok
}

// gateway is a Handler behind a TLS server and the filter that makes the RequestInfo, as in the
// real one.
type gateway struct {
	t        testing.TB
	handler  *Handler
	clusters *clusters
	registry metrics.KubeRegistry
	server   *httptest.Server
	client   *http.Client
	// tls is that of client, which changes its own when it is first used.
	tls   *tls.Config
	parse cluster.ParseOptions
	dials atomic.Int64
}

// newGateway starts one. Requests with throughHubHeader count as requests through the hub.
// configure may be nil.
func newGateway(t testing.TB, configure func(*Config)) *gateway {
	t.Helper()
	g := &gateway{t: t, clusters: &clusters{byName: map[string]*cluster.Cluster{}}, registry: metrics.NewKubeRegistry()}
	m := NewMetrics()
	for _, metric := range m.All() {
		g.registry.MustRegister(metric)
	}
	cfg := Config{Clusters: g.clusters, Metrics: m, Dialers: func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
		if c.Route != cluster.RouteDirect {
			return nil, fmt.Errorf("route %q", c.Route)
		}
		var d net.Dialer
		return dialer.New(c.Name, func(ctx context.Context, network, address string) (net.Conn, error) {
			g.dials.Add(1)
			return d.DialContext(ctx, network, address)
		}), nil
	}}
	if configure != nil {
		configure(&cfg)
	}
	g.handler = NewHandler(cfg)
	info := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	g.server = httptest.NewUnstartedServer(withUserHeader(withThroughHubHeader(filters.WithRequestInfo(g.handler, info))))
	g.server.EnableHTTP2 = true
	g.server.Config.ErrorLog = nolog
	g.server.StartTLS()
	g.client = g.server.Client()
	g.tls = g.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	g.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		g.handler.Close()
		g.client.CloseIdleConnections()
		g.server.CloseClientConnections()
		g.server.Close()
	})
	return g
}

// userHeader stands for authentication: its value is the name of the caller, or the caller in JSON.
const userHeader = "X-Test-User"

func withUserHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := r.Header.Get(userHeader); name != "" {
			r.Header.Del(userHeader)
			caller := &user.DefaultInfo{}
			if err := json.Unmarshal([]byte(name), caller); err != nil {
				caller.Name = name
			}
			r = r.WithContext(request.WithUser(r.Context(), caller))
		}
		next.ServeHTTP(w, r)
	})
}

// throughHubHeader stands for the client certificate of the hub's front proxy.
const throughHubHeader = "X-Test-Through-Hub"

func withThroughHubHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(throughHubHeader) != "" {
			r.Header.Del(throughHubHeader)
			r = r.WithContext(WithThroughHub(r.Context(), func() bool { return true }))
		}
		next.ServeHTTP(w, r)
	})
}

func (g *gateway) url(name, path string) string {
	return g.server.URL + basePath + name + "/proxy" + path
}

// set registers a Secret, or changes it, and returns what was parsed.
func (g *gateway) set(secret *corev1.Secret) *cluster.Cluster {
	c := cluster.Parse(secret, g.parse)
	g.clusters.mu.Lock()
	g.clusters.byName[c.Name] = c
	g.clusters.mu.Unlock()
	g.handler.Changed(c.Name, c)
	return c
}

func (g *gateway) delete(name string) {
	g.clusters.mu.Lock()
	delete(g.clusters.byName, name)
	g.clusters.mu.Unlock()
	g.handler.Changed(name, nil)
}

// get sends a GET for path to a cluster. It returns the answer, and its body.
func (g *gateway) get(name, path string, header ...string) (*http.Response, string) {
	g.t.Helper()
	return g.do(http.MethodGet, name, path, nil, header...)
}

func (g *gateway) do(method, name, path string, body io.Reader, header ...string) (*http.Response, string) {
	g.t.Helper()
	req, err := http.NewRequest(method, g.url(name, path), body)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := g.client.Do(req)
	if err != nil {
		g.t.Fatalf("%s %s on %s: %v", method, path, name, err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatalf("%s %s on %s: body: %v", method, path, name, err)
	}
	return resp, string(read)
}

// status sends a GET that must be answered with a Status, and decodes it.
func (g *gateway) status(name, path string) (*http.Response, metav1.Status) {
	g.t.Helper()
	resp, text := g.get(name, path)
	var s metav1.Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		g.t.Fatalf("%s is not a Status: %v", text, err)
	}
	if int(s.Code) != resp.StatusCode {
		g.t.Errorf("the Status has the code %d, but the answer has %d", s.Code, resp.StatusCode)
	}
	return resp, s
}

// metrics returns all metrics, a line for each.
func (g *gateway) metrics() string {
	g.t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		g.t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			fmt.Fprintf(&b, "%s{%s} %v\n", f.GetName(), strings.Join(labels, ","), value)
		}
	}
	return b.String()
}

// apiServer is a managed API server.
type apiServer struct {
	*httptest.Server
	accepted atomic.Int64
	mu       sync.Mutex
	open     map[net.Conn]struct{}
}

func newAPIServer(t testing.TB, handler http.HandlerFunc, configure ...func(*httptest.Server)) *apiServer {
	t.Helper()
	s := &apiServer{Server: httptest.NewUnstartedServer(handler), open: map[net.Conn]struct{}{}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nolog
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew:
			s.accepted.Add(1)
			s.open[c] = struct{}{}
		case http.StateClosed, http.StateHijacked:
			delete(s.open, c)
		}
	}
	for _, f := range configure {
		f(s.Server)
	}
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *apiServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func onlyHTTP1(s *httptest.Server) { s.EnableHTTP2 = false }

func (s *apiServer) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

const testToken = "managed-cluster-token-0123456789"

// secret returns a Secret that registers the server under a name. Its data is changed by pairs of
// keys and values ("" removes the key).
func (s *apiServer) secret(name string, pairs ...string) *corev1.Secret {
	return secretWith(name, append([]string{"endpoint", s.URL, "ca.crt", s.ca(), "token", testToken}, pairs...)...)
}

func secretWith(name string, pairs ...string) *corev1.Secret {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "clusters", Name: name, UID: types.UID("uid-of-" + name), ResourceVersion: "1",
			Labels:      map[string]string{v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken)},
			Annotations: map[string]string{},
		},
		Data: map[string][]byte{},
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			delete(secret.Data, pairs[i])
		} else {
			secret.Data[pairs[i]] = []byte(pairs[i+1])
		}
	}
	return secret
}

func throughTunnel(secret *corev1.Secret) *corev1.Secret {
	secret.Labels[v1alpha1.LabelEndpointType] = string(v1alpha1.EndpointTypeClusterProxy)
	return secret
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// wantCode fails unless the answer has the code.
func wantCode(t testing.TB, resp *http.Response, body string, code int) {
	t.Helper()
	if resp.StatusCode != code {
		t.Fatalf("got %d, want %d: %s", resp.StatusCode, code, body)
	}
}

func diff(t testing.TB, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// eventually waits for a state that another goroutine brings about without a signal.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(maxWait); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// within fails unless f returns in time.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s took longer than %s", what, limit)
	}
}

// raw sends bytes to the gateway over HTTP/1.1 and returns the connection.
func (g *gateway) raw(text string) *tls.Conn {
	g.t.Helper()
	config := g.tls.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", g.server.Listener.Addr().String(), config)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		g.t.Fatal(err)
	}
	return conn
}

// logs collects what a logger writes.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) write(prefix, args string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.WriteString(prefix + " " + args + "\n")
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func itoa(n int) string { return strconv.Itoa(n) }
