// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
)

// TestNameRace lets another cluster take the name between any two steps of register. The first
// cluster keeps the name, and its Secret stays as it is.
func TestNameRace(t *testing.T) {
	ctx := site.Begin(t)
	edge := []string{"register", "near-1", "--cluster-kubeconfig", site.Edge.Kubeconfig(), "--wait", "0"}
	nearby := site.RegisterNear()
	var steps []string
	record := bootstrap.Config{AfterStep: func(step string) error { steps = append(steps, step); return nil }}
	if _, _, err := site.Run(ctx, record, nearby...); err != nil {
		t.Fatal(err)
	}
	site.Must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig())
	before := slices.Index(steps, "secret")
	if before < 4 {
		t.Fatalf("the steps are %v", steps)
	}
	for i, step := range steps[:before] {
		t.Run(fmt.Sprintf("%d-%s", i, step), func(t *testing.T) {
			var first *corev1.Secret
			done := 0
			meanwhile := bootstrap.Config{AfterStep: func(string) error {
				if done++; done == i+1 {
					site.Must(ctx, t, edge...)
					first = site.HubSecret(ctx, t, "near-1")
				}
				return nil
			}}
			_, _, err := site.Run(ctx, meanwhile, nearby...)
			if err == nil || !strings.Contains(err.Error(), "was registered by somebody else at the same time") || !strings.Contains(err.Error(), first.Annotations[v1alpha1.AnnotationClusterUID]) {
				t.Errorf("the second one: %v", err)
			}
			unchangedSecret(t, first, site.HubSecret(ctx, t, "near-1"))
			leaveRace(ctx, t, site.Near, site.Edge.Kubeconfig())
		})
	}
	t.Run("at once", func(t *testing.T) {
		for range 5 {
			var group errgroup.Group
			var errs [2]error
			for i, args := range [][]string{edge, nearby} {
				group.Go(func() error { _, _, errs[i] = site.Run(ctx, bootstrap.Config{}, args...); return nil })
			}
			_ = group.Wait() // errs has them
			uid := site.HubSecret(ctx, t, "near-1").Annotations[v1alpha1.AnnotationClusterUID]
			system, err := site.Edge.Client().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			won, loser, file := 1, site.Edge, site.Near.Kubeconfig()
			if uid == string(system.UID) {
				won, loser, file = 0, site.Near, site.Edge.Kubeconfig()
			}
			if errs[won] != nil || errs[1-won] == nil || !strings.Contains(errs[1-won].Error(), "is taken") {
				t.Errorf("who has the name: %v; the other: %v", errs[won], errs[1-won])
			}
			leaveRace(ctx, t, loser, file)
		}
	})
}

func unchangedSecret(t *testing.T, want, got *corev1.Secret) {
	t.Helper()
	if want.UID != got.UID || !maps.Equal(want.Labels, got.Labels) || string(want.Data["token"]) != string(got.Data["token"]) || string(want.Data["endpoint"]) != string(got.Data["endpoint"]) ||
		want.Annotations[v1alpha1.AnnotationClusterUID] != got.Annotations[v1alpha1.AnnotationClusterUID] {
		t.Error("the Secret of the first one was changed")
	}
}

// leaveRace removes the registration of the winner, and what the loser has applied to its cluster,
// as the error of the loser says.
func leaveRace(ctx context.Context, t *testing.T, loser *lab.Cluster, winner string) {
	t.Helper()
	site.Must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", winner)
	if out, err := loser.Kubectl(ctx, "delete", "namespace", "--ignore-not-found", bootstraptest.AgentNamespace).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSecretChangesMeanwhile checks that register accepts a change of the cluster's health while it
// runs, and stops if the Secret is removed.
func TestSecretChangesMeanwhile(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear()...)
	for _, remove := range []bool{false, true} {
		meanwhile := bootstrap.Config{AfterStep: func(step string) error {
			switch {
			case step != "access":
			case remove:
				site.Must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig())
			default:
				bootstraptest.PatchSecret(ctx, t, site.Hub, "near-1", `{"metadata":{"annotations":{"status.cluster.core.oam.dev/version":"v0.0.0"}}}`)
			}
			return nil
		}}
		_, _, err := site.Run(ctx, meanwhile, site.RegisterNear()...)
		if remove != (err != nil) || remove && !strings.Contains(err.Error(), "was removed from the hub at the same time") {
			t.Errorf("removed meanwhile: %v; register: %v", remove, err)
		}
	}
}
