// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// observation is everything that a probe came back with.
type observation struct {
	cluster *cluster.Cluster
	now     time.Time
	// err is why the API server did not say that it is ready; nil when it did.
	err error
	// latency is how long the API server took to say so.
	latency time.Duration
	// certificate is the API server's, agent the agent's; nil when not known.
	certificate, agent *x509.Certificate
	// renewal is why something could not be renewed, by the type of the condition that it belongs to.
	renewal map[string]error
}

// Assess says how a cluster is whose probe ended with err, in one word and a sentence; nil is well.
func Assess(c *cluster.Cluster, err error) (healthy bool, reason, message string) {
	ready := (&observation{cluster: c, err: err}).ready()
	return ready.Status == metav1.ConditionTrue, ready.Reason, ready.Message
}

// assess is what the conditions say of an observation, Ready first. It sets no times.
func assess(o *observation) []metav1.Condition {
	conditions := []metav1.Condition{o.ready()}
	if o.cluster.Err() != nil {
		return conditions
	}
	if o.cluster.Route == cluster.RouteTunnel {
		conditions = append(conditions, o.tunnel())
	}
	return append(conditions, o.credential(), o.certificates())
}

func condition(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

func (o *observation) ready() metav1.Condition {
	switch {
	case o.cluster.Err() != nil:
		return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInvalidSecret, o.cluster.Message())
	case o.err == nil:
		return condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonHealthy, "the API server says that it is ready")
	}
	return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
}

func message(err error) string {
	const limit = 1024 // of an annotation that holds four
	text := err.Error()
	if len(text) > limit {
		text = text[:limit]
	}
	return text
}

// reasonOf names the stage that a probe ended at.
func reasonOf(err error) string {
	var probe *proxy.ProbeError
	if !errors.As(err, &probe) {
		return v1alpha1.ReasonUnhealthy
	}
	var noAgent *dialer.NoAgentError
	switch probe.Cause {
	case proxy.CauseInvalidSecret:
		return v1alpha1.ReasonInvalidSecret
	case proxy.CauseTunnel:
		if errors.As(err, &noAgent) {
			return v1alpha1.ReasonNoAgent
		}
		return v1alpha1.ReasonTunnelFailed
	case proxy.CauseAgent:
		return v1alpha1.ReasonAgentFailed
	case proxy.CauseTLS:
		return reasonOfTLS(err)
	case proxy.CauseCredential:
		if errors.Is(err, proxy.ErrCredentialRejected) {
			return v1alpha1.ReasonCredentialRejected
		}
		return v1alpha1.ReasonCredentialPluginFailed
	}
	switch {
	case probe.Status.ErrStatus.Code == http.StatusGatewayTimeout:
		return v1alpha1.ReasonAPIServerTimeout
	case probe.Cause == proxy.CauseEndpoint:
		return v1alpha1.ReasonAPIServerUnreachable
	case probe.Cause == proxy.CauseResponse, probe.Cause == proxy.CauseRequest:
		return v1alpha1.ReasonAPIServerNotReady
	default:
		return v1alpha1.ReasonUnhealthy
	}
}

func reasonOfTLS(err error) string {
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return v1alpha1.ReasonUnknownAuthority
	case errors.As(err, &hostname):
		return v1alpha1.ReasonWrongName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return v1alpha1.ReasonExpired
	default:
		return v1alpha1.ReasonTLSFailed
	}
}

// cause is the stage that the probe ended at; empty when it went well.
func (o *observation) cause() metav1.CauseType {
	var probe *proxy.ProbeError
	if errors.As(o.err, &probe) {
		return probe.Cause
	}
	return ""
}

// notReached is for what comes after the stage that failed.
func notReached(kind string) metav1.Condition {
	return condition(kind, metav1.ConditionUnknown, v1alpha1.ReasonNotReached, "the last probe did not come far enough to tell")
}

func (o *observation) tunnel() metav1.Condition {
	kind := v1alpha1.ConditionTunnelConnected
	switch cause := o.cause(); {
	case cause == proxy.CauseTunnel:
		return condition(kind, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
	case cause == "" && o.err != nil:
		return notReached(kind)
	default:
		return condition(kind, metav1.ConditionTrue, v1alpha1.ReasonConnected, "an agent is connected")
	}
}

func (o *observation) credential() metav1.Condition {
	kind := v1alpha1.ConditionCredentialValid
	expiry, expires := o.cluster.Credential.Expiry()
	switch cause := o.cause(); {
	case cause == proxy.CauseCredential:
		return condition(kind, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
	case expires && !o.now.Before(expiry):
		return condition(kind, metav1.ConditionFalse, v1alpha1.ReasonExpired, fmt.Sprintf("the %s ended at %s", o.cluster.Credential.Type, stamp(expiry)))
	case o.err != nil && cause != proxy.CauseResponse:
		return notReached(kind)
	}
	begin, _ := o.cluster.Credential.Begin()
	if c, ends := o.ending(kind, "the "+string(o.cluster.Credential.Type), begin, expiry); ends {
		return c
	}
	return condition(kind, metav1.ConditionTrue, v1alpha1.ReasonAccepted, "the API server accepts the gateway's credential")
}

func (o *observation) certificates() metav1.Condition {
	kind := v1alpha1.ConditionCertificateValid
	switch cause := o.cause(); {
	case cause == proxy.CauseTLS:
		return condition(kind, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
	case o.err != nil && cause != proxy.CauseResponse && cause != proxy.CauseCredential:
		return notReached(kind)
	}
	for _, it := range []struct {
		what string
		cert *x509.Certificate
	}{{"the certificate of the cluster's agent", o.agent}, {"the certificate of the API server", o.certificate}} {
		if it.cert == nil {
			continue
		}
		if c, ends := o.ending(kind, it.what, it.cert.NotAfter.Add(-pki.Lifetime(it.cert)), it.cert.NotAfter); ends {
			return c
		}
	}
	if o.cluster.Insecure {
		return condition(kind, metav1.ConditionUnknown, v1alpha1.ReasonNotVerified, "the Secret has the verification of the API server's certificate switched off")
	}
	return condition(kind, metav1.ConditionTrue, v1alpha1.ReasonVerified, "the API server's certificate is as the Secret wants it")
}

// What is renewed at 80 % of its life and still lives after 90 % has not been renewed. Without a known beginning, three days are soon.
const (
	soonAfter = 0.9
	soon      = 3 * 24 * time.Hour
)

// ending is for what still holds, and could not be renewed or ends soon.
func (o *observation) ending(kind, what string, begin, expiry time.Time) (metav1.Condition, bool) {
	if err := o.renewal[kind]; err != nil {
		reason := v1alpha1.ReasonRenewalFailed
		var reasoned interface{ Reason() string }
		if errors.As(err, &reasoned) {
			reason = reasoned.Reason()
		}
		return condition(kind, metav1.ConditionTrue, reason, message(err)), true
	}
	if expiry.IsZero() {
		return metav1.Condition{}, false
	}
	from := expiry.Add(-soon)
	if !begin.IsZero() && begin.Before(expiry) {
		from = begin.Add(time.Duration(soonAfter * float64(expiry.Sub(begin))))
	}
	if o.now.Before(from) {
		return metav1.Condition{}, false
	}
	return condition(kind, metav1.ConditionTrue, v1alpha1.ReasonExpiresSoon, what+" ends at "+stamp(expiry)), true
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
