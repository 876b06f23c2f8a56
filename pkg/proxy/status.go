// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// What a Status says of itself; clients know these from the API package.
const (
	StatusReasonBadGateway = v1alpha1.StatusReasonBadGateway

	CauseInvalidSecret = v1alpha1.CauseInvalidSecret
	CauseTunnel        = v1alpha1.CauseTunnel
	CauseAgent         = v1alpha1.CauseAgent
	CauseEndpoint      = v1alpha1.CauseEndpoint
	CauseTLS           = v1alpha1.CauseTLS
	CauseCredential    = v1alpha1.CauseCredential
	CauseRequest       = v1alpha1.CauseRequest
	CauseResponse      = v1alpha1.CauseResponse
)

// retryAfterSeconds is what 429 and 503 ask a client to wait. client-go repeats such a request up to ten times, so it is short.
const retryAfterSeconds = 1

func newStatus(code int32, reason metav1.StatusReason, name string, cause metav1.CauseType, message string) *apierrors.StatusError {
	s := &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
		Details: &metav1.StatusDetails{
			Group: v1alpha1.GroupName, Kind: v1alpha1.ResourceName, Name: name,
			Causes: []metav1.StatusCause{{Type: cause, Message: message}},
		},
	}}
	if code == http.StatusServiceUnavailable || code == http.StatusTooManyRequests {
		s.ErrStatus.Details.RetryAfterSeconds = retryAfterSeconds
	}
	return s
}

func notFound(name string) *apierrors.StatusError {
	return apierrors.NewNotFound(v1alpha1.Resource(v1alpha1.ResourceName), name)
}

func invalidSecret(c *cluster.Cluster) *apierrors.StatusError {
	s := newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseInvalidSecret,
		fmt.Sprintf("cluster %q cannot be used: its Secret is invalid: %s", c.Name, c.Message()))
	// Waiting does not help, somebody has to mend the Secret: clients are not told to try again.
	s.ErrStatus.Details.RetryAfterSeconds = 0
	return s
}

func rejectedCredential(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseCredential,
		fmt.Sprintf("cluster %q rejected the gateway's credential (401): the %s in its Secret has expired or been revoked, or belongs to another cluster; your own credential is not in question",
			c.Name, c.Credential.Type))
}

func tooManyRequests(name string, as class, limit int) *apierrors.StatusError {
	what := "requests in flight"
	if as == streams {
		what = "watches, followed logs and upgraded connections open"
	}
	return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, name, CauseRequest,
		fmt.Sprintf("cluster %q already has %d %s through this gateway, which is the limit; try again", name, limit, what))
}

func shuttingDown(name string) *apierrors.StatusError {
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, name, CauseRequest,
		fmt.Sprintf("cluster %q: %v; try again", name, errShuttingDown))
}

// clientGone is read by nobody, but logs and metrics tell it from a failure of the cluster.
func clientGone(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(codeClientGone, metav1.StatusReasonUnknown, c.Name, CauseRequest, "the client went away before the answer")
}

func failedPlugin(c *cluster.Cluster, err *pluginError) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseCredential,
		fmt.Sprintf("cluster %q: there is no credential for it: %v", c.Name, err))
}

func redirected(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
		fmt.Sprintf("cluster %q answered with a redirect to another place than itself, which is not passed on", c.Name))
}

// errDeadline is the cause of a context that ended because the gateway gave a request no more time.
var errDeadline = errors.New("the time for the request is over")

// progress says how far a request came, for the message of a timeout.
type progress interface {
	connected() bool
	sent() bool
}

// statusFor turns the failure of a round trip into what the caller is told.
func statusFor(ctx context.Context, c *cluster.Cluster, err error, p progress, limit time.Duration) *apierrors.StatusError {
	var de *dialer.Error
	deadline := errors.Is(context.Cause(ctx), errDeadline)
	switch {
	case ctx.Err() != nil && !deadline:
		return clientGone(c)
	case errors.As(err, &de):
		return dialStatus(c, de)
	case deadline:
		return timeoutStatus(c, p, limit)
	default:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
			fmt.Sprintf("the connection to cluster %q broke before its answer was complete: %s", c.Name, brief(err)))
	}
}

// brief is an error's text, without the whole of what a cluster may have put into it.
func brief(err error) string {
	const limit = 512
	text := err.Error()
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}

