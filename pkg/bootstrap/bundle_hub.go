// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// collect reads everything, part by part. It returns an error only if it is interrupted.
func (b *bundle) collect(ctx context.Context) error {
	b.learnOwnCredential()
	c := &collection{bundle: b}
	for _, part := range []struct {
		name string
		read func(context.Context) string
	}{
		{"secrets", c.readSecrets}, {"hub", c.readHub}, {"doctor", c.examine}, {"gateways", c.readGateways}, {"logs", c.readLogs}, {"agents", c.readAgents},
	} {
		if err := b.step(ctx, part.name, "%s", part.read(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// learnOwnCredential makes the redactor remove the caller's credential for the hub.
func (b *bundle) learnOwnCredential() {
	b.redactor.learn(b.hub.config.BearerToken)
	b.redactor.learn(b.hub.config.Password)
	b.redactor.learn(string(b.hub.config.KeyData))
}

// collection is what the parts of a bundle know from the parts before them.
type collection struct {
	*bundle
	// service is the gateway's Service, of which the hub uses port. gateways selects its Pods.
	service  *corev1.Service
	port     int
	gateways labels.Selector
	// deployments and pods are those of the gateway.
	deployments []appsv1.Deployment
	pods        []corev1.Pod
	// secretClusters are the clusters that have a Secret. clusters are those that have a
	// ClusterGateway, or the same ones if ClusterGateways cannot be read.
	secretClusters, clusters []string
	diagnoses                []Diagnosis
}

// within bounds one read.
func (b *bundle) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, b.o.timeout)
}

// secretSummary is what the bundle says about a Secret.
type secretSummary struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Type            corev1.SecretType `json:"type"`
	// Keys are the keys in its data. Empty are those without a value.
	Keys  []string `json:"keys"`
	Empty []string `json:"empty,omitempty"`
}

// readSecrets describes the Secrets of the gateway, and makes the redactor remove the values of all
// Secrets in the namespace.
func (c *collection) readSecrets(ctx context.Context) string {
	ctx, cancel := c.within(ctx)
	defer cancel()
	secrets, err := c.hub.kube.CoreV1().Secrets(c.app.hub.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		c.miss("the Secrets of the gateway", err)
		return "cannot be read"
	}
	var summaries []any
	for _, s := range secrets.Items {
		_, isInvitation := s.Labels[v1alpha1.LabelInvitation]
		_, isCluster := s.Labels[v1alpha1.LabelCredentialType]
		if !isInvitation { // the record of an invitation has no secret
			for key, value := range s.Data {
				c.redactor.learnData(key, value)
			}
		}
		if isCluster {
			c.secretClusters = append(c.secretClusters, s.Name)
		}
		if isCluster || isInvitation || s.Labels["app.kubernetes.io/managed-by"] == pki.ManagedBy {
			summaries = append(summaries, summarize(&s))
		}
	}
	c.putObjects("hub/secrets.yaml", summaries...)
	return fmt.Sprintf("%d Secrets, without values", len(summaries))
}

func summarize(s *corev1.Secret) *secretSummary {
	summary := &secretSummary{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Metadata: s.ObjectMeta, Type: s.Type, Keys: slices.Sorted(maps.Keys(s.Data)),
	}
	for _, key := range summary.Keys {
		if len(s.Data[key]) == 0 {
			summary.Empty = append(summary.Empty, key)
		}
	}
	return summary
}

// readHub reads the objects of the gateway, except Secrets.
func (c *collection) readHub(ctx context.Context) string {
	c.gateways = labels.SelectorFromSet(labels.Set{"app.kubernetes.io/name": "cluster-gateway"})
	core, apps := schema.GroupVersion{Version: "v1"}, appsv1.SchemeGroupVersion
	c.list(ctx, "hub/apiservice.yaml", schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}, "",
		metav1.ListOptions{FieldSelector: "metadata.name=" + v1alpha1.Version + "." + v1alpha1.GroupName}, c.findService(ctx))
	namespace := c.app.hub.namespace
	if c.service != nil {
		namespace = c.service.Namespace
		if len(c.service.Spec.Selector) > 0 {
			c.gateways = labels.SelectorFromSet(c.service.Spec.Selector)
		}
		c.putObjects("hub/service.yaml", c.service)
	}
	c.list(ctx, "hub/clustergateways.yaml", v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName), "", metav1.ListOptions{}, func(o *unstructured.Unstructured) bool {
		c.clusters = append(c.clusters, o.GetName())
		return true
	})
	if c.clusters == nil {
		c.clusters = c.secretClusters
	}
	slices.Sort(c.clusters)
	c.list(ctx, "hub/deployments.yaml", apps.WithResource("deployments"), namespace, metav1.ListOptions{}, c.keepDeployment)
	c.list(ctx, "hub/pods.yaml", core.WithResource("pods"), namespace, metav1.ListOptions{LabelSelector: c.gateways.String()}, func(o *unstructured.Unstructured) bool {
		var pod corev1.Pod
		if fromUnstructured(o, &pod) == nil {
			c.pods = append(c.pods, pod)
		}
		return true
	})
	c.list(ctx, "hub/configmaps.yaml", core.WithResource("configmaps"), namespace, metav1.ListOptions{}, c.withoutUnusedData)
	c.list(ctx, "hub/leases.yaml", schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, namespace, metav1.ListOptions{}, nil)
	c.list(ctx, "hub/events-gateway.yaml", core.WithResource("events"), namespace, metav1.ListOptions{}, nil)
	c.list(ctx, "hub/events-clusters.yaml", core.WithResource("events"), metav1.NamespaceDefault,
		metav1.ListOptions{FieldSelector: "involvedObject.kind=" + v1alpha1.KindName}, nil)
	return fmt.Sprintf("%d clusters, %d Pods of the gateway", len(c.clusters), len(c.pods))
}

