// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Render parses a Secret and returns the object that the API serves for it.
func Render(secret *corev1.Secret, opts ParseOptions) *v1alpha1.ClusterGateway {
	return Parse(secret, opts).ClusterGateway(secret)
}

// ClusterGateway returns the object that the API serves for the cluster, which contains no secrets.
// The Secret must be the one that the cluster was parsed from, because the metadata is taken from
// it. The object shares no memory with the cluster or the Secret.
func (c *Cluster) ClusterGateway(secret *corev1.Secret) *v1alpha1.ClusterGateway {
	gateway := &v1alpha1.ClusterGateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindName},
		ObjectMeta: servedMeta(secret),
		Spec: v1alpha1.ClusterGatewaySpec{Access: v1alpha1.ClusterAccess{
			Endpoint:   c.servedEndpoint(),
			Credential: c.servedCredential(),
		}},
	}
	c.serveHealth(secret, &gateway.Status)
	return gateway
}

// dataAnnotations are the annotations in which tools store a copy of the whole object, including
// the data of a Secret.
var dataAnnotations = []string{
	corev1.LastAppliedConfigAnnotation,
	"kapp.k14s.io/original",
	"objectset.rio.cattle.io/applied",
	"banzaicloud.com/last-applied",
}

// servedMeta returns the metadata of the Secret without the fields that have no meaning for a
// ClusterGateway: namespace, owners, finalizers and managed fields.
func servedMeta(secret *corev1.Secret) metav1.ObjectMeta {
	served := metav1.ObjectMeta{
		Name:                       secret.Name,
		UID:                        secret.UID,
		ResourceVersion:            secret.ResourceVersion,
		CreationTimestamp:          secret.CreationTimestamp,
		DeletionTimestamp:          secret.DeletionTimestamp.DeepCopy(),
		DeletionGracePeriodSeconds: clonePtr(secret.DeletionGracePeriodSeconds),
	}
	guard := newGuard(secret)
	for key, value := range secret.Labels {
		if guard.admits(value) {
			setKey(&served.Labels, key, value)
		}
	}
	for key, value := range secret.Annotations {
		if key != v1alpha1.AnnotationConditions && !slices.Contains(dataAnnotations, key) && guard.admits(value) {
			setKey(&served.Annotations, key, value)
		}
	}
	return served
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return ptr.To(*p)
}

