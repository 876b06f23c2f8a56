// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// A replica without an agent of a cluster forwards a request to a replica that has one. The work is
// divided:
//
//   - The first replica authenticates, authorizes and audits the request, counts it, and checks
//     again and again whether the caller may keep it open.
//   - The second one decides who the cluster sees, because the credential that it uses and the mode
//     must be of one version of the Secret. It rewrites the request and the answer, and makes the
//     Statuses. It reports who the cluster sees to the first one, for the audit event.
//   - Both have their limits, because both hold the request.
//
// A request that was forwarded is never forwarded again.

// Forwarder sends requests to other replicas of the gateway.
type Forwarder interface {
	// Elsewhere reports whether no agent of the cluster that answers is connected here, and another
	// replica has one.
	Elsewhere(cluster string) bool
	// RoundTripper returns the RoundTripper for a request for the cluster. A *dialer.Error at
	// dialer.StagePeer means that no replica has got the request.
	RoundTripper(cluster string, longRunning, upgrade bool) http.RoundTripper
	// Dialer returns a Dialer that leads to the API server of the cluster, through another replica.
	Dialer(cluster string) dialer.Dialer
}

// Headers between replicas. Only the handler that Forwarded returns reads the first one, and only
// answers of a replica are searched for the second one.
const (
	peerPrefix = "Cluster-Gateway-Peer-"
	// headerCaller is the caller of a forwarded request.
	headerCaller = peerPrefix + "Caller"
	// headerTrail has the audit annotations of the replica that has sent the request to the cluster.
	headerTrail = peerPrefix + "Trail"
)

// caller is what the second replica has to know about the caller of a request.
type caller struct {
	Name       string              `json:"name"`
	UID        string              `json:"uid,omitempty"`
	Groups     []string            `json:"groups,omitempty"`
	Extra      map[string][]string `json:"extra,omitempty"`
	ThroughHub bool                `json:"throughHub,omitempty"`
	AuditID    string              `json:"auditID,omitempty"`
}

// encodeHeader returns v as the value of a header.
func encodeHeader(v any) (string, error) {
	text, err := json.Marshal(v)
	return base64.RawStdEncoding.EncodeToString(text), err
}

func decodeHeader(value string, v any) error {
	text, err := base64.RawStdEncoding.DecodeString(value)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

type forwardedKey struct{}

// isForwarded reports whether another replica has forwarded the request.
func isForwarded(ctx context.Context) bool { return ctx.Value(forwardedKey{}) != nil }

// Forwarded returns the handler of requests that other replicas forward. They must be authenticated
// as replicas. clusterOf returns the cluster for which the request was forwarded; it gets no other
// one.
func (h *Handler) Forwarded(clusterOf func(context.Context) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := req.Context()
		var c caller
		values := req.Header[headerCaller]
		t, ok := parseTarget(req.URL, v1alpha1.BasePath)
		if !ok || len(values) != 1 || decodeHeader(values[0], &c) != nil || t.cluster != clusterOf(ctx) {
			h.refuse(w, req, apierrors.NewBadRequest("invalid request of another replica of the gateway; do all replicas run the same version?"))
			return
		}
		req.Header.Del(headerCaller)
		if c.AuditID != "" {
			ctx = audit.WithAuditContext(ctx) // for the ID alone: the other replica writes the event
			audit.WithAuditID(ctx, types.UID(c.AuditID))
		}
		ctx = context.WithValue(ctx, forwardedKey{}, true)
		ctx = WithThroughHub(ctx, func() bool { return c.ThroughHub })
		ctx = request.WithUser(ctx, &user.DefaultInfo{Name: c.Name, UID: c.UID, Groups: c.Groups, Extra: c.Extra})
		ctx = request.WithRequestInfo(ctx, &request.RequestInfo{
			IsResourceRequest: true, Path: req.URL.Path, APIPrefix: "apis", APIGroup: v1alpha1.GroupName,
			APIVersion: v1alpha1.SchemeGroupVersion.Version, Resource: v1alpha1.ResourceName,
			Name: t.cluster, Subresource: v1alpha1.ProxySubresource,
		})
		h.ServeHTTP(w, req.WithContext(ctx))
	})
}

