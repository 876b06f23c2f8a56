// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Defaults of Config.
const (
	// DefaultRequestTimeout is 5 s more than kube-apiserver's own default (--request-timeout, 1m0s), so that where the
	// cluster gives up by itself its own answer is the one the caller gets.
	DefaultRequestTimeout = 65 * time.Second
	// DefaultDialTimeout covers the dial, by the gateway or an agent (whose own limit is 5 s), and the TLS handshake.
	DefaultDialTimeout = 10 * time.Second
	// DefaultMaxInFlight is kube-apiserver's default for one whole server (--max-requests-inflight).
	DefaultMaxInFlight = 400
	// DefaultMaxStreams is half of what comes over the hub's one connection by default (--http2-max-streams-per-connection), so that
	// no cluster can take it all.
	DefaultMaxStreams = 4000
)

// Config is what a Handler needs.
type Config struct {
	// Clusters is asked once for each request.
	Clusters ClusterGetter
	// Dialers makes the dialers of a cluster, two for each version of it.
	Dialers DialerFactory
	// Metrics may be shared with others; it must not be nil.
	Metrics *Metrics
	// RequestTimeout bounds every request that is not long-running; 0 means DefaultRequestTimeout.
	RequestTimeout time.Duration
	// DialTimeout bounds making a connection; 0 means DefaultDialTimeout.
	DialTimeout time.Duration
	// MaxInFlight is how many requests that are not long-running one cluster may have in flight; 0 means
	// DefaultMaxInFlight, less than 0 no limit.
	MaxInFlight int
	// MaxStreams is how many long-running requests (watches, followed logs, exec, attach, port-forward) one cluster may have; 0 means
	// DefaultMaxStreams, less than 0 no limit.
	MaxStreams int
	// Logger is where failures are reported. Its zero value logs nothing.
	Logger klog.Logger
}

