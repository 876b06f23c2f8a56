// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Right is one right, in the form in which an API server is asked for it.
type Right = authorizationv1.ResourceAttributes

// Rights are what the caller needs to carry out a plan.
type Rights struct {
	// Hub and Cluster are needed on each side.
	Hub, Cluster []Right
	// Grants are needed in the cluster as well.
	Grants []Grant
}

// Grant is what it takes to create a Role and bind it: Kubernetes lets nobody grant rights that
// they do not have themselves.
type Grant struct {
	// Exempt lists the rights to grant what one does not have. With all of them, Rights are not
	// needed.
	Exempt []Right
	// Rights are what the Role grants.
	Rights []Right
}

// Rights to read the state of a cluster.
var (
	listBindings = Right{Verb: "list", Group: rbacv1.GroupName, Resource: "clusterrolebindings"}
	getRootCA    = Right{Verb: "get", Resource: "configmaps", Name: RootCAConfigMap, Namespace: metav1.NamespaceSystem}
)

func createToken(account string) Right {
	return Right{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Name: account, Namespace: AgentNamespace}
}

func getAccessRole(access Access) Right {
	return Right{Verb: "get", Group: rbacv1.GroupName, Resource: "clusterroles", Name: access.Role}
}

// withVerbs returns the right once for each verb.
func withVerbs(right Right, verbs ...string) []Right {
	var all []Right
	for _, verb := range verbs {
		right.Verb = verb
		all = append(all, right)
	}
	return all
}

// rightSet is a list of rights without duplicates.
type rightSet []Right

func (s *rightSet) add(rights ...Right) {
	for _, right := range rights {
		if !slices.Contains(*s, right) {
			*s = append(*s, right)
		}
	}
}

// rightOn returns the right on one object, without a verb.
func rightOn(o *unstructured.Unstructured) (Right, error) {
	gvr, namespaced, err := ResourceOf(o.GroupVersionKind())
	if err != nil {
		return Right{}, err
	}
	right := Right{Group: gvr.Group, Resource: gvr.Resource, Name: o.GetName()}
	if namespaced {
		right.Namespace = o.GetNamespace()
	}
	return right, nil
}

// Rights returns the rights that the plan needs: to read what it is based on, to apply and remove
// its objects, and to grant what its Roles grant.
func (p *Plan) Rights() (Rights, error) {
	var hub, cluster rightSet
	var grants []Grant
	for _, step := range p.Steps {
		rights := &cluster
		if step.Side == SideHub {
			rights = &hub
		}
		for _, o := range step.Apply {
			right, err := rightOn(o)
			if err != nil {
				return Rights{}, err
			}
			rights.add(p.writeRights(step, right)...)
			if o.GetKind() != "Role" {
				continue
			}
			grant, err := grantOf(o)
			if err != nil {
				return Rights{}, err
			}
			grants = append(grants, grant)
		}
		for _, o := range step.Remove {
			right, err := rightOn(o)
			if err != nil {
				return Rights{}, err
			}
			rights.add(withVerbs(right, "get", "delete")...)
		}
	}
	cluster.add(p.readRights...)
	if p.Spec.Impersonation != nil {
		cluster.add(createToken(ProbeAccount))
	}
	if p.NewToken {
		cluster.add(createToken(GatewayAccount))
	}
	if p.NewMaintenanceToken {
		cluster.add(createToken(MaintenanceAccount))
	}
	return Rights{Hub: hub, Cluster: cluster, Grants: grants}, nil
}

// writeRights returns the rights to write one object. Everything is applied on the server's side,
// except for the cluster's Secret, which is created or patched.
func (p *Plan) writeRights(step Step, right Right) []Right {
	if step.Name != StepSecret {
		return withVerbs(right, "get", "create", "patch")
	}
	unnamed := right
	unnamed.Name = "" // a request that creates an object names none
	return append(withVerbs(unnamed, "create"), withVerbs(right, "get", "patch")...)
}

// grantOf returns what it takes to create and bind a Role.
func grantOf(o *unstructured.Unstructured) (Grant, error) {
	role := &rbacv1.Role{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, role); err != nil {
		return Grant{}, err
	}
	grant := Grant{Exempt: withVerbs(Right{Group: rbacv1.GroupName, Resource: "roles", Name: role.Name, Namespace: role.Namespace}, "escalate", "bind")}
	for _, rule := range role.Rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, resource := range rule.Resources {
			resource, subresource, _ := strings.Cut(resource, "/")
			for _, group := range rule.APIGroups {
				for _, name := range names {
					right := Right{Group: group, Resource: resource, Subresource: subresource, Name: name, Namespace: role.Namespace}
					grant.Rights = append(grant.Rights, withVerbs(right, rule.Verbs...)...)
				}
			}
		}
	}
	return grant, nil
}
