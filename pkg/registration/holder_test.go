// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	secret := func(labels, annotations map[string]string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "hub", Name: "edge", Labels: labels, Annotations: annotations}}
	}
	labeled := map[string]string{v1alpha1.LabelCredentialType: "ServiceAccountToken"}
	registered := map[string]string{v1alpha1.AnnotationClusterUID: "one"}
	for _, test := range []struct {
		name   string
		secret *corev1.Secret
		uid    types.UID
		want   NameHolder // "" if the name is free
		text   string
	}{
		{"free", nil, "one", "", ""},
		{"its own", secret(labeled, registered), "one", "", ""},
		{"another cluster's", secret(labeled, registered), "two", HolderOtherCluster, "another cluster (one, and this is two)"},
		{"of a cluster, by one that is not known yet", secret(labeled, registered), "", HolderOtherCluster, "registered under it already (one)"},
		{"registered by hand", secret(labeled, nil), "one", HolderManual, "hub/edge on the hub is a cluster that was registered without agent-bootstrap"},
		{"not a cluster", secret(nil, nil), "", HolderOtherSecret, "hub/edge on the hub is not a cluster"},
	} {
		err := CheckName(test.secret, test.uid)
		var taken *NameTakenError
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (!errors.As(err, &taken) || taken.Holder != test.want || !strings.Contains(err.Error(), test.text)):
			t.Errorf("%s: got %v, want %s with %q", test.name, err, test.want, test.text)
		}
	}
}

func TestCheckCluster(t *testing.T) {
	t.Parallel()
	namespace := func(name, hub string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationClusterName: name, v1alpha1.AnnotationHubUID: hub}}}
	}
	for _, test := range []struct {
		name      string
		namespace *corev1.Namespace
		want      RegisteredError // empty if the cluster is free
	}{
		{"no namespace", nil, RegisteredError{}},
		{"a namespace of nobody", &corev1.Namespace{}, RegisteredError{}},
		{"this registration", namespace("edge", "hub"), RegisteredError{}},
		{"another name", namespace("other", "hub"), RegisteredError{Name: "other"}},
		{"another hub", namespace("edge", "elsewhere"), RegisteredError{Name: "edge", HubUID: "elsewhere"}},
	} {
		got := RegisteredError{}
		if err := CheckNamespace(test.namespace, "edge", "hub"); err != nil {
			got = *err.(*RegisteredError)
		}
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
	secrets := []corev1.Secret{{ObjectMeta: metav1.ObjectMeta{Name: "edge", Annotations: map[string]string{v1alpha1.AnnotationClusterUID: "one"}}}}
	if err := CheckSecrets(secrets, "edge", "one"); err != nil {
		t.Error(err)
	}
	if err := CheckSecrets(secrets, "second", "one"); err == nil || !strings.Contains(err.Error(), `as "edge"`) {
		t.Errorf("a second name: %v", err)
	}
	if err := CheckSecrets(secrets, "second", "two"); err != nil {
		t.Error(err)
	}
}

func TestValidateName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct{ cluster, invitation string }{
		"edge-1":                   {},
		"prod.example.com":         {},
		"invitation":               {},
		"Edge_1":                   {"invalid cluster name", "invalid cluster name"},
		"invitation.edge-1":        {"reserved", "reserved"},
		strings.Repeat("x", 64):    {"", "at most 63 characters"},
		strings.Repeat("x", 254):   {"invalid cluster name", "invalid cluster name"},
		strings.Repeat("x.y", 200): {"invalid cluster name", "invalid cluster name"},
	} {
		for got, text := range map[error]string{ValidateName(name): want.cluster, ValidateInvitationName(name): want.invitation} {
			if (got == nil) != (text == "") || got != nil && !strings.Contains(got.Error(), text) {
				t.Errorf("%q: got %v, want %q", name, got, text)
			}
		}
	}
}
