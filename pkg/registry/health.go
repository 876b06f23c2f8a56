// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/apiserver-runtime/pkg/builder/resource/resourcerest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// Prober looks at a cluster now. An error means that it could not be probed, which is an unhealthy cluster too; a
// ProbeResult that is not healthy says why. ctx bounds the probe.
type Prober func(ctx context.Context, name string) (ProbeResult, error)

// ProbeResult is what a probe found.
type ProbeResult struct {
	// Healthy is whether the API server answered that it is.
	Healthy bool
	// Reason is one word in CamelCase. Empty means Healthy or Unhealthy.
	Reason string
	// Message is for people.
	Message string
	// Version is the API server's, when it told.
	Version string
	// Latency is how long the probe took.
	Latency time.Duration
	// Time is when the probe ended.
	Time time.Time
}

// ReasonProbeFailed is the reason of Ready when a probe could not be made.
const ReasonProbeFailed = "ProbeFailed"

// HealthREST is the subresource health. A GET is the ClusterGateway with the outcome of a probe made for it; nothing is stored. A
// PUT is an operator's override of status.healthy and status.healthyReason, stored on the Secret with the time; no other field is
// read. Probes leave it alone for as long as the gateway's flag --health-override-duration says.
type HealthREST struct {
	secrets corev1client.SecretInterface
	opts    cluster.ParseOptions
	probe   Prober
	table   table
}

var (
	_ rest.Storage                = (*HealthREST)(nil)
	_ resourcerest.Getter         = (*HealthREST)(nil)
	_ resourcerest.Updater        = (*HealthREST)(nil)
	_ resourcerest.TableConvertor = (*HealthREST)(nil)
)

// NewHealthREST returns the storage over the Secrets of one namespace. Without a prober, a GET shows the stored state.
func NewHealthREST(secrets corev1client.SecretInterface, opts cluster.ParseOptions, probe Prober) *HealthREST {
	return &HealthREST{secrets: secrets, opts: opts, probe: probe, table: newTable()}
}

// New is an empty ClusterGateway.
func (r *HealthREST) New() runtime.Object { return &v1alpha1.ClusterGateway{} }

// Destroy has nothing to release.
func (r *HealthREST) Destroy() {}

// ConvertToTable prints as the resource itself does.
func (r *HealthREST) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return r.table.convert(object, options)
}

// Get reads the ClusterGateway and probes the cluster. An invalid Secret is its own answer: there is nothing to probe with.
func (r *HealthREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	_, gateway, err := getGateway(ctx, r.secrets, r.opts, name, options)
	if err != nil {
		return nil, err
	}
	if r.probe == nil || isInvalid(gateway) {
		return gateway, nil
	}
	result, err := r.probe(ctx, name)
	if err != nil {
		if ctx.Err() != nil {
			return nil, apierrors.NewTimeoutError(fmt.Sprintf("cluster %s: the probe did not end in time: %v", name, err), 1)
		}
		result = ProbeResult{Reason: ReasonProbeFailed, Message: err.Error(), Time: time.Now()}
	}
	applyProbe(&gateway.Status, result)
	return gateway, nil
}

func isInvalid(gateway *v1alpha1.ClusterGateway) bool {
	ready := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.Reason == v1alpha1.ReasonInvalidSecret
}

// applyProbe puts the outcome in the place of the stored state.
func applyProbe(status *v1alpha1.ClusterGatewayStatus, result ProbeResult) {
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: result.Reason, Message: result.Message}
	if result.Healthy {
		condition.Status = metav1.ConditionTrue
	}
	switch {
	case condition.Reason != "":
	case result.Healthy:
		condition.Reason = v1alpha1.ReasonHealthy
	default:
		condition.Reason = v1alpha1.ReasonUnhealthy
	}
	if !result.Time.IsZero() {
		probed := metav1.NewTime(result.Time)
		status.LastProbeTime, condition.LastTransitionTime = &probed, probed
	}
	status.Healthy, status.HealthyReason = result.Healthy, condition.Reason
	status.Latency = &metav1.Duration{Duration: result.Latency}
	if result.Version != "" {
		status.Version = result.Version
	}
	// The time of the transition is kept when the status is as it was.
	meta.SetStatusCondition(&status.Conditions, condition)
}