// list reads objects and adds a file with those that keep returns true for. keep may change them.
// nil keeps all.
func (b *bundle) list(ctx context.Context, file string, resource schema.GroupVersionResource, namespace string, o metav1.ListOptions, keep func(*unstructured.Unstructured) bool) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	objects, err := b.hub.dyn.Resource(resource).Namespace(namespace).List(ctx, o)
	if err != nil {
		b.miss(file, err)
		return
	}
	kept := []map[string]any{}
	for i := range objects.Items {
		if keep == nil || keep(&objects.Items[i]) {
			kept = append(kept, objects.Items[i].Object)
		}
	}
	b.put(file, kept)
}

// findService remembers the gateway's Service, which is in the APIService.
func (c *collection) findService(ctx context.Context) func(*unstructured.Unstructured) bool {
	return func(o *unstructured.Unstructured) bool {
		namespace, _, _ := unstructured.NestedString(o.Object, "spec", "service", "namespace")
		name, _, _ := unstructured.NestedString(o.Object, "spec", "service", "name")
		if name == "" || o.GetName() != v1alpha1.Version+"."+v1alpha1.GroupName {
			return false
		}
		service, err := c.hub.kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			c.miss("the Service of the gateway", err)
			return true
		}
		service.APIVersion, service.Kind = "v1", "Service"
		port, found, _ := unstructured.NestedInt64(o.Object, "spec", "service", "port")
		if !found {
			port = 443 // the default of the API
		}
		c.service, c.port = service, int(port)
		return true
	}
}

// keepDeployment keeps the Deployments whose Pods are gateways.
func (c *collection) keepDeployment(o *unstructured.Unstructured) bool {
	var d appsv1.Deployment
	if fromUnstructured(o, &d) != nil || !c.gateways.Matches(labels.Set(d.Spec.Template.Labels)) {
		return false
	}
	c.deployments = append(c.deployments, d)
	return true
}

// withoutUnusedData removes the data of ConfigMaps that are not the gateway's.
func (c *collection) withoutUnusedData(o *unstructured.Unstructured) bool {
	if o.GetName() == pki.ConfigMap || slices.ContainsFunc(c.deployments, func(d appsv1.Deployment) bool { return uses(&d.Spec.Template.Spec, o.GetName()) }) {
		return true
	}
	data, _, _ := unstructured.NestedMap(o.Object, "data")
	for key := range data {
		data[key] = "(not collected)"
	}
	_ = unstructured.SetNestedMap(o.Object, data, "data") // a map of strings
	unstructured.RemoveNestedField(o.Object, "binaryData")
	return true
}

// uses reports whether Pods have a ConfigMap in a volume.
func uses(pod *corev1.PodSpec, configMap string) bool {
	return slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
		if v.Projected != nil {
			return slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ConfigMap != nil && s.ConfigMap.Name == configMap })
		}
		return v.ConfigMap != nil && v.ConfigMap.Name == configMap
	})
}

// examine runs doctor for all clusters.
func (c *collection) examine(ctx context.Context) string {
	c.diagnoses = c.examineAll(ctx, c.clusters, &doctorOptions{parallel: c.o.parallel, timeout: c.o.timeout})
	broken, all := 0, make([]any, len(c.diagnoses))
	for i := range c.diagnoses {
		all[i] = &c.diagnoses[i]
		if c.diagnoses[i].Broken != "" {
			broken++
		}
	}
	c.putObjects("doctor.yaml", all...)
	return fmt.Sprintf("%d of %d clusters are broken", broken, len(all))
}
