// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// AgentValues adapt an agent that runs as Pods to its cluster: what differs between sites. They
// apply to the agent's Deployment and to the Job of an invitation. The zero value changes nothing.
type AgentValues struct {
	// Image replaces the agent's image, for example by a copy in another registry. ImagePullPolicy and
	// ImagePullSecrets say how it is pulled. The Secrets are in the agent's namespace.
	Image            string                        `json:"image,omitempty"`
	ImagePullPolicy  corev1.PullPolicy             `json:"imagePullPolicy,omitempty"`
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`
	// Env are more environment variables of the agent, for example HTTPS_PROXY.
	Env []corev1.EnvVar `json:"env,omitempty"`
	// Replicas is the number of agents. Nil means the number in the base.
	Replicas *int32 `json:"replicas,omitempty"`
	// Resources replace those in the base. Nil keeps them.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// NodeSelector, Tolerations and Affinity say where the agents run. NodeSelector is added to the
	// one in the base.
	NodeSelector map[string]string   `json:"nodeSelector,omitempty"`
	Tolerations  []corev1.Toleration `json:"tolerations,omitempty"`
	Affinity     *corev1.Affinity    `json:"affinity,omitempty"`
	// TopologySpread is whether the agents are spread over Nodes and zones. Nil means true.
	TopologySpread *bool `json:"topologySpread,omitempty"`
	// PriorityClassName is a PriorityClass of the cluster; the agent's own is then not applied. Empty
	// means no PriorityClass, nil the agent's own.
	PriorityClassName *string `json:"priorityClassName,omitempty"`
	// Labels and Annotations are added to the Deployment, the Job and their Pods.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// OmitUser leaves the choice of the user and the groups of the Pods to the cluster, as OpenShift
	// requires: runAsUser, runAsGroup and fsGroup are not set.
	OmitUser bool `json:"omitUser,omitempty"`
}

// maxAgentValues bounds the size of values: they have to fit into the Secrets that hold them.
const maxAgentValues = 64 << 10

// ParseAgentValues reads values from YAML or JSON. A field that does not exist is an error that
// names it. Nothing at all is the zero value.
func ParseAgentValues(data []byte) (AgentValues, error) {
	var v AgentValues
	if len(data) > maxAgentValues {
		return v, fmt.Errorf("it has %d bytes; at most %d are allowed", len(data), maxAgentValues)
	}
	document, err := onlyDocument(data)
	if err != nil {
		return v, err
	}
	if document == nil {
		return v, nil
	}
	strict, err := strictjson.UnmarshalStrict(document, &v)
	if err := errors.Join(append(strict, err)...); err != nil {
		return AgentValues{}, err
	}
	return v, v.validate().ToAggregate()
}

// onlyDocument returns the YAML document in data as JSON, or nil if data is empty.
func onlyDocument(data []byte) (document []byte, err error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		text, err := reader.Read()
		switch {
		case errors.Is(err, io.EOF):
			return document, nil
		case err != nil:
			return nil, err
		}
		next, err := yaml.YAMLToJSONStrict(text)
		switch {
		case err != nil:
			return nil, err
		case string(next) == "null":
		case document != nil:
			return nil, errors.New("it has more than one YAML document")
		default:
			document = next
		}
	}
}

// Encode returns the values as they are stored, or nil for the zero value.
func (v AgentValues) Encode() ([]byte, error) {
	if v.isZero() {
		return nil, nil
	}
	return json.Marshal(v)
}

func (v AgentValues) isZero() bool { return reflect.ValueOf(v).IsZero() }

// Environment variables that the agent's manifests set themselves.
var reservedEnv = []string{"PROXY_SERVER_HOST", "PROXY_SERVER_PORT", "INVITATION", "CLUSTER_CA"}

// validate returns what is wrong with values that could be read. The API server checks the rest.
func (v AgentValues) validate() field.ErrorList {
	var errs field.ErrorList
	if v.Image != strings.TrimSpace(v.Image) || strings.ContainsAny(v.Image, " \t\r\n") {
		errs = append(errs, field.Invalid(field.NewPath("image"), v.Image, "must not contain white space"))
	}
	policies := []corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}
	if v.ImagePullPolicy != "" && !slices.Contains(policies, v.ImagePullPolicy) {
		errs = append(errs, field.NotSupported(field.NewPath("imagePullPolicy"), v.ImagePullPolicy, policies))
	}
	for i, secret := range v.ImagePullSecrets {
		errs = append(errs, validName(field.NewPath("imagePullSecrets").Index(i).Child("name"), secret.Name)...)
	}
	errs = append(errs, v.validateEnv()...)
	if v.Replicas != nil && *v.Replicas < 1 {
		errs = append(errs, field.Invalid(field.NewPath("replicas"), *v.Replicas, "must be at least 1"))
	}
	if name := v.PriorityClassName; name != nil && *name != "" {
		errs = append(errs, validName(field.NewPath("priorityClassName"), *name)...)
	}
	errs = append(errs, metav1validation.ValidateLabels(v.NodeSelector, field.NewPath("nodeSelector"))...)
	errs = append(errs, metav1validation.ValidateLabels(v.Labels, field.NewPath("labels"))...)
	errs = append(errs, apivalidation.ValidateAnnotations(v.Annotations, field.NewPath("annotations"))...)
	return append(errs, v.validateReserved()...)
}

func validName(path *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for _, fault := range validation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(path, name, fault))
	}
	return errs
}

func (v AgentValues) validateEnv() field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, variable := range v.Env {
		path := field.NewPath("env").Index(i)
		switch {
		case variable.Name == "":
			errs = append(errs, field.Required(path.Child("name"), ""))
		case slices.Contains(reservedEnv, variable.Name):
			errs = append(errs, field.Forbidden(path.Child("name"), variable.Name+" is set by agent-bootstrap"))
		case seen[variable.Name]:
			errs = append(errs, field.Duplicate(path.Child("name"), variable.Name))
		}
		seen[variable.Name] = true
		if variable.Value != "" && variable.ValueFrom != nil {
			errs = append(errs, field.Forbidden(path.Child("valueFrom"), "may not be set together with value"))
		}
		if strings.EqualFold(variable.Name, "HTTPS_PROXY") && !usableProxy(variable.Value) {
			// The value is not shown: it may hold a password.
			errs = append(errs, field.Invalid(path.Child("value"), "", "must be an HTTP proxy, http://HOST:PORT: the agent supports no other"))
		}
	}
	return errs
}

// usableProxy is whether the agent can connect through the proxy in this value of HTTPS_PROXY. gRPC
// sends CONNECT without TLS, whatever the scheme is. An empty value is no proxy.
func usableProxy(value string) bool {
	if value == "" || strings.Contains(value, "$(") { // another variable of the container
		return true
	}
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	proxy, err := url.Parse(value)
	return err == nil && proxy.Scheme == "http" && proxy.Hostname() != ""
}

// validateReserved refuses labels and annotations by which Kubernetes and the gateway know the
// agent.
func (v AgentValues) validateReserved() field.ErrorList {
	var errs field.ErrorList
	for name, pairs := range map[string]map[string]string{"labels": v.Labels, "annotations": v.Annotations} {
		for _, key := range slices.Sorted(maps.Keys(pairs)) {
			own := slices.Contains([]string{"app.kubernetes.io/name", "app.kubernetes.io/part-of", v1alpha1.LabelManagedBy}, key)
			if prefix, _, _ := strings.Cut(key, "/"); own || prefix == v1alpha1.GroupName {
				errs = append(errs, field.Forbidden(field.NewPath(name).Key(key), "is set by agent-bootstrap"))
			}
		}
	}
	return errs
}

// applyTo adapts the objects of a base to the values, and returns the objects that are to be
// applied.
func (v AgentValues) applyTo(objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	if v.isZero() {
		return objects, nil
	}
	var adapted []*unstructured.Unstructured
	for _, o := range objects {
		switch o.GetKind() {
		case "PriorityClass":
			if v.PriorityClassName != nil {
				continue
			}
		case "Deployment", "Job":
			if err := v.adapt(o); err != nil {
				return nil, fmt.Errorf("adapt %s %s to the values of the agent: %w", o.GetKind(), o.GetName(), err)
			}
		}
		adapted = append(adapted, o)
	}
	return adapted, nil
}

// adapt changes a Deployment or a Job.
func (v AgentValues) adapt(o *unstructured.Unstructured) error {
	if v.Replicas != nil && o.GetKind() == "Deployment" {
		if err := unstructured.SetNestedField(o.Object, int64(*v.Replicas), "spec", "replicas"); err != nil {
			return err
		}
	}
	o.SetLabels(merged(o.GetLabels(), v.Labels))
	o.SetAnnotations(merged(o.GetAnnotations(), v.Annotations))
	raw, _, err := unstructured.NestedMap(o.Object, "spec", "template")
	if err != nil {
		return err
	}
	var template corev1.PodTemplateSpec
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &template); err != nil {
		return err
	}
	v.adaptPod(&template)
	if raw, err = runtime.DefaultUnstructuredConverter.ToUnstructured(&template); err != nil {
		return err
	}
	unstructured.RemoveNestedField(raw, "metadata", "creationTimestamp")
	return unstructured.SetNestedMap(o.Object, raw, "spec", "template")
}

// merged returns the union of two maps. The second one takes precedence.
func merged(a, b map[string]string) map[string]string {
	if len(a)+len(b) == 0 {
		return nil
	}
	union := map[string]string{}
	maps.Copy(union, a)
	maps.Copy(union, b)
	return union
}

func (v AgentValues) adaptPod(template *corev1.PodTemplateSpec) {
	template.Labels = merged(template.Labels, v.Labels)
	template.Annotations = merged(template.Annotations, v.Annotations)
	pod := &template.Spec
	pod.ImagePullSecrets = append(pod.ImagePullSecrets, v.ImagePullSecrets...)
	pod.NodeSelector = merged(pod.NodeSelector, v.NodeSelector)
	pod.Tolerations = append(pod.Tolerations, v.Tolerations...)
	if v.Affinity != nil {
		pod.Affinity = v.Affinity
	}
	if !ptr.Deref(v.TopologySpread, true) {
		pod.TopologySpreadConstraints = nil
	}
	if v.PriorityClassName != nil {
		pod.PriorityClassName = *v.PriorityClassName
	}
	for i := range pod.Containers {
		v.adaptContainer(&pod.Containers[i])
	}
	if v.OmitUser {
		omitUser(pod)
	}
}

func (v AgentValues) adaptContainer(c *corev1.Container) {
	if v.Image != "" {
		c.Image = v.Image
	}
	if v.ImagePullPolicy != "" {
		c.ImagePullPolicy = v.ImagePullPolicy
	}
	if v.Resources != nil {
		c.Resources = *v.Resources
	}
	c.Env = append(c.Env, v.Env...)
}

// omitUser removes the user and the groups of a Pod. The kubelet gives the files of a Secret and of
// a token to root and to fsGroup, if there is one; without it, every user of the Pod has to be able
// to read them.
func omitUser(pod *corev1.PodSpec) {
	if s := pod.SecurityContext; s != nil {
		s.RunAsUser, s.RunAsGroup, s.FSGroup = nil, nil, nil
	}
	for i := range pod.Volumes {
		switch volume := &pod.Volumes[i]; {
		case volume.Secret != nil:
			volume.Secret.DefaultMode = ptr.To[int32](0o444)
		case volume.Projected != nil:
			volume.Projected.DefaultMode = ptr.To[int32](0o444)
		}
	}
}
