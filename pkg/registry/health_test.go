// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

func TestHealthGet(t *testing.T) {
	probed := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	stored := map[string]string{v1alpha1.AnnotationHealthy: "true", v1alpha1.AnnotationVersion: "v1.36.0", v1alpha1.AnnotationLastProbeTime: "2026-04-01T00:00:00Z"}
	invalid := newPKI(t).x509Secret("a")
	invalid.Data["tls.key"] = []byte("garbage")
	for _, test := range []struct {
		name    string
		secret  *corev1.Secret
		probe   ProbeFunc
		healthy bool
		reason  string
		message string
		version string
		moved   string
	}{
		{name: "no prober: as stored", healthy: true, reason: "Healthy", version: "v1.36.0", moved: "2026-04-01T00:00:00Z"},
		{
			name: "still healthy", healthy: true, reason: "Healthy", message: "ok", version: "v1.37.2", moved: "2026-04-01T00:00:00Z",
			probe: func(context.Context, string) (ProbeResult, error) {
				return ProbeResult{Healthy: true, Message: "ok", Version: "v1.37.2", Latency: time.Second, Time: probed}, nil
			},
		},
		{
			name: "unhealthy now", reason: "Unhealthy", version: "v1.36.0", moved: "2026-05-01T00:00:00Z",
			probe: func(context.Context, string) (ProbeResult, error) { return ProbeResult{Time: probed}, nil },
		},
		{
			name: "unhealthy, and why", reason: "NoAgent", message: "no agent", version: "v1.36.0", moved: "2026-05-01T00:00:00Z",
			probe: func(context.Context, string) (ProbeResult, error) {
				return ProbeResult{Reason: "NoAgent", Message: "no agent", Time: probed}, nil
			},
		},
		{
			name: "no probe", reason: ReasonProbeFailed, message: "broken", version: "v1.36.0",
			probe: func(context.Context, string) (ProbeResult, error) { return ProbeResult{}, errors.New("broken") },
		},
		{
			name: "an invalid Secret is not probed", secret: invalid, reason: "InvalidSecret", message: "tls.key: ", version: "v1.36.0",
			probe: func(context.Context, string) (ProbeResult, error) {
				t.Error("probed")
				return ProbeResult{Healthy: true}, nil
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := test.secret
			if secret == nil {
				secret = newPKI(t).x509Secret("a")
			}
			secret.Annotations = maps.Clone(stored)
			hub := fake.NewClientset(secret)
			obj, err := NewHealthREST(hub.CoreV1().Secrets(testNamespace), cluster.ParseOptions{}, test.probe).Get(t.Context(), "a", &metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			status := obj.(*v1alpha1.ClusterGateway).Status
			ready := status.Conditions[0]
			if status.Healthy != test.healthy || ready.Reason != test.reason || !strings.HasPrefix(ready.Message, test.message) || status.Version != test.version || len(status.Conditions) != 1 {
				t.Errorf("status %+v", status)
			}
			if test.moved != "" && ready.LastTransitionTime.UTC().Format(time.RFC3339) != test.moved {
				t.Errorf("transition at %v", ready.LastTransitionTime)
			}
			for _, action := range hub.Actions() {
				if action.GetVerb() != "get" {
					t.Errorf("a GET stores: %v", action)
				}
			}
		})
	}

	hub := fake.NewClientset(newPKI(t).x509Secret("a"))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := NewHealthREST(hub.CoreV1().Secrets(testNamespace), cluster.ParseOptions{}, func(ctx context.Context, _ string) (ProbeResult, error) {
		cancel()
		return ProbeResult{}, ctx.Err()
	}).Get(ctx, "a", nil)
	if !apierrors.IsTimeout(err) {
		t.Errorf("out of time: %v", err)
	}
	if _, err := NewHealthREST(hub.CoreV1().Secrets(testNamespace), cluster.ParseOptions{}, nil).Get(t.Context(), "absent", nil); !apierrors.IsNotFound(err) {
		t.Errorf("absent: %v", err)
	}
}

func TestHealthUpdateStoresThreeAnnotationsAndNothingElse(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	secret.Annotations = map[string]string{"note": "kept", v1alpha1.AnnotationVersion: "v1.36.0", v1alpha1.AnnotationHealthyReason: "Before"}
	hub := fake.NewClientset(secret)
	storage := NewHealthREST(hub.CoreV1().Secrets(testNamespace), cluster.ParseOptions{}, nil)
	update := func(wanted *v1alpha1.ClusterGateway) *v1alpha1.ClusterGateway {
		t.Helper()
		obj, created, err := storage.Update(t.Context(), "a", rest.DefaultUpdatedObjectInfo(wanted), nil, nil, true, &metav1.UpdateOptions{})
		if err != nil || created {
			t.Fatalf("created %v, %v", created, err)
		}
		return obj.(*v1alpha1.ClusterGateway)
	}
	got := update(&v1alpha1.ClusterGateway{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"x": "y"}, Annotations: map[string]string{"note": "changed"}},
		Spec:       v1alpha1.ClusterGatewaySpec{Provider: "changed"},
		Status:     v1alpha1.ClusterGatewayStatus{Healthy: true, HealthyReason: "Override", Version: "v9", Route: "tunnel"},
	})
	if !got.Status.Healthy || got.Status.HealthyReason != "Override" || got.Status.Version != "v1.36.0" || got.Status.Route != "direct" || got.Spec.Provider != "" {
		t.Errorf("answer %+v", got)
	}
	stored, err := hub.CoreV1().Secrets(testNamespace).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := secret.DeepCopy()
	at := stored.Annotations[v1alpha1.AnnotationOverride]
	if when, err := time.Parse(time.RFC3339, at); err != nil || time.Since(when) > time.Minute {
		t.Errorf("overridden at %q, %v", at, err)
	}
	want.Annotations[v1alpha1.AnnotationOverride] = at
	want.Annotations[v1alpha1.AnnotationHealthy], want.Annotations[v1alpha1.AnnotationHealthyReason] = "true", "Override"
	if !reflect.DeepEqual(stored.Annotations, want.Annotations) || !reflect.DeepEqual(stored.Labels, want.Labels) || !reflect.DeepEqual(stored.Data, want.Data) {
		t.Errorf("stored %v", stored.ObjectMeta)
	}

	// The result of a GET before the first probe is sent back with another value of healthy.
	update(&v1alpha1.ClusterGateway{Status: v1alpha1.ClusterGatewayStatus{HealthyReason: v1alpha1.ReasonNotProbed}})
	stored, err = hub.CoreV1().Secrets(testNamespace).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := stored.Annotations[v1alpha1.AnnotationHealthyReason]; ok || stored.Annotations[v1alpha1.AnnotationHealthy] != "false" {
		t.Errorf("stored %v", stored.Annotations)
	}
}

