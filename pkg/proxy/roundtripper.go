// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"io"
	"net/http"
	"sync"
)

// RoundTripper returns a RoundTripper for the gateway's own requests to a cluster. They use the
// cluster's credential and the transport of proxied requests. Only the path and the query of their
// URLs matter. The body of the answer must be closed.
func (h *Handler) RoundTripper(name string) http.RoundTripper {
	return internalRequests{handler: h, cluster: name}
}

type internalRequests struct {
	handler *Handler
	cluster string
}

func (r internalRequests) RoundTrip(req *http.Request) (*http.Response, error) {
	l, err := r.handler.table.acquire(r.cluster, "", classInternal)
	if err == nil && l.err != nil {
		err = l.err
		l.release()
	}
	if err != nil {
		closeBody(req)
		return nil, fmt.Errorf("cluster %q: %w", r.cluster, err)
	}
	t := target{cluster: r.cluster, rawPath: req.URL.EscapedPath()}
	out := req.Clone(req.Context())
	out.URL, out.Host = t.onEndpoint(l.cluster.Endpoint, req.URL), ""
	resp, err := r.handler.internal(&l).RoundTrip(out)
	if err != nil {
		l.release()
		return nil, err
	}
	resp.Body = &leasedBody{ReadCloser: resp.Body, release: sync.OnceFunc(l.release)}
	return resp, nil
}

// internal returns the transport for the gateway's own requests. If the cluster has its agents at
// another replica, their connection leads through that one, up to the cluster's API server.
func (h *Handler) internal(l *lease) http.RoundTripper {
	if l.transports.elsewhere != nil && h.cfg.Forwarder.Elsewhere(l.cluster.Name) {
		return l.transports.elsewhere
	}
	return l.transports.requests
}

// leasedBody keeps the transport until the answer has been read.
type leasedBody struct {
	io.ReadCloser
	release func()
}

func (b *leasedBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
