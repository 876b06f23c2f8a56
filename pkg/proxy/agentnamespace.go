// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// The agent's namespace holds what is more powerful than a caller with limited access: the agent's
// key, and the gateway's account for maintenance. The cluster's RBAC keeps such callers away from
// it. This is a second line of defense. It matters for clusters that an earlier version registered,
// where the account for callers has rights in that namespace, and for a ClusterRole that grants
// more than it seems (the ClusterRole edit allows serviceaccounts/token).

// refusedInAgentNamespace returns an error if a caller must not send this request.
func (x *exchange) refusedInAgentNamespace(req *http.Request) *apierrors.StatusError {
	if !namesAgentNamespace(x.target.rawPath) {
		return nil
	}
	on := x.currentCluster()
	if on.AllowsAgentNamespace() || x.handler.classifier.readsAgentNamespace(req, x.target.onEndpoint(&url.URL{}, req.URL)) {
		return nil
	}
	why := fmt.Sprintf("was registered with limited access (%q)", on.Access)
	if on.Identity.Mode != identity.ModeCredential {
		why = "sees its users, who have different rights"
	}
	return newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, on.Name, CauseRequest, fmt.Sprintf(
		"cluster %q %s, so its users may only look at the namespace %s through the gateway, where the gateway's own accounts and agent are, and not at Secrets there",
		on.Name, why, v1alpha1.AgentNamespace))
}

// readsAgentNamespace reports whether a request only looks at the agent's namespace, and at nothing
// secret.
func (c classifier) readsAgentNamespace(req *http.Request, u *url.URL) bool {
	if isUpgrade(req.Header) {
		return false
	}
	info, err := c.resolver.NewRequestInfo(&http.Request{Method: req.Method, URL: u, Header: req.Header})
	// If the path is spelled so that it is not about that namespace, the cluster may read it
	// differently.
	if err != nil || !info.IsResourceRequest || info.Namespace != v1alpha1.AgentNamespace {
		return false
	}
	switch info.Verb {
	case "get", "list", "watch":
	default:
		return false
	}
	switch info.Subresource {
	case "", "status", "scale", "log":
		return info.Resource != "secrets"
	default:
		return false
	}
}

// namesAgentNamespace reports whether an escaped path could lead to the agent's namespace:
// whether its segment "namespaces" is followed by that name, in any spelling that a server might
// read like this. With dot segments, any segment of that name counts.
func namesAgentNamespace(path string) bool {
	if !strings.Contains(path, v1alpha1.AgentNamespace) && !strings.Contains(path, "%") {
		return false
	}
	anywhere := hasDotSegment(path)
	// Several servers in a row may each remove one level of escapes.
	for range 4 {
		if hasNamespaceSegment(path, anywhere) {
			return true
		}
		plain, err := url.PathUnescape(path)
		if err != nil || plain == path {
			return false
		}
		path = plain
	}
	return true
}

func hasNamespaceSegment(path string, anywhere bool) bool {
	previous := ""
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "" || segment == "." {
			continue
		}
		if (anywhere || previous == "namespaces") && segment == v1alpha1.AgentNamespace {
			return true
		}
		previous = segment
	}
	return false
}
