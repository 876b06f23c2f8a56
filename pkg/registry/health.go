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

// ProbeFunc probes a cluster. It returns an error only if the cluster could not be probed. ctx
// bounds the probe.
type ProbeFunc func(ctx context.Context, name string) (ProbeResult, error)

// ProbeResult is the result of a probe.
type ProbeResult struct {
	// Healthy is true if the API server is ready.
	Healthy bool
	// Reason is the reason for it, one word in CamelCase. Empty means Healthy or Unhealthy.
	Reason string
	// Message is for people.
	Message string
	// Version is the version of the API server, if it is known.
	Version string
	// Latency is the response time of the API server.
	Latency time.Duration
	// Time is the end of the probe.
	Time time.Time
}

// ReasonProbeFailed is the reason of the condition Ready if the cluster could not be probed.
const ReasonProbeFailed = "ProbeFailed"

// HealthREST is the subresource health. A GET probes the cluster and returns the ClusterGateway
// with the result, which is not stored. A PUT overrides status.healthy and status.healthyReason. It
// stores them on the Secret, with the time, and ignores all other fields. Probes do not change an
// override until it expires after --health-override-duration.
type HealthREST struct {
	secrets corev1client.SecretInterface
	opts    cluster.ParseOptions
	probe   ProbeFunc
	table   table
}

var (
	_ rest.Storage                = (*HealthREST)(nil)
	_ resourcerest.Getter         = (*HealthREST)(nil)
	_ resourcerest.Updater        = (*HealthREST)(nil)
	_ resourcerest.TableConvertor = (*HealthREST)(nil)
)

// NewHealthREST returns the storage for the Secrets in one namespace. If probe is nil, a GET
// returns the stored state.
func NewHealthREST(secrets corev1client.SecretInterface, opts cluster.ParseOptions, probe ProbeFunc) *HealthREST {
	return &HealthREST{secrets: secrets, opts: opts, probe: probe, table: newTable()}
}

// New returns an empty ClusterGateway.
func (r *HealthREST) New() runtime.Object { return &v1alpha1.ClusterGateway{} }

// Destroy does nothing.
func (r *HealthREST) Destroy() {}

// ConvertToTable returns the same table as for the resource itself.
func (r *HealthREST) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return r.table.convert(object, options)
}

// Get reads the ClusterGateway and probes the cluster. If the Secret is invalid, the cluster cannot
// be probed, and the condition Ready says so.
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
			return nil, apierrors.NewTimeoutError(fmt.Sprintf("cluster %s: the probe timed out: %v", name, err), 1)
		}
		result = ProbeResult{Reason: ReasonProbeFailed, Message: err.Error(), Time: time.Now()}
	}
	applyProbe(&gateway.Status, result)
	return gateway, nil
}

func isInvalid(gateway *v1alpha1.ClusterGateway) bool {
	ready := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && cluster.RefusesSecret(ready.Reason)
}

// applyProbe replaces the stored state with the result of a probe.
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
	// The transition time stays if the status has not changed.
	meta.SetStatusCondition(&status.Conditions, condition)
}

// maxHealthyReason is the maximum length of a condition's reason.
const maxHealthyReason = 1024

// Update stores an operator's override. It returns a conflict if the object has another UID or an
// outdated resource version.
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
		return nil, false, apierrors.NewConflict(resource, name, fmt.Errorf("the UID is %s, not %s: the cluster was deleted and registered again", secret.UID, wanted.UID))
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

// overridePatch changes the annotations. The UID is a precondition: if the cluster is deleted and
// registered again at the same time, the new cluster must not inherit the override. The resource
// version in the request is a precondition too.
func overridePatch(secret *corev1.Secret, wanted *v1alpha1.ClusterGateway) ([]byte, error) {
	annotations := map[string]*string{}
	healthy := strconv.FormatBool(wanted.Status.Healthy)
	annotations[v1alpha1.AnnotationHealthy] = &healthy
	at := time.Now().UTC().Format(time.RFC3339)
	annotations[v1alpha1.AnnotationOverride] = &at
	annotations[v1alpha1.AnnotationHealthyReason] = nil // removed
	// A client may send back the reason of a cluster that was not probed yet. It is not the
	// operator's.
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
		return nil, fmt.Errorf("marshal the patch of the Secret: %w", err)
	}
	return patch, nil
}
