// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/clusterapi"
)

// ClusterAPIOptions are the flags for the clusters of Cluster API.
type ClusterAPIOptions struct {
	Namespaces []string
	Selector   string
}

// NewClusterAPIOptions returns the defaults. The gateway then registers no clusters of Cluster API.
func NewClusterAPIOptions() *ClusterAPIOptions { return &ClusterAPIOptions{} }

// AddFlags adds the flags of the group.
func (o *ClusterAPIOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.Namespaces, "cluster-api-namespaces", o.Namespaces,
		"Namespaces in the hub with clusters of Cluster API. The gateway registers each cluster whose kubeconfig is in a Secret NAME-kubeconfig there, with the credential in it, and unregisters it when the Secret is deleted. If it is empty, the gateway registers none.")
	fs.StringVar(&o.Selector, "cluster-api-selector", o.Selector,
		"Label selector, for example gateway=register: only kubeconfigs of Cluster API whose Secrets have these labels are registered. If it is empty, all are.")
}

// Validate returns every fault.
func (o *ClusterAPIOptions) Validate() []error {
	var errs []error
	for _, namespace := range o.Namespaces {
		if faults := validation.IsDNS1123Label(namespace); len(faults) > 0 {
			errs = append(errs, invalid("cluster-api-namespaces", namespace, "must be a namespace: "+faults[0]))
		}
	}
	if len(o.Namespaces) == 0 && o.Selector != "" {
		errs = append(errs, invalid("cluster-api-selector", o.Selector, "must not be set without --cluster-api-namespaces"))
	}
	if _, err := labels.Parse(o.Selector); err != nil {
		errs = append(errs, invalidError("cluster-api-selector", o.Selector, err))
	}
	return errs
}

// ClusterAPIConfig is which clusters of Cluster API the gateway registers.
type ClusterAPIConfig struct {
	Namespaces []string
	// Selector selects kubeconfigs by the labels of their Secrets.
	Selector labels.Selector
}

// config returns nil if the gateway registers no clusters of Cluster API. The options are valid.
func (o *ClusterAPIOptions) config() *ClusterAPIConfig {
	if len(o.Namespaces) == 0 {
		return nil
	}
	c := &ClusterAPIConfig{Namespaces: slices.Clone(o.Namespaces), Selector: labels.Everything()}
	if selector, err := labels.Parse(o.Selector); err == nil {
		c.Selector = selector
	}
	return c
}

// newRegistrar returns what registers the clusters of Cluster API.
func (s *Server) newRegistrar(c *ClusterAPIConfig) *clusterapi.Registrar {
	return clusterapi.NewRegistrar(clusterapi.Config{
		Client: s.config.Hub.Client, SecretNamespace: s.config.Hub.SecretNamespace, Namespaces: c.Namespaces, Selector: c.Selector,
		Clusters: s.clusters, Parse: s.config.Parse, Logger: klog.Background().WithName("clusterapi"),
	})
}
