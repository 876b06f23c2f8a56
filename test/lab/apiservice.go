// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

const (
	defaultServiceNamespace = "cluster-gateway-system"
	defaultService          = "cluster-gateway"
)

// APIServiceOptions describes an aggregated API server that runs on the lab's host.
type APIServiceOptions struct {
	// Group and Version are what it serves. Required.
	Group, Version string
	// Namespace and Service are the name of the Service on the hub. Empty means cluster-gateway in
	// cluster-gateway-system.
	Namespace, Service string
	// Port is its port on localhost. Required.
	Port int
	// CAPEM verifies its serving certificate, which must be valid for SERVICE.NAMESPACE.svc. Nil means
	// that the API server itself writes the CA to the APIService.
	CAPEM []byte
}

// RegisterAPIService adds an aggregated API server to a hub, which must not be firewalled, and
// waits until it is available.
//
// The Service has type ExternalName, so the aggregation layer can reach a process that has no Pod.
func (l *Lab) RegisterAPIService(ctx context.Context, hub *Cluster, o APIServiceOptions) error {
	if o.Namespace == "" {
		o.Namespace = defaultServiceNamespace
	}
	if o.Service == "" {
		o.Service = defaultService
	}
	if err := hub.registerAPIService(ctx, o); err != nil {
		return l.noteFailure(fmt.Errorf("register API service %s with cluster %s: %w", o.name(), hub.opts.Name, err))
	}
	return nil
}

func (o APIServiceOptions) name() string { return o.Version + "." + o.Group }

func (c *Cluster) registerAPIService(ctx context.Context, o APIServiceOptions) error {
	if c.ns != nil {
		return fmt.Errorf("the cluster is firewalled, so its localhost is not that of the lab")
	}
	client, err := clientset.NewForConfig(c.rest)
	if err != nil {
		return err
	}
	if err := c.EnsureNamespace(ctx, o.Namespace); err != nil {
		return err
	}
	services := c.client.CoreV1().Services(o.Namespace)
	if _, err := services.Create(ctx, o.service(), metav1.CreateOptions{}); ignoreExists(err) != nil {
		return err
	}
	apiServices := client.ApiregistrationV1().APIServices()
	if _, err := apiServices.Create(ctx, o.apiService(), metav1.CreateOptions{}); err != nil {
		return err
	}
	return poll(ctx, func(ctx context.Context) error {
		current, err := apiServices.Get(ctx, o.name(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		return unavailable(current)
	})
}

func (o APIServiceOptions) service() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: o.Service},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}
}

func (o APIServiceOptions) apiService() *apiregistrationv1.APIService {
	port := int32(o.Port)
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: o.name()},
		Spec: apiregistrationv1.APIServiceSpec{
			Group:                o.Group,
			Version:              o.Version,
			GroupPriorityMinimum: 1000,
			VersionPriority:      10,
			CABundle:             o.CAPEM,
			Service:              &apiregistrationv1.ServiceReference{Namespace: o.Namespace, Name: o.Service, Port: &port},
		},
	}
}

// unavailable returns why the hub does not use an APIService, or nil if it does.
func unavailable(s *apiregistrationv1.APIService) error {
	for _, condition := range s.Status.Conditions {
		if condition.Type != apiregistrationv1.Available {
			continue
		}
		if condition.Status == apiregistrationv1.ConditionTrue {
			return nil
		}
		return fmt.Errorf("%s: %s", condition.Reason, condition.Message)
	}
	return fmt.Errorf("the hub has not checked it yet")
}