func setKey(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

// guard finds copies of a Secret's secrets in its metadata, so that they are not served, whatever
// tool stored them there.
type guard struct{ forbidden []string }

// minGuarded is the minimum length of a secret. Shorter values may be equal to other values by
// chance.
const minGuarded = 16

func newGuard(secret *corev1.Secret) guard {
	var g guard
	for _, key := range []string{v1alpha1.SecretKeyToken, v1alpha1.SecretKeyMaintenanceToken, v1alpha1.SecretKeyPrivateKey, v1alpha1.SecretKeyExec, v1alpha1.SecretKeyProxyURL} {
		value := bytes.TrimSpace(secret.Data[key])
		if len(value) < minGuarded || key == v1alpha1.SecretKeyProxyURL && !bytes.ContainsRune(value, '@') {
			continue
		}
		g.forbidden = append(g.forbidden, string(value))
		// The last characters in base64 depend on the following data, so they are not compared.
		encoded := base64.StdEncoding.EncodeToString(secret.Data[key])
		g.forbidden = append(g.forbidden, encoded[:len(encoded)-4])
		if quoted, err := json.Marshal(string(value)); err == nil {
			g.forbidden = append(g.forbidden, strings.Trim(string(quoted), `"`))
		}
	}
	return g
}

func (g guard) admits(value string) bool {
	return len(value) < minGuarded || !slices.ContainsFunc(g.forbidden, func(s string) bool { return strings.Contains(value, s) })
}

// servedEndpoint returns the parsed values. It omits an invalid address, CA or proxy, which may
// contain anything. The condition contains the reason.
func (c *Cluster) servedEndpoint() *v1alpha1.ClusterEndpoint {
	endpoint := &v1alpha1.ClusterEndpoint{
		// An unknown type is served as the default, as if there were no label. So a field selector
		// for this field can be converted to a selector for the label.
		Type:  v1alpha1.EndpointTypeConst,
		Const: &v1alpha1.ClusterEndpointConst{CABundle: slices.Clone(c.CAData)},
	}
	if c.Route == RouteTunnel {
		endpoint.Type = v1alpha1.EndpointTypeClusterProxy
	}
	if c.Endpoint != nil {
		endpoint.Const.Address = c.Endpoint.String()
	}
	if c.Insecure {
		endpoint.Const.Insecure = ptr.To(true)
	}
	if c.ProxyURL != nil {
		endpoint.Const.ProxyURL = ptr.To(redactURL(c.ProxyURL))
	}
	return endpoint
}

func (c *Cluster) servedCredential() *v1alpha1.ClusterAccessCredential {
	credential := &v1alpha1.ClusterAccessCredential{Type: c.Credential.Type}
	if pem := c.Credential.CertificatePEM(); pem != nil {
		credential.X509 = &v1alpha1.X509{Certificate: pem}
	}
	return credential
}

// serveHealth sets the status from the state that the Secret contains, where the replicas of the
// gateway and operators write it.
func (c *Cluster) serveHealth(secret *corev1.Secret, status *v1alpha1.ClusterGatewayStatus) {
	h := c.currentHealth()
	status.Healthy = h.Known && h.Healthy && c.err == nil
	status.HealthyReason = h.Reason
	switch {
	case c.err != nil:
		status.HealthyReason = c.Reason()
	case !h.Known && h.Reason == "":
		// Clients of the predecessor read healthy only, which has no third value.
		status.HealthyReason = v1alpha1.ReasonNotProbed
	}
	status.Version = h.Version
	status.Route = string(c.Route)
	status.Identity = string(c.Identity.Mode)
	if !h.Time.IsZero() {
		status.LastProbeTime = ptr.To(metav1.NewTime(h.Time))
	}
	if h.HasLatency {
		status.Latency = &metav1.Duration{Duration: h.Latency}
	}
	if t, ok := c.Credential.Expiry(); ok && inRFC3339(t) {
		status.CredentialExpirationTime = ptr.To(metav1.NewTime(t.UTC()))
	}
	ready := c.ready(secret)
	ready.Message = c.WithWarnings(ready.Message)
	status.Conditions = []metav1.Condition{ready}
	if c.err == nil && c.IsRegistered() {
		status.Conditions = append(status.Conditions, c.separate(secret))
	}
	for _, condition := range h.Conditions {
		if condition.Type == v1alpha1.ConditionReady || c.err != nil || condition.Type == v1alpha1.ConditionTunnelConnected && c.Route != RouteTunnel {
			continue
		}
		status.Conditions = append(status.Conditions, condition)
	}
}

// currentHealth returns the stored state, but not if it says that the Secret is refused and the
// Secret is valid: a probe then stored it about an earlier version. Whether this version is refused
// is known without a probe. So a condition with such a reason is about the Secret at the resource
// version of the ClusterGateway, and a client that has just replaced a refused Secret does not get
// an answer about the previous version.
func (c *Cluster) currentHealth() Health {
	h := c.Health
	if c.err != nil || !h.Known || h.Healthy || h.Overridden || !RefusesSecret(h.Reason) {
		return h
	}
	// With more conditions than Ready, a probe found that something else keeps a valid Secret from
	// being used.
	if len(h.Conditions) > 1 {
		return h
	}
	return Health{}
}

// Ready returns the condition Ready, without a reliable time of its last change.
func (c *Cluster) Ready() metav1.Condition {
	ready := c.ready(&corev1.Secret{})
	ready.Message = c.WithWarnings(ready.Message)
	return ready
}

// ready returns the condition Ready. If the Secret is invalid, the condition says so whatever the
// last probe found, because no request can be served. Otherwise, the override of an operator
// replaces the result of the last probe, and the message contains both.
func (c *Cluster) ready(secret *corev1.Secret) metav1.Condition {
	h := c.currentHealth()
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, LastTransitionTime: lastWrite(secret)}
	found := meta.FindStatusCondition(h.Conditions, v1alpha1.ConditionReady)
	switch {
	case c.err != nil:
		condition.Status, condition.Reason = metav1.ConditionFalse, c.Reason()
		condition.Message = c.Message()
		return condition
	case !h.Known:
		condition.Status, condition.Reason = metav1.ConditionUnknown, v1alpha1.ReasonNotProbed
		condition.Message = "the cluster has not been probed yet"
		return condition
	case found != nil && !h.Overridden:
		return *found
	}
	condition.Status, condition.Reason = metav1.ConditionFalse, reason(h.Reason, v1alpha1.ReasonUnhealthy)
	if h.Healthy {
		condition.Status, condition.Reason = metav1.ConditionTrue, reason(h.Reason, v1alpha1.ReasonHealthy)
	}
	condition.Message = "as found by the last probe or set by an operator"
	if h.Overridden {
		condition.Message = "set by an operator"
		if found != nil {
			condition.Message += fmt.Sprintf("; the last probe found %s=%s, %s: %s", found.Type, found.Status, found.Reason, found.Message)
		}
	}
	switch {
	case !h.OverriddenAt.IsZero():
		condition.LastTransitionTime = metav1.NewTime(h.OverriddenAt)
	case !h.Time.IsZero():
		condition.LastTransitionTime = metav1.NewTime(h.Time)
	}
	return condition
}

