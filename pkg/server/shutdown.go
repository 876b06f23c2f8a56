// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/audit"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/klog/v2"
)

// auditWait is how long the audit backend waits for requests that have been ended, but have not
// returned.
const auditWait = 5 * time.Second

// shutdown is the order in which the API server stops:
//
//   - /readyz fails, while requests are served as usual (--shutdown-delay-duration);
//   - watches, followed logs and upgraded connections have a grace period, and are then ended
//     (--proxy-shutdown-grace-period);
//   - the endpoint no longer listens, and requests in flight are waited for;
//   - requests that other replicas have forwarded are waited for;
//   - requests that are still in flight are ended;
//   - the audit backend stops, after the last event.
//
// k8s.io/apiserver stops the audit backend before long-running requests have ended, and starts its
// pre-shutdown hooks before the delay. To it, all proxied requests are long-running.
type shutdown struct {
	delay, grace time.Duration
	requests     requestCounter
	// drained waits for the requests that other replicas have forwarded. It may be nil.
	drained func()
	// audit is nil if there is no audit backend.
	audit *lateAuditBackend
}

// prepare changes a configuration to which all options have been applied.
func (s *shutdown) prepare(config *genericapiserver.Config) {
	s.delay = config.ShutdownDelayDuration
	if config.AuditBackend != nil {
		s.audit = &lateAuditBackend{Backend: config.AuditBackend, stop: make(chan struct{})}
		config.AuditBackend = s.audit
	}
	build := config.BuildHandlerChainFunc
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return s.requests.count(build(api, c))
	}
}

// streams are the proxied requests that do not end by themselves. *proxy.Handler implements it.
type streams interface {
	// EndStreams waits for them until ctx ends, and then ends them.
	EndStreams(ctx context.Context)
	// Close ends all proxied requests.
	Close()
}

// run serves until ctx ends, and stops everything in order.
func (s *shutdown) run(ctx context.Context, server *genericapiserver.GenericAPIServer, proxied streams) error {
	err := server.AddPreShutdownHook("end-streams", func() error {
		// Hooks start together with the delay.
		time.Sleep(s.delay)
		grace, cancel := context.WithTimeout(context.Background(), s.grace)
		defer cancel()
		proxied.EndStreams(grace)
		return nil
	})
	if err == nil {
		err = server.PrepareRun().RunWithContext(ctx)
	}
	if s.drained != nil {
		s.drained()
	}
	proxied.Close()
	if s.audit != nil {
		if n := s.requests.wait(auditWait); n > 0 {
			klog.InfoS("Stopping the audit backend before all requests have ended", "requests", n)
		}
		s.audit.shutdown()
	}
	return err
}

// lateAuditBackend ignores that k8s.io/apiserver stops it. shutdown stops it.
type lateAuditBackend struct {
	audit.Backend
	started bool
	stop    chan struct{}
}

var _ audit.Backend = (*lateAuditBackend)(nil)

// Run implements audit.Backend.
func (b *lateAuditBackend) Run(<-chan struct{}) error {
	b.started = true
	return b.Backend.Run(b.stop)
}

// Shutdown implements audit.Backend.
func (b *lateAuditBackend) Shutdown() {}

// shutdown stops the backend after it has delivered all events. It is called once, after Run. A
// backend that does not run is not stopped: it might wait for itself to run.
func (b *lateAuditBackend) shutdown() {
	close(b.stop)
	if b.started {
		b.Backend.Shutdown()
	}
}

// requestCounter counts requests in flight. A WaitGroup is not enough: requests can come while
// another goroutine waits.
type requestCounter struct {
	mu       sync.Mutex
	inFlight int
	// idle is closed when no request is in flight. It is nil unless wait runs.
	idle chan struct{}
}

// count counts the requests to handler.
func (c *requestCounter) count(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.add(1)
		defer c.add(-1)
		handler.ServeHTTP(w, r)
	})
}

func (c *requestCounter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight += n
	if c.inFlight == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// wait waits until no request is in flight, but no longer than timeout. It returns how many are.
func (c *requestCounter) wait(timeout time.Duration) int {
	c.mu.Lock()
	if c.inFlight == 0 {
		c.mu.Unlock()
		return 0
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = nil
	return c.inFlight
}