// Handler serves the proxy subresource. It expects a request that is authenticated, authorised and carries a RequestInfo.
type Handler struct {
	cfg        Config
	classifier classifier
	table      *table
	proxies    [2]*httputil.ReverseProxy // by dialer.Purpose
	serializer runtime.NegotiatedSerializer

	// streams counts the long-running requests in flight; ending ends them.
	streams atomic.Int64
	ending  context.Context
	end     context.CancelFunc
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler. Close it after use.
func NewHandler(cfg Config) *Handler {
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	h := &Handler{
		cfg:        cfg,
		classifier: newClassifier(),
		serializer: serializer.NewCodecFactory(scheme).WithoutConversion(),
	}
	h.ending, h.end = context.WithCancel(context.Background())
	h.table = &table{
		clusters: cfg.Clusters, metrics: cfg.Metrics, logger: cfg.Logger, slots: map[string]*slot{},
		build: func(c *cluster.Cluster, s *series) (*transports, error) {
			return newTransports(c, cfg.Dialers, cfg.DialTimeout, s)
		},
	}
	buffers := newBufferPool()
	for _, purpose := range []dialer.Purpose{dialer.ForRequests, dialer.ForUpgrades} {
		h.proxies[purpose] = &httputil.ReverseProxy{
			Rewrite:        h.rewrite,
			Transport:      roundTripperOf(purpose),
			ModifyResponse: h.modifyResponse,
			ErrorHandler:   h.handleError,
			// FlushInterval is left at 0: what has no Content-Length, as watches and followed logs, is flushed as it comes, and
			// what has one goes out in as few pieces as may be.
			BufferPool: buffers,
			ErrorLog:   log.New(logWriter{cfg.Logger}, "", 0),
		}
	}
	return h
}

// Changed follows a cluster's Secret; c is nil when it is gone. It does not block on the network.
func (h *Handler) Changed(name string, c *cluster.Cluster) { h.table.changed(name, c) }

// Reconnect has requests to a cluster take new connections from now on: those that there are will be cut, some time later. What is in flight
// goes on; watches, which would not end in time, end as they do when an API server has had enough of them: the client begins another one.
func (h *Handler) Reconnect(name string) { h.table.reconnect(name) }

// EndStreams lets the requests that would not end by themselves (watches, followed logs, upgrades) go on until ctx ends, and
// then ends them; those that come later are ended at once. Ordinary requests are left to the server to wait for.
func (h *Handler) EndStreams(ctx context.Context) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for h.streams.Load() > 0 {
		select {
		case <-ticker.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	h.end()
}

// Close ends everything in flight and closes all connections.
func (h *Handler) Close() {
	h.end()
	h.table.closeAll()
}

// exchange is one request and its answer.
type exchange struct {
	cluster *cluster.Cluster
	target  target
	kind    kind
	lease   *lease
	// sending is the context that the request is sent with.
	sending context.Context
	// end ends a watch.
	end context.CancelCauseFunc
	// code is the HTTP status of the answer, for metrics.
	code int
	// upgraded is the connection to the cluster once it has left HTTP.
	upgraded io.Closer
	// hasConn and hasSent are set by the transport, on a goroutine of its own, and so is broken: the caller's request ended
	// before it was complete.
	hasConn, hasSent, broken atomic.Bool
}

var _ progress = (*exchange)(nil)

func (x *exchange) connected() bool { return x.hasConn.Load() }
func (x *exchange) sent() bool      { return x.hasSent.Load() }

// body is the body of a caller's request.
type body struct {
	io.ReadCloser
	x *exchange
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // readers return it as it is
		b.x.broken.Store(true)
	}
	return n, err
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	t, ok := parseTarget(req.URL, v1alpha1.BasePath)
	// What was authorised is the name in the RequestInfo, which is read from the decoded path.
	if info, has := request.RequestInfoFrom(req.Context()); !ok || !has || info.Name != t.cluster || info.Subresource != v1alpha1.ProxySubresource {
		h.refuse(w, req, apierrors.NewBadRequest(fmt.Sprintf("the path must be %sNAME/proxy/PATH, with nothing escaped before PATH", v1alpha1.BasePath)))
		return
	}
	if req.Method == http.MethodTrace {
		// It makes whoever answers it repeat the request, with the gateway's credential.
		h.refuse(w, req, apierrors.NewMethodNotSupported(v1alpha1.Resource(v1alpha1.ResourceName+"/"+v1alpha1.ProxySubresource), req.Method))
		return
	}
	// Classified before the cluster is known: its path prefix does not matter for what the request is.
	k := h.classifier.classify(req, t.onEndpoint(&url.URL{}, req.URL))
	as, limit := ordinary, h.cfg.MaxInFlight
	if k.longRunning {
		as, limit = streams, h.cfg.MaxStreams
	}
	l, err := h.table.acquire(t.cluster, as, limit)
	switch {
	case errors.Is(err, errNoCluster):
		h.refuse(w, req, notFound(t.cluster))
	case errors.Is(err, errTooMany):
		code := h.refuse(w, req, tooManyRequests(t.cluster, as, limit))
		l.slot.series.refused(string(l.cluster.Route), k, code)
	case err != nil:
		h.refuse(w, req, shuttingDown(t.cluster))
	default:
		defer l.release()
		h.forward(w, req, &exchange{cluster: l.cluster, target: t, kind: k, lease: l})
	}
}

func (h *Handler) forward(w http.ResponseWriter, req *http.Request, x *exchange) {
	began := time.Now()
	series, route := x.lease.slot.series, string(x.cluster.Route)
	series.began(route)
	defer func() { series.ended(route, x.kind, x.code, time.Since(began)) }()

	if x.lease.err != nil {
		x.code = h.refuse(w, req, h.buildFailure(x))
		return
	}
	if x.target.leaves(x.cluster.Endpoint) {
		x.code = h.refuse(w, req, apierrors.NewBadRequest(fmt.Sprintf(
			"the path must not have \".\" or \"..\" segments: the API server of cluster %q lies below a path of its host", x.cluster.Name)))
		return
	}
	ctx, release := h.bound(req.Context(), x.kind)
	defer release()
	if x.kind.verb == "watch" {
		ctx, x.end = context.WithCancelCause(ctx)
		defer x.end(nil)
	}
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	x.sending = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { x.hasConn.Store(true) },
		WroteRequest: func(info httptrace.WroteRequestInfo) { x.hasSent.Store(info.Err == nil) },
	})
	// The filters have set it for the gateway's own answers; the cluster says for itself how its answer may be cached.
	w.Header().Del("Cache-Control")
	purpose := dialer.ForRequests
	if x.kind.verb == "connect" {
		purpose = dialer.ForUpgrades
	}
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &body{ReadCloser: req.Body, x: x}
	}
	complete := false
	defer func() {
		if x.upgraded != nil {
			_ = x.upgraded.Close() // ReverseProxy does not when it cannot hand it over
		}
		if !complete {
			x.code = brokenOff(ctx, x)
		}
	}()
	h.proxies[purpose].ServeHTTP(w, req)
	complete = true
}

