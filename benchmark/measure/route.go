// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"

	"k8s.io/client-go/rest"
)

// Route is one way to the API server of a managed cluster. It is safe for concurrent use.
type Route struct {
	Name, Title string
	// Config reaches the API server by this route.
	Config *rest.Config
	client *http.Client
}

// NewRoute makes a route. Routes with equal credentials to the same server share a connection, as those of one client do.
func NewRoute(name, title string, config *rest.Config) (*Route, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.RateLimiter = nil
	config.DisableCompression = true
	config.Timeout = 0
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("route %s: %w", name, err)
	}
	return &Route{Name: name, Title: title, Config: config, client: client}, nil
}

// StatusError is an answer that is not a success.
type StatusError struct {
	Code int
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%d: %s", e.Code, e.Body)
}

// kept is how much of an answer Do returns.
const kept = 8 << 10

// Do sends a request and reads all of the answer, of which it returns the beginning; size is that of all of it.
func (r *Route) Do(ctx context.Context, method, path string, body []byte) (answer []byte, size int64, err error) {
	return r.do(ctx, method, path, body, kept)
}

// Get returns all of an answer.
func (r *Route) Get(ctx context.Context, path string) ([]byte, error) {
	answer, _, err := r.do(ctx, http.MethodGet, path, nil, math.MaxInt)
	return answer, err
}

func (r *Route) do(ctx context.Context, method, path string, body []byte, keep int) (answer []byte, size int64, err error) {
	resp, err := r.open(ctx, method, path, body)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	var kept bytes.Buffer
	size, err = io.Copy(io.Discard, io.TeeReader(resp.Body, &limitedBuffer{&kept, keep}))
	if err != nil {
		return nil, size, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, size, &StatusError{Code: resp.StatusCode, Body: strings.TrimSpace(kept.String())}
	}
	return kept.Bytes(), size, nil
}

// open sends a request. The answer is to be closed.
func (r *Route) open(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.Config.Host, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	// Said, and not only left out: the transport of the hub's aggregation layer asks for gzip where nobody has said anything, and then
	// the managed API server compresses what the hub decompresses.
	req.Header.Set("Accept-Encoding", "identity")
	return r.client.Do(req)
}

// limitedBuffer keeps what comes first.
type limitedBuffer struct {
	buffer *bytes.Buffer
	limit  int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := l.limit - l.buffer.Len(); room > 0 {
		l.buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// objectName makes a name that an object may have of a route's, which may hold slashes.
func objectName(route string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(route))
}
