// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"

	"github.com/oam-dev/cluster-gateway/pkg/identity"
	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

// exchange is one request to a managed cluster and its answer. It lives as long as the request.
type exchange struct {
	handler    *Handler
	lease      lease
	target     target
	attributes attributes
	// application is nil unless the request is for an application behind the API server.
	application *application
	proxy       httputil.ReverseProxy
	progress    progress
	// turn is the right to be in progress. A stream needs none.
	turn turn
	// seen is who the cluster sees. seenHeaders are the headers that ask it to.
	seen        identity.Seen
	seenHeaders http.Header
	// forwarded is set if another replica has forwarded the request to this one, and forwarding if
	// this one forwards it. trail then has the headers of the answer to the other replica.
	forwarded, forwarding bool
	trail                 http.Header
	// cookies are those of the caller.
	cookies []string
	// permission is what the Authorizer is asked. It is nil if there is none.
	permission *policy.Request

	// ctx ends when the request has to end; cancel ends it.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// streaming is set when the request has no deadline any more.
	streaming bool
	// deadline ends an ordinary request; stopWaiting ends a long-running one's waiting for the
	// shutdown.
	deadline    *time.Timer
	stopWaiting func() bool
	// sendCtx is ctx with the trace that fills progress.
	sendCtx context.Context
	// body is the caller's body, or nil if there is none.
	body *keptBody
	// code is the HTTP status of the answer, for metrics.
	code int
	// span is that of the request to the cluster. It is nil if the request is not traced.
	span trace.Span
	// upgraded is the connection to the cluster after it has left HTTP, and client the connection to
	// the client then.
	upgraded io.Closer
	client   net.Conn
	// tellsClient is set if the client is told why an upgraded connection ends.
	tellsClient bool
}

var _ http.RoundTripper = (*exchange)(nil)

// serve sends the request to the cluster and returns the answer. It releases the lease.
func (x *exchange) serve(w http.ResponseWriter, req *http.Request) {
	defer x.lease.release()
	began := time.Now()
	metrics, route := x.lease.slot.metrics, string(x.lease.cluster.Route)
	if x.forwarded {
		x.trail = w.Header()
	} else { // otherwise the other replica counts it
		metrics.requestStarted(route)
		defer func() { metrics.requestEnded(route, x, time.Since(began)) }()
	}

	x.annotateRequest(req.Context())
	if x.lease.err != nil {
		x.code = x.handler.refuse(w, req, unusable(&x.lease))
		return
	}
	if err := x.waitForTurn(req.Context()); err != nil {
		x.code = x.handler.refuse(w, req, err)
		return
	}
	defer x.turn.end()
	if x.target.escapes(x.lease.cluster.Endpoint) {
		x.code = x.handler.refuse(w, req, apierrors.NewBadRequest(fmt.Sprintf(
			"invalid path: must not have \".\" or \"..\" segments, because the API server of cluster %q is served below a path of its host",
			x.lease.cluster.Name)))
		return
	}
	if err := x.refusedInAgentNamespace(req); err != nil {
		x.code = x.handler.refuse(w, req, err)
		return
	}
	if err := x.authorize(req); err != nil {
		x.code = x.handler.refuse(w, req, err)
		return
	}
	elsewhere := x.elsewhere()
	if !elsewhere { // the other replica decides who the cluster sees
		if err := x.identify(req); err != nil {
			x.code = x.handler.refuse(w, req, err)
			return
		}
	}
	x.forwarding, x.cookies = elsewhere, req.Header["Cookie"]
	defer x.annotateEnd(req.Context())
	if a, ok := newApplication(x.lease.cluster.Endpoint, x.target); ok && x.attributes.relayed {
		x.application = &a
	}
	ctx := x.startSpan(req.Context())
	defer x.endSpan()
	x.start(ctx)
	defer x.end()
	x.sendCtx = x.progress.trace(x.ctx)
	// The filters set this header for the gateway's own answers. The cluster decides how its
	// answers may be cached.
	w.Header().Del("Cache-Control")
	x.proxy = httputil.ReverseProxy{
		Rewrite:      x.rewrite,
		Transport:    x,
		ErrorHandler: x.handleError,
		// FlushInterval stays 0. ReverseProxy then flushes an answer without Content-Length, such
		// as a watch or a followed log, as it arrives, and sends others in as few pieces as
		// possible.
		BufferPool: x.handler.buffers,
		ErrorLog:   x.handler.proxyLog,
	}
	complete := false
	defer func() {
		x.closeUpgraded()
		if !complete { // ReverseProxy panics with http.ErrAbortHandler
			x.code = x.abortedCode()
		}
	}()
	if x.attributes.upgrade {
		w = &hijackedWriter{ResponseWriter: w, exchange: x}
	}
	x.proxy.ServeHTTP(w, req)
	complete = true
}

