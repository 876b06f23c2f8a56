// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// Route is one path to the API server of a managed cluster. It is safe for concurrent use.
type Route struct {
	Name, Title string
	// Config reaches the API server by this route.
	Config *rest.Config
	client *http.Client
}

// NewRoute returns a route. Routes with the same credential and server share a connection, as the
// requests of one client do.
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

// As returns the same route under another name.
func (r *Route) As(name string) *Route {
	other := *r
	other.Name = name
	return &other
}

// Await waits until a GET succeeds: rules and Secrets take a moment to take effect.
func (r *Route) Await(ctx context.Context) error {
	for {
		_, _, err := r.Do(ctx, http.MethodGet, namespacePath, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("route %s: %w", r.Name, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// StatusError is a response without a success code.
type StatusError struct {
	Code int
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%d: %s", e.Code, e.Body)
}

// kept is how many bytes of a response Do returns.
const kept = 8 << 10

// Do sends a request and reads the whole response. It returns the beginning of the response, and
// the size of all of it.
func (r *Route) Do(ctx context.Context, method, path string, body []byte) (answer []byte, size int64, err error) {
	resp, err := r.open(ctx, method, path, body, identity)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	return read(resp, resp.Body, kept)
}

// Get returns the whole response.
func (r *Route) Get(ctx context.Context, path string) ([]byte, error) {
	resp, err := r.open(ctx, http.MethodGet, path, nil, identity)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, _, err := read(resp, resp.Body, math.MaxInt)
	return answer, err
}

// GetCompressed requests gzip, as client-go does by default, and reads and decompresses the
// response. size is the decompressed size. It returns an error if the response is not compressed.
func (r *Route) GetCompressed(ctx context.Context, path string) (size int64, err error) {
	resp, err := r.open(ctx, http.MethodGet, path, nil, "gzip")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "gzip" {
		return 0, fmt.Errorf("the response, %s, has the content encoding %q and not gzip", resp.Status, encoding)
	}
	unpacked, err := gzip.NewReader(resp.Body)
	if err != nil {
		return 0, err
	}
	_, size, err = read(resp, unpacked, kept)
	return size, err
}

func read(resp *http.Response, body io.Reader, keep int) (answer []byte, size int64, err error) {
	var kept bytes.Buffer
	size, err = io.Copy(io.Discard, io.TeeReader(body, &limitedBuffer{&kept, keep}))
	if err != nil {
		return nil, size, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, size, &StatusError{Code: resp.StatusCode, Body: strings.TrimSpace(kept.String())}
	}
	return kept.Bytes(), size, nil
}

// identity requests no compression. The header must be set: without it, the transport of the hub's
// aggregation layer requests gzip itself, so the managed API server compresses and the hub
// decompresses.
const identity = "identity"

// open sends a request. The caller must close the response.
func (r *Route) open(ctx context.Context, method, path string, body []byte, encoding string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.Config.Host, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", encoding)
	return r.client.Do(req)
}

// limitedBuffer keeps the first bytes.
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

// objectName returns a valid name for an object of a route, whose own name may contain slashes.
func objectName(route string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(route))
}
