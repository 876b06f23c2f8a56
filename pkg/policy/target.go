// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"mime"
	"strings"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Target is what a managed cluster is asked to do.
type Target struct {
	// Resource is false if the request is for a path that is not a resource. Then only Verbs and Path
	// are set.
	Resource bool
	// Verbs are the Kubernetes verbs that the caller needs, all of them; for a path, the HTTP method
	// in lower case.
	Verbs []string
	// Group is the API group of the resource. It is empty for the core group.
	Group string
	// Kind is the plural name of the resource, such as "pods".
	Kind        string
	Subresource string
	// Namespace is empty for all namespaces and for resources without a namespace. Name is empty for
	// a request for several objects, unless a field selector names one.
	Namespace, Name string
	// Path is the path on the cluster.
	Path string
}

const verbCreate = "create"

// AddCreate adds create to the verbs of a request that can create something though its verb does
// not say so. upgrade is whether the request asks to leave HTTP, and contentType is the type of its
// body.
func (t *Target) AddCreate(upgrade bool, contentType string) {
	if !t.Resource || len(t.Verbs) != 1 {
		return
	}
	switch verb := t.Verbs[0]; {
	case verb == verbCreate:
		return
	case upgrade && verb != "watch":
	case verb == "patch" && t.Subresource == "" && appliesObject(contentType):
	case verb == "update" && t.Subresource == "" && createdByUpdate(t.Group, t.Kind):
	default:
		return
	}
	t.Verbs = append(t.Verbs, verbCreate)
}

// appliesObject reports whether a PATCH is a server-side apply. A type that cannot be parsed counts
// as one.
func appliesObject(contentType string) bool {
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err != nil || strings.HasPrefix(mediaType, "application/apply-patch")
}

// newCheck writes the target as a request for a resource of the virtual API group.
func newCheck(caller user.Info, selector string, t *Target, verb string) authorizer.Attributes {
	record := authorizer.AttributesRecord{User: caller, Verb: verb, ResourceRequest: t.Resource}
	if !t.Resource {
		record.Path = "/" + selector + t.Path
		return record
	}
	record.APIGroup, record.APIVersion, record.Resource = selector, "*", t.Kind
	if t.Group != "" {
		record.Resource += "." + t.Group
	}
	record.Subresource, record.Namespace, record.Name = t.Subresource, t.Namespace, t.Name
	return record
}

// isDiscovery reports whether every user of a cluster may send the request: the paths of the
// ClusterRoles system:discovery and system:public-info-viewer (k8s.io/kubernetes,
// plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy.go).
func (t *Target) isDiscovery() bool {
	if t.Resource || len(t.Verbs) != 1 || t.Verbs[0] != "get" {
		return false
	}
	switch t.Path {
	case "/api", "/apis", "/openapi", "/version", "/version/", "/healthz", "/livez", "/readyz":
		return true
	}
	return strings.HasPrefix(t.Path, "/api/") || strings.HasPrefix(t.Path, "/apis/") || strings.HasPrefix(t.Path, "/openapi/")
}

// String describes the target as part of a sentence: list pods in namespace "shop".
func (t *Target) String() string {
	var b strings.Builder
	b.WriteString(strings.Join(t.Verbs, " and "))
	b.WriteByte(' ')
	if !t.Resource {
		b.WriteString("the path ")
		b.WriteString(quote(t.Path))
		return b.String()
	}
	b.WriteString(t.resourceName())
	if t.Name != "" {
		b.WriteByte(' ')
		b.WriteString(quote(t.Name))
	}
	if t.Namespace != "" && t.Kind != "namespaces" {
		b.WriteString(" in namespace ")
		b.WriteString(quote(t.Namespace))
	}
	return b.String()
}

// resourceName is the resource as a rule names it.
func (t *Target) resourceName() string {
	name := t.Kind
	if t.Group != "" {
		name += "." + t.Group
	}
	if t.Subresource != "" {
		name += "/" + t.Subresource
	}
	return name
}
