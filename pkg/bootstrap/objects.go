// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"crypto/sha256"
	"encoding/hex"
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
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// Names in a managed cluster.
const (
	agentNamespace = rotation.AgentNamespace
	agentName      = rotation.AgentName // Deployment, ConfigMap, Secret
	gatewayAccount = "cluster-gateway"  // the gateway's ServiceAccount
	accessPrefix   = "cluster-gateway-agent:"
	// agentDir is where the agent's Pods have their certificate.
	agentDir = "/var/run/konnectivity-agent"
)

// Labels and annotations.
const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	// annotationClusterUID on the hub's Secret is which cluster it is: the UID of its namespace kube-system.
	annotationClusterUID = v1alpha1.GroupName + "/cluster-uid"
	// annotationAccess on the hub's Secret is what --access said.
	annotationAccess = v1alpha1.GroupName + "/access"
	// annotationClusterName and annotationHubUID on the managed cluster's namespace are what it is registered as, and with which hub.
	annotationClusterName = v1alpha1.GroupName + "/cluster-name"
	annotationHubUID      = v1alpha1.GroupName + "/hub-uid"
	// annotationAddress on the agent's Pods is the hash of where it dials: when that changes, they are rolled. The gateway, which rolls
	// them for another certificate, does not know the address.
	annotationAddress = v1alpha1.GroupName + "/agent-address"
)

// The keys of a cluster's Secret that are written; docs/secrets.md has them all.
const (
	keyEndpoint   = "endpoint"
	keyCA         = "ca.crt"
	keyToken      = "token"
	keyServerName = "tls-server-name"
	keyProxyURL   = "proxy-url"
)

// toUnstructured makes a typed object what can be applied: nothing in it but what was set.
func toUnstructured(o runtime.Object) (*unstructured.Unstructured, error) {
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

func managed(extra map[string]string) map[string]string {
	labels := map[string]string{labelManagedBy: fieldManager, "app.kubernetes.io/part-of": "cluster-gateway"}
	maps.Copy(labels, extra)
	return labels
}

// mark adds the labels to an object of a base.
func mark(o *unstructured.Unstructured) *unstructured.Unstructured {
	o.SetLabels(managed(o.GetLabels()))
	return o
}

// base returns the objects of manifests/konnectivity/agent of the given kinds, all others when except is set.
func agentBase(wanted func(o *unstructured.Unstructured) bool) ([]*unstructured.Unstructured, error) {
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

func isNamespace(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }

// isGatewayAccount tells what the gateway needs in a cluster, with or without an agent there.
func isGatewayAccount(o *unstructured.Unstructured) bool {
	return o.GetNamespace() != "" && o.GetName() == gatewayAccount
}

func isAgent(o *unstructured.Unstructured) bool { return !isNamespace(o) && !isGatewayAccount(o) }

// namespaceObject is the managed cluster's namespace, which says whose it is.
func namespaceObject(cluster string, hubUID types.UID) (*unstructured.Unstructured, error) {
	list, err := agentBase(isNamespace)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("the base %s has %d namespaces", manifests.KonnectivityAgent, len(list))
	}
	list[0].SetAnnotations(map[string]string{annotationClusterName: cluster, annotationHubUID: string(hubUID)})
	return list[0], nil
}

// owned makes a cluster-scoped object go with the namespace.
func owned(o *unstructured.Unstructured, namespace types.UID) {
	if namespace == "" { // a dry run, and there is none yet
		return
	}
	o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: agentNamespace, UID: namespace}})
}

// agentSecret holds the agent's certificate.
func agentSecret(pair rotation.AgentPair) (*unstructured.Unstructured, error) {
	return toUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: agentName, Namespace: agentNamespace, Labels: managed(nil)},
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
	return toUnstructured(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: agentName, Namespace: agentNamespace, Labels: managed(nil)},
		Data:       map[string]string{"host": host, "port": port},
	})
}

// rollHashes are annotations of the agent's Pods: all that an agent reads once, when it starts.
func rollHashes(address string, pair rotation.AgentPair) map[string]string {
	hash := sha256.Sum256([]byte(address))
	return map[string]string{rotation.AnnotationAgentCertificate: pair.Hash(), annotationAddress: hex.EncodeToString(hash[:8])}
}

