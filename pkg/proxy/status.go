// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Reasons and causes in a Status. Clients find them in the API package.
const (
	StatusReasonBadGateway = v1alpha1.StatusReasonBadGateway

	CauseInvalidSecret = v1alpha1.CauseInvalidSecret
	CauseTunnel        = v1alpha1.CauseTunnel
	CauseAgent         = v1alpha1.CauseAgent
	CauseEndpoint      = v1alpha1.CauseEndpoint
	CauseTLS           = v1alpha1.CauseTLS
	CauseCredential    = v1alpha1.CauseCredential
	CauseIdentity      = v1alpha1.CauseIdentity
	CauseRequest       = v1alpha1.CauseRequest
	CauseResponse      = v1alpha1.CauseResponse
)

// retryAfterSeconds is the Retry-After of 429 and 503. It is short because client-go repeats such a
// request up to ten times.
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
	// Clients are not asked to try again, because that does not help until the Secret is corrected.
	s.ErrStatus.Details.RetryAfterSeconds = 0
	return s
}

func rejectedCredential(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseCredential,
		fmt.Sprintf("cluster %q rejected the gateway's credential (401): the %s in its Secret has expired or been revoked, "+
			"or belongs to another cluster; this is not about your own credential", c.Name, c.Credential.Type))
}

// unusable is the Status of a cluster that has no transports.
func unusable(l *lease) *apierrors.StatusError {
	if l.cluster.Err() != nil {
		return invalidSecret(l.cluster)
	}
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, l.cluster.Name, CauseInvalidSecret,
		fmt.Sprintf("cluster %q cannot be used: %v", l.cluster.Name, l.err))
}

func tooManyRequests(e *limitError) *apierrors.StatusError {
	return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, e.cluster.Name, CauseRequest,
		e.Error()+"; try again later")
}

func gatewayBusy(c *cluster.Cluster, err *busyError) *apierrors.StatusError {
	return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, c.Name, CauseRequest, err.Error()+"; try again later")
}

func tooManyDials(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, c.Name, CauseRequest,
		fmt.Sprintf("too many connections to cluster %q are being established through this gateway (at most %d to one cluster, and --proxy-max-dials to all); try again later",
			c.Name, maxDials))
}

func shuttingDown(name string) *apierrors.StatusError {
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, name, CauseRequest,
		fmt.Sprintf("cluster %q: %v; try again", name, errShuttingDown))
}

// clientGone has no reader, but it lets logs and metrics distinguish this from a failure of the
// cluster.
func clientGone(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(codeClientGone, metav1.StatusReasonUnknown, c.Name, CauseRequest, "the client closed the request before it was answered")
}

func failedPlugin(c *cluster.Cluster, err *pluginError) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseCredential,
		fmt.Sprintf("cannot get a credential for cluster %q: %v", c.Name, err))
}

func redirected(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
		fmt.Sprintf("cluster %q answered with a redirect to another host or path, which the gateway does not pass on", c.Name))
}

// redirectedThroughHub is the Status of a redirect that would not survive the hub.
func redirectedThroughHub(c *cluster.Cluster, e *hubRedirectError) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
		fmt.Sprintf("cluster %q answered with a redirect (%d) to %s, and the hub's aggregation layer does not pass redirects on; "+
			"request that path instead, or use the gateway's own endpoint, which passes them on",
			c.Name, e.code, untrusted.Limit(e.location, 512)))
}

// invalidAnswer is the Status of an answer that cannot be passed on.
func invalidAnswer(c *cluster.Cluster, err error) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
		fmt.Sprintf("the answer of cluster %q is invalid: %v", c.Name, err))
}

// failureStatus returns the Status for a request that failed with err. forwarding is whether it was
// sent to another replica.
func (h *Handler) failureStatus(ctx context.Context, l *lease, p *progress, forwarding bool, err error) *apierrors.StatusError {
	c := l.cluster
	var plugin *pluginError
	var silent *silentError
	var dial *dialer.Error
	var redirect *hubRedirectError
	var impersonation *impersonationRefusedError
	_, known := h.cfg.Clusters.Get(c.Name)
	deadline := errors.Is(context.Cause(ctx), errDeadline)
	switch {
	case errors.Is(err, ErrCredentialRejected):
		return rejectedCredential(c)
	case h.streamsCtx.Err() != nil && (l.gone() || errors.Is(context.Cause(ctx), errShuttingDown)):
		return shuttingDown(c.Name)
	case errors.Is(context.Cause(ctx), errPermissionLost):
		return lostPermission(c)
	case !known:
		// The connections were closed because the cluster was deleted.
		return notFound(c.Name)
	case l.gone():
		return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseRequest,
			fmt.Sprintf("cluster %q was deleted and registered again during the request; try again", c.Name))
	case p.bodyFailed.Load() && ctx.Err() == nil:
		return clientGone(c)
	case errors.As(err, &plugin):
		return failedPlugin(c, plugin)
	case errors.As(err, &impersonation):
		return impersonationRefused(c, impersonation)
	case errors.Is(err, errRedirect):
		return redirected(c)
	case errors.As(err, &redirect):
		return redirectedThroughHub(c, redirect)
	case errors.Is(err, errStatusCode), errors.Is(err, errUnexpectedUpgrade):
		return invalidAnswer(c, err)
	case errors.Is(err, errNotProcessed):
		return notProcessed(c, errNotProcessed)
	case ctx.Err() != nil && !deadline:
		return clientGone(c)
	case errors.Is(err, errTooManyDials):
		return tooManyDials(c)
	case errors.As(err, &dial):
		return dialStatus(c, dial)
	case errors.As(err, &silent):
		return silentAgent(c, silent)
	case deadline:
		return timeoutStatus(c, p, h.cfg.RequestTimeout)
	case forwarding:
		return brokenPeer(c, err)
	default:
		return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseResponse,
			fmt.Sprintf("the connection to cluster %q broke before its answer was complete: %s", c.Name, brief(err)))
	}
}

// silentAgent is the Status of a request that was waiting for its answer when its connection was
// closed, because nothing arrived on it.
func silentAgent(c *cluster.Cluster, err *silentError) *apierrors.StatusError {
	return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, c.Name, CauseAgent,
		fmt.Sprintf("cluster %q: %v, so the gateway has closed the connection; the request may have been carried out", c.Name, err))
}

func notProcessed(c *cluster.Cluster, err error) *apierrors.StatusError {
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseResponse,
		fmt.Sprintf("cluster %q: the request was not carried out: %v, perhaps because it is restarting; try again", c.Name, err))
}

// brief returns an error's text, printable and shortened, because part of it may come from the
// cluster.
func brief(err error) string { return untrusted.Limit(err.Error(), 512) }

// timeoutStatus is the Status of a request that took longer than limit.
func timeoutStatus(c *cluster.Cluster, p *progress, limit time.Duration) *apierrors.StatusError {
	stage, cause := "connecting to its API server took", CauseEndpoint
	switch {
	case p.sent.Load():
		stage, cause = "its API server's answer took", CauseResponse
	case p.connected.Load():
		stage, cause = "sending the request to its API server took", CauseRequest
	}
	return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, c.Name, cause,
		fmt.Sprintf("cluster %q: %s longer than %s", c.Name, stage, limit))
}
