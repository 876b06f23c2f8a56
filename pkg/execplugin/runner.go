// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	clientauthenticationv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

const (
	// DefaultTimeout bounds a run of a plugin.
	DefaultTimeout = time.Minute
	// retryInterval is the time between two runs if the first one failed, or if its credential is
	// rejected or has already expired. Otherwise, each request to such a cluster would run the plugin.
	retryInterval = time.Second
)

// Config configures a Runner. It must not change after NewRunner.
type Config struct {
	Command *Command
	// Cluster is passed to the plugin if its definition says so.
	Cluster clientauthenticationv1.Cluster
	// OnCertificateChange, if set, is called after a run that returned another client certificate than
	// the run before, and before anybody gets the new one. It must not call the Runner.
	OnCertificateChange func()
	// Timeout bounds a run. 0 means DefaultTimeout.
	Timeout time.Duration
	// Clock decides when a credential has expired. Nil means the real clock.
	Clock clock.PassiveClock
	// Logger logs what a plugin that failed printed to its standard error. Its zero value logs
	// nothing.
	Logger klog.Logger
}

// Runner runs a plugin when a credential is needed, once for all who wait for it, and keeps the
// credential until it expires or is rejected. It is safe for concurrent use. Use NewRunner, and
// Close the Runner after use.
type Runner struct {
	cfg Config
	// ctx ends a run that is in progress, when the Runner is closed.
	ctx    context.Context
	cancel context.CancelFunc
	runs   sync.WaitGroup

	mu sync.Mutex
	// last is what the last successful run returned. usable is false if the cluster has rejected it.
	last   *Credential
	usable bool
	// flight is the run in progress, and previous is the one before, which ended at endedAt. Until
	// retryAt, the result of previous is returned again.
	flight, previous *flight
	endedAt, retryAt time.Time
	// logged is the last failure in the log, and when it was logged.
	logged   string
	loggedAt time.Time
}

// flight is one run and its result, which is valid when done is closed.
type flight struct {
	done       chan struct{}
	credential *Credential
	err        error
}

// errClosed reports that the Runner has been closed.
var errClosed = errors.New("the credential plugin is no longer used")

// NewRunner returns a Runner. It does not run the plugin.
func NewRunner(cfg Config) *Runner {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	r := &Runner{cfg: cfg}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends the run in progress, and waits for it. From then on, Credential fails.
func (r *Runner) Close() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.runs.Wait()
}

// Credential returns the current credential. If there is none, it runs the plugin and waits until
// ctx ends; it then returns the cause of ctx. The run itself goes on for those who come later. If
// the last run has just failed, it returns the error of that run.
func (r *Runner) Credential(ctx context.Context) (*Credential, error) {
	r.mu.Lock()
	now := r.cfg.Clock.Now()
	switch {
	case r.usable && !r.last.expired(now):
		defer r.mu.Unlock()
		return r.last, nil
	case r.ctx.Err() != nil:
		r.mu.Unlock()
		return nil, errClosed
	case now.Before(r.retryAt):
		defer r.mu.Unlock()
		return r.previous.credential, r.previous.err
	}
	f := r.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		r.flight = f
		r.runs.Go(func() { r.run(f) })
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.credential, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Reject reports that the cluster does not accept a credential. The next call of Credential runs
// the plugin again, unless that has already happened, or the credential is less than a second old.
func (r *Runner) Reject(c *Credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == c && r.usable {
		r.usable = false
		r.retryAt = r.endedAt.Add(retryInterval)
	}
}

func (r *Runner) run(f *flight) {
	ctx, cancel := context.WithTimeoutCause(r.ctx, r.cfg.Timeout, fmt.Errorf("%w within %v", errNotFinished, r.cfg.Timeout))
	defer cancel()
	credential, stderr, err := r.cfg.Command.run(ctx, r.cfg.Cluster)
	switch {
	case r.ctx.Err() != nil && err != nil:
		err = errClosed
	case err != nil:
		err = fmt.Errorf("%s %w", r.cfg.Command.Name, err)
	}
	f.credential, f.err = credential, err
	if r.certificateChanged(f) && r.cfg.OnCertificateChange != nil {
		r.cfg.OnCertificateChange() // before the new certificate is used
	}
	report := r.record(f, stderr)
	close(f.done)
	if report {
		r.cfg.Logger.Info("A credential plugin failed", "plugin", r.cfg.Command.Name, "err", err, "stderr", untrusted.Text(stderr))
	}
}

func (r *Runner) certificateChanged(f *flight) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f.err == nil && r.last != nil && !r.last.sameCertificate(f.credential)
}

// record makes a run that has ended the last one, and reports whether to log its failure.
func (r *Runner) record(f *flight, stderr string) (report bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flight, r.previous, r.endedAt = nil, f, r.cfg.Clock.Now()
	if f.err != nil {
		r.retryAt = r.endedAt.Add(retryInterval)
		return !errors.Is(f.err, errClosed) && r.shouldLogLocked(f.err.Error()+stderr)
	}
	// A credential that has already expired is used, as client-go does: the clock of whoever issued it
	// may be behind.
	r.last, r.usable = f.credential, true
	if r.last.expired(r.endedAt) {
		r.retryAt = r.endedAt.Add(retryInterval)
	}
	return false
}

// shouldLogLocked reports whether a failure is new or was last logged a minute ago.
func (r *Runner) shouldLogLocked(failure string) bool {
	now := r.cfg.Clock.Now()
	if failure == r.logged && now.Sub(r.loggedAt) < time.Minute {
		return false
	}
	r.logged, r.loggedAt = failure, now
	return true
}

func (c *Credential) expired(now time.Time) bool { return !c.Expiry.IsZero() && !now.Before(c.Expiry) }

func (c *Credential) sameCertificate(other *Credential) bool {
	if c.Certificate == nil || other.Certificate == nil {
		return c.Certificate == other.Certificate
	}
	return slices.EqualFunc(c.Certificate.Certificate, other.Certificate.Certificate, bytes.Equal)
}