// agentObjects are the agent: the base, and what is this cluster's own.
func agentObjects(address string, pair rotation.AgentPair) ([]*unstructured.Unstructured, error) {
	config, err := agentConfig(address)
	if err != nil {
		return nil, err
	}
	secret, err := agentSecret(pair)
	if err != nil {
		return nil, err
	}
	base, err := agentBase(isAgent)
	if err != nil {
		return nil, err
	}
	for _, o := range base {
		if o.GetKind() != "Deployment" {
			continue
		}
		if err := unstructured.SetNestedStringMap(o.Object, rollHashes(address, pair), "spec", "template", "metadata", "annotations"); err != nil {
			return nil, err
		}
	}
	return append([]*unstructured.Unstructured{config, secret}, base...), nil
}

// agentArgs are the arguments of the agent's container, for an agent that runs as a process with its files in dir.
func agentArgs(address, dir string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	base, err := agentBase(func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" })
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

// access is what the gateway may do in a managed cluster.
type access struct {
	// name is what --access says; role the ClusterRole that it means.
	name, role string
}

const (
	accessAdmin       = "admin"
	accessView        = "view"
	accessImpersonate = "impersonate"
)

func accessOf(name string) access {
	switch name {
	case accessAdmin:
		return access{name, "cluster-admin"}
	case accessImpersonate:
		return access{name, accessPrefix + "impersonate"}
	default: // view is called so in Kubernetes as well
		return access{name, name}
	}
}

// objects bind it to the gateway's account.
func (a access) objects(namespace types.UID) ([]*unstructured.Unstructured, error) {
	var typed []runtime.Object
	if a.name == accessImpersonate {
		typed = append(typed, &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: a.role, Labels: managed(nil)},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"users", "groups", "serviceaccounts"}, Verbs: []string{"impersonate"}},
			},
		})
	}
	typed = append(typed, &rbacv1.ClusterRoleBinding{
		// A binding's role cannot be changed: there is one for each, and those of before are removed.
		ObjectMeta: metav1.ObjectMeta{Name: accessPrefix + "access:" + a.role, Labels: managed(nil)},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: a.role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: agentNamespace, Name: gatewayAccount}},
	})
	var objects []*unstructured.Unstructured
	for _, o := range typed {
		u, err := toUnstructured(o)
		if err != nil {
			return nil, err
		}
		owned(u, namespace)
		objects = append(objects, u)
	}
	return objects, nil
}

// clusterSecret registers the cluster with the hub.
type clusterSecret struct {
	name, namespace string
	tunnel          bool
	uid             types.UID
	access          string
	endpoint        string
	ca              []byte
	serverName      string
	proxyURL        string
	token           string
}

func (c clusterSecret) object() (*unstructured.Unstructured, error) {
	endpointType := v1alpha1.EndpointTypeConst
	if c.tunnel {
		endpointType = v1alpha1.EndpointTypeClusterProxy
	}
	data := map[string][]byte{keyEndpoint: []byte(c.endpoint), keyToken: []byte(c.token)}
	for key, value := range map[string]string{keyCA: string(c.ca), keyServerName: c.serverName, keyProxyURL: c.proxyURL} {
		if value != "" {
			data[key] = []byte(value)
		}
	}
	return toUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: c.name, Namespace: c.namespace,
			Labels: managed(map[string]string{
				v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken),
				v1alpha1.LabelEndpointType:   string(endpointType),
			}),
			Annotations: map[string]string{annotationClusterUID: string(c.uid), annotationAccess: c.access},
		},
		Type: corev1.SecretTypeOpaque,
		Data: data,
	})
}

// redacted is an object as it may be printed: without tokens and private keys.
func redacted(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	unstructured.RemoveNestedField(o.Object, "metadata", "managedFields")
	for _, key := range []string{keyToken, corev1.TLSPrivateKeyKey} {
		if _, found, _ := unstructured.NestedFieldNoCopy(o.Object, "data", key); found && o.GetKind() == "Secret" {
			unstructured.RemoveNestedField(o.Object, "data", key)
			// Text that says so, and that cannot be taken for a value when it is applied.
			_ = unstructured.SetNestedField(o.Object, "<not shown>", "stringData", key) // data was a map, so is its neighbour
		}
	}
	return o
}
