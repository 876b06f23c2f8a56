// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"errors"
)

// ErrSilent is reported for a connection on which nothing arrives any more.
var ErrSilent = errors.New("nothing comes back")

// Attempt is one attempt to establish a connection, including what follows the dial (TLS). A tunnel
// judges its agents by the outcome, and knows whether another agent could be tried. Put it into the
// context of the dial with WithAttempt. It is not safe for concurrent use.
type Attempt struct {
	report      func(error)
	alternative bool
	agent       string
	heard       func() uint64
}

type attemptKey struct{}

// WithAttempt returns a context for one dial, and the Attempt that the dial fills in.
func WithAttempt(ctx context.Context) (context.Context, *Attempt) {
	a := &Attempt{}
	return context.WithValue(ctx, attemptKey{}, a), a
}

// SetCarrier is for dial functions. report gets the outcome of the attempt for which ctx was made,
// and, after a success, also that the connection has turned out to be of no use. alternative
// reports whether another dial could take another way to the same API server. It does nothing if
// the caller of the dial does not want to know.
func SetCarrier(ctx context.Context, report func(error), alternative bool) {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		a.report, a.alternative = report, alternative
	}
}

// SetAgent is for dial functions. It records which agent is asked; the last one counts. It does
// nothing if the caller of the dial does not want to know.
func SetAgent(ctx context.Context, name string) {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		a.agent = name
	}
}

// SetHeard is for dial functions. heard returns a number that changes whenever something arrives by
// the way that the connection takes, for this connection or another one. It does nothing if the
// caller of the dial does not want to know.
func SetHeard(ctx context.Context, heard func() uint64) {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		a.heard = heard
	}
}

// Heard returns a number that changes whenever something arrives by the way that the connection
// takes. It is always 0 if the dial function does not know.
func (a *Attempt) Heard() uint64 {
	if a.heard == nil {
		return 0
	}
	return a.heard()
}

// Agent returns the agent that was asked last. It is empty if none was.
func (a *Attempt) Agent() string { return a.agent }

// HasAlternative reports whether another dial, after this attempt has been reported as a failure,
// takes another way.
func (a *Attempt) HasAlternative() bool { return a.alternative }

// Report reports the outcome: nil if the connection works. A connection that worked can later be
// reported as one that does not work any more. After a failure, Report does nothing.
func (a *Attempt) Report(err error) {
	if a.report != nil {
		a.report(err)
		if err != nil {
			a.report = nil
		}
	}
}
