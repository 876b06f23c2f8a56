// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

func hubSecret(ctx context.Context, t *testing.T, name string) *corev1.Secret {
	t.Helper()
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, noOptions)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// patchSecret changes a Secret of the hub as somebody else would.
func patchSecret(ctx context.Context, t *testing.T, name, patch string) {
	t.Helper()
	_, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "by-hand"})
	if err != nil {
		t.Fatal(err)
	}
}

// strange has all that the gateway would heed and that no registration here wants, and something of somebody's own.
const strange = `{
	"metadata": {
		"labels": {"team": "a"},
		"annotations": {"cluster.core.oam.dev/insecure-skip-tls-verify": "true", "note": "b"}
	},
	"stringData": {"ca": "x", "tls.crt": "x", "tls.key": "x", "exec": "{}", "proxy-url": "http://127.0.0.1:1", "tls-server-name": "elsewhere", "own": "c"}
}`

// checkStrange looks for what is left of it.
func checkStrange(t *testing.T, secret *corev1.Secret) {
	t.Helper()
	if _, insecure := secret.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify]; insecure {
		t.Error("the verification of the cluster's certificate is still off")
	}
	if keys := slices.Sorted(maps.Keys(secret.Data)); !slices.Equal(keys, []string{"ca.crt", "endpoint", "own", "token"}) {
		t.Errorf("the Secret has %q", keys)
	}
	if secret.Labels["team"] != "a" || secret.Annotations["note"] != "b" {
		t.Error("what is no business of the gateway's is gone")
	}
}

// TestAdopt shows that what was registered by hand becomes a registration like any other: nothing of before is heeded by the gateway, above all not
// that it need not verify the cluster.
func TestAdopt(t *testing.T) {
	ctx := begin(t)
	byHand := lab.SecretOptions{Name: "near-1", Data: map[string][]byte{"endpoint": []byte(shared.nearby.Endpoint()), "token": []byte("x")}}
	if err := shared.hub.ApplySecret(ctx, byHand); err != nil {
		t.Fatal(err)
	}
	patchSecret(ctx, t, "near-1", strange)
	hub := dump(ctx, t, shared.hub)
	const removed = "removed: ca, tls-server-name, proxy-url, tls.crt, tls.key, exec, annotation cluster.core.oam.dev/insecure-skip-tls-verify"
	if _, said := must(ctx, t, nearbyArgs("--adopt", "--dry-run")...); !strings.Contains(said, removed) {
		t.Errorf("a dry run does not say what it would remove:\n%s", said)
	}
	same(t, "the hub, after a dry run", hub, dump(ctx, t, shared.hub))
	if _, said := must(ctx, t, nearbyArgs("--adopt")...); !strings.Contains(said, removed) {
		t.Errorf("it does not say what it removes:\n%s", said)
	}
	checkStrange(t, hubSecret(ctx, t, "near-1"))
	must(ctx, t, "doctor", "near-1")
	if _, said := must(ctx, t, nearbyArgs()...); strings.Contains(said, "removed") {
		t.Errorf("the second time, it says\n%s", said)
	}
}

// TestRegisterMends shows that register does what doctor advises when somebody has changed the Secret.
func TestRegisterMends(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	patchSecret(ctx, t, "near-1", strange)
	// Of these two, others would be to blame.
	patchSecret(ctx, t, "near-1", `{"metadata":{"annotations":{"cluster.core.oam.dev/insecure-skip-tls-verify":null}},"data":{"proxy-url":null}}`)
	out, _, err := invoke(ctx, bootstrap.Config{}, "doctor", "near-1")
	if err == nil || !strings.Contains(out, "agent-bootstrap register near-1") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	must(ctx, t, nearbyArgs()...)
	checkStrange(t, hubSecret(ctx, t, "near-1"))
	must(ctx, t, "doctor", "near-1")
}