// separate is the condition that callers and the gateway's own maintenance use different
// credentials.
func (c *Cluster) separate(secret *corev1.Secret) metav1.Condition {
	condition := metav1.Condition{
		Type: v1alpha1.ConditionCredentialsSeparate, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonTwoCredentials,
		Message: "the gateway renews the credentials of this cluster with a credential that no user has", LastTransitionTime: secret.CreationTimestamp,
	}
	if !c.SharesCredential() {
		return condition
	}
	condition.Status, condition.Reason = metav1.ConditionFalse, v1alpha1.ReasonSharedCredential
	condition.Message = "users of this cluster and the gateway share one credential, which has rights in namespace " + v1alpha1.AgentNamespace +
		"; until it has two, the gateway refuses what those rights allow. "
	if c.AllowsAgentNamespace() {
		condition.Message += "The gateway separates them when it next renews the token; to do it now: agent-bootstrap rotate " + c.Name
	} else {
		condition.Message += "To separate them: agent-bootstrap register " + c.Name + " --cluster-kubeconfig FILE --access " + quote(c.Access)
	}
	return condition
}

// reason returns the value of the annotation if it is valid as the reason of a condition.
func reason(annotation, otherwise string) string {
	if annotation == "" || len(annotation) > 1024 {
		return otherwise
	}
	for i, r := range annotation {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		inner := r >= '0' && r <= '9' || r == '_' || (r == ',' || r == ':') && i < len(annotation)-1
		if !letter && (i == 0 || !inner) {
			return otherwise
		}
	}
	return annotation
}

// lastWrite returns when the Secret was last written, according to its metadata.
func lastWrite(secret *corev1.Secret) metav1.Time {
	last := secret.CreationTimestamp
	for _, entry := range secret.ManagedFields {
		if entry.Time != nil && last.Before(entry.Time) {
			last = *entry.Time
		}
	}
	return last
}

// inRFC3339 reports whether RFC 3339 can represent the time.
func inRFC3339(t time.Time) bool { return t.UTC().Year() >= 1 && t.UTC().Year() <= 9999 }
