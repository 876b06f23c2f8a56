// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Health is the state of a cluster in the annotations of its Secret. The zero value means that the
// cluster has not been probed yet.
type Health struct {
	// Known is true if a probe or an operator has set the state.
	Known bool
	// Healthy and Reason are the state.
	Healthy bool
	Reason  string
	// Version, Time and Latency are the results of the last probe. They are empty or zero if they
	// are not known.
	Version string
	Time    time.Time
	Latency time.Duration
	// HasLatency is true if Latency is known.
	HasLatency bool
	// Conditions are the results of the last probe, also if an operator has overridden the state.
	// They must not be changed.
	Conditions []metav1.Condition
	// Overridden is true if an operator has set Healthy and Reason, at the time OverriddenAt. The
	// time is zero if it is not known.
	Overridden   bool
	OverriddenAt time.Time
}

// conditionTypes lists the types of conditions that are served, in this order.
var conditionTypes = []string{
	v1alpha1.ConditionReady, v1alpha1.ConditionTunnelConnected, v1alpha1.ConditionCredentialValid, v1alpha1.ConditionCertificateValid,
}

// ParseHealth parses the annotations. It ignores invalid values, so that a wrong state never makes
// a cluster unusable.
func ParseHealth(annotations map[string]string) Health {
	h := Health{Reason: annotations[v1alpha1.AnnotationHealthyReason], Version: annotations[v1alpha1.AnnotationVersion]}
	if v, err := strconv.ParseBool(annotations[v1alpha1.AnnotationHealthy]); err == nil {
		h.Healthy, h.Known = v, true
	}
	if t, err := time.Parse(time.RFC3339, annotations[v1alpha1.AnnotationLastProbeTime]); err == nil && inRFC3339(t) {
		h.Time = t.UTC()
	}
	if d, err := time.ParseDuration(annotations[v1alpha1.AnnotationLatency]); err == nil && d >= 0 {
		h.Latency, h.HasLatency = d, true
	}
	h.Conditions = parseConditions(annotations[v1alpha1.AnnotationConditions])
	if !h.Known {
		return h
	}
	if text, ok := annotations[v1alpha1.AnnotationOverride]; ok {
		h.Overridden = true
		if t, err := time.Parse(time.RFC3339, text); err == nil && inRFC3339(t) {
			h.OverriddenAt = t.UTC()
		}
		return h
	}
	// Somebody may have set the annotations directly, without the health subresource.
	if found := meta.FindStatusCondition(h.Conditions, v1alpha1.ConditionReady); found != nil {
		h.Overridden = h.Healthy != (found.Status == metav1.ConditionTrue) || h.Reason != found.Reason
	}
	return h
}

// maxMessage is the maximum length of a condition's message.
const maxMessage = 32768

func parseConditions(text string) []metav1.Condition {
	if text == "" {
		return nil
	}
	var all []metav1.Condition
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil
	}
	var known []metav1.Condition
	for _, conditionType := range conditionTypes {
		c := meta.FindStatusCondition(all, conditionType)
		if c == nil || reason(c.Reason, "") == "" || !slices.Contains([]metav1.ConditionStatus{metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown}, c.Status) {
			continue
		}
		if len(c.Message) > maxMessage {
			c.Message = strings.ToValidUTF8(c.Message[:maxMessage], "")
		}
		if !inRFC3339(c.LastTransitionTime.Time) {
			c.LastTransitionTime = metav1.Time{}
		}
		known = append(known, *c)
	}
	return known
}
