// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/klog/v2"
)

// upgradeVerb is the verb that an upgrade needs, in addition to the verb of its HTTP method.
const upgradeVerb = "create"

// upgradeAnnotation is the key of the audit annotation that records the decision on an upgrade. The
// decision on the request itself is recorded by the generic API server, which does not overwrite an
// annotation.
const upgradeAnnotation = "upgrade.cluster.core.oam.dev/decision"

// upgradeNeedsCreate is what a caller reads who may not upgrade.
const upgradeNeedsCreate = "an upgrade (exec, attach, port-forward) needs the verb create on clustergateways/proxy"

// withUpgradeAuthorization authorizes requests that ask for an upgrade a second time, with the verb
// create, and hands to proxied those that are allowed. A WebSocket upgrade is a GET. Without this
// check, a caller with only the verb get could run commands in Pods. kube-apiserver checks create
// on pods/exec, pods/attach and pods/portforward for the same reason
// (kubernetes/enhancements#4006).
func withUpgradeAuthorization(proxied http.Handler, a authorizer.UnconditionalAuthorizer, s runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asksForUpgrade(r) {
			proxied.ServeHTTP(w, r)
			return
		}
		ctx := r.Context()
		attributes, err := filters.GetAuthorizerAttributes(ctx)
		if err != nil {
			responsewriters.InternalError(w, r, err)
			return
		}
		if attributes.GetVerb() == upgradeVerb { // the generic API server has asked for it already
			proxied.ServeHTTP(w, r)
			return
		}
		attributes = upgradeAttributes{attributes}
		decision, reason, err := a.Authorize(ctx, attributes)
		// As in the generic API server, an authorizer can allow a request and return an error.
		if decision == authorizer.DecisionAllow {
			audit.AddAuditAnnotation(ctx, upgradeAnnotation, "allow")
			proxied.ServeHTTP(w, r)
			return
		}
		audit.AddAuditAnnotation(ctx, upgradeAnnotation, "forbid")
		if err != nil {
			responsewriters.InternalError(w, r, err)
			return
		}
		klog.V(4).InfoS("Refused an upgrade", "cluster", attributes.GetName(), "user", userName(attributes.GetUser()), "reason", reason)
		if reason = strings.TrimSpace(reason); reason != "" {
			reason = ": " + reason
		}
		responsewriters.Forbidden(attributes, w, r, upgradeNeedsCreate+reason, s)
	})
}

// asksForUpgrade reports whether a request can end in an upgraded connection. It includes some that
// pkg/proxy does not upgrade, such as a Connection header with a token that only contains
// "upgrade": what is unclear needs the stronger verb. An extended CONNECT (RFC 8441) is the upgrade
// of HTTP/2. In HTTP/2, net/http refuses a Connection header.
func asksForUpgrade(r *http.Request) bool {
	if r.Method == http.MethodConnect {
		return true
	}
	for _, value := range r.Header["Connection"] {
		if strings.Contains(strings.ToLower(value), "upgrade") {
			return true
		}
	}
	return false
}

// upgradeAttributes are those of a request, with the verb that an upgrade needs.
type upgradeAttributes struct{ authorizer.Attributes }

var _ authorizer.Attributes = upgradeAttributes{}

// GetVerb implements authorizer.Attributes.
func (upgradeAttributes) GetVerb() string { return upgradeVerb }

// IsReadOnly implements authorizer.Attributes.
func (upgradeAttributes) IsReadOnly() bool { return false }

func userName(u user.Info) string {
	if u == nil {
		return ""
	}
	return u.GetName()
}
