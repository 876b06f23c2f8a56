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
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// observation is the result of a probe.
type observation struct {
	cluster *cluster.Cluster
	now     time.Time
	// err is nil if the API server is ready.
	err error
	// latency is how long the API server took to answer.
	latency time.Duration
	// certificate is the certificate of the API server, agent that of the cluster's agent. They are
	// nil if not known.
	certificate, agent *x509.Certificate
	// refusal is why an agent was refused although others are connected.
	refusal error
	// failing names agents whose connections fail although others work.
	failing error
	// external is set if the agents connect to a konnectivity-server.
	external bool
	// renewal holds the errors of failed renewals, by the type of the condition that reports them.
	renewal map[string]error
}

// Assess returns the status, the reason and the message of the condition Ready for a cluster whose
// probe returned err.
func Assess(c *cluster.Cluster, err error) (healthy bool, reason, message string) {
	ready := (&observation{cluster: c, err: err}).ready()
	return ready.Status == metav1.ConditionTrue, ready.Reason, c.WithWarnings(ready.Message)
}

// assess returns the conditions that follow from an observation, Ready first. It sets no times.
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

func condition(conditionType string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: conditionType, Status: status, Reason: reason, Message: message}
}

func (o *observation) ready() metav1.Condition {
	switch {
	case o.cluster.Err() != nil:
		return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, o.cluster.Reason(), o.cluster.Message())
	case o.err == nil:
		return condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonHealthy, "the API server is ready")
	}
	return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
}

// message returns the text of an error. The error may quote the cluster, and all conditions have to
// fit into one annotation.
func message(err error) string { return untrusted.Text(err.Error()) }

// reasonOf returns the reason that stands for the stage at which a probe failed.
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

// cause returns the stage at which the probe failed. It is empty if the probe succeeded.
func (o *observation) cause() metav1.CauseType {
	var probe *proxy.ProbeError
	if errors.As(o.err, &probe) {
		return probe.Cause
	}
	return ""
}

// notReached is the condition for a stage after the one that failed.
func notReached(conditionType string) metav1.Condition {
	return condition(conditionType, metav1.ConditionUnknown, v1alpha1.ReasonNotReached, "not known: the last probe failed before this could be checked")
}

func (o *observation) tunnel() metav1.Condition {
	conditionType := v1alpha1.ConditionTunnelConnected
	switch cause := o.cause(); {
	case cause == proxy.CauseTunnel:
		text := message(o.err)
		if o.refusal != nil {
			text += "; an agent was refused: " + message(o.refusal)
		}
		return condition(conditionType, metav1.ConditionFalse, reasonOf(o.err), text)
	case cause == "" && o.err != nil:
		return notReached(conditionType)
	case o.refusal != nil:
		return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonAgentsRefused,
			"an agent is connected, and others are refused: "+message(o.refusal))
	case o.failing != nil:
		return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonAgentFailing,
			"an agent works, and connections through others fail, so they are avoided: "+message(o.failing))
	case o.external:
		return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonConnectedExternally,
			"an agent is connected to a konnectivity-server. That has no flow control for a single connection: if the client of an exec, attach, cp or "+
				"port-forward reads more slowly than the cluster sends, the connection is closed when the buffer is full")
	default:
		return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonConnected, "an agent is connected")
	}
}

func (o *observation) credential() metav1.Condition {
	conditionType := v1alpha1.ConditionCredentialValid
	expiry, expires := o.cluster.Credential.Expiry()
	switch cause := o.cause(); {
	case cause == proxy.CauseCredential:
		return condition(conditionType, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
	case expires && !o.now.Before(expiry):
		return condition(conditionType, metav1.ConditionFalse, v1alpha1.ReasonExpired, fmt.Sprintf("the %s expired at %s", o.cluster.Credential.Type, timestamp(expiry)))
	case o.err != nil && cause != proxy.CauseResponse:
		return notReached(conditionType)
	}
	begin, _ := o.cluster.Credential.Begin()
	if c, ok := o.renewalProblem(conditionType, "the "+string(o.cluster.Credential.Type), begin, expiry); ok {
		return c
	}
	return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonAccepted, "the API server accepts the gateway's credential")
}

func (o *observation) certificates() metav1.Condition {
	conditionType := v1alpha1.ConditionCertificateValid
	switch cause := o.cause(); {
	case cause == proxy.CauseTLS:
		return condition(conditionType, metav1.ConditionFalse, reasonOf(o.err), message(o.err))
	case o.err != nil && cause != proxy.CauseResponse && cause != proxy.CauseCredential:
		return notReached(conditionType)
	}
	for _, it := range []struct {
		name string
		cert *x509.Certificate
	}{{"the certificate of the cluster's agent", o.agent}, {"the certificate of the API server", o.certificate}} {
		if it.cert == nil {
			continue
		}
		if c, ok := o.renewalProblem(conditionType, it.name, it.cert.NotAfter.Add(-pki.Lifetime(it.cert)), it.cert.NotAfter); ok {
			return c
		}
	}
	if o.cluster.Insecure {
		return condition(conditionType, metav1.ConditionUnknown, v1alpha1.ReasonNotVerified, "the Secret disables the verification of the API server's certificate")
	}
	return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonVerified, "the API server's certificate is valid")
}

// A credential or certificate that is renewed at 80 % of its lifetime and is still the same at 90 %
// was not renewed. If it is not known when it was issued, it is reported three days before it
// expires.
const (
	expiresSoonAfter  = 0.9
	expiresSoonBefore = 3 * 24 * time.Hour
)

// renewalProblem returns the condition for a valid credential or certificate that could not be
// renewed or that expires soon. name describes it in the message.
func (o *observation) renewalProblem(conditionType, name string, begin, expiry time.Time) (metav1.Condition, bool) {
	if err := o.renewal[conditionType]; err != nil {
		reason := v1alpha1.ReasonRenewalFailed
		var reasoned interface{ Reason() string }
		if errors.As(err, &reasoned) {
			reason = reasoned.Reason()
		}
		return condition(conditionType, metav1.ConditionTrue, reason, message(err)), true
	}
	if expiry.IsZero() {
		return metav1.Condition{}, false
	}
	from := expiry.Add(-expiresSoonBefore)
	if !begin.IsZero() && begin.Before(expiry) {
		from = begin.Add(time.Duration(expiresSoonAfter * float64(expiry.Sub(begin))))
	}
	if o.now.Before(from) {
		return metav1.Condition{}, false
	}
	return condition(conditionType, metav1.ConditionTrue, v1alpha1.ReasonExpiresSoon, name+" expires at "+timestamp(expiry)), true
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
