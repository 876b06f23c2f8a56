// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// ClusterSecret describes the Secret on the hub that registers a cluster.
type ClusterSecret struct {
	Name, Namespace string
	// Tunnel is whether an agent connects to the gateway. Otherwise the gateway connects to the
	// cluster.
	Tunnel bool
	// UID identifies the cluster: the UID of its namespace kube-system.
	UID types.UID
	// Access is the value of --access.
	Access string
	// Identity is who the cluster sees. Empty leaves what the Secret says. Impersonation is for
	// v1alpha1.IdentityImpersonate.
	Identity      string
	Impersonation *Impersonation
	Endpoint      string
	CA            []byte
	ServerName    string
	ProxyURL      string
	// AgentValues are the values of the agent as [AgentValues.Encode] returns them, or empty.
	AgentValues []byte
	// Token is that of the account for callers, MaintenanceToken that of the account for maintenance.
	// An empty MaintenanceToken is not written.
	Token, MaintenanceToken string
	// AgentCertificatesSince is the time since which certificates of the cluster's agents are
	// accepted. It is for a new Secret: one that exists keeps what it has.
	AgentCertificatesSince time.Time
	// FollowCA makes the gateway follow the changes of the cluster's CA. It is set if CA was read from
	// the cluster.
	FollowCA bool
}

// Secret returns the Secret of a cluster that is not registered yet. [ClusterSecret.Patch] changes
// one that exists.
func (c ClusterSecret) Secret() *corev1.Secret {
	endpointType := v1alpha1.EndpointTypeConst
	if c.Tunnel {
		endpointType = v1alpha1.EndpointTypeClusterProxy
	}
	data := map[string][]byte{v1alpha1.SecretKeyEndpoint: []byte(c.Endpoint), v1alpha1.SecretKeyToken: []byte(c.Token)}
	for key, value := range map[string]string{
		v1alpha1.SecretKeyCA: string(c.CA), v1alpha1.SecretKeyServerName: c.ServerName, v1alpha1.SecretKeyProxyURL: c.ProxyURL,
		v1alpha1.SecretKeyAgentValues:      string(c.AgentValues),
		v1alpha1.SecretKeyMaintenanceToken: c.MaintenanceToken,
	} {
		if value != "" {
			data[key] = []byte(value)
		}
	}
	annotations := map[string]string{v1alpha1.AnnotationClusterUID: string(c.UID), v1alpha1.AnnotationAccess: c.Access}
	if c.Identity != "" {
		annotations[v1alpha1.AnnotationIdentity] = c.Identity
	}
	if c.Impersonation != nil {
		annotations[v1alpha1.AnnotationImpersonation] = c.Impersonation.text()
	}
	if !c.AgentCertificatesSince.IsZero() {
		annotations[v1alpha1.AnnotationAgentCertificatesSince] = formatSince(c.AgentCertificatesSince)
	}
	if c.FollowCA {
		annotations[v1alpha1.AnnotationCASource] = v1alpha1.CASourceCluster
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: c.Name, Namespace: c.Namespace,
			Labels: ManagedLabels(map[string]string{
				v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken),
				v1alpha1.LabelEndpointType:   string(endpointType),
			}),
			Annotations: annotations,
		},
		Type: corev1.SecretTypeOpaque,
		Data: data,
	}
}

// Patch returns a JSON merge patch that turns an existing Secret into the one of this registration,
// provided that it is still as it was read. Every key that means something to the gateway
// (docs/secrets.md) and that the registration does not set is removed, whoever wrote it; removed
// lists these keys. Everything else stays.
func (c ClusterSecret) Patch(current *corev1.Secret) (patch []byte, removed []string, err error) {
	c.AgentCertificatesSince = time.Time{}
	wanted := c.Secret()
	data, annotations := map[string]any{}, map[string]any{}
	for key, value := range wanted.Data {
		data[key] = value
	}
	for key, value := range wanted.Annotations {
		annotations[key] = value
	}
	// A merge patch removes what is null.
	for _, key := range cluster.DataKeys() {
		if _, has := current.Data[key]; has && data[key] == nil {
			data[key] = nil
			removed = append(removed, key)
		}
	}
	if _, has := current.Data[v1alpha1.SecretKeyAgentValues]; has && data[v1alpha1.SecretKeyAgentValues] == nil {
		data[v1alpha1.SecretKeyAgentValues] = nil
	}
	for _, key := range []string{v1alpha1.AnnotationCASource, v1alpha1.AnnotationImpersonation} {
		if _, has := current.Annotations[key]; has && annotations[key] == nil {
			annotations[key] = nil
		}
	}
	// With this annotation the gateway would verify nothing. (Its other annotations are the cluster's
	// health.)
	if _, has := current.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify]; has {
		annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = nil
		removed = append(removed, "annotation "+v1alpha1.AnnotationInsecureSkipTLSVerify)
	}
	patch, err = MergePatch(current, map[string]any{
		"metadata": map[string]any{"labels": wanted.Labels, "annotations": annotations}, "data": data,
	})
	return patch, removed, err
}

// Write writes the Secret over what was read, or creates it if current is nil, and returns what the
// hub has then. If the Secret is no longer as it was read, the error is a Conflict, an
// AlreadyExists or a NotFound. Errors are those of the client.
func (c ClusterSecret) Write(ctx context.Context, secrets corev1client.SecretInterface, current *corev1.Secret, dryRun bool) (after *corev1.Secret, outcome Outcome, removed []string, err error) {
	if current == nil {
		after, err = secrets.Create(ctx, c.Secret(), metav1.CreateOptions{FieldManager: FieldManager, DryRun: DryRunOption(dryRun)})
		return after, Created, nil, err
	}
	patch, removed, err := c.Patch(current)
	if err != nil {
		return nil, "", nil, err
	}
	after, err = secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager, DryRun: DryRunOption(dryRun)})
	if err != nil {
		return nil, "", nil, err
	}
	if equality.Semantic.DeepEqual(
		[]any{current.Labels, current.Annotations, current.Data}, []any{after.Labels, after.Annotations, after.Data},
	) {
		return after, Unchanged, removed, nil
	}
	return after, Changed, removed, nil
}
