// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
)

// maxProbeBody bounds what is read of an answer to a probe.
const maxProbeBody = 64 << 10

// ProbeError is why a probe failed.
type ProbeError struct {
	// Status is what a request would have been answered.
	Status *apierrors.StatusError
	// Cause is the stage at which the probe ended. It is empty when the cluster is unknown.
	Cause metav1.CauseType
	// Err is what happened; nil when Status is all there is to say.
	Err error
}

// Error is the Status's message.
func (e *ProbeError) Error() string { return e.Status.Error() }

// Unwrap gives the Status, and what happened.
func (e *ProbeError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Status}
	}
	return []error{e.Status, e.Err}
}

func probeError(status *apierrors.StatusError, err error) *ProbeError {
	e := &ProbeError{Status: status, Err: err}
	if d := status.ErrStatus.Details; d != nil && len(d.Causes) > 0 {
		e.Cause = d.Causes[0].Type
	}
	return e
}

// Readiness is what an API server that is ready has told.
type Readiness struct {
	// Latency is how long its answer took.
	Latency time.Duration
	// Certificate is what it serves with; nil when it is not known. It must not be changed.
	Certificate *x509.Certificate
}

// Ready asks a cluster's API server whether it is ready, over the transport that requests take. A server that does not let the
// gateway's credential ask, or does not know the question, has answered, which is all that is wanted of it. Failures are a
// *ProbeError. Without a deadline in ctx it takes Config.RequestTimeout at most.
func (h *Handler) Ready(ctx context.Context, name string) (Readiness, error) {
	var r Readiness
	began := time.Now()
	err := h.ask(ctx, name, "/readyz", func(resp *http.Response, body []byte) error {
		r.Latency = time.Since(began)
		if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
			r.Certificate = resp.TLS.PeerCertificates[0]
		}
		switch resp.StatusCode {
		case http.StatusOK, http.StatusForbidden, http.StatusNotFound:
			return nil
		}
		return &answerError{"it is not ready: " + brief(errors.New(resp.Status+firstFailure(body)))}
	})
	return r, err
}

// firstFailure is the first check that failed in what /readyz answered.
func firstFailure(body []byte) string {
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "[-]") {
			return ": " + strings.TrimSpace(line)
		}
	}
	return ""
}

// Version asks a cluster's API server for its version (v1.37.2), as Ready asks.
func (h *Handler) Version(ctx context.Context, name string) (gitVersion string, err error) {
	err = h.ask(ctx, name, "/version", func(resp *http.Response, body []byte) error {
		if resp.StatusCode != http.StatusOK {
			return &answerError{"it answered " + brief(errors.New(resp.Status))}
		}
		var v version.Info
		if err := json.Unmarshal(body, &v); err != nil {
			return &answerError{"what it answered is no version of an API server: " + brief(err)}
		}
		gitVersion = v.GitVersion
		return nil
	})
	return gitVersion, err
}

// answerError is an answer that is not that of an API server which works.
type answerError struct{ problem string }

func (e *answerError) Error() string { return e.problem }

// ask sends a GET and has its answer judged.
func (h *Handler) ask(ctx context.Context, name, path string, judge func(*http.Response, []byte) error) error {
	l, err := h.table.acquire(name, internal, 0)
	switch {
	case errors.Is(err, errNoCluster):
		return probeError(notFound(name), nil)
	case err != nil:
		return probeError(shuttingDown(name), err)
	}
	defer l.release()
	x := &exchange{cluster: l.cluster, lease: l, kind: kind{verb: "get"}, target: target{cluster: name, rawPath: path}}
	if l.err != nil {
		return probeError(h.buildFailure(x), l.err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.RequestTimeout, errDeadline)
	defer cancel()
	began := time.Now()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { x.hasConn.Store(true) },
		WroteRequest: func(info httptrace.WroteRequestInfo) { x.hasSent.Store(info.Err == nil) },
	})
	req, err := http.NewRequestWithContext(traced, http.MethodGet, x.target.onEndpoint(l.cluster.Endpoint, &url.URL{}).String(), nil)
	if err != nil {
		return err
	}
	err = exchangeProbe(l.transports.requests, req, judge)
	var answer *answerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer):
		return probeError(newStatus(http.StatusBadGateway, StatusReasonBadGateway, name, CauseResponse,
			fmt.Sprintf("cluster %q: GET %s: %s", name, path, answer.problem)), err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(context.Cause(ctx), errDeadline):
		// The prober's deadline; a request would have ended because its caller went away.
		return probeError(timeoutStatus(l.cluster, x, time.Since(began).Round(time.Second)), err)
	default:
		return probeError(h.statusOf(ctx, x, err), err)
	}
}

// acceptedTimeout bounds how long accepted waits.
const acceptedTimeout = 5 * time.Second

// accepted asks a cluster's API server whether it accepts the gateway's credential. It is asked after a 401 that may be an application's: the
// answer itself can look like anything, an API server's in particular, so that nothing in it tells. A credential that is not accepted gets
// a 401 for every path, those that are open to all included.
func accepted(ctx context.Context, l *lease) bool {
	ctx, cancel := context.WithTimeout(ctx, acceptedTimeout)
	defer cancel()
	question := target{cluster: l.cluster.Name, rawPath: "/version"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, question.onEndpoint(l.cluster.Endpoint, &url.URL{}).String(), nil)
	if err != nil {
		return false
	}
	return nil == exchangeProbe(l.transports.requests, req, func(resp *http.Response, _ []byte) error {
		if resp.StatusCode >= http.StatusInternalServerError {
			return errors.New(resp.Status) // perhaps it could not find out
		}
		return nil
	})
}

func exchangeProbe(rt http.RoundTripper, req *http.Request, judge func(*http.Response, []byte) error) error {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusUnauthorized:
		return ErrCredentialRejected
	}
	return judge(resp, body)
}

// RoundTripper sends requests of the gateway's own to a cluster, with the cluster's credential and over the transport that
// requests take. Of their URLs only path and query matter. The answer's body must be closed.
func (h *Handler) RoundTripper(name string) http.RoundTripper {
	return ownRequests{handler: h, cluster: name}
}

type ownRequests struct {
	handler *Handler
	cluster string
}

func (o ownRequests) RoundTrip(req *http.Request) (*http.Response, error) {
	l, err := o.handler.table.acquire(o.cluster, internal, 0)
	if err == nil && l.err != nil {
		err = l.err
		l.release()
	}
	if err != nil {
		closeBody(req)
		return nil, fmt.Errorf("cluster %q: %w", o.cluster, err)
	}
	t := target{cluster: o.cluster, rawPath: req.URL.EscapedPath()}
	out := req.Clone(req.Context())
	out.URL, out.Host = t.onEndpoint(l.cluster.Endpoint, req.URL), ""
	resp, err := l.transports.requests.RoundTrip(out)
	if err != nil {
		l.release()
		return nil, err
	}
	resp.Body = &leasedBody{ReadCloser: resp.Body, lease: l}
	return resp, nil
}

// leasedBody keeps the transport until the answer has been read.
type leasedBody struct {
	io.ReadCloser
	lease *lease
}

func (b *leasedBody) Close() error {
	err := b.ReadCloser.Close()
	if l := b.lease; l != nil {
		b.lease = nil
		l.release()
	}
	return err
}
