// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"
	"sigs.k8s.io/multicluster-runtime/providers/clusters"
)

// control runs a controller of multicluster-runtime for the Pods of several clusters, until ctx
// ends. For each Pod that it reconciles, it writes "NAME reconciled POD".
func control(ctx context.Context, out io.Writer, hub *rest.Config, configs map[string]*rest.Config) error {
	log.SetLogger(logr.Discard())
	provider := clusters.New()
	m, err := mcmanager.New(hub, provider, manager.Options{Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		return err
	}
	for name, config := range configs {
		c, err := cluster.New(config)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := provider.Add(ctx, multicluster.ClusterName(name), c); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	reconciler := mcreconcile.Func(func(ctx context.Context, request mcreconcile.Request) (reconcile.Result, error) {
		c, err := m.GetCluster(ctx, request.ClusterName)
		if err != nil {
			return reconcile.Result{}, err
		}
		var pod corev1.Pod
		if err := c.GetClient().Get(ctx, request.NamespacedName, &pod); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
		_, err = fmt.Fprintln(out, request.ClusterName, "reconciled", pod.Name)
		return reconcile.Result{}, err
	})
	if err := mcbuilder.ControllerManagedBy(m).Named("pods").For(&corev1.Pod{}).Complete(reconciler); err != nil {
		return err
	}
	return m.Start(ctx)
}
