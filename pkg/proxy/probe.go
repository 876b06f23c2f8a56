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
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// maxProbeBody limits how much is read of the answer to a probe.
const maxProbeBody = 64 << 10

// ProbeError is the reason why a probe failed.
type ProbeError struct {
	// Status is the answer that a proxied request would have got.
	Status *apierrors.StatusError
	// Cause is the stage at which the probe failed. It is empty when the cluster is unknown.
	Cause metav1.CauseType
	// Err is the error behind Status. It may be nil.
	Err error
}

// Error returns the Status's message.
func (e *ProbeError) Error() string { return e.Status.Error() }

// Unwrap returns the Status, and Err if there is one.
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

// Readiness describes an API server that is ready.
type Readiness struct {
	// Latency is the time that its answer took.
	Latency time.Duration
	// Certificate is its serving certificate. It is nil when it is not known. It must not be
	// changed.
	Certificate *x509.Certificate
}

// Ready checks that a cluster's API server is ready, over the transport that proxied requests use.
// A server that forbids the gateway's credential to ask (403), or that does not know the path
// (404), has answered and counts as ready. Failures are a *ProbeError. If ctx has no deadline,
// Config.RequestTimeout applies.
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
		return &answerError{"the API server is not ready: " + brief(errors.New(resp.Status+firstFailure(body)))}
	})
	return r, err
}

// firstFailure returns the first failed check in the answer of /readyz.
func firstFailure(body []byte) string {
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "[-]") {
			return ": " + strings.TrimSpace(line)
		}
	}
	return ""
}

// Version returns the version of a cluster's API server, such as "v1.37.2". It uses the same
// transport and timeout as Ready.
func (h *Handler) Version(ctx context.Context, name string) (gitVersion string, err error) {
	err = h.ask(ctx, name, "/version", func(resp *http.Response, body []byte) error {
		if resp.StatusCode != http.StatusOK {
			return &answerError{"the API server answered " + brief(errors.New(resp.Status))}
		}
		var v version.Info
		if err := json.Unmarshal(body, &v); err != nil {
			return &answerError{"the answer is not the version of an API server: " + brief(err)}
		}
		gitVersion = untrusted.Text(v.GitVersion)
		return nil
	})
	return gitVersion, err
}

// answerError is an answer that a working API server would not give.
type answerError struct{ problem string }

func (e *answerError) Error() string { return e.problem }

// ask sends a GET and passes the answer to check.
func (h *Handler) ask(ctx context.Context, name, path string, check func(*http.Response, []byte) error) error {
	l, err := h.table.acquire(name, "", classInternal)
	switch {
	case errors.Is(err, errNoCluster):
		return probeError(notFound(name), nil)
	case err != nil:
		return probeError(shuttingDown(name), err)
	}
	defer l.release()
	if l.err != nil {
		return probeError(unusable(&l), l.err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.RequestTimeout, errDeadline)
	defer cancel()
	start := time.Now()
	var p progress
	t := target{cluster: name, rawPath: path}
	req, err := http.NewRequestWithContext(p.trace(ctx), http.MethodGet, t.onEndpoint(l.cluster.Endpoint, &url.URL{}).String(), nil)
	if err != nil {
		return err
	}
	err = sendProbe(h.internal(&l), req, check)
	var answer *answerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer):
		return probeError(newStatus(http.StatusBadGateway, StatusReasonBadGateway, name, CauseResponse,
			fmt.Sprintf("cluster %q: GET %s: %s", name, path, answer.problem)), err)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(context.Cause(ctx), errDeadline):
		// The deadline is the prober's. For a proxied request, the same would mean that its caller
		// has left.
		return probeError(timeoutStatus(l.cluster, &p, time.Since(start).Round(time.Second)), err)
	default:
		return probeError(h.failureStatus(ctx, &l, &p, false, err), err)
	}
}

// acceptedTimeout limits how long credentialAccepted waits.
const acceptedTimeout = 5 * time.Second

// credentialAccepted asks a cluster's API server whether it accepts the gateway's credential. It is
// used after a 401 that may come from an application behind the API server. That answer cannot
// decide it: an application's answer may look exactly like the API server's. A credential that is
// not accepted gets a 401 for every path, including those that are open to everyone.
func credentialAccepted(ctx context.Context, l *lease) bool {
	ctx, cancel := context.WithTimeout(ctx, acceptedTimeout)
	defer cancel()
	t := target{cluster: l.cluster.Name, rawPath: "/version"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.onEndpoint(l.cluster.Endpoint, &url.URL{}).String(), nil)
	if err != nil {
		return false
	}
	return nil == sendProbe(l.transports.requests, req, func(resp *http.Response, _ []byte) error {
		if resp.StatusCode >= http.StatusInternalServerError {
			return errors.New(resp.Status) // perhaps the API server could not find out
		}
		return nil
	})
}

// sendProbe sends a request and passes the answer to check.
func sendProbe(rt http.RoundTripper, req *http.Request, check func(*http.Response, []byte) error) error {
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
	return check(resp, body)
}
