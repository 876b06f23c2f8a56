// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Form is how a cluster is reached, and where its agent runs.
type Form string

// The forms of a registration.
const (
	// FormPods has an agent that runs in the cluster, as Pods.
	FormPods Form = "pods"
	// FormProcess has an agent that runs as a process, with its files in a folder.
	FormProcess Form = "process"
	// FormDirect has no agent: the gateway connects to the API server.
	FormDirect Form = "direct"
)

// State is what was found on both sides before anything is changed. Each part of it is read once.
type State struct {
	Hub     HubState
	Cluster ClusterState
}

// HubState is what was found on the hub.
type HubState struct {
	// UID identifies the hub: the UID of its namespace kube-system.
	UID types.UID
	// Namespace holds the Secrets of clusters.
	Namespace string
	// Secret is the Secret of the cluster's name, or nil.
	Secret *corev1.Secret
	// TunnelAddress is the address that agents dial, TunnelCA the CAs that agents and gateway
	// trust. Both are empty for FormDirect.
	TunnelAddress string
	TunnelCA      []byte
}

// ClusterState is what was found in the managed cluster.
type ClusterState struct {
	// UID identifies the cluster: the UID of its namespace kube-system.
	UID types.UID
	// Namespace is the agent's namespace, or nil.
	Namespace *corev1.Namespace
	// Server is what the kubeconfig says about the API server.
	Server ServerInfo
	// RootCA is the CA in the cluster's ConfigMap kube-root-ca.crt. It is read only if
	// [NeedsRootCA].
	RootCA []byte
	// AccessRoleMissing is whether the ClusterRole of --access does not exist.
	AccessRoleMissing bool
	// Bindings are the ClusterRoleBindings of a registration.
	Bindings []rbacv1.ClusterRoleBinding
	// Agent lists what exists of an agent that runs as Pods. It is read only for the other forms.
	// AgentUnread lists what the caller may not read.
	Agent, AgentUnread []*unstructured.Unstructured
	// Pair is the certificate that the agent has, or nil.
	Pair *AgentPair
	// SharedRights lists what exists of [SharedRights].
	SharedRights []*unstructured.Unstructured
	// TokenAccepted and MaintenanceTokenAccepted are whether the cluster accepts the tokens in the
	// hub's Secret as those of the gateway's accounts.
	TokenAccepted, MaintenanceTokenAccepted bool
	// Unread lists the rights that were missing to read the state. They are among the rights of the
	// plan, so that authorization reports them together with the others.
	Unread []Right
}

// ServerInfo is what a kubeconfig says about an API server.
type ServerInfo struct {
	URL, ServerName, ProxyURL string
	CA                        []byte
	// Insecure is whether the kubeconfig switches verification off. A registration never does.
	Insecure bool
}

// NeedsRootCA is whether the CA of the API server is read from the cluster. In the cluster its own
// CA is what counts; the kubeconfig may have that of a load balancer.
func NeedsRootCA(form Form, server ServerInfo) bool {
	return form == FormPods || len(server.CA) == 0 && (form == FormProcess || server.Insecure)
}

// ReadCluster reads the state of a managed cluster that the plan for spec depends on. It sets
// neither UID, Namespace and what tokens are accepted nor, for FormProcess, Pair. Errors are those
// of the clients; a read that is forbidden is not an error but added to Unread.
func ReadCluster(ctx context.Context, kube kubernetes.Interface, dyn dynamic.Interface, spec Spec, server ServerInfo) (ClusterState, error) {
	state := ClusterState{Server: server}
	r := clusterReader{ctx: ctx, kube: kube, dyn: dyn, state: &state}
	r.bindings()
	r.accessRole(AccessOf(spec.Access))
	r.sharedRights()
	if NeedsRootCA(spec.Form, server) {
		r.rootCA()
	}
	if spec.Form == FormPods {
		r.pair()
	} else {
		r.agent()
	}
	return state, r.err
}