// codeBrokenOff, in metrics, is an answer that ended before it was complete; codeClientGone one that the client did not wait for.
const (
	codeBrokenOff  = 0
	codeClientGone = 499
)

// brokenOff is the code of an answer that ReverseProxy could not bring to its end (http.ErrAbortHandler).
func brokenOff(ctx context.Context, x *exchange) int {
	switch {
	case !errors.Is(context.Cause(ctx), context.Canceled):
		return codeBrokenOff
	case x.kind.longRunning:
		return x.code // what it is for: the client ends it
	default:
		return codeClientGone
	}
}

// bound gives a request its deadline, or, if it is long-running, an end when the gateway shuts down.
func (h *Handler) bound(ctx context.Context, k kind) (context.Context, context.CancelFunc) {
	if !k.longRunning {
		return context.WithTimeoutCause(ctx, h.cfg.RequestTimeout, errDeadline)
	}
	h.streams.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(h.ending, func() { cancel(errShuttingDown) })
	return ctx, func() { stop(); cancel(nil); h.streams.Add(-1) }
}

var errShuttingDown = errors.New("the gateway is shutting down")

// roundTripperOf is the RoundTripper of a whole ReverseProxy: it sends each request with its own cluster's transport.
type roundTripperOf dialer.Purpose

func (u roundTripperOf) RoundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req.Context())
	// Without the trace that ReverseProxy adds to pass on interim answers: their headers are not seen by modifyResponse, and the
	// server in front of this one asks the client to continue by itself.
	req = req.WithContext(x.sending)
	if dialer.Purpose(u) == dialer.ForUpgrades {
		return x.lease.transports.upgrades.RoundTrip(req)
	}
	return x.lease.transports.requests.RoundTrip(req)
}

func (h *Handler) rewrite(r *httputil.ProxyRequest) {
	x := exchangeOf(r.In.Context())
	// From the incoming request: ReverseProxy has dropped what it could not parse from the outgoing one's query.
	r.Out.URL = x.target.onEndpoint(x.cluster.Endpoint, r.In.URL)
	r.Out.Host = ""
	r.Out.Trailer = nil
	stripRequest(r.Out.Header)
	// The audit logs of the cluster and of the gateway then name the request alike.
	if id, ok := audit.AuditIDFrom(r.In.Context()); ok {
		r.Out.Header.Set(auditinternal.HeaderAuditID, string(id))
	}
}

// ErrCredentialRejected is a 401 of the cluster: an error of the gateway's, and in the chain of a ProbeError.
var ErrCredentialRejected = errors.New("the cluster rejected the gateway's credential")

var errNoStatus = errors.New("it answered with a status code that HTTP does not have")

var errUnwantedUpgrade = errors.New("it switched to another protocol, which nobody asked it to")

func (h *Handler) modifyResponse(resp *http.Response) error {
	x := exchangeOf(resp.Request.Context())
	x.code = resp.StatusCode
	if resp.StatusCode < 100 || resp.StatusCode > 999 {
		return errNoStatus // WriteHeader would panic
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if !x.kind.relayed || !accepted(resp.Request.Context(), x.lease) {
			return ErrCredentialRejected
		}
	case http.StatusSwitchingProtocols:
		x.upgraded = resp.Body
		// ReverseProxy would take an upgrade to nothing for the answer to a request for none.
		if !isUpgrade(resp.Request.Header) || !isUpgrade(resp.Header) {
			return errUnwantedUpgrade
		}
	}
	if x.kind.verb == "watch" {
		resp.Body = newWatchBody(resp, x)
	}
	stripResponse(resp.Header)
	return rewriteLocation(resp, x.cluster.Endpoint, x.target.prefix)
}

// watchBody is the body of a watch. When the gateway shuts down, or the connection is about to be cut, it ends as it does when an API server
// has had enough of it: the client begins another one. Whatever else breaks it is an error.
type watchBody struct {
	io.ReadCloser
	ctx  context.Context
	stop func() bool // no end because of the connection any more
}