func TestHealthUpdatePreconditions(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	for _, test := range []struct {
		name  string
		meta  metav1.ObjectMeta
		patch map[string]any
		err   func(error) bool
	}{
		{name: "none", patch: map[string]any{"uid": "uid-a"}},
		{name: "resource version", meta: metav1.ObjectMeta{ResourceVersion: "5", UID: "uid-a"}, patch: map[string]any{"uid": "uid-a", "resourceVersion": "5"}},
		{name: "another UID", meta: metav1.ObjectMeta{UID: "uid-b"}, err: apierrors.IsConflict},
		{name: "another name", meta: metav1.ObjectMeta{Name: "b"}, err: apierrors.IsBadRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			hub := &recordingSecrets{secret: secret}
			wanted := &v1alpha1.ClusterGateway{ObjectMeta: test.meta}
			_, _, err := NewHealthREST(hub, cluster.ParseOptions{}, nil).Update(t.Context(), "a", rest.DefaultUpdatedObjectInfo(wanted), nil, nil, false, nil)
			if test.err != nil {
				if !test.err(err) || hub.patch != "" {
					t.Errorf("err %v, patch %s", err, hub.patch)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var patch struct{ Metadata map[string]any }
			if err := json.Unmarshal([]byte(hub.patch), &patch); err != nil {
				t.Fatal(err)
			}
			delete(patch.Metadata, "annotations")
			if !reflect.DeepEqual(patch.Metadata, test.patch) {
				t.Errorf("patch %s", hub.patch)
			}
		})
	}
}

func TestHealthUpdateErrors(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	update := func(hub *recordingSecrets, wanted runtime.Object, validate rest.ValidateObjectUpdateFunc) error {
		_, _, err := NewHealthREST(hub, cluster.ParseOptions{}, nil).Update(t.Context(), "a", rest.DefaultUpdatedObjectInfo(wanted), nil, validate, false, nil)
		return err
	}
	reason := func(text string) *v1alpha1.ClusterGateway {
		return &v1alpha1.ClusterGateway{Status: v1alpha1.ClusterGatewayStatus{HealthyReason: text}}
	}
	if err := update(&recordingSecrets{secret: secret}, reason("two\nlines"), nil); !apierrors.IsInvalid(err) {
		t.Errorf("two lines: %v", err)
	}
	if err := update(&recordingSecrets{secret: secret}, reason(strings.Repeat("x", 1025)), nil); !apierrors.IsInvalid(err) {
		t.Errorf("too long: %v", err)
	}
	if err := update(&recordingSecrets{secret: secret}, &corev1.Secret{}, nil); !apierrors.IsBadRequest(err) {
		t.Errorf("another kind: %v", err)
	}
	refused := errors.New("refused by admission")
	if err := update(&recordingSecrets{secret: secret}, reason(""), func(context.Context, runtime.Object, runtime.Object) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("admission: %v", err)
	}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a", errors.New("no"))
	if err := update(&recordingSecrets{secret: secret, err: forbidden}, reason(""), nil); apierrors.ReasonForError(err) != metav1.StatusReasonServiceUnavailable {
		t.Errorf("forbidden: %v", err)
	}
	unlabelled := secret.DeepCopy()
	unlabelled.Labels = nil
	hub := &recordingSecrets{secret: unlabelled}
	if err := update(hub, reason(""), nil); !apierrors.IsNotFound(err) || hub.patch != "" {
		t.Errorf("no cluster: %v", err)
	}
}
