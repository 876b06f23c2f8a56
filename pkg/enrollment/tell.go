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
	// tellAgain is how long the same word is not repeated: a cluster that is refused comes again every few seconds.
	tellAgain = 10 * time.Minute
	// tellTimeout bounds telling.
	tellTimeout = 5 * time.Second
	// maxTold bounds what is remembered of it.
	maxTold = 1024
)

// The reasons of Events.
const (
	reasonEnrolled = "Enrolled"
	reasonRefused  = "EnrolmentRefused"
)

// telling is what was told last of a name.
type telling struct {
	text string
	at   time.Time
}

// tell says on the hub what came of an attempt: in the log, by an Event, and in the invitation's record.
func (e *Enroller) tell(ctx context.Context, a *attempt, outcome error) {
	name := a.invited.Name
	if a.again || errors.Is(outcome, errDone) {
		return // what there was to tell was told when it was done
	}
	reason, text := reasonEnrolled, fmt.Sprintf("cluster %q enrolled with an invitation", name)
	if outcome != nil {
		reason, text = reasonRefused, untrusted.Text(outcome.Error())
	}
	if !e.isNews(name, text) {
		return
	}
	e.cfg.Logger.Info("A cluster with an invitation", "cluster", name, "outcome", reason, "message", text)
	if outcome != nil && a.record != nil && a.record.Message != text {
		a.record.Message = text
		// A record that has changed since is another attempt's to write.
		if err := a.writeRecord(ctx); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			e.cfg.Logger.Info("What came of an invitation could not be noted on the hub", "cluster", name, "err", err)
		}
	}
	err := events.Write(ctx, e.cfg.Events, events.Event{Cluster: name, Warning: outcome != nil, Reason: reason, Message: text, Time: e.cfg.Now()})
	if err != nil {
		e.cfg.Logger.Info("An Event could not be recorded", "cluster", name, "reason", reason, "err", err)
	}
}

// isNews is whether a word was not told of a name just now.
func (e *Enroller) isNews(name, text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	last, ok := e.told[name]
	if ok && last.text == text && now.Sub(last.at) < tellAgain {
		return false
	}
	if len(e.told) >= maxTold {
		clear(e.told)
	}
	e.told[name] = telling{text, now}
	return true
}
