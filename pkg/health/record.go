// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
)

// change is what has to be written about a cluster.
type change struct {
	// annotations are written to the Secret. A nil value removes the annotation. If the map is
	// empty, nothing is written.
	annotations map[string]*string
	// reported are the conditions that Events are recorded for.
	reported []metav1.Condition
}

// compare returns the change from the stored state to the observed state.
func compare(stored cluster.Health, o *observation, version string, overrideDuration time.Duration) (change, error) {
	conditions, changed := merge(stored.Conditions, assess(o), o.now)
	ready := conditions[0]
	overridden := stored.Overridden && (overrideDuration == 0 || stored.OverriddenAt.IsZero() || o.now.Before(stored.OverriddenAt.Add(overrideDuration)))
	c := change{annotations: map[string]*string{}}
	set := func(key, value string) { c.annotations[key] = &value }

	switch {
	case overridden && stored.OverriddenAt.IsZero():
		// Somebody set the annotations directly. With a start time, this override expires too.
		set(v1alpha1.AnnotationOverride, timestamp(o.now))
	case overridden:
	case stored.Overridden:
		c.annotations[v1alpha1.AnnotationOverride] = nil
		fallthrough
	case !stored.Known, stored.Healthy != (ready.Status == metav1.ConditionTrue), stored.Reason != ready.Reason:
		set(v1alpha1.AnnotationHealthy, strconv.FormatBool(ready.Status == metav1.ConditionTrue))
		set(v1alpha1.AnnotationHealthyReason, ready.Reason)
	}
	if version != "" && version != stored.Version {
		set(v1alpha1.AnnotationVersion, version)
	}
	if len(changed) > 0 {
		text, err := json.Marshal(conditions)
		if err != nil {
			return change{}, err
		}
		set(v1alpha1.AnnotationConditions, string(text))
	}
	if len(c.annotations) > 0 {
		set(v1alpha1.AnnotationLastProbeTime, timestamp(o.now))
		set(v1alpha1.AnnotationLatency, o.latency.Round(10*time.Microsecond).String())
		if o.err != nil {
			c.annotations[v1alpha1.AnnotationLatency] = nil
		}
	}
	c.reported = worthAnEvent(changed)
	return c, nil
}

// merge sets the transition times of the conditions that were found. It also returns those that are
// new or have another status or reason than before.
func merge(stored, found []metav1.Condition, now time.Time) (all, changed []metav1.Condition) {
	for _, c := range found {
		c.LastTransitionTime = metav1.NewTime(now.UTC().Truncate(time.Second))
		before := meta.FindStatusCondition(stored, c.Type)
		if before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
		if before == nil || before.Status != c.Status || before.Reason != c.Reason {
			changed = append(changed, c)
		}
		all = append(all, c)
	}
	return all, changed
}

// worthAnEvent selects the changed conditions that Events are recorded for. If Ready has changed,
// it is the only one, because it sums up the others.
func worthAnEvent(changed []metav1.Condition) []metav1.Condition {
	var others []metav1.Condition
	for _, c := range changed {
		switch {
		case c.Type == v1alpha1.ConditionReady:
			return []metav1.Condition{c}
		case c.Status != metav1.ConditionUnknown:
			others = append(others, c)
		}
	}
	return others
}

// record writes what has changed to the Secret, and records Events and log lines.
func (r *run) record(ctx context.Context, k *tracked, o *observation) error {
	c, err := compare(o.cluster.Health, o, k.version, r.cfg.OverrideDuration)
	if err != nil || len(c.annotations) == 0 {
		return err
	}
	if r.cfg.Secrets != nil {
		err := r.patch(ctx, o.cluster, c.annotations)
		r.cfg.Metrics.wrote(err)
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			// The Secret was deleted or changed, and the store does not know yet. The next probe
			// starts from the new state.
			return nil
		case err != nil:
			return err
		}
	}
	for _, n := range c.reported {
		r.cfg.Logger.Info("The health of a cluster has changed", "cluster", k.name, "condition", n.Type, "status", n.Status, "reason", n.Reason, "message", n.Message)
		if err := events.Write(ctx, r.cfg.Events, eventFor(o.cluster, n, o.now)); err != nil {
			r.cfg.Logger.Info("Failed to record an Event", "cluster", k.name, "reason", n.Reason, "err", err)
		}
	}
	return nil
}

// patch changes the annotations of the Secret that the cluster was parsed from. It fails with a
// conflict if the Secret has changed, so that it overwrites neither an operator's override nor the
// state of another cluster with the same name.
func (r *run) patch(ctx context.Context, c *cluster.Cluster, annotations map[string]*string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": c.UID, "resourceVersion": c.ResourceVersion, "annotations": annotations,
	}})
	if err != nil {
		return err
	}
	_, err = r.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "cluster-gateway-health"})
	return err
}

// eventFor returns the Event that reports a condition.
func eventFor(c *cluster.Cluster, condition metav1.Condition, now time.Time) events.Event {
	return events.Event{
		Cluster: c.Name, UID: c.UID, Time: now, Reason: condition.Reason,
		Message: fmt.Sprintf("%s=%s: %s", condition.Type, condition.Status, condition.Message),
		Warning: condition.Status == metav1.ConditionFalse || condition.Reason == v1alpha1.ReasonExpiresSoon || condition.Reason == v1alpha1.ReasonRenewalFailed ||
			condition.Reason == v1alpha1.ReasonAgentsRefused || condition.Reason == v1alpha1.ReasonAgentFailing,
	}
}
