// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// FieldManager applies what is here, and is the value of [LabelManagedBy].
const FieldManager = "agent-bootstrap"

// DefaultTunnelEndpoint is the API server to an agent in a Pod.
const DefaultTunnelEndpoint = "https://kubernetes.default.svc:443"

// Names in a managed cluster.
const (
	AgentNamespace = rotation.AgentNamespace
	AgentName      = rotation.AgentName // Deployment, ConfigMap, Secret
	GatewayAccount = "cluster-gateway"  // the gateway's ServiceAccount
	AccessPrefix   = "cluster-gateway-agent:"
	// AgentPriorityClass is the agent's PriorityClass.
	AgentPriorityClass = "cluster-gateway-agent"
	// agentDir is where the agent's Pods have their certificate.
	agentDir = "/var/run/konnectivity-agent"
)

// Labels and annotations.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// AnnotationClusterUID on the hub's Secret is which cluster it is: the UID of its namespace kube-system.
	AnnotationClusterUID = v1alpha1.GroupName + "/cluster-uid"
	// AnnotationAccess on the hub's Secret is what --access said.
	AnnotationAccess = v1alpha1.GroupName + "/access"
	// AnnotationClusterName and AnnotationHubUID on the managed cluster's namespace are what it is registered as, and with which hub.
	AnnotationClusterName = v1alpha1.GroupName + "/cluster-name"
	AnnotationHubUID      = v1alpha1.GroupName + "/hub-uid"
	// annotationAddress on the agent's Pods is the hash of where it dials: when that changes, they are rolled. The gateway, which rolls
	// them for another certificate, does not know the address.
	annotationAddress = v1alpha1.GroupName + "/agent-address"
)

// The keys of a cluster's Secret that are written; docs/secrets.md has them all.
const (
	KeyEndpoint   = "endpoint"
	KeyCA         = "ca.crt"
	KeyToken      = "token"
	KeyServerName = "tls-server-name"
	KeyProxyURL   = "proxy-url"
)

// ToUnstructured makes a typed object what can be applied: nothing in it but what was set.
func ToUnstructured(o runtime.Object) (*unstructured.Unstructured, error) {
	gvks, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return nil, err
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: object}
	u.SetGroupVersionKind(gvks[0])
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "status")
	return u, nil
}

// Managed are the labels of what is applied, and more.
func Managed(extra map[string]string) map[string]string {
	labels := map[string]string{LabelManagedBy: FieldManager, "app.kubernetes.io/part-of": "cluster-gateway"}
	maps.Copy(labels, extra)
	return labels
}

// mark adds the labels to an object of a base.
func mark(o *unstructured.Unstructured) *unstructured.Unstructured {
	o.SetLabels(Managed(o.GetLabels()))
	return o
}

// AgentBase returns the objects of manifests/konnectivity/agent that are wanted.
func AgentBase(wanted func(o *unstructured.Unstructured) bool) ([]*unstructured.Unstructured, error) {
	all, err := manifests.Objects(manifests.KonnectivityAgent)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, o := range all {
		if wanted(o) {
			objects = append(objects, mark(o))
		}
	}
	return objects, nil
}

// IsNamespace tells the namespace that the others are in.
func IsNamespace(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }

// IsGatewayAccount tells what the gateway needs in a cluster, with or without an agent there.
func IsGatewayAccount(o *unstructured.Unstructured) bool {
	return o.GetNamespace() != "" && o.GetName() == GatewayAccount
}

// IsAgent tells what the agent consists of.
func IsAgent(o *unstructured.Unstructured) bool { return !IsNamespace(o) && !IsGatewayAccount(o) }

// Namespace is the managed cluster's namespace, which says whose it is.
func Namespace(name string, hubUID types.UID) (*unstructured.Unstructured, error) {
	list, err := AgentBase(IsNamespace)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("the base %s has %d namespaces", manifests.KonnectivityAgent, len(list))
	}
	list[0].SetAnnotations(map[string]string{AnnotationClusterName: name, AnnotationHubUID: string(hubUID)})
	return list[0], nil
}