// waitForTurn waits until the caller can have one more request in progress.
func (x *exchange) waitForTurn(ctx context.Context) *apierrors.StatusError {
	if x.lease.class == classStream {
		return nil
	}
	var err error
	x.turn, err = x.handler.callers.enter(ctx, x.lease.caller)
	var busy *busyError
	switch {
	case errors.As(err, &busy):
		return gatewayBusy(x.lease.cluster, busy)
	case err != nil:
		return clientGone(x.lease.cluster)
	default:
		return nil
	}
}

// Codes in metrics that are not HTTP status codes.
const (
	// codeAborted is an answer that ended before it was complete.
	codeAborted = 0
	// codeClientGone is an answer that the client did not wait for.
	codeClientGone = 499
)

// abortedCode returns the code of an answer that ReverseProxy could not complete.
func (x *exchange) abortedCode() int {
	switch {
	case !errors.Is(context.Cause(x.ctx), context.Canceled):
		return codeAborted
	case x.streaming:
		return x.code // such a request ends normally when the client ends it
	default:
		return codeClientGone
	}
}

// errDeadline is the cause of a context that ended because the request took too long.
var errDeadline = errors.New("the request took too long")

// errShuttingDown is the cause of a context that ended because the gateway shuts down.
var errShuttingDown = errors.New("the gateway is shutting down")

// start sets x.ctx. A request gets a deadline, unless it is a stream.
func (x *exchange) start(parent context.Context) {
	x.ctx, x.cancel = context.WithCancelCause(parent)
	if x.attributes.class() == classStream {
		x.startStream()
	} else {
		x.deadline = time.AfterFunc(x.handler.cfg.RequestTimeout, func() { x.cancel(errDeadline) })
	}
}

// startStream makes the exchange end when the gateway shuts down.
func (x *exchange) startStream() {
	x.streaming = true
	x.handler.streams.Add(1)
	x.stopWaiting = context.AfterFunc(x.handler.streamsCtx, func() { x.cancel(errShuttingDown) })
	if x.permission != nil {
		x.handler.rechecked.add(x)
	}
}

// end releases what start and becomeStream acquired.
func (x *exchange) end() {
	if x.streaming {
		x.stopWaiting()
		x.handler.rechecked.remove(x)
		x.handler.streams.Add(-1)
	} else {
		x.deadline.Stop()
	}
	x.cancel(nil)
}

// rewrite turns the caller's request into the one that is sent to the cluster.
func (x *exchange) rewrite(r *httputil.ProxyRequest) {
	// Taken from the incoming request: ReverseProxy drops the parts of the outgoing query that it
	// cannot parse.
	r.Out.URL = x.target.onEndpoint(x.lease.cluster.Endpoint, r.In.URL)
	r.Out.Host = ""
	r.Out.Trailer = nil
	stripRequest(r.Out.Header)
	if x.application != nil {
		limitEncodings(r.Out.Header)
		if cookies := applicationCookies(r.In.Header); cookies != "" && x.handler.cfg.ApplicationCookies {
			r.Out.Header.Set("Cookie", cookies)
		}
	}
	// The caller's own headers of these names were removed above.
	maps.Copy(r.Out.Header, x.seenHeaders)
	// The audit logs of the cluster and of the gateway then use the same ID for the request.
	if id, ok := audit.AuditIDFrom(r.In.Context()); ok {
		r.Out.Header.Set(auditinternal.HeaderAuditID, string(id))
	}
	x.propagateTrace(r.Out.Header)
}

// RoundTrip implements http.RoundTripper for x.proxy. It sends the request, and returns an answer
// that can be passed on.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	// sendCtx does not have the trace with which ReverseProxy forwards interim (1xx) answers: their
	// headers would not be stripped, and the server in front of the handler asks the client to
	// continue by itself.
	req = req.WithContext(x.sendCtx)
	x.keepBody(req)
	answered := x.turn.whileIdle()
	resp, err := x.send(req)
	answered()
	if x.body != nil {
		x.body.drop()
	}
	if err != nil {
		return nil, err
	}
	x.code = resp.StatusCode
	check := x.checkAnswer
	if x.forwarding {
		check = x.checkForwarded
	}
	if err := check(resp); err != nil {
		_ = resp.Body.Close() // the answer's fault is the error that matters
		return nil, err
	}
	return resp, nil
}

