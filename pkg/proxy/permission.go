// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

// Authorizer decides what callers may do in clusters.
type Authorizer interface {
	// Authorize returns nil if the caller may send the request. It returns a *policy.ForbiddenError if
	// not, and another error if that cannot be found out.
	Authorize(ctx context.Context, r *policy.Request) error
	// StillAllowed returns nil if the caller may keep the request open. Its errors are those of
	// Authorize.
	StillAllowed(ctx context.Context, r *policy.Request) error
}

var _ Authorizer = (*policy.Authorizer)(nil)

// Keys of audit annotations.
const (
	// permissionAnnotation records the decision about what the cluster is asked to do.
	permissionAnnotation = "permission.cluster.core.oam.dev/decision"
	// permissionReasonAnnotation records why it was forbidden, or why a stream was ended.
	permissionReasonAnnotation = "permission.cluster.core.oam.dev/reason"
)

// errPermissionLost is the cause of a context that ended because the caller lost the permission.
var errPermissionLost = errors.New("the caller may no longer do this")

// permissionRequest returns what the Authorizer is asked about an exchange.
func (x *exchange) permissionRequest(req *http.Request) *policy.Request {
	ctx := req.Context()
	info := x.attributes.info
	r := &policy.Request{Cluster: x.target.cluster, Target: policy.Target{
		Resource: info.IsResourceRequest, Verbs: []string{info.Verb}, Group: info.APIGroup, Kind: info.Resource,
		Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name, Path: info.Path,
	}}
	r.Target.AddCreate(x.attributes.upgrade, req.Header.Get("Content-Type"))
	r.User, _ = request.UserFrom(ctx)
	r.Labels = x.currentCluster().Labels
	if door, err := filters.GetAuthorizerAttributes(ctx); err == nil {
		r.Door = append(r.Door, door)
		if x.attributes.upgrade && door.GetVerb() != "create" {
			r.Door = append(r.Door, createAttributes{door})
		}
	}
	return r
}

// currentCluster returns the cluster as its Secret is now. That of the lease may be an earlier
// version: the transports do not depend on labels, or on the access.
func (x *exchange) currentCluster() *cluster.Cluster {
	if on, known := x.handler.cfg.Clusters.Get(x.target.cluster); known {
		return on
	}
	return x.lease.cluster
}

// createAttributes are those of a request, with the verb that an upgrade needs in addition.
type createAttributes struct{ authorizer.Attributes }

// GetVerb implements authorizer.Attributes.
func (createAttributes) GetVerb() string { return "create" }

// IsReadOnly implements authorizer.Attributes.
func (createAttributes) IsReadOnly() bool { return false }

// authorize returns an error if the caller must not send the request.
func (x *exchange) authorize(req *http.Request) *apierrors.StatusError {
	if x.handler.cfg.Authorizer == nil || x.forwarded { // the other replica asks
		return nil
	}
	x.permission = x.permissionRequest(req)
	if !x.handler.cfg.AuthorizeRequests {
		return nil
	}
	ctx := req.Context()
	if x.permission.User == nil {
		return unauthorizable(x.target.cluster, errors.New("the caller is not known"))
	}
	if ambiguous(x.attributes.info, x.target.rawPath) {
		return apierrors.NewBadRequest(fmt.Sprintf(
			"invalid path %s: servers could read it in different ways, so the gateway cannot authorize it (--authorize-proxied-requests)", brief(errors.New(x.target.rawPath))))
	}
	err := x.handler.cfg.Authorizer.Authorize(ctx, x.permission)
	var forbidden *policy.ForbiddenError
	switch {
	case err == nil:
		audit.AddAuditAnnotation(ctx, permissionAnnotation, "allow")
		return nil
	case errors.As(err, &forbidden):
		audit.AddAuditAnnotations(ctx, permissionAnnotation, "forbid", permissionReasonAnnotation, forbidden.Error())
		return forbiddenInCluster(x.target.cluster, forbidden)
	default:
		return unauthorizable(x.target.cluster, err)
	}
}

