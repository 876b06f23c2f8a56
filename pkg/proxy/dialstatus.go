// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// agentReconnects is how long an agent is expected to take to connect again, after it disconnected
// or after the gateway started: its Pod may be replaced, or its network may be interrupted for a
// moment.
const agentReconnects = time.Minute

// noAgentStatus is the Status of a cluster that has no agent.
func noAgentStatus(name string, e *dialer.NoAgentError) *apierrors.StatusError {
	advice := fmt.Sprintf("check that the agent runs in the cluster, that it can reach the gateway's tunnel port, "+
		"and that its certificate is for %q", name)
	switch {
	case e.ReplicaAway > 0:
		advice = "the agent connects to another replica when it notices that; check the replicas of the gateway"
	case e.External:
		advice = fmt.Sprintf("check that the agent runs in the cluster, that it can reach the konnectivity-server, "+
			"and that its --agent-identifiers contain host=%s", name)
	}
	s := newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, name, CauseTunnel,
		fmt.Sprintf("cluster %q: %v; %s", name, e, advice))
	if !e.Since.IsZero() && time.Since(e.Since) > agentReconnects {
		// client-go would repeat each request ten times, and kubectl makes several for one command.
		// The user would wait for more than a minute for this message.
		s.ErrStatus.Details.RetryAfterSeconds = 0
	}
	return s
}

// stepAt names what was tried at a stage, for the message of a timeout.
func stepAt(s dialer.Stage) string {
	switch s {
	case dialer.StageAgent:
		return "asking the agent to connect to"
	case dialer.StageTLS:
		return "the TLS handshake with"
	default:
		return "connecting to"
	}
}

// dialStatus is the Status of a request that failed because its connection could not be
// established.
func dialStatus(c *cluster.Cluster, e *dialer.Error) *apierrors.StatusError {
	var noAgent *dialer.NoAgentError
	switch {
	case errors.As(e, &noAgent):
		return noAgentStatus(c.Name, noAgent)
	case e.Stage == dialer.StagePeer:
		return unreachablePeer(c, e.Err)
	case e.Stage == dialer.StageTunnel:
		return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseTunnel,
			fmt.Sprintf("cluster %q: the tunnel cannot be used: %s", c.Name, brief(e.Err)))
	// A dial that ends with its context's deadline fails with one or the other, depending on which
	// package net noticed first.
	case errors.Is(e.Err, context.DeadlineExceeded), errors.Is(e.Err, os.ErrDeadlineExceeded):
		return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, c.Name, causeAt(e.Stage),
			fmt.Sprintf("cluster %q: %s %s timed out: %s", c.Name, stepAt(e.Stage), e.Address, brief(e.Err)))
	case e.Stage == dialer.StageAgent:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseAgent,
			fmt.Sprintf("cluster %q: the agent failed to connect to %s: %s", c.Name, e.Address, brief(e.Err)))
	case e.Stage == dialer.StageTLS:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseTLS,
			fmt.Sprintf("cluster %q: TLS with the API server at %s failed: %s", c.Name, e.Address, explainTLS(c, e.Err)))
	default:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseEndpoint,
			fmt.Sprintf("cluster %q: the API server at %s cannot be reached: %s", c.Name, e.Address, brief(e.Err)))
	}
}

// causeAt returns the type of cause for a stage of a dial.
func causeAt(stage dialer.Stage) metav1.CauseType {
	switch stage {
	case dialer.StageTunnel:
		return CauseTunnel
	case dialer.StageAgent:
		return CauseAgent
	case dialer.StageTLS:
		return CauseTLS
	case dialer.StagePeer:
		return CauseRequest
	default:
		return CauseEndpoint
	}
}

// explainTLS describes the certificate that was expected, and the one that the API server has.
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
		expected, advice := "a CA in the Secret's ca.crt", ""
		if len(c.CAData) == 0 {
			expected = "one of the system's CAs, because the Secret has no ca.crt"
			advice = "; add the cluster's CA to the Secret as ca.crt"
		}
		return fmt.Sprintf("expected a certificate signed by %s, but got one for %q signed by %q%s",
			expected, name(leaf.Subject), name(leaf.Issuer), advice)
	case errors.As(err, &hostname):
		return fmt.Sprintf("expected a certificate for %q, but got one for %s; tls-server-name in the Secret sets the expected name",
			c.ServerName, certificateNames(leaf))
	default:
		return fmt.Sprintf("the certificate for %q is not valid: %s", name(leaf.Subject), brief(verification.Err))
	}
}

// name returns the name in a certificate, printable and shortened, because it comes from the
// cluster.
func name(n pkix.Name) string { return untrusted.Limit(n.String(), 200) }

func certificateNames(cert *x509.Certificate) string {
	names := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no name"
	}
	return untrusted.Limit(strings.Join(names, ", "), 512)
}