// clusterReader reads one part of the state after the other, until one fails.
type clusterReader struct {
	ctx   context.Context //nolint:containedctx // it lives for one call of ReadCluster
	kube  kubernetes.Interface
	dyn   dynamic.Interface
	state *ClusterState
	err   error
}

// failed handles the error of a read that needs this right, and is true if there is nothing to use.
func (r *clusterReader) failed(err error, right Right) bool {
	switch {
	case err == nil:
		return false
	case apierrors.IsForbidden(err):
		r.state.Unread = append(r.state.Unread, right)
	default:
		r.err = err
	}
	return true
}

func (r *clusterReader) bindings() {
	options := metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy + "=" + FieldManager}
	list, err := r.kube.RbacV1().ClusterRoleBindings().List(r.ctx, options)
	if r.failed(err, listBindings) {
		return
	}
	for _, b := range list.Items {
		if strings.HasPrefix(b.Name, AccessPrefix) {
			r.state.Bindings = append(r.state.Bindings, b)
		}
	}
}

func (r *clusterReader) accessRole(access Access) {
	if r.err != nil || access.Name == AccessImpersonate { // then the role is part of the registration
		return
	}
	_, err := r.kube.RbacV1().ClusterRoles().Get(r.ctx, access.Role, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		r.state.AccessRoleMissing = true
		return
	}
	r.failed(err, getAccessRole(access))
}

// sharedRights looks for the rights that earlier versions gave the account for callers.
func (r *clusterReader) sharedRights() {
	for _, o := range SharedRights() {
		if r.err != nil {
			return
		}
		resource, err := ResourceFor(r.dyn, o)
		if err != nil {
			r.err = err
			return
		}
		right, err := rightOn(o)
		if err != nil {
			r.err = err
			return
		}
		right.Verb = "get"
		current, err := resource.Get(r.ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) || r.failed(err, right) {
			continue
		}
		if current.GetLabels()[v1alpha1.LabelManagedBy] == FieldManager {
			r.state.SharedRights = append(r.state.SharedRights, o)
		}
	}
}

func (r *clusterReader) rootCA() {
	if r.err != nil {
		return
	}
	root, err := r.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(r.ctx, RootCAConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || r.failed(err, getRootCA) {
		return
	}
	r.state.RootCA = []byte(root.Data[corev1.ServiceAccountRootCAKey])
}

func (r *clusterReader) pair() {
	if r.err != nil {
		return
	}
	secret, err := r.kube.CoreV1().Secrets(AgentNamespace).Get(r.ctx, AgentName, metav1.GetOptions{})
	right := Right{Verb: "get", Resource: "secrets", Namespace: AgentNamespace, Name: AgentName}
	if apierrors.IsNotFound(err) || r.failed(err, right) {
		return
	}
	pair := AgentPairOf(secret)
	r.state.Pair = &pair
}

// agent looks for an agent of an earlier registration. If the caller may not read an object, it
// stays.
func (r *clusterReader) agent() {
	if r.err != nil {
		return
	}
	all, err := agentReferences()
	if err != nil {
		r.err = err
		return
	}
	for _, o := range all {
		resource, err := ResourceFor(r.dyn, o)
		if err != nil {
			r.err = err
			return
		}
		current, err := resource.Get(r.ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err):
			r.state.AgentUnread = append(r.state.AgentUnread, o)
		case err != nil:
			r.err = err
			return
		case current.GetLabels()[v1alpha1.LabelManagedBy] == FieldManager:
			r.state.Agent = append(r.state.Agent, o)
		}
	}
}

// agentReferences names the objects of an agent that runs as Pods.
func agentReferences() ([]*unstructured.Unstructured, error) {
	base, err := AgentBase(IsAgent)
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, o := range base {
		all = append(all, reference(o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()))
	}
	return append(all,
		reference("v1", "Secret", AgentNamespace, AgentName),
		reference("v1", "ConfigMap", AgentNamespace, AgentName)), nil
}

// reference names an object.
func reference(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(apiVersion)
	o.SetKind(kind)
	if namespace != "" {
		o.SetNamespace(namespace)
	}
	o.SetName(name)
	return o
}