// elsewhere reports whether the request has to be forwarded.
func (x *exchange) elsewhere() bool {
	f := x.handler.cfg.Forwarder
	return f != nil && !x.forwarded && x.lease.cluster.Route == cluster.RouteTunnel && f.Elsewhere(x.lease.cluster.Name)
}

// lostAgent reports whether a request was not sent because the cluster has no agent here any more.
func lostAgent(err error) bool {
	var noAgent *dialer.NoAgentError
	return errors.As(err, &noAgent)
}

// forward sends a request to a replica that has an agent of the cluster. The request is the one
// that would have been sent to the cluster.
func (x *exchange) forward(req *http.Request) (*http.Response, error) {
	x.forwarding = true
	x.annotateForwarded(req.Context())
	out := req.WithContext(req.Context())
	out.Header = maps.Clone(req.Header) // values are replaced, and never changed
	raw := x.target.prefix + x.target.rawPath
	path, err := url.PathUnescape(raw)
	if err != nil { // impossible: it comes from a parsed URL
		return nil, err
	}
	out.URL = &url.URL{Path: path, RawPath: raw, RawQuery: req.URL.RawQuery, ForceQuery: req.URL.ForceQuery}
	for name := range x.seenHeaders { // the other replica decides anew
		out.Header.Del(name)
	}
	if x.application != nil && x.handler.cfg.ApplicationCookies && len(x.cookies) > 0 {
		out.Header["Cookie"] = x.cookies // with the receipts, which it checks
	}
	value, err := encodeHeader(x.callerOf(req.Context()))
	if err != nil {
		return nil, err
	}
	out.Header.Set(headerCaller, value)
	class := x.attributes.class()
	return x.handler.cfg.Forwarder.RoundTripper(x.target.cluster, class == classStream, class == classUpgrade).RoundTrip(out)
}

// callerOf returns what the other replica has to know.
func (x *exchange) callerOf(ctx context.Context) caller {
	c := caller{ThroughHub: ThroughHub(ctx)}
	if u, ok := request.UserFrom(ctx); ok && u != nil {
		c.Name, c.UID, c.Groups, c.Extra = u.GetName(), u.GetUID(), u.GetGroups(), u.GetExtra()
	}
	if id, ok := audit.AuditIDFrom(ctx); ok {
		c.AuditID = string(id)
	}
	return c
}

// checkForwarded checks the answer of another replica, which has checked that of the cluster.
func (x *exchange) checkForwarded(resp *http.Response) error {
	x.annotateTrail(x.ctx, resp.Header.Get(headerTrail))
	for name := range resp.Header {
		if hasPrefixFold(name, peerPrefix) {
			delete(resp.Header, name)
		}
	}
	if resp.StatusCode < 100 || resp.StatusCode > 999 {
		return errStatusCode
	}
	return x.checkUpgrade(resp)
}

// unreachablePeer is the Status of a request that no replica with an agent has got.
func unreachablePeer(c *cluster.Cluster, err error) *apierrors.StatusError {
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, c.Name, CauseRequest,
		fmt.Sprintf("cluster %q: its agents are connected to another replica of the gateway, which could not take the request: %s; "+
			"this says nothing about the cluster; try again", c.Name, brief(err)))
}

// brokenPeer is the Status of a request whose connection to another replica broke.
func brokenPeer(c *cluster.Cluster, err error) *apierrors.StatusError {
	return newStatus(http.StatusBadGateway, StatusReasonBadGateway, c.Name, CauseRequest,
		fmt.Sprintf("cluster %q: its agents are connected to another replica of the gateway, and the connection to that replica broke before the answer was complete: %s; "+
			"this says nothing about the cluster, and the request may have been carried out", c.Name, brief(err)))
}
