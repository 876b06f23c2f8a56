// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// recordingSecrets returns fixed results and records the options of each call.
type recordingSecrets struct {
	corev1client.SecretInterface
	secret *corev1.Secret
	list   *corev1.SecretList
	err    error

	got     metav1.GetOptions
	listed  metav1.ListOptions
	watched metav1.ListOptions
	patch   string
}

func (s *recordingSecrets) Get(_ context.Context, _ string, o metav1.GetOptions) (*corev1.Secret, error) {
	s.got = o
	return s.secret, s.err
}

func (s *recordingSecrets) List(_ context.Context, o metav1.ListOptions) (*corev1.SecretList, error) {
	s.listed = o
	return s.list, s.err
}

func (s *recordingSecrets) Watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	s.watched = o
	return watch.NewEmptyWatch(), s.err
}

func (s *recordingSecrets) Patch(_ context.Context, _ string, _ types.PatchType, patch []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Secret, error) {
	s.patch = string(patch)
	return s.secret, s.err
}

// selects evaluates the options as the hub does.
func selects(t *testing.T, options metav1.ListOptions, secret *corev1.Secret) bool {
	t.Helper()
	labelSelector, err := labels.Parse(options.LabelSelector)
	if err != nil {
		t.Fatalf("the hub cannot parse %q: %v", options.LabelSelector, err)
	}
	fieldSelector, err := fields.ParseSelector(options.FieldSelector)
	if err != nil {
		t.Fatalf("the hub cannot parse %q: %v", options.FieldSelector, err)
	}
	for _, r := range fieldSelector.Requirements() {
		if r.Field != "metadata.name" {
			t.Fatalf("Secrets have no field selector for %s", r.Field)
		}
	}
	return labelSelector.Matches(labels.Set(secret.Labels)) && fieldSelector.Matches(fields.Set{"metadata.name": secret.Name})
}

// A selector must have the same result as if it were applied to the ClusterGateways.
func TestSelectorsMeanTheSameOnTheHub(t *testing.T) {
	var secrets []*corev1.Secret
	for i, credential := range []string{"X509Certificate", "X509", "ServiceAccountToken", "Dynamic", "Unknown", ""} {
		for _, endpoint := range []string{"Const", "ClusterProxy", "Unknown", "", "-"} {
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
				Name:   fmt.Sprintf("s%d-%s", i, strings.ToLower(endpoint)),
				Labels: map[string]string{v1alpha1.LabelCredentialType: credential, v1alpha1.LabelEndpointType: endpoint, "team": fmt.Sprint(i % 2)},
			}}
			if endpoint == "-" {
				delete(s.Labels, v1alpha1.LabelEndpointType)
			}
			secrets = append(secrets, s)
		}
	}
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "foreign", Labels: map[string]string{"team": "0"}}}

	for _, test := range []struct{ labels, fields string }{
		{},
		{labels: "team=1"},
		{labels: "team notin (1),absent!=x"},
		{fields: "metadata.name=s0-const"},
		{fields: "metadata.name!=s0-const"},
		{fields: "metadata.name!=s0-const,metadata.name!=s1-const"},
		{fields: "spec.access.endpoint.type=Const"},
		{fields: "spec.access.endpoint.type==ClusterProxy"},
		{fields: "spec.access.endpoint.type!=Const"},
		{fields: "spec.access.endpoint.type!=ClusterProxy"},
		{fields: "spec.access.endpoint.type=Unknown"},
		{fields: "spec.access.endpoint.type!=Unknown"},
		{fields: "spec.access.endpoint.type="},
		{fields: "spec.access.credential.type=X509Certificate"},
		{fields: "spec.access.credential.type!=X509Certificate"},
		{fields: "spec.access.credential.type=Dynamic"},
		{fields: "spec.access.credential.type!=Unknown"},
		{fields: "spec.access.credential.type="},
		{fields: "spec.access.credential.type=not a label"},
		{fields: "spec.access.credential.type!=not a label"},
		{labels: "team=0", fields: "spec.access.endpoint.type=ClusterProxy,spec.access.credential.type=ServiceAccountToken"},
	} {
		t.Run(test.labels+" "+test.fields, func(t *testing.T) {
			labelSelector, err := labels.Parse(test.labels)
			if err != nil {
				t.Fatal(err)
			}
			fieldSelector, err := fields.ParseSelector(test.fields)
			if err != nil {
				t.Fatal(err)
			}
			options, err := hubListOptions(&internalversion.ListOptions{LabelSelector: labelSelector, FieldSelector: fieldSelector})
			if err != nil {
				t.Fatal(err)
			}
			if selects(t, options, foreign) {
				t.Error("selects what is no cluster")
			}
			for _, s := range secrets {
				gateway := cluster.Render(s, cluster.ParseOptions{})
				want := labelSelector.Matches(labels.Set(gateway.Labels)) && fieldSelector.Matches(fields.Set{
					"metadata.name":               gateway.Name,
					"spec.access.endpoint.type":   string(gateway.Spec.Access.Endpoint.Type),
					"spec.access.credential.type": string(gateway.Spec.Access.Credential.Type),
				})
				if got := selects(t, options, s); got != want {
					t.Errorf("%v: the hub says %v", s.Labels, got)
				}
			}
		})
	}

	// The alias is accepted, although no ClusterGateway contains it.
	options, err := hubListOptions(&internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector(v1alpha1.FieldCredentialType, "X509")})
	if err != nil || !selects(t, options, secrets[0]) {
		t.Errorf("alias: %+v, %v", options, err)
	}
	options, err = hubListOptions(&internalversion.ListOptions{LabelSelector: labels.Nothing()})
	if err != nil || selects(t, options, secrets[0]) {
		t.Errorf("nothing: %+v, %v", options, err)
	}
}