// watchesEnd is the time over which the watches of connections that are about to be cut end, so that not all begin anew at once.
const watchesEnd = 10 * time.Second

var errLeaving = errors.New("the connection is about to be cut")

func newWatchBody(resp *http.Response, x *exchange) *watchBody {
	ctx := resp.Request.Context()
	stop := context.AfterFunc(x.lease.leaving, func() {
		timer := time.NewTimer(rand.N(watchesEnd))
		defer timer.Stop()
		select {
		case <-timer.C:
			x.end(errLeaving)
		case <-ctx.Done():
		}
	})
	return &watchBody{ReadCloser: resp.Body, ctx: ctx, stop: stop}
}

func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if cause := context.Cause(b.ctx); err != nil && (errors.Is(cause, errShuttingDown) || errors.Is(cause, errLeaving)) {
		err = io.EOF
	}
	return n, err
}

func (b *watchBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

func (h *Handler) handleError(w http.ResponseWriter, req *http.Request, err error) {
	x := exchangeOf(req.Context())
	status := h.statusOf(req.Context(), x, err)
	h.cfg.Logger.V(2).Info("A proxied request failed", "cluster", x.cluster.Name, "route", x.cluster.Route,
		"verb", x.kind.verb, "code", status.ErrStatus.Code, "err", err)
	// As the filters have it for the gateway's own answers; forward has removed it.
	w.Header().Set("Cache-Control", "no-cache, private")
	x.code = h.refuse(w, req, status)
}

func (h *Handler) statusOf(ctx context.Context, x *exchange, err error) *apierrors.StatusError {
	var plugin *pluginError
	_, known := h.cfg.Clusters.Get(x.cluster.Name)
	switch {
	case errors.Is(err, ErrCredentialRejected):
		return rejectedCredential(x.cluster)
	case h.ending.Err() != nil && (x.lease.gone() || errors.Is(context.Cause(ctx), errShuttingDown)):
		return shuttingDown(x.cluster.Name)
	case !known:
		// Its connections were closed because it was deleted.
		return notFound(x.cluster.Name)
	case x.lease.gone():
		return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, x.cluster.Name, CauseRequest,
			fmt.Sprintf("cluster %q was deleted and registered anew meanwhile; try again", x.cluster.Name))
	case x.broken.Load() && ctx.Err() == nil:
		return clientGone(x.cluster)
	case errors.As(err, &plugin):
		return failedPlugin(x.cluster, plugin)
	case errors.Is(err, errRedirect):
		return redirected(x.cluster)
	default:
		return statusFor(ctx, x.cluster, err, x, h.cfg.RequestTimeout)
	}
}

func (h *Handler) buildFailure(x *exchange) *apierrors.StatusError {
	if x.cluster.Err() != nil {
		return invalidSecret(x.cluster)
	}
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, x.cluster.Name, CauseInvalidSecret,
		fmt.Sprintf("cluster %q cannot be used: %v", x.cluster.Name, x.lease.err))
}

// refuse writes a Status in the form that the client accepts, and returns its code.
func (h *Handler) refuse(w http.ResponseWriter, req *http.Request, err *apierrors.StatusError) int {
	return responsewriters.ErrorNegotiated(err, h.serializer, schema.GroupVersion{Version: "v1"}, w, req)
}

// bufferPool lends ReverseProxy the buffers that it copies bodies with.
type bufferPool struct{ pool sync.Pool }

// copyBuffer is the size of a copy buffer in bytes: two of HTTP/2's largest frames by default.
const copyBuffer = 32 << 10

func newBufferPool() *bufferPool {
	return &bufferPool{pool: sync.Pool{New: func() any { return new([copyBuffer]byte) }}}
}

func (p *bufferPool) Get() []byte  { return p.pool.Get().(*[copyBuffer]byte)[:] }
func (p *bufferPool) Put(b []byte) { p.pool.Put((*[copyBuffer]byte)(b)) }

// logWriter takes what ReverseProxy reports of its own accord: a client or a cluster that went away in mid-answer.
type logWriter struct{ logger klog.Logger }

func (l logWriter) Write(p []byte) (int, error) {
	l.logger.V(2).Info(strings.TrimSpace(string(p)))
	return len(p), nil
}
