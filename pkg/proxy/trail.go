// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"strings"

	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"

	"github.com/oam-dev/cluster-gateway/pkg/identity"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Keys of the audit annotations of proxied requests. docs/identity.md describes them.
const (
	annotationPrefix   = "proxy.cluster.core.oam.dev/"
	annotationCluster  = annotationPrefix + "cluster"
	annotationRoute    = annotationPrefix + "route"
	annotationDoor     = annotationPrefix + "door"
	annotationVerb     = annotationPrefix + "verb"
	annotationResource = annotationPrefix + "resource"
	annotationPath     = annotationPrefix + "path"
	annotationAuditID  = annotationPrefix + "audit-id"
	annotationIdentity = annotationPrefix + "identity"
	annotationUser     = annotationPrefix + "user"
	annotationGroups   = annotationPrefix + "groups"
	annotationRule     = annotationPrefix + "rule"
	annotationRefusal  = annotationPrefix + "refusal"
	annotationEnd      = annotationPrefix + "end"
	// annotationForwarded says that the request was sent by another replica, which has an agent.
	annotationForwarded = annotationPrefix + "forwarded"
)

// Doors through which requests come.
const (
	doorHub      = "hub"
	doorEndpoint = "endpoint"
)

// maxAnnotation limits the parts of an annotation that the caller chooses.
const maxAnnotation = 1 << 10

// audited reports whether the request has an audit event to annotate.
func audited(ctx context.Context) bool {
	c := audit.AuditContextFrom(ctx)
	return c != nil && c.Enabled() && c.GetEventLevel() != auditinternal.LevelNone
}

// annotateRequest adds to the audit event what the cluster is asked.
func (x *exchange) annotateRequest(ctx context.Context) {
	if !audited(ctx) {
		return
	}
	c, info := x.lease.cluster, x.attributes.info
	door := doorEndpoint
	if ThroughHub(ctx) {
		door = doorHub
	}
	pairs := []string{
		annotationCluster, c.Name, annotationRoute, string(c.Route), annotationDoor, door,
		annotationVerb, x.attributes.verb, annotationPath, untrusted.Limit(x.target.rawPath, maxAnnotation),
	}
	if info.IsResourceRequest {
		pairs = append(pairs, annotationResource, untrusted.Limit(resourceText(info.APIGroup, info.Resource, info.Subresource), maxAnnotation))
	}
	if id, ok := audit.AuditIDFrom(ctx); ok {
		pairs = append(pairs, annotationAuditID, string(id))
	}
	audit.AddAuditAnnotations(ctx, pairs...)
}

// resourceText returns a resource as RBAC writes it: deployments.apps/scale.
func resourceText(group, resource, subresource string) string {
	if group != "" {
		resource += "." + group
	}
	if subresource != "" {
		resource += "/" + subresource
	}
	return resource
}

// annotateSeen adds to the audit event who the cluster sees.
func (x *exchange) annotateSeen(ctx context.Context) {
	if !audited(ctx) && x.trail == nil {
		return
	}
	pairs := []string{annotationIdentity, string(x.seen.Mode)}
	if x.seen.Rule != "" {
		pairs = append(pairs, annotationRule, x.seen.Rule)
	}
	if u := x.seen.User; u != nil {
		pairs = append(pairs, annotationUser, u.Name)
		if len(u.Groups) > 0 {
			pairs = append(pairs, annotationGroups, strings.Join(u.Groups, ","))
		}
	}
	x.annotateIdentity(ctx, pairs)
}

// annotateRefusal adds to the audit event why the identity of the caller is not carried.
func (x *exchange) annotateRefusal(ctx context.Context, refusal *identity.Refusal) {
	if !audited(ctx) && x.trail == nil {
		return
	}
	pairs := []string{annotationIdentity, string(x.lease.cluster.Identity.Mode), annotationRefusal, string(refusal.Reason)}
	if refusal.Rule != "" {
		pairs = append(pairs, annotationRule, refusal.Rule)
	}
	x.annotateIdentity(ctx, pairs)
}

// annotateIdentity adds to the audit event, or reports to the replica that writes it.
func (x *exchange) annotateIdentity(ctx context.Context, pairs []string) {
	if x.trail == nil {
		audit.AddAuditAnnotations(ctx, pairs...)
		return
	}
	for i, value := range pairs {
		pairs[i] = untrusted.Limit(value, maxTrail)
	}
	if value, err := encodeHeader(pairs); err == nil {
		x.trail.Set(headerTrail, value)
	}
}

// maxTrail limits each value that one replica reports to another one, which is in a header there.
const maxTrail = 32 << 10

// annotateForwarded adds to the audit event that another replica sends the request to the cluster.
func (x *exchange) annotateForwarded(ctx context.Context) {
	if audited(ctx) {
		audit.AddAuditAnnotation(ctx, annotationForwarded, "true")
	}
}

// annotateTrail adds to the audit event what the other replica has reported.
func (x *exchange) annotateTrail(ctx context.Context, value string) {
	var pairs []string
	if x.seenHeaders != nil { // the agent was lost after this replica had decided and annotated
		return
	}
	if !audited(ctx) || value == "" || decodeHeader(value, &pairs) != nil || len(pairs)%2 != 0 {
		return
	}
	for i := 0; i < len(pairs); i += 2 {
		switch pairs[i] {
		case annotationIdentity, annotationUser, annotationGroups, annotationRule, annotationRefusal:
			audit.AddAuditAnnotation(ctx, pairs[i], pairs[i+1])
		}
	}
}

// annotateEnd adds to the audit event how a long-running request has ended.
func (x *exchange) annotateEnd(ctx context.Context) {
	if !x.streaming || !audited(ctx) {
		return
	}
	end := "complete"
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errShuttingDown):
		end = "shutdown"
	case errors.Is(cause, errPermissionLost):
		end = "permission-lost"
	case ctx.Err() != nil:
		end = "client"
	case x.lease.gone():
		end = "cluster-deleted"
	}
	audit.AddAuditAnnotation(ctx, annotationEnd, end)
}
