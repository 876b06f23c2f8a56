// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

type right = authorizationv1.ResourceAttributes

// checkRights finds out what the caller may not do, and what cannot be done, before anything is done.
func (r *registerRun) checkRights(ctx context.Context) error {
	secrets := right{Resource: "secrets", Namespace: r.app.hub.namespace}
	named := secrets
	named.Name = r.name
	if err := r.hub.requireRights(ctx, append(withVerbs(secrets, "create"), withVerbs(named, "get", "patch")...)); err != nil {
		return err
	}
	rights, err := r.clusterRights(ctx)
	if err != nil {
		return err
	}
	if err := r.cluster.requireRights(ctx, rights); err != nil {
		return err
	}
	if err := r.checkRemoval(ctx); err != nil {
		return err
	}
	if err := r.checkGrants(ctx); err != nil {
		return err
	}
	if err := r.describe(ctx); err != nil {
		return err
	}
	return r.step(ctx, "rights", "sufficient on both sides")
}

func withVerbs(r right, verbs ...string) []right {
	var all []right
	for _, verb := range verbs {
		r.Verb = verb
		all = append(all, r)
	}
	return all
}

// planned are the objects that will be applied to the cluster, without what is not known yet.
func (r *registerRun) planned() ([]*unstructured.Unstructured, error) {
	namespace, err := registration.Namespace(r.name, r.hub.uid)
	if err != nil {
		return nil, err
	}
	account, err := registration.AgentBase(registration.IsGatewayAccount)
	if err != nil {
		return nil, err
	}
	access, err := registration.AccessOf(r.o.access).Objects("")
	if err != nil {
		return nil, err
	}
	all := slices.Concat([]*unstructured.Unstructured{namespace}, account, access)
	if r.hasPods() {
		agent, err := registration.Agent(r.tunnel.address, registration.AgentPair{})
		if err != nil {
			return nil, err
		}
		all = append(all, agent...)
	}
	return all, nil
}

// clusterRights are those that the objects take: to apply each of them, and to give what a Role among them gives.
func (r *registerRun) clusterRights(ctx context.Context) ([]right, error) {
	all, err := r.planned()
	if err != nil {
		return nil, err
	}
	var rights []right
	add := func(more ...right) {
		for _, one := range more {
			if !slices.Contains(rights, one) {
				rights = append(rights, one)
			}
		}
	}
	for _, o := range all {
		gvr, namespaced, err := registration.ResourceOf(o.GroupVersionKind())
		if err != nil {
			return nil, err
		}
		one := right{Group: gvr.Group, Resource: gvr.Resource, Name: o.GetName()}
		if namespaced {
			one.Namespace = o.GetNamespace()
		}
		add(withVerbs(one, "get", "create", "patch")...)
		if o.GetKind() != "Role" {
			continue
		}
		given, err := r.toGive(ctx, o)
		if err != nil {
			return nil, err
		}
		add(given...)
	}
	add(right{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Name: registration.GatewayAccount, Namespace: registration.AgentNamespace},
		right{Verb: "list", Group: rbacv1.GroupName, Resource: "clusterrolebindings"})
	if access := registration.AccessOf(r.o.access); access.Name != registration.AccessImpersonate {
		add(right{Verb: "get", Group: rbacv1.GroupName, Resource: "clusterroles", Name: access.Role})
	}
	loaded := rest.CopyConfig(r.cluster.config)
	if err := rest.LoadTLSFiles(loaded); err != nil {
		return nil, err
	}
	if r.needsRootCA(loaded) {
		add(right{Verb: "get", Resource: "configmaps", Name: rootCA, Namespace: metav1.NamespaceSystem})
	}
	return rights, nil
}

// rootCA is the ConfigMap in which a cluster says what its CA is.
const rootCA = "kube-root-ca.crt"

// toGive are the rights that a Role gives: only who has them may make it and bind it, or who may escalate and bind.
func (r *registerRun) toGive(ctx context.Context, o *unstructured.Unstructured) ([]right, error) {
	role := &rbacv1.Role{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, role); err != nil {
		return nil, err
	}
	exempt := true
	for _, one := range withVerbs(right{Group: rbacv1.GroupName, Resource: "roles", Name: role.Name, Namespace: role.Namespace}, "escalate", "bind") {
		allowed, err := r.cluster.may(ctx, one)
		if err != nil {
			return nil, err
		}
		exempt = exempt && allowed
	}
	if exempt {
		return nil, nil
	}
	var rights []right
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			resource, subresource, _ := strings.Cut(resource, "/")
			for _, group := range rule.APIGroups {
				for _, name := range append(slices.Clone(rule.ResourceNames), make([]string, max(0, 1-len(rule.ResourceNames)))...) {
					rights = append(rights, withVerbs(right{Group: group, Resource: resource, Subresource: subresource, Name: name, Namespace: role.Namespace}, rule.Verbs...)...)
				}
			}
		}
	}
	return rights, nil
}

// checkRemoval finds out whether the caller may remove what an earlier --access bound, and the agent of before.
func (r *registerRun) checkRemoval(ctx context.Context) error {
	others, err := r.otherAccess(ctx)
	if err != nil {
		return err
	}
	var rights []right
	for _, b := range others {
		rights = append(rights, right{Verb: "delete", Group: rbacv1.GroupName, Resource: "clusterrolebindings", Name: b.Name})
		if ownRole(b) {
			rights = append(rights, right{Verb: "delete", Group: rbacv1.GroupName, Resource: "clusterroles", Name: b.RoleRef.Name})
		}
	}
	if !r.hasPods() {
		agent, err := r.agentRemoval(ctx)
		if err != nil {
			return err
		}
		rights = append(rights, agent...)
	}
	return r.cluster.requireRights(ctx, rights)
}

// agentRemoval are the rights to remove what there is of an agent of before (see removeAgent). What may not be seen is not removed.
func (r *registerRun) agentRemoval(ctx context.Context) ([]right, error) {
	all, err := agentObjects()
	if err != nil {
		return nil, err
	}
	var rights []right
	for _, o := range all {
		client, err := registration.ResourceFor(r.cluster.dyn, o)
		if err != nil {
			return nil, err
		}
		_, err = client.Get(ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
			continue
		case err != nil:
			return nil, r.cluster.explain(err)
		}
		gvr, _, err := registration.ResourceOf(o.GroupVersionKind())
		if err != nil {
			return nil, err
		}
		rights = append(rights, right{Verb: "delete", Group: gvr.Group, Resource: gvr.Resource, Name: o.GetName(), Namespace: o.GetNamespace()})
	}
	return rights, nil
}

// checkGrants tries to make the roles and bindings, and does not: the API server lets nobody give what he has not. (As long as their namespace is not there,
// it does not look at those in it; then clusterRights has to do.)
func (r *registerRun) checkGrants(ctx context.Context) error {
	access := registration.AccessOf(r.o.access)
	if access.Name != registration.AccessImpersonate {
		if _, err := r.cluster.kube.RbacV1().ClusterRoles().Get(ctx, access.Role, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return fmt.Errorf("--access %s: the cluster has no ClusterRole of that name. Use admin, view, impersonate or one of: kubectl get clusterroles", r.o.access)
		} else if err != nil {
			return r.cluster.explain(err)
		}
	}
	all, err := r.planned()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.GroupVersionKind().Group != rbacv1.GroupName {
			continue
		}
		_, _, err := r.cluster.apply(ctx, o, true)
		switch {
		case err == nil:
		case o.GetNamespace() == "":
			return fmt.Errorf("--access %s: %w", r.o.access, err)
		default:
			return fmt.Errorf("trying to apply %s %s, and nothing was changed: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}
