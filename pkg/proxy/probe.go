// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

// maxProbeBody bounds what is read of an answer to a probe.
const maxProbeBody = 64 << 10

// Probe asks a cluster for its version over the transport that requests take. It returns the version (v1.37.2), how long the
// answer took, and what a request would have been answered if there was none, as an *apierrors.StatusError. Without
// a deadline in ctx it takes Config.RequestTimeout at most.
func (h *Handler) Probe(ctx context.Context, name string) (gitVersion string, latency time.Duration, err error) {
	l, err := h.table.acquire(name, false, 0)
	switch {
	case errors.Is(err, errNoCluster):
		return "", 0, notFound(name)
	case err != nil:
		return "", 0, shuttingDown(name)
	}
	defer l.release()
	x := &exchange{cluster: l.cluster, lease: l, kind: kind{verb: "get"}, target: target{cluster: name, rawPath: "/version"}}
	if l.err != nil {
		return "", 0, h.buildFailure(x)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.RequestTimeout, errDeadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.target.onEndpoint(l.cluster.Endpoint, &url.URL{}).String(), nil)
	if err != nil {
		return "", 0, err
	}
	began := time.Now()
	gitVersion, err = askVersion(l.transports.requests, req)
	var answer *answerError
	switch {
	case errors.As(err, &answer):
		return "", 0, newStatus(http.StatusBadGateway, StatusReasonBadGateway, name, CauseResponse,
			fmt.Sprintf("cluster %q: GET /version: %s", name, answer.problem))
	case err != nil:
		return "", 0, h.statusOf(ctx, x, err)
	}
	return gitVersion, time.Since(began), nil
}

// answerError is an answer that is not that of an API server which works.
type answerError struct{ problem string }

func (e *answerError) Error() string { return e.problem }

func askVersion(rt http.RoundTripper, req *http.Request) (string, error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusUnauthorized:
		return "", errCredentialRejected
	case resp.StatusCode != http.StatusOK:
		return "", &answerError{"it answered " + brief(errors.New(resp.Status))}
	}
	var v version.Info
	if err := json.Unmarshal(body, &v); err != nil {
		return "", &answerError{"what it answered is no version of an API server: " + brief(err)}
	}
	return v.GitVersion, nil
}