// send sends the request to the cluster, or to a replica that has an agent of it.
func (x *exchange) send(req *http.Request) (*http.Response, error) {
	if x.forwarding {
		return x.forward(req)
	}
	rt := x.lease.transports.requests
	switch x.attributes.class() {
	case classStream:
		rt = x.lease.transports.streams
	case classUpgrade:
		rt = x.lease.transports.upgrades
	}
	resp, err := rt.RoundTrip(req)
	switch {
	case err == nil:
		return resp, nil
	case x.repeatable(req, err):
		if x.forwarded && x.handler.cfg.Forwarder.Elsewhere(x.lease.cluster.Name) {
			return nil, err // it was forwarded once, and the agents here do not answer
		}
		if !x.elsewhere() {
			return rt.RoundTrip(req)
		}
		return x.forward(req)
	case !lostAgent(err) || !x.elsewhere():
		return nil, err
	}
	// The last agent has just gone, and nothing was sent.
	if x.body != nil {
		if req.Body, err = x.body.attempt(); err != nil {
			return nil, err
		}
	}
	return x.forward(req)
}

// repeatable reports whether an ordinary request that has failed is sent again: it only reads, and
// its answer has not begun when nothing came back through an agent any more. Net/http repeats such
// requests, too, when their connection breaks.
func (x *exchange) repeatable(req *http.Request, err error) bool {
	var silent *silentError
	return errors.As(err, &silent) && req.Body == nil && x.ctx.Err() == nil && x.attributes.class() == classRequest &&
		(req.Method == http.MethodGet || req.Method == http.MethodHead)
}

// ErrCredentialRejected reports that the cluster answered 401. It is also in the chain of a
// ProbeError.
var ErrCredentialRejected = errors.New("the cluster rejected the gateway's credential")

// errStatusCode reports a status code with which http.ResponseWriter.WriteHeader would panic.
var errStatusCode = errors.New("it has an invalid HTTP status code")

// checkAnswer checks the cluster's answer, and turns it into the one that the caller gets.
func (x *exchange) checkAnswer(resp *http.Response) error {
	if resp.StatusCode < 100 || resp.StatusCode > 999 {
		return errStatusCode
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if !x.attributes.relayed || !credentialAccepted(x.ctx, &x.lease) {
			return ErrCredentialRejected
		}
	case http.StatusForbidden:
		if err := x.checkImpersonation(resp); err != nil {
			return err
		}
	}
	if err := x.checkUpgrade(resp); err != nil {
		return err
	}
	cookies := resp.Header["Set-Cookie"]
	stripResponse(resp.Header)
	if x.application != nil {
		if x.handler.cfg.ApplicationCookies && len(cookies) > 0 {
			resp.Header["Set-Cookie"] = x.application.narrowCookies(cookies)
		}
		if isHTML(resp) {
			rewriteHTML(resp, x.application)
		}
	}
	return x.rewriteLocation(resp)
}

// checkUpgrade handles an answer to an upgrade or to a watch.
func (x *exchange) checkUpgrade(resp *http.Response) error {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if err := x.switchProtocols(resp); err != nil {
			return err
		}
	}
	// Without the upgrade, the request may still be a long-running one.
	if x.attributes.upgrade && (resp.StatusCode == http.StatusSwitchingProtocols || x.attributes.longRunning) {
		if err := x.becomeStream(); err != nil {
			return err
		}
	}
	if x.attributes.verb == "watch" {
		resp.Body = x.newWatchBody(resp.Body)
	}
	return nil
}

// handleError answers a request that failed before the cluster's answer was returned.
func (x *exchange) handleError(w http.ResponseWriter, req *http.Request, err error) {
	status := x.handler.failureStatus(x.ctx, &x.lease, &x.progress, x.forwarding, err)
	x.handler.cfg.Logger.V(2).Info("A proxied request failed", "cluster", x.lease.cluster.Name, "route", x.lease.cluster.Route,
		"verb", x.attributes.verb, "code", status.ErrStatus.Code, "err", err)
	x.failSpan(status.ErrStatus.Message)
	// The filters set this header for the gateway's own answers, and serve has removed it.
	w.Header().Set("Cache-Control", "no-cache, private")
	x.code = x.handler.refuse(w, req, status)
}

// progress records how far a request has come. The transport sets it from goroutines of its own.
type progress struct {
	// connected and sent are set when the request has a connection, and when it was sent
	// completely.
	connected, sent atomic.Bool
	// bodyFailed is set when the caller's body ended before it was complete.
	bodyFailed  atomic.Bool
	clientTrace httptrace.ClientTrace
	requestCtx  requestContext
}

// trace returns a context with which a request fills p. It is called once.
func (p *progress) trace(ctx context.Context) context.Context {
	p.clientTrace = httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { p.connected.Store(true) },
		WroteRequest: func(info httptrace.WroteRequestInfo) { p.sent.Store(info.Err == nil) },
	}
	p.requestCtx = requestContext{ctx}
	return httptrace.WithClientTrace(&p.requestCtx, &p.clientTrace)
}
