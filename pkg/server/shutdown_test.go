// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

const proxiedPath = v1alpha1.BasePath + "east/proxy/api"

// apiServer is the generic API server in the gateway's configuration, without a hub: it allows
// everything to everyone.
type apiServer struct {
	url string
	// stop begins the shutdown. ended is closed when run has returned.
	stop  func()
	ended chan struct{}
	// streamsEnd receives the time at which streams are ended.
	streamsEnd chan time.Time
}

// EndStreams implements streams.
func (s *apiServer) EndStreams(context.Context) { s.streamsEnd <- time.Now() }

// Close implements streams.
func (s *apiServer) Close() {}

func startAPIServer(t *testing.T, proxied http.HandlerFunc, backend audit.Backend, configure func(*GenericOptions)) *apiServer {
	t.Helper()
	o := NewGenericOptions()
	o.Serving.Listener = listen(t)
	if err := o.Serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, nil); err != nil {
		t.Fatal(err)
	}
	configure(o)
	scheme, err := registry.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	config := newGenericConfig(scheme, serializer.NewCodecFactory(scheme))
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return buildHandlerChain(api, proxied, nil, c)
	}
	if err := o.listen(&config.Config); err != nil {
		t.Fatal(err)
	}
	if config.GoawayChance != o.GoawayChance || config.ShutdownDelayDuration != o.ShutdownDelay {
		t.Errorf("options %v, %s became %v, %s", o.GoawayChance, o.ShutdownDelay, config.GoawayChance, config.ShutdownDelayDuration)
	}
	config.Authentication.Authenticator = union.New(authenticator.RequestFunc(authenticateByHeader), anonymous.NewAuthenticator(nil))
	config.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	if backend != nil {
		config.AuditBackend, config.AuditPolicyRuleEvaluator = backend, policy.NewFakePolicyRuleEvaluator(auditinternal.LevelMetadata, nil)
	}
	down := &shutdown{grace: time.Minute}
	down.prepare(&config.Config)
	generic, err := config.Complete().New("test", genericapiserver.NewEmptyDelegate())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &apiServer{
		url: "https://" + o.Serving.Listener.Addr().String(), stop: cancel, ended: make(chan struct{}), streamsEnd: make(chan time.Time, 1),
	}
	go func() {
		defer close(s.ended)
		if err := down.run(ctx, generic, s); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-s.ended })
	eventually(t, "readiness", func() bool { return s.get(newClient(t), "/readyz") == http.StatusOK })
	return s
}

// userHeader contains the name of the user of a request. Without it, the request is anonymous.
const userHeader = "Test-User"

func authenticateByHeader(req *http.Request) (*authenticator.Response, bool, error) {
	name := req.Header.Get(userHeader)
	return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, name != "", nil
}

// newClient returns a new client that uses HTTP/2.
func newClient(t *testing.T) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// get returns the code of an answer, or 0.
func (s *apiServer) get(client *http.Client, path string) int {
	resp, err := client.Get(s.url + path)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // for the connection to be used again
	return resp.StatusCode
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// TestShutdownDelay: during the delay only readiness fails, and streams are not ended before its
// end.
func TestShutdownDelay(t *testing.T) {
	t.Parallel()
	const delay = 2 * time.Second
	s := startAPIServer(t, func(http.ResponseWriter, *http.Request) {}, nil, func(o *GenericOptions) { o.ShutdownDelay, o.GoawayChance = delay, 0.01 })
	client := newClient(t)
	if code := s.get(client, proxiedPath); code != http.StatusOK {
		t.Fatal(code)
	}
	began := time.Now()
	s.stop()
	eventually(t, "readiness fails", func() bool { return s.get(client, "/readyz") == http.StatusInternalServerError })
	proxied, alive := s.get(newClient(t), proxiedPath), s.get(client, "/livez")
	if late := time.Since(began) > delay; !late && (proxied != http.StatusOK || alive != http.StatusOK) {
		t.Errorf("during the delay a request was answered with %d and /livez with %d", proxied, alive)
	}
	if ended := <-s.streamsEnd; ended.Sub(began) < delay {
		t.Errorf("streams were ended %s after the signal, before the delay of %s", ended.Sub(began), delay)
	}
	<-s.ended
}

// recordingBackend records the audit stages that it receives, and when it is shut down.
type recordingBackend struct {
	mu     sync.Mutex
	events []string
	run    <-chan struct{}
}

func (b *recordingBackend) record(event string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, event)
}

func (b *recordingBackend) ProcessEvents(events ...*auditinternal.Event) bool {
	for _, e := range events {
		if e.RequestURI == proxiedPath {
			b.record(string(e.Stage))
		}
	}
	return true
}

func (b *recordingBackend) Run(stop <-chan struct{}) error { b.run = stop; return nil }

func (b *recordingBackend) Shutdown() {
	select {
	case <-b.run:
	default:
		b.record("shutdown of a backend that runs")
	}
	b.record("shutdown")
}

func (*recordingBackend) String() string { return "recording" }

// TestAuditBackendStopsLast: a proxied request that ends during the shutdown has its last audit
// event.
func TestAuditBackendStopsLast(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := &recordingBackend{}
	s := startAPIServer(t, func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-release
	}, backend, func(*GenericOptions) {})
	answer := make(chan int, 1)
	client := newClient(t)
	go func() { answer <- s.get(client, proxiedPath) }()
	<-arrived
	s.stop()
	<-s.streamsEnd
	eventually(t, "the endpoint no longer listens", func() bool {
		conn, err := net.Dial("tcp", s.url[len("https://"):])
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	time.Sleep(200 * time.Millisecond) // by now k8s.io/apiserver by itself would have stopped the backend
	close(release)
	if code := <-answer; code != http.StatusOK {
		t.Errorf("the request in flight was answered with %d", code)
	}
	<-s.ended
	want := []string{"RequestReceived", "ResponseStarted", "ResponseComplete", "shutdown"}
	if got := backend.events; !slices.Equal(got, want) {
		t.Errorf("the backend got %q, want %q", got, want)
	}
}

// TestRequestCounter: a request that does not return does not keep the gateway from stopping.
func TestRequestCounter(t *testing.T) {
	var c requestCounter
	if n := c.wait(time.Minute); n != 0 {
		t.Errorf("%d requests at first", n)
	}
	c.add(1)
	c.add(1)
	if n := c.wait(time.Millisecond); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	c.add(-1)
	go c.add(-1)
	if n := c.wait(time.Minute); n != 0 {
		t.Errorf("%d requests at last", n)
	}
}