// maxHealthyReason is how long a condition's reason may be.
const maxHealthyReason = 1024

// Update stores an operator's override. It is refused with a conflict when the object that was sent names a resource version that
// is not the Secret's any more, or another UID.
func (r *HealthREST) Update(
	ctx context.Context, name string, objInfo rest.UpdatedObjectInfo, _ rest.ValidateObjectFunc,
	validate rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	secret, current, err := getGateway(ctx, r.secrets, r.opts, name, nil)
	if err != nil {
		return nil, false, err
	}
	obj, err := objInfo.UpdatedObject(ctx, current.DeepCopy())
	if err != nil {
		return nil, false, err
	}
	wanted, ok := obj.(*v1alpha1.ClusterGateway)
	if !ok {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("expected a %s, not a %T", v1alpha1.KindName, obj))
	}
	if err := validateOverride(name, wanted); err != nil {
		return nil, false, err
	}
	if validate != nil {
		if err := validate(ctx, wanted.DeepCopy(), current); err != nil {
			return nil, false, err
		}
	}
	if wanted.UID != "" && wanted.UID != secret.UID {
		return nil, false, apierrors.NewConflict(resource, name, fmt.Errorf("the UID is %s, not %s: the cluster was registered anew", secret.UID, wanted.UID))
	}
	patch, err := overridePatch(secret, wanted)
	if err != nil {
		return nil, false, err
	}
	patchOptions := metav1.PatchOptions{}
	if options != nil {
		patchOptions.DryRun = options.DryRun
	}
	patched, err := r.secrets.Patch(ctx, name, types.MergePatchType, patch, patchOptions)
	if err != nil {
		return nil, false, hubError(err, "patch", name)
	}
	return cluster.Render(patched, r.opts), false, nil
}

func validateOverride(name string, wanted *v1alpha1.ClusterGateway) error {
	if wanted.Name != "" && wanted.Name != name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) is not the name in the URL (%s)", wanted.Name, name))
	}
	reason := wanted.Status.HealthyReason
	path := field.NewPath("status", "healthyReason")
	switch {
	case len(reason) > maxHealthyReason:
		return apierrors.NewInvalid(v1alpha1.Kind(v1alpha1.KindName), name, field.ErrorList{field.TooLong(path, "", maxHealthyReason)})
	case strings.ContainsFunc(reason, unicode.IsControl):
		return apierrors.NewInvalid(v1alpha1.Kind(v1alpha1.KindName), name, field.ErrorList{field.Invalid(path, reason, "must be one line")})
	}
	return nil
}

// overridePatch changes the annotations, and only on the Secret that was looked at: the UID is a precondition, so that the
// override of a cluster that is registered anew in between is lost and not inherited. So is the resource version that was sent.
func overridePatch(secret *corev1.Secret, wanted *v1alpha1.ClusterGateway) ([]byte, error) {
	annotations := map[string]*string{}
	healthy := strconv.FormatBool(wanted.Status.Healthy)
	annotations[v1alpha1.AnnotationHealthy] = &healthy
	at := time.Now().UTC().Format(time.RFC3339)
	annotations[v1alpha1.AnnotationOverride] = &at
	annotations[v1alpha1.AnnotationHealthyReason] = nil // removed
	// What a client that got the object before it was probed sends back is no reason of the operator's.
	if reason := wanted.Status.HealthyReason; reason != "" && reason != v1alpha1.ReasonNotProbed {
		annotations[v1alpha1.AnnotationHealthyReason] = &reason
	}
	metadata := map[string]any{"annotations": annotations}
	if secret.UID != "" {
		metadata["uid"] = secret.UID
	}
	if wanted.ResourceVersion != "" {
		metadata["resourceVersion"] = wanted.ResourceVersion
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, fmt.Errorf("encode the patch of the Secret: %w", err)
	}
	return patch, nil
}
