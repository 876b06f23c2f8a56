// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// createDirectly creates a ConfigMap without the gateway.
func (s *site) createDirectly(ctx context.Context, t *testing.T, name string, data map[string]string) *corev1.ConfigMap {
	t.Helper()
	made, err := s.target.Client().CoreV1().ConfigMaps(s.namespace).Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// wantData checks that the cluster itself has a ConfigMap with this data. If data is nil, the
// ConfigMap must not exist.
func (s *site) wantData(ctx context.Context, t *testing.T, name string, want map[string]string) {
	t.Helper()
	found, err := s.target.Client().CoreV1().ConfigMaps(s.namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case want == nil && apierrors.IsNotFound(err):
	case err != nil:
		t.Errorf("ConfigMap %s: %v", name, err)
	case want == nil:
		t.Errorf("ConfigMap %s exists", name)
	case fmt.Sprint(found.Data) != fmt.Sprint(want):
		t.Errorf("ConfigMap %s has %v, want %v", name, found.Data, want)
	}
}

// manifest returns a ConfigMap to apply; each pair is a line of its data.
func manifest(name string, pairs ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {%s}\n", name, strings.Join(pairs, ", "))
}

func testGet(ctx context.Context, t *testing.T, s *site) {
	s.createDirectly(ctx, t, "get", map[string]string{"key": "value"})
	mustContain(t, s.kubectl.run(ctx, t, "get", "configmap", "get"), "NAME", "DATA", "get")
	mustContain(t, s.kubectl.run(ctx, t, "get", "configmap", "get", "-o", "yaml"), "key: value", "name: get")
	mustContain(t, s.kubectl.run(ctx, t, "get", "nodes,pods", "-o", "wide"), "node/node-0", "pod/"+podName, "Running")
	missing := s.kubectl.try(ctx, t, "", "get", "configmap", "missing")
	if missing.code != 1 || !strings.Contains(missing.stderr, `Error from server (NotFound): configmaps "missing" not found`) {
		t.Error(missing)
	}
}

func testGetWatch(ctx context.Context, t *testing.T, s *site) {
	s.createDirectly(ctx, t, "watched", nil)
	// Not by name: kubectl would then start the watch without a resource version and skip the first
	// event, even if it is a change.
	watch := s.kubectl.start(ctx, t, "get", "configmaps", "--field-selector=metadata.name=watched", "-w", "-o", `jsonpath={.metadata.name}:{.data.turn}{"\n"}`)
	watch.sees(t, "watched:\n", nil)
	for _, turn := range []string{"one", "two"} {
		patch := fmt.Appendf(nil, `{"data":{"turn":%q}}`, turn)
		if _, err := s.target.Client().CoreV1().ConfigMaps(s.namespace).Patch(ctx, "watched", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		watch.sees(t, "watched:"+turn+"\n", nil)
	}
}

func testWait(ctx context.Context, t *testing.T, s *site) {
	mustContain(t, s.kubectl.run(ctx, t, "wait", "--for=condition=Ready", "--timeout=30s", "pod/"+podName), "condition met")
}

func testCreate(ctx context.Context, t *testing.T, s *site) {
	mustContain(t, s.kubectl.run(ctx, t, "create", "configmap", "created", "--from-literal=key=value"), "configmap/created created")
	s.wantData(ctx, t, "created", map[string]string{"key": "value"})
	again := s.kubectl.try(ctx, t, "", "create", "configmap", "created")
	if again.code == 0 || !strings.Contains(again.stderr, `configmaps "created" already exists`) {
		t.Error(again)
	}
}

func testApply(ctx context.Context, t *testing.T, s *site) {
	mustContain(t, s.kubectl.runWith(ctx, t, manifest("applied", "old: a", "kept: b"), "apply", "-f", "-"), "configmap/applied created")
	mustContain(t, s.kubectl.runWith(ctx, t, manifest("applied", "kept: b", "new: c"), "apply", "-f", "-"), "configmap/applied configured")
	s.wantData(ctx, t, "applied", map[string]string{"kept": "b", "new": "c"})
	mustContain(t, s.kubectl.runWith(ctx, t, manifest("applied", "kept: b", "new: c"), "apply", "-f", "-"), "configmap/applied unchanged")
}

func testApplyServerSide(ctx context.Context, t *testing.T, s *site) {
	apply := []string{"apply", "--server-side", "-f", "-", "--field-manager"}
	mustContain(t, s.kubectl.runWith(ctx, t, manifest("owned", "key: first"), append(apply, "one")...), "configmap/owned serverside-applied")
	conflict := s.kubectl.try(ctx, t, manifest("owned", "key: second"), append(apply, "two")...)
	if conflict.code == 0 || !strings.Contains(conflict.stderr, `conflict with "one"`) {
		t.Error(conflict)
	}
	s.wantData(ctx, t, "owned", map[string]string{"key": "first"})
	s.kubectl.runWith(ctx, t, manifest("owned", "key: second"), append(apply, "two", "--force-conflicts")...)
	s.wantData(ctx, t, "owned", map[string]string{"key": "second"})
}

func testApplyDryRun(ctx context.Context, t *testing.T, s *site) {
	for _, more := range []string{"--server-side=false", "--server-side=true"} {
		apply := []string{"apply", "--dry-run=server", more, "-f", "-"}
		mustContain(t, s.kubectl.runWith(ctx, t, manifest("imagined", "key: value"), apply...), "(server dry run)")
		s.wantData(ctx, t, "imagined", nil)
	}
	s.createDirectly(ctx, t, "imagined", map[string]string{"key": "value"})
	mustContain(t, s.kubectl.runWith(ctx, t, manifest("imagined", "key: other"), "apply", "--dry-run=server", "-f", "-"), "(server dry run)")
	s.wantData(ctx, t, "imagined", map[string]string{"key": "value"})
}

func testCreateDryRun(ctx context.Context, t *testing.T, s *site) {
	out := s.kubectl.run(ctx, t, "create", "configmap", "dry", "--from-literal=key=value", "--dry-run=server", "-o", "yaml")
	// Only the API server knows the answer, so it must have been asked.
	mustContain(t, out, "key: value", "uid:", "creationTimestamp:")
	s.wantData(ctx, t, "dry", nil)
}

func testPatch(ctx context.Context, t *testing.T, s *site) {
	s.createDirectly(ctx, t, "patched", map[string]string{"key": "0"})
	for kind, patch := range map[string]string{
		"strategic": `{"data":{"strategic":"1"}}`,
		"merge":     `{"data":{"merge":"2"}}`,
		"json":      `[{"op":"add","path":"/data/json","value":"3"}]`,
	} {
		mustContain(t, s.kubectl.run(ctx, t, "patch", "configmap", "patched", "--type", kind, "-p", patch), "configmap/patched patched")
	}
	s.kubectl.run(ctx, t, "label", "configmap", "patched", "team=blue")
	s.wantData(ctx, t, "patched", map[string]string{"key": "0", "strategic": "1", "merge": "2", "json": "3"})
}

func testDelete(ctx context.Context, t *testing.T, s *site) {
	for _, name := range []string{"deleted", "spared", "deleted-by-label"} {
		s.createDirectly(ctx, t, name, map[string]string{})
	}
	s.kubectl.run(ctx, t, "label", "configmap", "deleted-by-label", "fate=sealed")
	mustContain(t, s.kubectl.run(ctx, t, "delete", "configmap", "deleted"), `configmap "deleted" deleted`)
	mustContain(t, s.kubectl.run(ctx, t, "delete", "configmap", "-l", "fate=sealed"), `configmap "deleted-by-label" deleted`)
	s.wantData(ctx, t, "deleted", nil)
	s.wantData(ctx, t, "deleted-by-label", nil)
	s.wantData(ctx, t, "spared", map[string]string{})
	gone := s.kubectl.try(ctx, t, "", "delete", "configmap", "deleted")
	if gone.code == 0 || !strings.Contains(gone.stderr, "NotFound") {
		t.Error(gone)
	}
}
