// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// AgentBase returns the objects of manifests/konnectivity/agent for which wanted is true.
func AgentBase(wanted func(o *unstructured.Unstructured) bool) ([]*unstructured.Unstructured, error) {
	all, err := manifests.Objects(manifests.KonnectivityAgent)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, o := range all {
		if wanted(o) {
			objects = append(objects, setManaged(o))
		}
	}
	return objects, nil
}

// IsNamespace is true for the namespace that holds the other objects.
func IsNamespace(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }

// IsGatewayAccount is true for the objects that the gateway needs in a cluster with or without an
// agent: its two accounts, and the rights of the account for maintenance.
func IsGatewayAccount(o *unstructured.Unstructured) bool {
	return o.GetNamespace() != "" && (o.GetName() == GatewayAccount || o.GetName() == MaintenanceAccount)
}

// SharedRights names the objects by which versions before v0.1.0 gave the account for callers the
// rights of the account for maintenance. A registration removes them.
func SharedRights() []*unstructured.Unstructured {
	const group = "rbac.authorization.k8s.io/v1"
	return []*unstructured.Unstructured{
		reference(group, "RoleBinding", AgentNamespace, GatewayAccount), // first: without it, the Role grants nothing
		reference(group, "Role", AgentNamespace, GatewayAccount),
	}
}

// IsAgent is true for the objects that only an agent needs.
func IsAgent(o *unstructured.Unstructured) bool { return !IsNamespace(o) && !IsGatewayAccount(o) }

// Namespace returns the agent's namespace, which records as what the cluster is registered, and
// where.
func Namespace(name string, hubUID types.UID) (*unstructured.Unstructured, error) {
	list, err := AgentBase(IsNamespace)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("the base %s has %d namespaces", manifests.KonnectivityAgent, len(list))
	}
	list[0].SetAnnotations(map[string]string{v1alpha1.AnnotationClusterName: name, v1alpha1.AnnotationHubUID: string(hubUID)})
	return list[0], nil
}

// SetOwner makes the agent's namespace the owner of a cluster-scoped object, which is then deleted
// with it. An empty UID sets nothing: in a dry run there may be no namespace yet.
func SetOwner(o *unstructured.Unstructured, namespace types.UID) {
	if namespace == "" {
		return
	}
	o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: AgentNamespace, UID: namespace}})
}

// agentSecret holds the agent's certificate.
func agentSecret(pair AgentPair) (*unstructured.Unstructured, error) {
	return ToUnstructured(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: AgentName, Namespace: AgentNamespace, Labels: ManagedLabels(nil)},
		Type:       corev1.SecretTypeTLS,
		Data:       pair.Data(),
	})
}

// agentConfig holds the address that the agent dials.
func agentConfig(address string) (*unstructured.Unstructured, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return ToUnstructured(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: AgentName, Namespace: AgentNamespace, Labels: ManagedLabels(nil)},
		Data:       map[string]string{"host": host, "port": port},
	})
}

// rollHashes returns the annotations of the agent's Pods. They cover everything that an agent reads
// only when it starts. The address has an annotation of its own because the gateway, which replaces
// the Pods when it renews the certificate, does not know it.
func rollHashes(address string, pair AgentPair) map[string]string {
	hash := sha256.Sum256([]byte(address))
	return map[string]string{v1alpha1.AnnotationAgentCertificate: pair.Hash(), v1alpha1.AnnotationAgentAddress: hex.EncodeToString(hash[:8])}
}

// Agent returns the objects of an agent that runs as Pods: its ConfigMap and Secret, and the base
// adapted to the values.
func Agent(address string, pair AgentPair, values AgentValues) ([]*unstructured.Unstructured, error) {
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
	if base, err = values.applyTo(base); err != nil {
		return nil, err
	}
	for _, o := range base {
		if o.GetKind() != "Deployment" {
			continue
		}
		annotations, _, err := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "annotations")
		if err != nil {
			return nil, err
		}
		annotations = merged(annotations, rollHashes(address, pair))
		if err := unstructured.SetNestedStringMap(o.Object, annotations, "spec", "template", "metadata", "annotations"); err != nil {
			return nil, err
		}
	}
	return append([]*unstructured.Unstructured{config, secret}, base...), nil
}

// AgentArgs returns the arguments of an agent that runs as a process with its files in dir. They
// are the arguments of the container in the base.
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
