// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// addFleet registers clusters, whose names are edge-00, edge-01 and so on.
func (h *fakeHub) addFleet(count int) {
	var all []v1alpha1.ClusterGateway
	for i := range count {
		c := testCluster(fmt.Sprintf("edge-%02d", i), "tunnel")
		h.add(c)
		all = append(all, *c)
	}
	h.answer("GET "+gatewayPath+"/clustergateways", clusterList(all...))
}

// hang makes a cluster accept requests and never answer. It returns a channel that is closed by the
// first request.
func (h *fakeHub) hang(t *testing.T, name string) {
	t.Helper()
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	h.answer("GET "+v1alpha1.ProxyPath(name)+"/version", func(string) any { <-end; return nil })
}

// TestEachWithDeadClusters shows that clusters that never answer cost one time-out in all, and that
// nobody else's result is lost.
func TestEachWithDeadClusters(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(50)
	dead := map[string]bool{"edge-00": true, "edge-11": true, "edge-22": true, "edge-33": true, "edge-49": true}
	for name := range dead {
		h.hang(t, name)
	}
	const timeout = 10 * time.Second
	begin := time.Now()
	out, errOut, err := h.run(t, "each", "--all", "--table", "--kubectl", standIn(t, "table"), "--timeout", timeout.String(), "--", "get", "x")
	if took := time.Since(begin); took < timeout || took > 4*timeout {
		t.Errorf("it took %s with a time-out of %s", took, timeout)
	}
	if ExitCode(err) != 1 || err.Error() != "failed in 5 of 50 clusters" {
		t.Errorf("exit code %d: %v", ExitCode(err), err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 46 || lines[0] != "CLUSTER   NAME      VERSION" {
		t.Fatalf("%d lines\n%s", len(lines), out)
	}
	for i := range 50 {
		name := fmt.Sprintf("edge-%02d", i)
		if got := strings.Contains(out, "\n"+name+"   gateway   v1.36.1\n"); got == dead[name] {
			t.Errorf("%s: dead %v, in the table %v", name, dead[name], got)
		}
		if got := strings.Contains(errOut, "\n  "+name+"  not finished after 10s"); got != dead[name] {
			t.Errorf("%s: dead %v, among the failures %v", name, dead[name], got)
		}
	}
}

// TestEachBounds shows that no more kubectls run at the same time than --parallel says.
func TestEachBounds(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(6)
	gate := make(chan struct{}, 6)
	arrived := make(chan string, 6)
	for i := range 6 {
		h.answer("GET "+v1alpha1.ProxyPath(fmt.Sprintf("edge-%02d", i))+"/version", func(path string) any {
			arrived <- path
			<-gate
			return map[string]any{"gitVersion": "v1"}
		})
	}
	done := make(chan error)
	go func() {
		_, _, err := h.run(t, "each", "--all", "--parallel", "2", "--kubectl", standIn(t, "table"), "--", "get", "x")
		done <- err
	}()
	for range 3 {
		<-arrived
		<-arrived
		select {
		case path := <-arrived:
			t.Errorf("a third kubectl runs: %s", path)
		case <-time.After(200 * time.Millisecond): // it can only pass too early, never fail
		}
		gate <- struct{}{}
		gate <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEachOutput(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(2)
	for _, c := range []struct {
		args             []string
		wantOut, wantErr string
		wantCode         int
	}{
		{
			args:    []string{"edge-00", "--kubectl", standIn(t, "table"), "--", "get", "x"},
			wantOut: "==> edge-00\nNAME      VERSION\ngateway   v1.36.1\n", wantErr: "Done in 1 clusters.\n",
		},
		{
			args:    []string{"--all", "--parallel", "1", "--prefix", "--kubectl", standIn(t, "table"), "--", "get", "x"},
			wantOut: "edge-00: NAME      VERSION\nedge-00: gateway   v1.36.1\nedge-01: NAME      VERSION\nedge-01: gateway   v1.36.1\n", wantErr: "Done in 2 clusters.\n",
		},
		{
			args:    []string{"-l", "a=b", "--parallel", "1", "--kubectl", standIn(t, "fail"), "--", "get", "y"},
			wantOut: "==> edge-00\nsome output\n==> edge-01\nsome output\n", wantErr: `edge-00: a warning
edge-00: error: no y
edge-01: a warning
edge-01: error: no y
Failed:
  edge-00  exit code 3: error: no y
  edge-01  exit code 3: error: no y
`, wantCode: 1,
		},
		{
			args:    []string{"edge-01", "edge-01", "--prefix", "--kubectl", standIn(t, "fail"), "--", "get", "y"},
			wantOut: "edge-01: some output\n", wantErr: "edge-01: a warning\nedge-01: error: no y\nFailed:\n  edge-01  exit code 3: error: no y\n", wantCode: 1,
		},
	} {
		out, errOut, err := h.run(t, append([]string{"each"}, c.args...)...)
		if ExitCode(err) != c.wantCode {
			t.Errorf("%v: exit code %d: %v", c.args, ExitCode(err), err)
		}
		if diff := cmp.Diff(c.wantOut, out); diff != "" {
			t.Errorf("%v: output (-want +got):\n%s", c.args, diff)
		}
		if diff := cmp.Diff(c.wantErr, errOut); diff != "" {
			t.Errorf("%v: standard error (-want +got):\n%s", c.args, diff)
		}
	}
}

func TestEachInput(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(2)
	var out bytes.Buffer
	cmd := NewCommand(Config{Out: &out, In: strings.NewReader("kind: List\n"), Now: func() time.Time { return testNow }})
	cmd.SetArgs([]string{"each", "--kubeconfig", h.kubeconfig, "--all", "--parallel", "1", "--stdin", "--kubectl", standIn(t, "cat"), "--", "apply", "-f", "-"})
	if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != "==> edge-00\nkind: List\n==> edge-01\nkind: List\n" {
		t.Errorf("%v\n%s", err, &out)
	}
}

// TestEachRefuses shows what does not run. The exit code tells it from a failure in a cluster.
func TestEachRefuses(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	kubectl := standIn(t, "table")
	for want, args := range map[string][]string{
		"the arguments for kubectl must follow --, for example: agent-bootstrap each --all -- get nodes": {"--all", "get", "nodes"},
		"no arguments for kubectl follow --":            {"--all", "--"},
		"no clusters are selected":                      {"--", "get", "nodes"},
		"cannot be used with --selector or --all":       {"edge-1", "--all", "--", "get", "nodes"},
		`invalid --selector "a=b=c"`:                    {"-l", "a=b=c", "--", "get", "nodes"},
		`invalid cluster name "Edge"`:                   {"Edge", "--", "get", "nodes"},
		"invalid --parallel 0: must be at least 1":      {"--all", "--parallel", "0", "--", "get", "nodes"},
		"invalid --timeout -1s: must not be negative":   {"--all", "--timeout", "-1s", "--", "get", "nodes"},
		"--table cannot be used with --prefix":          {"--all", "--table", "--prefix", "--", "get", "nodes"},
		`invalid argument "--kubeconfig=a" for kubectl`: {"--all", "--", "get", "nodes", "--kubeconfig=a"},
		`invalid argument "-s" for kubectl`:             {"--all", "--", "-s", "https://a", "get", "nodes"},
		`invalid argument "--no-headers" for kubectl`:   {"--all", "--table", "--", "get", "nodes", "--no-headers"},
		`invalid --endpoint "pod"`:                      {"--all", "--endpoint", "pod", "--", "get", "nodes"},
		"unknown flag: --unknown":                       {"--unknown", "--", "get", "nodes"},
		"no registered cluster is selected":             {"--all", "--", "get", "nodes"},
		`cluster "edge-1" is not registered`:            {"edge-1", "--", "get", "nodes"},
		"install kubectl, or set --kubectl":             {"--all", "--kubectl", filepath.Join(t.TempDir(), "none"), "--", "get", "nodes"},
	} {
		if want != "install kubectl, or set --kubectl" {
			args = append([]string{"--kubectl", kubectl}, args...)
		}
		out, _, err := h.run(t, append([]string{"each"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) || ExitCode(err) != 2 || out != "" {
			t.Errorf("each %v: exit code %d: %v\nwant %s\n%s", args, ExitCode(err), err, want, out)
		}
	}
}

// TestEachTakesArgumentsOfPods shows that flags after a second -- are not kubectl's.
func TestEachTakesArgumentsOfPods(t *testing.T) {
	t.Parallel()
	o := &eachOptions{parallel: 1, selection: selection{all: true}, endpointOptions: endpointOptions{endpoint: endpointHub}}
	if err := o.validate([]string{"exec", "pod", "--", "curl", "-s", "--server"}); err != nil {
		t.Error(err)
	}
	if err := o.validate([]string{"create", "rolebinding", "a", "--user=jane", "--server-side"}); err != nil {
		t.Error(err)
	}
}

func TestClusterTables(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	writeClusterTables(&out, []eachResult{
		{cluster: "a", stdout: []byte("NAME   STATUS   NOMINATED NODE   AGE\nx      Running  <none>           1d\n\nNAME        DATA\nconfig/é    1\nconfig/long 2\n")},
		{cluster: "bb", stdout: []byte("NAME     STATUS   NOMINATED NODE   AGE\nlonger   \n")},
		{cluster: "c", stdout: []byte("deployment/x scaled\n")},
		{cluster: "d"},
	})
	want := `CLUSTER   NAME     STATUS    NOMINATED NODE   AGE
a         x        Running   <none>           1d
bb        longer

CLUSTER   NAME          DATA
a         config/é      1
a         config/long   2

CLUSTER
c   deployment/x scaled
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLastLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "\n": "", "a\nb\n\n": "b", "a\n b": "b", strings.Repeat("a", 10<<10) + "\nend": "end"} {
		var l lastLine
		for _, c := range []byte(text) {
			_, _ = l.Write([]byte{c})
		}
		if got := l.String(); got != want {
			t.Errorf("%.20q ends with %q, want %q", text, got, want)
		}
	}
}

func TestPrefixWriter(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := newConsole(&out, &out).prefixed("a", false)
	for _, text := range []string{"one", " line\ntwo\nthr", "ee"} {
		_, _ = w.Write([]byte(text))
	}
	w.flush()
	if out.String() != "a: one line\na: two\na: three\n" {
		t.Errorf("%q", out.String())
	}
}

// TestOutputIsBounded shows that a program that writes without end is ended.
func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(1)
	_, errOut, err := h.run(t, "each", "--all", "--timeout", "0", "--kubectl", standIn(t, "flood"), "--", "get", "x")
	if ExitCode(err) != 1 || !strings.Contains(errOut, "  edge-00  its output is larger than 64 MiB: use --prefix") {
		t.Errorf("%v\n%.2000s", err, errOut)
	}
}

// TestSessionKubeconfigs shows that the temporary kubeconfigs are readable for nobody else.
func TestSessionKubeconfigs(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	config, raw, err := loadKubeconfig("--kubeconfig", h.kubeconfig, "")
	if err != nil {
		t.Fatal(err)
	}
	session, err := newSessionKubeconfigs(&gatewayTarget{hub: &clusterClient{config: config, raw: raw}})
	if err != nil {
		t.Fatal(err)
	}
	path, err := session.write("edge-1")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{path: 0o600, session.dir: fs.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := session.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(session.dir); !os.IsNotExist(err) {
		t.Error(err)
	}
}
