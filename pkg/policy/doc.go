// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy decides what callers may do in a cluster, with plain RBAC of the hub.
//
// The first check is that of the generic API server: the verb of the HTTP method, on
// clustergateways/proxy, with the cluster's name. A caller who passes it can do in the cluster
// whatever the gateway's credential can. With --authorize-proxied-requests, an [Authorizer] also
// asks the hub about the request itself: the verb, resource, namespace and name that the cluster
// will see.
//
// # How a request becomes a check
//
// RBAC has no labels of clusters, and no rules about resources of another cluster. So the request
// is written as a request for a resource of a virtual API group, once for each way to select the
// cluster (see [Selectors]):
//
//	clusters                  every cluster
//	clusters:env=staging      the clusters with this label
//	cluster:edge-1            the cluster with this name
//
// The resource is written with its own API group, as for kubectl ("deployments.apps"); subresource,
// namespace, name and verb are those of the request. One check that is allowed is enough. So a
// ClusterRole with this rule, bound in the hub's namespace "shop", lets its subjects read Pods and
// their logs in the namespace "shop" of all clusters with the label env=staging:
//
//	apiGroups: ["clusters:env=staging"]
//	resources: ["pods", "pods/log"]
//	verbs: ["get", "list", "watch"]
//
// A path that is not a resource ("/metrics") becomes "/clusters:env=staging/metrics" and so on, for
// nonResourceURLs. Discovery is always allowed, as it is for all users of a cluster.
//
// # Requests that can do more than their verb says
//
// An upgrade (exec, attach, port-forward) also needs create, whatever its HTTP method is. A
// server-side apply, and an update of a kind that a PUT can create, also need create:
// kube-apiserver asks for it when the object does not exist, which the gateway cannot know.
//
// # Streams
//
// [Authorizer.StillAllowed] repeats both checks for a request that is already open. The proxy calls
// it at intervals, and ends a stream whose caller has lost the permission.
package policy