// TestInvalidSecretEndsWait shows that register does not wait for what will not come.
func TestInvalidSecretEndsWait(t *testing.T) {
	ctx := begin(t)
	spoil := bootstrap.Config{AfterStep: func(step string) error {
		if step == "secret" {
			patchSecret(ctx, t, "near-1", `{"stringData":{"endpoint":"http://a"}}`)
		}
		return nil
	}}
	began := time.Now()
	const wait = 3 * time.Minute
	_, _, err := invoke(ctx, spoil, nearbyArgs("--wait", wait.String())...)
	if err == nil || !strings.Contains(err.Error(), "the gateway cannot use its Secret") || !strings.Contains(err.Error(), "only https is allowed") {
		t.Errorf("it says %v", err)
	}
	if took := time.Since(began); took > wait/2 {
		t.Errorf("it waited for %s", took)
	}
}

// TestNameRace lets another cluster take the name between any two steps of register: the one that was there first keeps it, and its Secret as it is.
func TestNameRace(t *testing.T) {
	ctx := begin(t)
	edge := []string{"register", "near-1", "--cluster-kubeconfig", shared.edgeFile, "--wait", "0"}
	nearby := nearbyArgs("--wait", "0")
	var steps []string
	record := bootstrap.Config{AfterStep: func(step string) error { steps = append(steps, step); return nil }}
	if _, _, err := invoke(ctx, record, nearby...); err != nil {
		t.Fatal(err)
	}
	must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)
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
					must(ctx, t, edge...)
					first = hubSecret(ctx, t, "near-1")
				}
				return nil
			}}
			_, _, err := invoke(ctx, meanwhile, nearby...)
			if err == nil || !strings.Contains(err.Error(), "has been registered meanwhile") || !strings.Contains(err.Error(), first.Annotations[v1alpha1.AnnotationClusterUID]) {
				t.Errorf("the second one: %v", err)
			}
			unchangedSecret(t, first, hubSecret(ctx, t, "near-1"))
			leaveRace(ctx, t, shared.nearby, shared.edgeFile)
		})
	}
	t.Run("at once", func(t *testing.T) {
		for range 5 {
			var group errgroup.Group
			var errs [2]error
			for i, args := range [][]string{edge, nearby} {
				group.Go(func() error { _, _, errs[i] = invoke(ctx, bootstrap.Config{}, args...); return nil })
			}
			_ = group.Wait() // errs has them
			uid := hubSecret(ctx, t, "near-1").Annotations[v1alpha1.AnnotationClusterUID]
			system, err := shared.edge.Client().CoreV1().Namespaces().Get(ctx, "kube-system", noOptions)
			if err != nil {
				t.Fatal(err)
			}
			won, loser, file := 1, shared.edge, shared.nearbyFile
			if uid == string(system.UID) {
				won, loser, file = 0, shared.nearby, shared.edgeFile
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

// leaveRace removes the registration, and what the other one has applied to its cluster, as it says.
func leaveRace(ctx context.Context, t *testing.T, loser *lab.Cluster, winner string) {
	t.Helper()
	must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", winner)
	if out, err := loser.Kubectl(ctx, "delete", "namespace", "--ignore-not-found", agentNamespace).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSecretChangesMeanwhile shows that what the gateway writes of a cluster's health is in nobody's way.
func TestSecretChangesMeanwhile(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs("--wait", "0")...)
	for _, remove := range []bool{false, true} {
		meanwhile := bootstrap.Config{AfterStep: func(step string) error {
			switch {
			case step != "access":
			case remove:
				must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)
			default:
				patchSecret(ctx, t, "near-1", `{"metadata":{"annotations":{"status.cluster.core.oam.dev/version":"v0.0.0"}}}`)
			}
			return nil
		}}
		_, _, err := invoke(ctx, meanwhile, nearbyArgs("--wait", "0")...)
		if remove != (err != nil) || remove && !strings.Contains(err.Error(), "has been removed from the hub meanwhile") {
			t.Errorf("removed meanwhile: %v; register: %v", remove, err)
		}
	}
}
