// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestBenchmarkOfOwnClusters runs the benchmark on a user's own clusters: with kubeconfigs, the
// name of a cluster, and another route to it.
func TestBenchmarkOfOwnClusters(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	binary := buildBenchmark(ctx, t)
	pod, err := shared.direct.RunPod(ctx, "default", "benchmarked")
	if err != nil {
		t.Fatal(err)
	}
	direct := shared.direct.Kubeconfig()
	args := []string{
		"--direct", direct, "--cluster", "direct", "--route", "again=" + direct, "--pod", pod.Namespace + "/" + pod.Name, "--quick",
		"--hub", writeKubeconfig(t, shared.embedded.RESTConfig(lab.ViaHub)), "--gateway", writeKubeconfig(t, shared.embedded.RESTConfig(lab.ViaOwnEndpoint)),
	}

	t.Run("to its end", func(t *testing.T) {
		dir := t.TempDir()
		out, err := exec.CommandContext(ctx, binary, append(args, "--only", "watch,streams,scale", "--out", dir)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		r := readReport(t, dir)
		measured := map[string][]string{}
		for _, s := range r.Series {
			if s.Failures > 0 || len(s.Figures) == 0 {
				t.Errorf("%s by %s: %d figures, %d failures %v", s.Workload, s.Route, len(s.Figures), s.Failures, s.Errors)
			}
			if !slices.Contains(measured[s.Workload], s.Route) {
				measured[s.Workload] = append(measured[s.Workload], s.Route)
			}
		}
		for workload, routes := range measured {
			if want := []string{"direct", "hub/direct", "own/direct", "again"}; !slices.Equal(routes, want) {
				t.Errorf("%s was measured by %q, want %q", workload, routes, want)
			}
		}
		if got, want := slices.Sorted(maps.Keys(measured)), []string{"exec-echo", "exec-run", "port-forward", "watch"}; !slices.Equal(got, want) {
			t.Errorf("measured %q, want %q", got, want)
		}
		if r.Interrupted || !strings.Contains(strings.Join(r.Notes, "\n"), "scale was skipped: it requires the testbed") {
			t.Errorf("interrupted %t, notes %q", r.Interrupted, r.Notes)
		}
		for _, name := range []string{"report.txt", "report.md", "report.html", "benchstat.txt"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		nothingIsLeft(ctx, t)
	})

	t.Run("interrupted", func(t *testing.T) {
		dir := t.TempDir()
		cmd := exec.CommandContext(ctx, binary, append(args, "--only", "requests,load", "--out", dir)...)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		var out bytes.Buffer
		for lines.Scan() {
			out.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "list-100:") { // GET and the flow have been measured
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, out.Bytes())
		}
		r := readReport(t, dir)
		if !r.Interrupted || len(r.Series) < 8 || r.Series[0].Workload != "get" || len(r.Series[0].Figures) == 0 {
			t.Errorf("interrupted %t, %d series\n%s", r.Interrupted, len(r.Series), out.Bytes())
		}
		for _, s := range r.Series {
			if len(s.Figures) == 0 || s.Stopped != "" {
				t.Errorf("%s by %s has no results in the report: %s", s.Workload, s.Route, s.Stopped)
			}
		}
		nothingIsLeft(ctx, t)
	})
}

func buildBenchmark(ctx context.Context, t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "e2e-benchmark")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "../../benchmark").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func readReport(t *testing.T, dir string) *report.Report {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := &report.Report{}
	if err := json.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// nothingIsLeft checks that the benchmark has deleted its namespaces. The cluster may still be
// emptying them.
func nothingIsLeft(ctx context.Context, t *testing.T) {
	t.Helper()
	list, err := kubernetes.NewForConfigOrDie(shared.direct.RESTConfig()).CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, n := range list.Items {
		if strings.HasPrefix(n.Name, "cluster-gateway-benchmark-") && n.DeletionTimestamp == nil {
			t.Errorf("the namespace %s still exists", n.Name)
		}
		found = found || n.Name == "default"
	}
	if !found {
		t.Error("the namespaces of the cluster were not listed")
	}
}
