// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// Need says how much of a role must be used.
type Need int

const (
	// NeedNone is for roles that everyone has, or that were granted for another reason.
	NeedNone Need = iota
	// NeedEachRule is for Kubernetes' own roles: half of one of their rules cannot be removed.
	NeedEachRule
	// NeedEverything requires each verb for each resource and each name.
	NeedEverything
)

// Grant is a role that is bound to an account.
type Grant struct {
	// Binding is the name of the binding in findings.
	Binding string
	// Namespace is the namespace of the rules. Empty means all namespaces.
	Namespace string
	Rules     []rbacv1.PolicyRule
	Need      Need
}

// Unit is the smallest part of a Grant that can be removed.
type Unit struct {
	// Name is the name in findings.
	Name string
	// Needed says whether some request must have needed it.
	Needed bool

	namespace string
	rules     []rbacv1.PolicyRule
}

// Units splits grants into units.
func Units(grants []Grant) []Unit {
	var units []Unit
	for _, g := range grants {
		switch g.Need {
		case NeedNone:
			units = append(units, Unit{Name: g.Binding, namespace: g.Namespace, rules: g.Rules})
		case NeedEachRule:
			for _, rule := range g.Rules {
				units = append(units, g.unit(rule))
			}
		case NeedEverything:
			for _, rule := range g.Rules {
				for _, single := range singles(rule) {
					units = append(units, g.unit(single))
				}
			}
		}
	}
	return units
}

func (g Grant) unit(rule rbacv1.PolicyRule) Unit {
	name := fmt.Sprintf("%s: %s", g.Binding, strings.Join(rule.Verbs, ","))
	if len(rule.NonResourceURLs) > 0 {
		name += " " + strings.Join(rule.NonResourceURLs, ",")
	} else {
		name += " " + described(strings.Join(rule.APIGroups, ","), strings.Join(rule.Resources, ","), strings.Join(rule.ResourceNames, ","))
	}
	return Unit{Name: name, Needed: true, namespace: g.Namespace, rules: []rbacv1.PolicyRule{rule}}
}

func described(group, resource, name string) string {
	if group != "" {
		resource += "." + group
	}
	if name != "" {
		resource += " " + name
	}
	return resource
}

// singles splits a rule into rules with one verb, group, resource and name each.
func singles(rule rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var all []rbacv1.PolicyRule
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, verb := range rule.Verbs {
		for _, url := range rule.NonResourceURLs {
			all = append(all, rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: []string{url}})
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					single := rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}
					if name != "" {
						single.ResourceNames = []string{name}
					}
					all = append(all, single)
				}
			}
		}
	}
	return all
}

// request is a request that an API server authorized or denied.
type request struct {
	verb                             string
	group, resource, namespace, name string
	url                              string // of a request without a resource
	allowed                          bool
}

// annotationDecision is the decision of the API server's authorizer, "allow" or "forbid".
const annotationDecision = "authorization.k8s.io/decision"

// parse returns the decisions in an event. There are none if the API server was overloaded (429),
// because the client then repeated the request.
func parse(e *auditv1.Event) []request {
	decision, decided := e.Annotations[annotationDecision]
	if !decided {
		return nil
	}
	r := request{verb: e.Verb, allowed: decision == "allow"}
	if e.ObjectRef == nil {
		r.url, _, _ = strings.Cut(e.RequestURI, "?")
		return []request{r}
	}
	r.group, r.resource, r.namespace, r.name = e.ObjectRef.APIGroup, e.ObjectRef.Resource, e.ObjectRef.Namespace, e.ObjectRef.Name
	switch {
	case e.ObjectRef.Subresource != "":
		r.resource += "/" + e.ObjectRef.Subresource
	case r.verb == "create":
		// The event has the name from the body, which the authorizer does not read.
		r.name = ""
	}
	code := int32(0) // the request is still in progress
	if e.ResponseStatus != nil {
		code = e.ResponseStatus.Code
	}
	switch {
	case code == http.StatusForbidden:
		// Reasons after the first decision: the permission to create a patched object that does not
		// exist, or admission.
		r.allowed = false
	case code == http.StatusCreated && r.verb == "patch":
		created := r
		created.verb = "create"
		return []request{r, created}
	}
	return []request{r}
}

func (r request) String() string {
	text := r.verb + " " + r.url
	if r.url == "" {
		text = r.verb + " " + described(r.group, r.resource, r.name)
	}
	if r.namespace != "" {
		text += " in namespace " + r.namespace
	}
	return text
}

// allows decides like Kubernetes' own authorizer (k8s.io/component-helpers/auth/rbac/validation).
// It does not support wildcards inside names of resources, which no role here uses.
func (u Unit) allows(r request) bool {
	if u.namespace != "" && u.namespace != r.namespace {
		return false
	}
	return slices.ContainsFunc(u.rules, func(rule rbacv1.PolicyRule) bool {
		if !has(rule.Verbs, r.verb) {
			return false
		}
		if r.url != "" {
			return slices.ContainsFunc(rule.NonResourceURLs, func(url string) bool {
				prefix, wildcard := strings.CutSuffix(url, "*")
				return url == r.url || wildcard && strings.HasPrefix(r.url, prefix)
			})
		}
		return has(rule.APIGroups, r.group) && has(rule.Resources, r.resource) && (len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, r.name))
	})
}

func has(list []string, value string) bool {
	return slices.Contains(list, value) || slices.Contains(list, rbacv1.VerbAll)
}

// Check compares what an account may do with what it did. It reports, without repetitions:
//   - requests that were denied
//   - requests that were allowed, but would not be allowed by these units alone
//   - units that must be needed but no request needed, because there was no such request or
//     another unit would have allowed it too
func Check(units []Unit, events []auditv1.Event) []string {
	var findings []string
	find := func(text string) {
		if !slices.Contains(findings, text) {
			findings = append(findings, text)
		}
	}
	needed := make([]bool, len(units))
	for i := range events {
		for _, r := range parse(&events[i]) {
			if !r.allowed {
				find("denied: " + r.String())
				continue
			}
			switch by := allowing(units, r); len(by) {
			case 0:
				find("allowed by none of these rules: " + r.String())
			case 1:
				needed[by[0]] = true
			}
		}
	}
	for i, u := range units {
		if u.Needed && !needed[i] {
			find("not needed: " + u.Name)
		}
	}
	return findings
}

// allowing returns the indexes of the units that allow a request.
func allowing(units []Unit, r request) []int {
	var by []int
	for i, u := range units {
		if u.allows(r) {
			by = append(by, i)
		}
	}
	return by
}
