// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// twoWays is a dialer with two ways to an API server. It uses the bad one until a failure of it is
// reported.
type twoWays struct {
	bad func(ctx context.Context) (net.Conn, error)

	mu       sync.Mutex
	reports  []error // of the bad way, and then of the good one
	attempts int
}

func (w *twoWays) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
	dialer.SetCarrier(ctx, func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.reports = append(w.reports, err)
	}, true)
	if len(w.reports) == 0 {
		return w.bad(ctx)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// If TLS fails or hangs through one agent, another one is tried, and the request succeeds. The
// agents learn the outcome.
func TestTLSIsTriedOverAnotherAgent(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(ctx context.Context) (net.Conn, error){
		"no TLS": func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				_, _ = far.Read(make([]byte, 1024))
				_, _ = far.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			}()
			return near, nil
		},
		"silence": func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { // takes what is sent, and answers nothing
				for buf := make([]byte, 1024); ; {
					if _, err := far.Read(buf); err != nil {
						return
					}
				}
			}()
			return near, nil
		},
		"an end": func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			return near, far.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newAPIServer(t, ok)
			ways := &twoWays{bad: bad}
			g := newGateway(t, func(c *Config) {
				c.DialTimeout = 3 * time.Second
				c.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
					return dialer.New(c.Name, ways.dial), nil
				}
			})
			g.set(s.secret("east"))
			resp, body := g.get("east", "/api/v1/namespaces/n")
			wantCode(t, resp, body, http.StatusOK)
			ways.mu.Lock()
			defer ways.mu.Unlock()
			if len(ways.reports) != 2 || ways.reports[0] == nil || ways.reports[1] != nil {
				t.Errorf("the reports are %v, want a failure and a success", ways.reports)
			}
		})
	}
}

// If TLS fails through every agent, the request fails with the error of TLS after a few attempts.
func TestTLSFailsOverEveryAgent(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, ok)
	ways := &twoWays{bad: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		return near, far.Close()
	}}
	failing := func(ctx context.Context, network, address string) (net.Conn, error) {
		ways.mu.Lock()
		ways.reports = nil
		ways.mu.Unlock()
		return ways.dial(ctx, network, address)
	}
	c := cluster.Parse(s.secret("east"), cluster.ParseOptions{})
	config, err := c.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	conn := &connector{cluster: c, dial: failing, tls: config, timeout: 10 * time.Second, metrics: &clusterMetrics{metrics: NewMetrics(), cluster: "east"}, gate: newDialGate(nil)}
	var de *dialer.Error
	_, err = conn.dialTLS(t.Context(), "tcp", s.Listener.Addr().String())
	if !errors.As(err, &de) || de.Stage != dialer.StageTLS || ways.attempts != maxAttempts {
		t.Errorf("%v after %d attempts, want the failure of TLS after %d", err, ways.attempts, maxAttempts)
	}
}
