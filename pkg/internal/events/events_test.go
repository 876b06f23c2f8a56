// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestWrite(t *testing.T) {
	hub := fake.NewClientset()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	name := fmt.Sprintf("edge-1.%x", at.UnixNano())
	err := Write(t.Context(), hub.CoreV1().Events(Namespace), Event{
		Cluster: "edge-1", UID: "u", Warning: true, Reason: "NoAgent", Message: "Ready=False:\x1b[31m no agent", Time: at,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := hub.CoreV1().Events("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got.TypeMeta, got.ManagedFields = metav1.TypeMeta{}, nil // the fake sets them
	want := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "cluster.core.oam.dev/v1alpha1", Kind: "ClusterGateway", Name: "edge-1", UID: "u",
		},
		Type: "Warning", Reason: "NoAgent", Message: "Ready=False: [31m no agent",
		Source: corev1.EventSource{Component: "cluster-gateway"}, Count: 1,
		FirstTimestamp: metav1.NewTime(at), LastTimestamp: metav1.NewTime(at),
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if err := Write(t.Context(), nil, Event{Cluster: "edge-1"}); err != nil {
		t.Errorf("without a client: %v", err)
	}
}

// The API server rejects an Event whose name or message is too long.
func TestWriteKeepsToTheLimitsOfAnEvent(t *testing.T) {
	hub := fake.NewClientset()
	name := strings.Repeat("a", 253)
	if err := Write(t.Context(), hub.CoreV1().Events(Namespace), Event{Cluster: name, Message: strings.Repeat("m", 60<<10), Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	list, err := hub.CoreV1().Events(Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d Events, %v", len(list.Items), err)
	}
	event := list.Items[0]
	if faults := validation.NameIsDNSSubdomain(event.Name, false); len(faults) > 0 || len(event.Message) > 1024 || event.InvolvedObject.Name != name {
		t.Errorf("name %q: %v; message of %d bytes", event.Name, faults, len(event.Message))
	}
}