// Own makes a cluster-scoped object go with the namespace.
func Own(o *unstructured.Unstructured, namespace types.UID) {
	if namespace == "" { // a dry run, and there is none yet
		return
	}
	o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: AgentNamespace, UID: namespace}})
}

// agentSecret holds the agent's certificate.
func agentSecret(pair rotation.AgentPair) (*unstructured.Unstructured, error) {
	return ToUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: AgentName, Namespace: AgentNamespace, Labels: Managed(nil)},
		Type:       corev1.SecretTypeTLS,
		Data:       pair.Data(),
	})
}

// agentConfig says where the agent dials.
func agentConfig(address string) (*unstructured.Unstructured, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return ToUnstructured(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: AgentName, Namespace: AgentNamespace, Labels: Managed(nil)},
		Data:       map[string]string{"host": host, "port": port},
	})
}

// RollHashes are annotations of the agent's Pods: all that an agent reads once, when it starts.
func RollHashes(address string, pair rotation.AgentPair) map[string]string {
	hash := sha256.Sum256([]byte(address))
	return map[string]string{rotation.AnnotationAgentCertificate: pair.Hash(), annotationAddress: hex.EncodeToString(hash[:8])}
}

// Agent returns the agent: the base, and what is this cluster's own.
func Agent(address string, pair rotation.AgentPair) ([]*unstructured.Unstructured, error) {
	config, err := agentConfig(address)
	if err != nil {
		return nil, err
	}
	secret, err := agentSecret(pair)
	if err != nil {
		return nil, err
	}
	base, err := AgentBase(IsAgent)
	if err != nil {
		return nil, err
	}
	for _, o := range base {
		if o.GetKind() != "Deployment" {
			continue
		}
		if err := unstructured.SetNestedStringMap(o.Object, RollHashes(address, pair), "spec", "template", "metadata", "annotations"); err != nil {
			return nil, err
		}
	}
	return append([]*unstructured.Unstructured{config, secret}, base...), nil
}

// AgentArgs are the arguments of the agent's container, for an agent that runs as a process with its files in dir.
func AgentArgs(address, dir string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	base, err := AgentBase(func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" })
	if err != nil {
		return nil, err
	}
	if len(base) != 1 {
		return nil, fmt.Errorf("the base %s has %d Deployments", manifests.KonnectivityAgent, len(base))
	}
	containers, _, err := unstructured.NestedSlice(base[0].Object, "spec", "template", "spec", "containers")
	if err != nil {
		return nil, err
	}
	args, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
	if err != nil {
		return nil, err
	}
	replacer := strings.NewReplacer("$(PROXY_SERVER_HOST)", host, "$(PROXY_SERVER_PORT)", port, agentDir, dir)
	for i := range args {
		args[i] = replacer.Replace(args[i])
	}
	return args, nil
}

// Access is what the gateway may do in a managed cluster.
type Access struct {
	// Name is what --access says; Role the ClusterRole that it means.
	Name, Role string
}

// The values of --access with a meaning of their own; any other is the name of a ClusterRole.
const (
	AccessAdmin       = "admin"
	AccessView        = "view"
	AccessImpersonate = "impersonate"
)

// AccessOf reads --access.
func AccessOf(name string) Access {
	switch name {
	case AccessAdmin:
		return Access{name, "cluster-admin"}
	case AccessImpersonate:
		return Access{name, AccessPrefix + "impersonate"}
	default: // view is called so in Kubernetes as well
		return Access{name, name}
	}
}

// Objects bind it to the gateway's account.
func (a Access) Objects(namespace types.UID) ([]*unstructured.Unstructured, error) {
	var typed []runtime.Object
	if a.Name == AccessImpersonate {
		typed = append(typed, &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: a.Role, Labels: Managed(nil)},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"users", "groups", "serviceaccounts"}, Verbs: []string{"impersonate"}},
			},
		})
	}
	typed = append(typed, &rbacv1.ClusterRoleBinding{
		// A binding's role cannot be changed: there is one for each, and those of before are removed.
		ObjectMeta: metav1.ObjectMeta{Name: AccessPrefix + "access:" + a.Role, Labels: Managed(nil)},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: a.Role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: AgentNamespace, Name: GatewayAccount}},
	})
	var objects []*unstructured.Unstructured
	for _, o := range typed {
		u, err := ToUnstructured(o)
		if err != nil {
			return nil, err
		}
		Own(u, namespace)
		objects = append(objects, u)
	}
	return objects, nil
}