func timeoutStatus(c *cluster.Cluster, p progress, limit time.Duration) *apierrors.StatusError {
	stage, cause := "connecting to its API server took", CauseEndpoint
	switch {
	case p.sent():
		stage, cause = "its API server's answer took", CauseResponse
	case p.connected():
		stage, cause = "sending the request to its API server took", CauseRequest
	}
	return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, c.Name, cause,
		fmt.Sprintf("cluster %q: %s longer than %s", c.Name, stage, limit))
}

// agentReturns is how long an agent that went away, or that has not come yet since the gateway started, is expected to be on its
// way: a Pod that is replaced, a network that was cut for a moment.
const agentReturns = time.Minute

func noAgentStatus(name string, e *dialer.NoAgentError) *apierrors.StatusError {
	advice := fmt.Sprintf("check that the agent runs in the cluster, that it can reach the gateway's tunnel port, and that its certificate is for %q", name)
	if e.External {
		advice = fmt.Sprintf("check that the agent runs in the cluster, that it can reach the konnectivity-server, and that it claims host=%s", name)
	}
	s := newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, name, CauseTunnel,
		fmt.Sprintf("cluster %q: %v; %s", name, e, advice))
	if !e.Since.IsZero() && time.Since(e.Since) > agentReturns {
		// client-go would repeat each request ten times, and kubectl makes several for one command: a person would wait
		// for a minute and more to be told what is known at once.
		s.ErrStatus.Details.RetryAfterSeconds = 0
	}
	return s
}

// stepOf says what was tried at a stage, for the message of a time-out.
func stepOf(s dialer.Stage) string {
	switch s {
	case dialer.StageAgent:
		return "asking the agent to connect to"
	case dialer.StageTLS:
		return "the TLS handshake with"
	default:
		return "connecting to"
	}
}

func dialStatus(c *cluster.Cluster, e *dialer.Error) *apierrors.StatusError {
	var noAgent *dialer.NoAgentError
	switch {
	case errors.As(e, &noAgent):
		return noAgentStatus(c.Name, noAgent)
	case e.Stage == dialer.StageTunnel:
		return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseTunnel,
			fmt.Sprintf("cluster %q: the tunnel cannot be used: %v", c.Name, e.Err))
	// A dial that the context's deadline ends fails with either: net looks which of the two was first.
	case errors.Is(e.Err, context.DeadlineExceeded), errors.Is(e.Err, os.ErrDeadlineExceeded):
		return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, c.Name, causeOf(e.Stage),
			fmt.Sprintf("cluster %q: %s %s got no answer in time: %s", c.Name, stepOf(e.Stage), e.Address, e.Err))
	case e.Stage == dialer.StageAgent:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseAgent,
			fmt.Sprintf("cluster %q: the agent was asked to connect to %s: %v", c.Name, e.Address, e.Err))
	case e.Stage == dialer.StageTLS:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseTLS,
			fmt.Sprintf("cluster %q: TLS with the API server at %s failed: %s", c.Name, e.Address, explainTLS(c, e.Err)))
	default:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseEndpoint,
			fmt.Sprintf("cluster %q: the API server at %s cannot be reached: %s", c.Name, e.Address, brief(e.Err)))
	}
}

// causeOf is the stage of a dial as a type of cause.
func causeOf(stage dialer.Stage) metav1.CauseType {
	switch stage {
	case dialer.StageTunnel:
		return CauseTunnel
	case dialer.StageAgent:
		return CauseAgent
	case dialer.StageTLS:
		return CauseTLS
	default:
		return CauseEndpoint
	}
}

// explainTLS says what was expected and what was presented.
func explainTLS(c *cluster.Cluster, err error) string {
	var verification *tls.CertificateVerificationError
	if !errors.As(err, &verification) || len(verification.UnverifiedCertificates) == 0 {
		return brief(err)
	}
	leaf := verification.UnverifiedCertificates[0]
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		expected := "a CA in the Secret's ca.crt"
		if len(c.CAData) == 0 {
			expected = "one of the system's CAs (the Secret has no ca.crt)"
		}
		return fmt.Sprintf("expected a certificate signed by %s, was presented one for %q signed by %q", expected, leaf.Subject, leaf.Issuer)
	case errors.As(err, &hostname):
		return fmt.Sprintf("expected a certificate for %q, was presented one for %s; tls-server-name in the Secret sets the expected name",
			c.ServerName, certificateNames(leaf))
	default:
		return fmt.Sprintf("the certificate of %q was not accepted: %v", leaf.Subject, verification.Err)
	}
}

func certificateNames(cert *x509.Certificate) string {
	names := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no name at all"
	}
	return strings.Join(names, ", ")
}