func TestSelectorRefusesOtherFields(t *testing.T) {
	hub := &recordingSecrets{list: &corev1.SecretList{}}
	options := &internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.provider", "x")}
	if _, err := NewREST(hub, cluster.ParseOptions{}).List(t.Context(), options); !apierrors.IsBadRequest(err) {
		t.Errorf("list: %v", err)
	}
	if _, err := NewREST(hub, cluster.ParseOptions{}).Watch(t.Context(), options); !apierrors.IsBadRequest(err) {
		t.Errorf("watch: %v", err)
	}
}

func TestOptionsReachTheHub(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	hub := &recordingSecrets{secret: secret, list: &corev1.SecretList{
		ListMeta: metav1.ListMeta{ResourceVersion: "77", Continue: "more", RemainingItemCount: ptr.To[int64](5)},
		Items:    []corev1.Secret{*secret},
	}}
	storage := NewREST(hub, cluster.ParseOptions{})
	options := &internalversion.ListOptions{
		ResourceVersion: "12", ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		TimeoutSeconds: ptr.To[int64](3), Limit: 7, Continue: "token", SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
		ShardSelector: "shard",
	}
	want := metav1.ListOptions{
		LabelSelector: v1alpha1.LabelCredentialType, ResourceVersion: "12", ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		TimeoutSeconds: ptr.To[int64](3), Limit: 7, Continue: "token", SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
		ShardSelector: "shard",
	}
	got, err := storage.List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(hub.listed, want) {
		t.Errorf("listed with %+v", hub.listed)
	}
	list := got.(*v1alpha1.ClusterGatewayList)
	if list.ResourceVersion != "77" || list.Continue != "more" || *list.RemainingItemCount != 5 || len(list.Items) != 1 || list.Items[0].ResourceVersion != "1" {
		t.Errorf("list: %+v", list)
	}

	want.Watch = true
	w, err := storage.Watch(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	w.Stop()
	if !reflect.DeepEqual(hub.watched, want) {
		t.Errorf("watched with %+v", hub.watched)
	}

	if _, err := storage.Get(t.Context(), "a", &metav1.GetOptions{ResourceVersion: "0"}); err != nil || hub.got.ResourceVersion != "0" {
		t.Errorf("got with %+v, %v", hub.got, err)
	}
	if _, err := storage.List(t.Context(), nil); err != nil || hub.listed.LabelSelector != v1alpha1.LabelCredentialType {
		t.Errorf("listed with %+v, %v", hub.listed, err)
	}
	hub.list = &corev1.SecretList{}
	if got, err = storage.List(t.Context(), nil); err != nil || got.(*v1alpha1.ClusterGatewayList).Items == nil {
		t.Errorf("an empty list must be [], not null: %v", err)
	}
}

func TestParsedIsUsedAtTheSameVersionOnly(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	other := version(secret, "1")
	other.Data["endpoint"] = []byte("https://parsed:443")
	held := cluster.Parse(other, cluster.ParseOptions{})
	recreated := secret.DeepCopy()
	recreated.UID = "uid-2"
	hub := &recordingSecrets{list: &corev1.SecretList{Items: []corev1.Secret{*secret, *version(secret, "2"), *recreated, *newPKI(t).x509Secret("b")}}}
	storage := NewREST(hub, cluster.ParseOptions{}).WithParsed(func(name string) (*cluster.Cluster, bool) { return held, name == "a" })
	list, err := storage.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, gateway := range list.(*v1alpha1.ClusterGatewayList).Items {
		got = append(got, gateway.Spec.Access.Endpoint.Const.Address)
	}
	want := []string{"https://parsed:443", "https://10.0.0.1:6443", "https://10.0.0.1:6443", "https://10.0.0.1:6443"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestGetOfAnotherSecretIsNotFound(t *testing.T) {
	hub := &recordingSecrets{secret: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}}
	for name, get := range map[string]func() (runtime.Object, error){
		"resource": func() (runtime.Object, error) {
			return NewREST(hub, cluster.ParseOptions{}).Get(t.Context(), "other", nil)
		},
		"health": func() (runtime.Object, error) {
			return NewHealthREST(hub, cluster.ParseOptions{}, nil).Get(t.Context(), "other", nil)
		},
	} {
		if _, err := get(); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `clustergateways.cluster.core.oam.dev "other"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHubErrors(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	for _, test := range []struct {
		name    string
		err     error
		code    int32
		reason  metav1.StatusReason
		message string
	}{
		{"not found", apierrors.NewNotFound(secrets, "a"), 404, metav1.StatusReasonNotFound, `clustergateways.cluster.core.oam.dev "a" not found`},
		{"forbidden", apierrors.NewForbidden(secrets, "a", errors.New(`in the namespace "x"`)), 503, metav1.StatusReasonServiceUnavailable, `the gateway's own ServiceAccount may not get Secrets`},
		{"forbidden, with the namespace", apierrors.NewForbidden(secrets, "a", errors.New(`in the namespace "x"`)), 503, metav1.StatusReasonServiceUnavailable, `in the namespace "x"`},
		{"unauthorized", apierrors.NewUnauthorized("no"), 503, metav1.StatusReasonServiceUnavailable, "the hub rejected the gateway's own credential"},
		{"expired", apierrors.NewResourceExpired("too old"), 410, metav1.StatusReasonExpired, "too old"},
		{"gone", apierrors.NewGone("gone"), 410, metav1.StatusReasonGone, "gone"}, //nolint:staticcheck // hubs still answer it
		{"too many", apierrors.NewTooManyRequests("slow down", 3), 429, metav1.StatusReasonTooManyRequests, "slow down"},
		{"timeout", apierrors.NewTimeoutError("late", 1), 504, metav1.StatusReasonTimeout, "late"},
		{"server timeout", apierrors.NewServerTimeout(secrets, "get", 1), 500, metav1.StatusReasonServerTimeout, "could not be completed"},
		{"too large a version", apierrors.NewTimeoutError("Too large resource version", 1), 504, metav1.StatusReasonTimeout, "Too large"},
		{"bad request", apierrors.NewBadRequest("continue token"), 400, metav1.StatusReasonBadRequest, "continue token"},
		{"conflict", apierrors.NewConflict(secrets, "a", errors.New("changed")), 409, metav1.StatusReasonConflict, "changed"},
		{"wrapped", fmt.Errorf("wrapped: %w", apierrors.NewResourceExpired("too old")), 410, metav1.StatusReasonExpired, "too old"},
		{"deadline", fmt.Errorf("get: %w", context.DeadlineExceeded), 504, metav1.StatusReasonTimeout, "did not respond in time"},
		{"connection", errors.New("connection refused"), 503, metav1.StatusReasonServiceUnavailable, "connection refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			hub := &recordingSecrets{err: test.err}
			_, err := NewREST(hub, cluster.ParseOptions{}).Get(t.Context(), "a", nil)
			var status apierrors.APIStatus
			if !errors.As(err, &status) {
				t.Fatalf("not a status: %v", err)
			}
			s := status.Status()
			if s.Code != test.code || s.Reason != test.reason || !strings.Contains(s.Message, test.message) {
				t.Errorf("status %+v", s)
			}
			if s.Details != nil && s.Details.Kind == "secrets" {
				t.Errorf("details name the Secret: %+v", s.Details)
			}
			if was, ok := test.err.(apierrors.APIStatus); ok { //nolint:errorlint // the very error
				if before := was.Status(); before.Details != nil && before.Details.Kind == v1alpha1.ResourceName {
					t.Error("the hub's error was changed")
				}
			}
			if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
				t.Error("looks like a verdict on the caller")
			}
		})
	}
	hub := &recordingSecrets{err: context.Canceled}
	if _, err := NewREST(hub, cluster.ParseOptions{}).List(t.Context(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	hub.err = apierrors.NewForbidden(secrets, "", errors.New("no"))
	_, listErr := NewREST(hub, cluster.ParseOptions{}).List(t.Context(), nil)
	_, watchErr := NewREST(hub, cluster.ParseOptions{}).Watch(t.Context(), nil)
	if apierrors.ReasonForError(listErr) != metav1.StatusReasonServiceUnavailable || apierrors.ReasonForError(watchErr) != metav1.StatusReasonServiceUnavailable {
		t.Errorf("list: %v, watch: %v", listErr, watchErr)
	}
}

func TestTable(t *testing.T) {
	now := time.Date(2026, 1, 11, 0, 0, 0, 0, time.UTC)
	printer := table{now: func() time.Time { return now }}
	ready := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: reason}}
	}
	full := v1alpha1.ClusterGateway{
		ObjectMeta: metav1.ObjectMeta{Name: "east", ResourceVersion: "4", CreationTimestamp: metav1.NewTime(now.Add(-10 * 24 * time.Hour))},
		Spec: v1alpha1.ClusterGatewaySpec{Access: v1alpha1.ClusterAccess{
			Endpoint:   &v1alpha1.ClusterEndpoint{Type: "Const", Const: &v1alpha1.ClusterEndpointConst{Address: "https://h:443"}},
			Credential: &v1alpha1.ClusterAccessCredential{Type: "X509Certificate"},
		}},
		Status: v1alpha1.ClusterGatewayStatus{
			Route: "direct", Version: "v1.37.2", Conditions: ready("True", "Healthy"), Latency: &metav1.Duration{Duration: 12345678}, Identity: "impersonate",
			CredentialExpirationTime: ptr.To(metav1.NewTime(now.Add(30 * 24 * time.Hour))),
		},
	}
	expired := *full.DeepCopy()
	expired.Name, expired.Status.CredentialExpirationTime = "old", ptr.To(metav1.NewTime(now.Add(-time.Second)))
	expired.Status.Conditions = ready("False", "InvalidSecret")
	list := &v1alpha1.ClusterGatewayList{
		ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: "c", RemainingItemCount: ptr.To[int64](3)},
		Items:    []v1alpha1.ClusterGateway{full, expired, {}},
	}
	got, err := printer.convert(list, &metav1.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.ResourceVersion != "9" || got.Continue != "c" || *got.RemainingItemCount != 3 {
		t.Errorf("list meta: %+v", got.ListMeta)
	}
	var narrow, wide []string
	for _, c := range got.ColumnDefinitions {
		if c.Priority == 0 {
			narrow = append(narrow, c.Name)
		} else {
			wide = append(wide, c.Name)
		}
	}
	if strings.Join(narrow, " ") != "Name Route Healthy Version Endpoint Age" || strings.Join(wide, " ") != "Credential Expires Reason Latency Identity" {
		t.Errorf("columns %q and %q", narrow, wide)
	}
	want := [][]any{
		{"east", "direct", "True", "v1.37.2", "https://h:443", "10d", "X509Certificate", "30d", "Healthy", "12.3ms", "impersonate"},
		{"old", "direct", "False", "v1.37.2", "https://h:443", "10d", "X509Certificate", "<expired>", "InvalidSecret", "12.3ms", "impersonate"},
		{"", "<none>", "Unknown", "<unknown>", "<none>", "<unknown>", "<none>", "<unknown>", "<none>", "<none>", "<none>"},
	}
	for i, row := range got.Rows {
		if !reflect.DeepEqual(row.Cells, want[i]) {
			t.Errorf("row %v", row.Cells)
		}
		if row.Object.Object != runtime.Object(&list.Items[i]) {
			t.Errorf("row %d lacks its object", i)
		}
	}
	single, err := printer.convert(&full, &metav1.TableOptions{NoHeaders: true})
	if err != nil || single.ResourceVersion != "4" || len(single.Rows) != 1 || single.ColumnDefinitions != nil {
		t.Errorf("single: %+v, %v", single, err)
	}
	if _, err := printer.convert(&corev1.Secret{}, nil); err == nil {
		t.Error("a table of a Secret")
	}
}

func TestRefusalLeavesTheRestAlone(t *testing.T) {
	// Without a RequestInfo, the request is passed on. Authorization is not the task of this
	// handler.
	reached := false
	handler := WithWriteRefusal(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }), nil, "ns")
	handler.ServeHTTP(nil, &http.Request{Method: http.MethodPost})
	if !reached {
		t.Error("not passed on")
	}
}