// ClusterSecret registers a cluster with the hub. Access is what --access said; Tunnel is the route.
type ClusterSecret struct {
	Name, Namespace string
	Tunnel          bool
	UID             types.UID
	Access          string
	Endpoint        string
	CA              []byte
	ServerName      string
	ProxyURL        string
	Token           string
}

// Secret is what registers a cluster that is not registered yet. One that is there already becomes it by [ClusterSecret.Patch].
func (c ClusterSecret) Secret() *corev1.Secret {
	endpointType := v1alpha1.EndpointTypeConst
	if c.Tunnel {
		endpointType = v1alpha1.EndpointTypeClusterProxy
	}
	data := map[string][]byte{KeyEndpoint: []byte(c.Endpoint), KeyToken: []byte(c.Token)}
	for key, value := range map[string]string{KeyCA: string(c.CA), KeyServerName: c.ServerName, KeyProxyURL: c.ProxyURL} {
		if value != "" {
			data[key] = []byte(value)
		}
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: c.Name, Namespace: c.Namespace,
			Labels: Managed(map[string]string{
				v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken),
				v1alpha1.LabelEndpointType:   string(endpointType),
			}),
			Annotations: map[string]string{AnnotationClusterUID: string(c.UID), AnnotationAccess: c.Access},
		},
		Type: corev1.SecretTypeOpaque,
		Data: data,
	}
}

// Patch is a JSON merge patch that makes a Secret which is on the hub already that of the registration, as long as it is as it was read. What has a meaning
// for the gateway (docs/secrets.md) and is not the registration's goes, whoever wrote it; removed names that. All else stays.
func (c ClusterSecret) Patch(current *corev1.Secret) (patch []byte, removed []string, err error) {
	wanted := c.Secret()
	data, annotations := map[string]any{}, map[string]any{}
	for key, value := range wanted.Data {
		data[key] = value
	}
	for key, value := range wanted.Annotations {
		annotations[key] = value
	}
	// What is null is removed by a merge patch.
	for _, key := range cluster.DataKeys() {
		if _, has := current.Data[key]; has && data[key] == nil {
			data[key] = nil
			removed = append(removed, key)
		}
	}
	// With it, the gateway would verify nothing. (What other annotations of the gateway's there are is the cluster's health.)
	if _, has := current.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify]; has {
		annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = nil
		removed = append(removed, "annotation "+v1alpha1.AnnotationInsecureSkipTLSVerify)
	}
	patch, err = json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": current.UID, "resourceVersion": current.ResourceVersion, "labels": wanted.Labels, "annotations": annotations},
		"data":     data,
	})
	return patch, removed, err
}

// Redacted is an object as it may be printed: without tokens and private keys.
func Redacted(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	unstructured.RemoveNestedField(o.Object, "metadata", "managedFields")
	for _, key := range []string{KeyToken, corev1.TLSPrivateKeyKey} {
		if _, found, _ := unstructured.NestedFieldNoCopy(o.Object, "data", key); found && o.GetKind() == "Secret" {
			unstructured.RemoveNestedField(o.Object, "data", key)
			// Text that says so, and that cannot be taken for a value when it is applied.
			_ = unstructured.SetNestedField(o.Object, "<not shown>", "stringData", key) // data was a map, so is its neighbour
		}
	}
	return o
}