// ambiguous reports whether another server could read the path of a request as one for another
// resource: with dot segments, with empty segments, or with characters that no name contains and
// that separate segments once they are decoded.
func ambiguous(info *request.RequestInfo, rawPath string) bool {
	path, err := url.PathUnescape(rawPath)
	if err != nil || hasDotSegment(rawPath) || info.Path == "" {
		return true
	}
	segments := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case !info.IsResourceRequest:
		if len(segments) == 1 { // also the path "/"
			return strings.ContainsAny(path, separators)
		}
	case info.Subresource == "proxy": // what follows is for the application
		segments = segments[:len(segments)-len(info.Parts)+3]
	}
	for _, segment := range segments {
		if segment == "" || strings.ContainsAny(segment, separators) {
			return true
		}
	}
	return false
}

// separators are the characters that some servers take for the end of a segment, or of a name, or
// for the beginning of an escape.
const separators = "%\\;"

// unauthorizable is the Status of a request that cannot be authorized.
func unauthorizable(name string, err error) *apierrors.StatusError {
	return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, name, CauseRequest,
		fmt.Sprintf("cluster %q: the request was not sent: %s", name, brief(err)))
}

func forbiddenInCluster(name string, e *policy.ForbiddenError) *apierrors.StatusError {
	return newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, name, CauseRequest, fmt.Sprintf(
		"%s; the gateway's hub has no rule for it (an administrator of the hub can try rules with: agent-bootstrap can-i)", brief(e)))
}

// lostPermission is the Status of a request whose caller has lost the permission before the cluster
// has answered.
func lostPermission(c *cluster.Cluster) *apierrors.StatusError {
	return newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, c.Name, CauseRequest,
		fmt.Sprintf("cluster %q: %v", c.Name, errPermissionLost))
}

// maxParallelRechecks is how many streams are checked at a time.
const maxParallelRechecks = 8

// openStreams are the long-running requests whose callers are checked again and again.
type openStreams struct {
	mu   sync.Mutex
	open map[*exchange]struct{}
}

func (s *openStreams) add(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[x] = struct{}{}
}

func (s *openStreams) remove(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, x)
}

func (s *openStreams) all() []*exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*exchange, 0, len(s.open))
	for x := range s.open {
		all = append(all, x)
	}
	return all
}

// recheckStreams ends the streams of callers who have lost the permission, until ctx ends. If the
// hub cannot be asked, streams continue: an outage of the hub must not end all of them.
func (h *Handler) recheckStreams(ctx context.Context) {
	ticker := time.NewTicker(h.cfg.RecheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		var group errgroup.Group
		group.SetLimit(maxParallelRechecks)
		for _, x := range h.rechecked.all() {
			group.Go(func() error { x.recheck(); return nil })
		}
		_ = group.Wait() // recheck logs its errors
	}
}

// recheck ends the exchange if its caller has lost the permission.
func (x *exchange) recheck() {
	permission := *x.permission
	permission.Labels = x.currentCluster().Labels // rules by label follow the labels
	err := x.handler.cfg.Authorizer.StillAllowed(x.ctx, &permission)
	var forbidden *policy.ForbiddenError
	switch {
	case err == nil || x.ctx.Err() != nil:
	case errors.As(err, &forbidden):
		x.handler.cfg.Logger.Info("Ended a stream whose caller has lost the permission", "cluster", x.target.cluster,
			"user", forbidden.User, "verb", x.attributes.verb, "reason", forbidden.Reason)
		audit.AddAuditAnnotation(x.ctx, permissionReasonAnnotation, "ended: "+forbidden.Error())
		x.lease.slot.metrics.streamRevoked(string(x.lease.cluster.Route))
		x.cancel(errPermissionLost)
	default:
		x.handler.cfg.Logger.Info("Could not check whether the caller of a stream still has the permission. The stream continues",
			"cluster", x.target.cluster, "err", err)
	}
}
