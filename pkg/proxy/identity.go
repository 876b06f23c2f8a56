// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// identify decides who the cluster sees, or returns why the request is not sent. It uses the policy
// of the version of the cluster whose transports send the request. The policy of a later version
// may be for another credential.
func (x *exchange) identify(req *http.Request) *apierrors.StatusError {
	ctx, c := req.Context(), x.lease.cluster
	var caller identity.User
	if u, ok := request.UserFrom(ctx); ok && u != nil {
		caller = identity.User{Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: u.GetExtra()}
	}
	seen, err := x.handler.cfg.Identities.Resolve(ctx, c.Name, c.Identity, caller)
	headers, decided := seen.Headers()
	if err == nil && !decided {
		err = errors.New("nobody has decided who the cluster sees")
	}
	if err != nil {
		return x.refuseIdentity(req, err)
	}
	x.seen, x.seenHeaders = seen, headers
	x.annotateSeen(ctx)
	return nil
}

// refuseIdentity records why an identity is not carried, and returns the Status that says so.
func (x *exchange) refuseIdentity(req *http.Request, err error) *apierrors.StatusError {
	var refusal *identity.Refusal
	if !errors.As(err, &refusal) {
		refusal = &identity.Refusal{Reason: identity.ReasonRules, Message: "nothing says who the cluster sees", Err: err}
	}
	name := x.lease.cluster.Name
	x.lease.slot.metrics.identityRefused(string(refusal.Reason))
	x.annotateRefusal(req.Context(), refusal)
	if refusal.Err != nil && req.Context().Err() == nil {
		x.handler.cfg.Logger.Error(refusal.Err, "Refused a request because the identity of its caller could not be exchanged",
			"cluster", name, "rule", refusal.Rule, "reason", refusal.Reason)
	}
	return notCarried(x.lease.cluster, refusal)
}

// notCarried is the Status of a request whose caller's identity is not carried to the cluster.
func notCarried(c *cluster.Cluster, refusal *identity.Refusal) *apierrors.StatusError {
	code, reason := int32(http.StatusForbidden), metav1.StatusReasonForbidden
	if refusal.Temporary {
		code, reason = http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable
	}
	return newStatus(code, reason, c.Name, CauseIdentity,
		fmt.Sprintf("the request was not sent to cluster %q, because your identity cannot be carried there: %s", c.Name, refusal.Message))
}
