// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

func TestListFormats(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	c := testCluster("edge-1", "tunnel", readyCondition(metav1.ConditionTrue, "Reachable", ""))
	c.Labels = map[string]string{"env": "prod"}
	h.add(c)
	h.answer("GET "+gatewayPath+"/clustergateways", clusterList(*c, *testCluster("near-1", "direct")))
	for _, r := range []struct {
		args []string
		want string
	}{
		{[]string{"get", "-o", "name"}, "edge-1\nnear-1\n"},
		{[]string{"get", "-o", "wide", "edge-1"}, "NAME     ROUTE    READY   VERSION   CREDENTIAL EXPIRES   AGE   ACCESS   ENDPOINT   LABELS\nedge-1   tunnel   True    v1.36.1   -                    2d    admin    -          env=prod\n"},
		{[]string{"list", "-l", "a=b"}, "NAME     ROUTE    READY     VERSION   CREDENTIAL EXPIRES   AGE\nedge-1   tunnel   True      v1.36.1   -                    2d\nnear-1   direct   Unknown   v1.36.1   -                    2d\n"},
	} {
		out, errOut, err := h.run(t, r.args...)
		if diff := cmp.Diff(r.want, withoutTrailingSpace(out)); diff != "" || err != nil {
			t.Errorf("%v: %v %s (-want +got):\n%s", r.args, err, errOut, diff)
		}
	}
	out, _, err := h.run(t, "get", "edge-1", "-o", "json")
	var list v1alpha1.ClusterGatewayList
	if err := errors.Join(err, json.Unmarshal([]byte(out), &list)); err != nil || len(list.Items) != 1 || list.Kind != "ClusterGatewayList" {
		t.Errorf("%v\n%s", err, out)
	}
	for want, args := range map[string][]string{
		`invalid --output "xml": must be wide, name, yaml or json`: {"-o", "xml"},
		`invalid --selector "="`:                                   {"-l", "="},
		"names of clusters cannot be used with --selector":         {"edge-1", "-l", "a=b"},
		`cluster "edge-2" is not registered`:                       {"edge-2"},
		`invalid cluster name "Edge"`:                              {"Edge"},
	} {
		if _, _, err := h.run(t, append([]string{"list"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("list %v: %v, want %s", args, err, want)
		}
	}
}

func TestDoctorAll(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(4)
	out, errOut, err := h.run(t, "doctor", "--all")
	if err != nil || errOut != "All of 4 clusters are ok.\n" || strings.Count(out, "ok ") != 4 {
		t.Errorf("%v\n%s%s", err, out, errOut)
	}

	h.answer("GET "+v1alpha1.ProxyPath("edge-01")+"/version", failure(503, v1alpha1.CauseTunnel, "no agent is connected"))
	h.hang(t, "edge-02")
	out, errOut, err = h.run(t, "doctor", "-l", "a=b", "--timeout", "2s")
	if ExitCode(err) != 1 || err.Error() != "2 of 4 clusters are broken: edge-01, edge-02" {
		t.Errorf("exit code %d: %v", ExitCode(err), err)
	}
	want := `NAME      STATE    STAGE   MESSAGE
edge-00   ok       -       -
edge-01   BROKEN   agent   no agent is connected
edge-02   BROKEN   dial    no answer within 2s
edge-03   ok       -       -
`
	if diff := cmp.Diff(want, withoutTrailingSpace(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if errOut != "To find out what to do about a cluster: agent-bootstrap doctor NAME\n" {
		t.Error(errOut)
	}

	for want, args := range map[string][]string{
		"--cluster-kubeconfig and --out-dir require": {"--all", "--out-dir", "a"},
		"invalid --parallel 0":                       {"--all", "--parallel", "0"},
		"invalid --timeout 0s":                       {"--all", "--timeout", "0s"},
		`invalid --selector "="`:                     {"-l", "="},
		`invalid --output "xml"`:                     {"--all", "-o", "xml"},
	} {
		if _, _, err := h.run(t, append([]string{"doctor"}, args...)...); err == nil || !strings.Contains(err.Error(), want) || ExitCode(err) != 2 {
			t.Errorf("doctor %v: exit code %d: %v, want %s", args, ExitCode(err), err, want)
		}
	}
	if _, _, err := h.run(t, "doctor", "edge-00", "--all"); err == nil || !strings.Contains(err.Error(), "cannot be used with --selector or --all") {
		t.Error(err)
	}
}

// TestDoctorAllWithDeadClusters shows that clusters that never answer cost one time-out in all, and
// that nobody else's result is lost.
func TestDoctorAllWithDeadClusters(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(50)
	dead := []string{"edge-00", "edge-11", "edge-22", "edge-33", "edge-49"}
	for _, name := range dead {
		h.hang(t, name)
	}
	const timeout = 10 * time.Second
	begin := time.Now()
	out, _, err := h.run(t, "doctor", "--all", "--timeout", timeout.String())
	if took := time.Since(begin); took < timeout || took > 4*timeout {
		t.Errorf("it took %s with a time-out of %s", took, timeout)
	}
	if ExitCode(err) != 1 || err.Error() != "5 of 50 clusters are broken: "+strings.Join(dead, ", ") {
		t.Errorf("exit code %d: %v", ExitCode(err), err)
	}
	for i := range 50 {
		name := fmt.Sprintf("edge-%02d", i)
		want := name + "   ok       -       -"
		if slices.Contains(dead, name) {
			want = name + "   BROKEN   dial    no answer within 10s"
		}
		if !strings.Contains(withoutTrailingSpace(out), "\n"+want+"\n") {
			t.Errorf("there is no line %q:\n%s", want, out)
		}
	}
}

// fleetOf sets the registered clusters. Those whose names begin with p have the label env=prod.
func (h *fakeHub) fleetOf(names ...string) {
	var all []v1alpha1.ClusterGateway
	for _, name := range names {
		c := testCluster(name, "tunnel")
		if strings.HasPrefix(name, "p") {
			c.Labels = map[string]string{"env": "prod"}
		}
		all = append(all, *c)
	}
	h.answer("GET "+gatewayPath+"/clustergateways", clusterList(all...))
}

// TestKubeconfigAll shows what merging all clusters does to a kubeconfig, as clusters come and go.
func TestKubeconfigAll(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Config\n# mine\ncontexts:\n- name: mine # of others\n  context: {cluster: c, user: u}\ncurrent-context: mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	contexts := func() []string {
		t.Helper()
		config, err := clientcmd.LoadFromFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for name := range config.Contexts {
			names = append(names, name)
		}
		if len(config.Clusters) != len(config.Contexts)-1 || len(config.AuthInfos) != len(config.Clusters) || config.CurrentContext != "mine" {
			t.Errorf("the entries do not match: %v", config)
		}
		slices.Sort(names)
		return names
	}
	for _, step := range []struct {
		name       string
		registered []string
		args       []string
		want       string
		contexts   []string
	}{
		{"by label", []string{"p1", "t1"}, []string{"-l", "env=prod"}, "In FILE:\n  p1  added\nThe previous file is kept in FILE.agent-bootstrap.bak.\n", []string{"mine", "p1"}},
		{"all", []string{"p1", "t1"}, []string{"--all"}, "In FILE:\n  t1  added\n  1 up to date\nThe previous file is kept in FILE.agent-bootstrap.bak.\n", []string{"mine", "p1", "t1"}},
		{"again", []string{"p1", "t1"}, []string{"--all"}, "In FILE:\n  2 up to date\n", []string{"mine", "p1", "t1"}},
		{"not selected is not gone", []string{"p1", "t1"}, []string{"-l", "env=prod"}, "In FILE:\n  1 up to date\n", []string{"mine", "p1", "t1"}},
		{
			"dry run", []string{"p2"},
			[]string{"--all", "--dry-run"},
			"Dry run: nothing was changed. In FILE:\n  cluster \"p2\" would be added\n  user \"p2\" would be added\n  context \"p2\" would be added\n" +
				"  cluster \"p1\" would be removed\n  user \"p1\" would be removed\n  context \"p1\" would be removed\n  cluster \"t1\" would be removed\n  user \"t1\" would be removed\n  context \"t1\" would be removed\n",
			[]string{"mine", "p1", "t1"},
		},
		{"no pruning", []string{"p1"}, []string{"--all", "--prune=false"}, "In FILE:\n  1 up to date\n", []string{"mine", "p1", "t1"}},
		{
			"one went, by label", []string{"p1"},
			[]string{"-l", "env=prod"},
			"In FILE:\n  t1  removed: the cluster is not registered any more\n  1 up to date\nThe previous file is kept in FILE.agent-bootstrap.bak.\n", []string{"mine", "p1"},
		},
		{"all went", nil, []string{"--all"}, "In FILE:\n  p1  removed: the cluster is not registered any more\nThe previous file is kept in FILE.agent-bootstrap.bak.\n", []string{"mine"}},
	} {
		h.fleetOf(step.registered...)
		out, errOut, err := h.run(t, append([]string{"kubeconfig", "--merge", "-o", file}, step.args...)...)
		if err != nil || out != "" {
			t.Errorf("%s: %v\n%s", step.name, err, out)
		}
		if diff := cmp.Diff(step.want, strings.ReplaceAll(errOut, file, "FILE")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if got := contexts(); !slices.Equal(got, step.contexts) {
			t.Errorf("%s: the contexts are %v, want %v", step.name, got, step.contexts)
		}
	}
	if text := readText(t, file); !strings.Contains(text, "# mine") || !strings.Contains(text, "# of others") {
		t.Errorf("comments are lost:\n%s", text)
	}
}

// TestPruneKeepsOthers is the table of entries that must not be removed, although their cluster is
// not registered.
func TestPruneKeepsOthers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(config *clientcmdapi.Config)
		// want is what the command says, besides the file. Empty means that the entries are removed.
		want string
	}{
		{"ours", func(*clientcmdapi.Config) {}, ""},
		{"namespace set", func(c *clientcmdapi.Config) { c.Contexts["gone"].Namespace = "shop" }, ""},
		{"a credential was set", func(c *clientcmdapi.Config) { c.AuthInfos["gone"].Token = "the only one" }, `user "gone": its cluster is not registered any more, but it was changed`},
		{"a server was set", func(c *clientcmdapi.Config) { c.Clusters["gone"].Server = "https://elsewhere" }, `cluster "gone": its cluster is not registered any more, but it was changed`},
		{"a context of others uses the cluster", func(c *clientcmdapi.Config) {
			c.Contexts["mine"] = &clientcmdapi.Context{Cluster: "gone", AuthInfo: "me"}
		}, `cluster "gone": its cluster is not registered any more, but the context "mine" uses it`},
		{"a context of others uses the user", func(c *clientcmdapi.Config) {
			c.Contexts["mine"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "gone"}
		}, `user "gone": its cluster is not registered any more, but the context "mine" uses it`},
		{"a context of others has the name", func(c *clientcmdapi.Config) {
			c.Contexts["gone"] = &clientcmdapi.Context{Cluster: "gone", AuthInfo: "gone"}
		}, `context "gone": agent-bootstrap did not write it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			file := filepath.Join(t.TempDir(), "config")
			h.fleetOf("gone")
			if _, _, err := h.run(t, "kubeconfig", "--all", "--merge", "-o", file); err != nil {
				t.Fatal(err)
			}
			config, err := clientcmd.LoadFromFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c.change(config)
			if err := clientcmd.WriteToFile(*config, file); err != nil {
				t.Fatal(err)
			}
			before := readText(t, file)
			h.fleetOf("new")
			_, errOut, err := h.run(t, "kubeconfig", "--all", "--merge", "-o", file)
			after, loadErr := clientcmd.LoadFromFile(file)
			if loadErr != nil {
				t.Fatal(loadErr)
			}
			if after.Contexts["new"] == nil {
				t.Errorf("the new cluster was not added: %s", errOut)
			}
			if c.want == "" {
				if err != nil || after.Clusters["gone"] != nil || after.AuthInfos["gone"] != nil || after.Contexts["gone"] != nil {
					t.Errorf("%v: not removed\n%s", err, errOut)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			for _, kind := range entryKinds {
				was, is := entryOf(config, kind, "gone"), entryOf(after, kind, "gone")
				if entryText(t, was) != entryText(t, is) {
					t.Errorf("the %s was changed", kind)
				}
			}
			if !strings.HasPrefix(readText(t, file), before[:40]) {
				t.Error("the file begins differently")
			}
		})
	}
}

// TestKubeconfigAllKeepsOtherHubs shows that clusters of another hub stay, also those with the name
// of one of ours.
func TestKubeconfigAllKeepsOtherHubs(t *testing.T) {
	t.Parallel()
	one, two := newFakeHub(t), newFakeHub(t)
	file := filepath.Join(t.TempDir(), "config")
	one.fleetOf("a", "both")
	if _, _, err := one.run(t, "kubeconfig", "--all", "--merge", "-o", file); err != nil {
		t.Fatal(err)
	}
	two.fleetOf("b", "both")
	_, errOut, err := two.run(t, "kubeconfig", "--all", "--merge", "-o", file)
	if err == nil || !strings.Contains(err.Error(), `context "both": it is for another hub`) || !strings.Contains(errOut, "  b  added\n") || !strings.Contains(errOut, "  both  not changed\n") {
		t.Errorf("%v\n%s", err, errOut)
	}
	config, err := clientcmd.LoadFromFile(file)
	if err != nil || len(config.Contexts) != 3 || !strings.HasPrefix(config.Clusters["both"].Server, strings.TrimSuffix(config.Clusters["a"].Server, v1alpha1.ProxyPath("a"))) {
		t.Errorf("%v: %v", err, config)
	}
}

func TestKubeconfigAllPrints(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.fleetOf("p1", "p2", "t1")
	out, _, err := h.run(t, "kubeconfig", "-l", "env=prod")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.Load([]byte(out))
	if err != nil || len(config.Contexts) != 2 || config.CurrentContext != "" || config.AuthInfos["p2"].Token != "jane's" {
		t.Errorf("%v\n%s", err, out)
	}
	for want, args := range map[string][]string{
		"no registered cluster is selected":   {"-l", "env=none"},
		"--name requires the name of one":     {"--all", "--name", "a"},
		`invalid --selector "="`:              {"-l", "="},
		"cannot be used with --selector":      {"p1", "--all"},
		"missing the cluster":                 {},
		`invalid --output "-": --merge needs`: {"--all", "--merge", "-o", "-"},
	} {
		if _, _, err := h.run(t, append([]string{"kubeconfig"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("kubeconfig %v: %v, want %s", args, err, want)
		}
	}
}

// TestKubeconfigAllInSeveralFiles shows that entries are written where they are, and pruned in
// every file that kubectl reads.
func TestKubeconfigAllInSeveralFiles(t *testing.T) {
	h := newFakeHub(t)
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "one"), filepath.Join(dir, "two")}
	for i, name := range []string{"a", "b"} {
		h.fleetOf(name)
		if _, _, err := h.run(t, "kubeconfig", "--all", "--merge", "-o", files[i]); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBECONFIG", strings.Join(append(files, h.kubeconfig), string(os.PathListSeparator)))
	h.fleetOf("b", "c")
	_, errOut, err := h.run(t, "kubeconfig", "--all", "--merge", "--kubeconfig=", "--context", "hub")
	if err != nil {
		t.Fatalf("%v\n%s", err, errOut)
	}
	got := map[string]string{}
	for _, file := range files {
		config, err := clientcmd.LoadFromFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for name := range config.Contexts {
			got[name] += filepath.Base(file)
		}
	}
	if got["a"] != "" || got["b"] != "two" || got["c"] == "" || len(got) != 2 {
		t.Errorf("%v\n%s", fmt.Sprint(got), errOut)
	}
}

// TestPruneIdentifiesHubs shows whose entries are removed: two hubs can have the same URL.
func TestPruneIdentifiesHubs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hub  entryOwner
		want bool
	}{
		"this hub":   {entryOwner{Hub: testHub, HubCA: "sha256:a"}, true},
		"another CA": {entryOwner{Hub: testHub, HubCA: "sha256:b"}, false},
		"another":    {entryOwner{Hub: "https://elsewhere", HubCA: "sha256:a"}, false},
	} {
		config := written(t, testEntries(nil))
		changes, err := (&pruning{hub: c.hub}).remove(config, nil)
		if removed := config.Contexts["edge-1"] == nil; err != nil || removed != c.want || len(changes) > 0 != c.want {
			t.Errorf("%s: removed %v, %v, %v", name, removed, changes, err)
		}
	}
}

// TestSelectorReachesHub shows which commands have the hub select clusters by their labels. Merging
// kubeconfigs needs all clusters: one that is not selected is not gone.
func TestSelectorReachesHub(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.addFleet(1)
	var selector string
	h.check = func(r *http.Request) {
		if r.URL.Path == gatewayPath+"/clustergateways" {
			selector = r.URL.Query().Get("labelSelector")
		}
	}
	for want, args := range map[string][]string{
		"a=list":   {"list", "-l", "a=list"},
		"a=doctor": {"doctor", "-l", "a=doctor"},
		"a=each":   {"each", "-l", "a=each", "--kubectl", standIn(t, "table"), "--", "get", "x"},
		"":         {"kubeconfig", "-l", "a=kubeconfig", "--merge", "-o", filepath.Join(t.TempDir(), "config")},
	} {
		selector = "not asked"
		if _, errOut, err := h.run(t, args...); err != nil || selector != want {
			t.Errorf("%v: the selector is %q, want %q: %v\n%s", args, selector, want, err, errOut)
		}
	}
}
