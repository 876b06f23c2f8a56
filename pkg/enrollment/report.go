// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package enrollment

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

const (
	// reportInterval is how long the same outcome is not reported again: a cluster that is refused
	// connects again every few seconds.
	reportInterval = 10 * time.Minute
	// reportTimeout bounds reporting one outcome.
	reportTimeout = 5 * time.Second
	// maxReported bounds for how many names the last report is remembered.
	maxReported = 1024
)

// The reasons of Events.
const (
	reasonEnrolled = "Enrolled"
	reasonRefused  = "EnrollmentRefused"
)

// report is the last report about a name.
type report struct {
	text string
	at   time.Time
}

// report reports the outcome of an attempt: in the log, as an Event, and in the invitation's
// record.
func (e *Enroller) report(ctx context.Context, a *attempt, outcome error) {
	name := a.invited.Name
	if a.again || errors.Is(outcome, errDone) {
		return // it was reported when it was done
	}
	reason, text := reasonEnrolled, fmt.Sprintf("cluster %q enrolled with an invitation", name)
	if outcome != nil {
		reason, text = reasonRefused, untrusted.Text(outcome.Error())
	}
	if !e.shouldReport(name, text) {
		return
	}
	e.cfg.Logger.Info("A cluster used an invitation", "cluster", name, "reason", reason, "message", text)
	if outcome != nil && a.record != nil && a.record.Message != text {
		a.record.Message = text
		// If the record has changed, another attempt writes it.
		if err := a.writeRecord(ctx); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			e.cfg.Logger.Info("The outcome of an enrollment could not be written to the record of the invitation", "cluster", name, "err", err)
		}
	}
	err := events.Write(ctx, e.cfg.Events, events.Event{Cluster: name, Warning: outcome != nil, Reason: reason, Message: text, Time: e.cfg.Now()})
	if err != nil {
		e.cfg.Logger.Info("An Event could not be recorded", "cluster", name, "reason", reason, "err", err)
	}
}

// shouldReport is whether a text about a name was not reported recently.
func (e *Enroller) shouldReport(name, text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	last, ok := e.reported[name]
	if ok && last.text == text && now.Sub(last.at) < reportInterval {
		return false
	}
	if len(e.reported) >= maxReported {
		clear(e.reported)
	}
	e.reported[name] = report{text, now}
	return true
}
