// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package events records Events about managed clusters on the hub.
package events

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	recordutil "k8s.io/client-go/tools/record/util"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Namespace is the namespace of the Events about objects that have no namespace, as
// ClusterGateways.
const Namespace = metav1.NamespaceDefault

// component is the reporting component of all Events.
const component = "cluster-gateway"

// Event is an Event about the ClusterGateway of one cluster.
type Event struct {
	// Cluster is the name of the cluster.
	Cluster string
	// UID is the UID of its ClusterGateway. It is empty if the cluster is not registered.
	UID types.UID
	// Warning makes the Event one of type Warning. Otherwise its type is Normal.
	Warning bool
	// Reason is one word in CamelCase.
	Reason string
	// Message is for people. It may hold text of the cluster: Write makes it printable and cuts it
	// to what an Event can hold.
	Message string
	// Time is when it happened.
	Time time.Time
}

// Write creates the Event on the hub. It does nothing if client is nil. The client must be one for
// [Namespace].
func Write(ctx context.Context, client corev1client.EventInterface, e Event) error {
	if client == nil {
		return nil
	}
	eventType := corev1.EventTypeNormal
	if e.Warning {
		eventType = corev1.EventTypeWarning
	}
	at := metav1.NewTime(e.Time)
	_, err := client.Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: recordutil.GenerateEventName(e.Cluster, e.Time.UnixNano())},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindName, Name: e.Cluster, UID: e.UID,
		},
		Type: eventType, Reason: e.Reason, Message: untrusted.Text(e.Message),
		Source: corev1.EventSource{Component: component}, FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}, metav1.CreateOptions{})
	return err
}
