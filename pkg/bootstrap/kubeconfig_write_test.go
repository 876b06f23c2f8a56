// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

const (
	testHub    = "https://hub.example.com:6443"
	testServer = testHub + "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/edge-1/proxy"
)

// testEntries are the entries of the cluster edge-1. change changes them, if it is set.
func testEntries(change func(*clusterEntries)) *clusterEntries {
	e := &clusterEntries{
		name: "edge-1", owner: entryOwner{Hub: testHub, HubCA: "sha256:a", Cluster: "edge-1"},
		kubeconfigContext: kubeconfigContext{
			cluster: &clientcmdapi.Cluster{Server: testServer, CertificateAuthorityData: []byte("CA")},
			user:    &clientcmdapi.AuthInfo{Token: "mine"},
		},
	}
	if change != nil {
		change(e)
	}
	return e
}

// written is a kubeconfig to which entries were added before.
func written(t *testing.T, e *clusterEntries) *clientcmdapi.Config {
	t.Helper()
	config := clientcmdapi.NewConfig()
	if _, err := e.addTo(config, false); err != nil {
		t.Fatal(err)
	}
	return reload(t, config)
}

func reload(t *testing.T, config *clientcmdapi.Config) *clientcmdapi.Config {
	t.Helper()
	config, err := clientcmd.Load(encodeConfig(t, config))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func encodeConfig(t *testing.T, config *clientcmdapi.Config) []byte {
	t.Helper()
	text, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestEntryOwner is the table of who owns an entry: for each kind, what happens to an entry that
// exists.
func TestEntryOwner(t *testing.T) {
	t.Parallel()
	foreign := clientcmdapi.NewConfig()
	foreign.Clusters["edge-1"] = &clientcmdapi.Cluster{Server: "https://10.0.0.1:6443"}
	foreign.AuthInfos["edge-1"] = &clientcmdapi.AuthInfo{Token: "the only one"}
	foreign.Contexts["edge-1"] = &clientcmdapi.Context{Cluster: "prod", AuthInfo: "admin"}

	// Written by hand, or by a version that did not mark its entries.
	unmarked := func(change func(*clusterEntries)) *clientcmdapi.Config {
		config := written(t, testEntries(change))
		for _, kind := range entryKinds {
			delete(*entryOf(config, kind, "edge-1").extensions(), ownerExtension)
		}
		return config
	}
	changed := written(t, testEntries(nil))
	changed.Clusters["edge-1"].ProxyURL = "http://proxy"
	changed.AuthInfos["edge-1"].Token = "the only one"
	changed.Contexts["edge-1"].AuthInfo = "admin"

	extended := written(t, testEntries(nil))
	for _, kind := range entryKinds {
		(*entryOf(extended, kind, "edge-1").extensions())["of-others"] = &runtime.Unknown{Raw: []byte(`{"a":1}`), ContentType: runtime.ContentTypeJSON}
	}
	extended.Contexts["edge-1"].Namespace = "apps"

	none := func(entryKind) string { return "" }
	all := func(reason string) func(entryKind) string { return func(entryKind) string { return reason } }
	only := func(kinds map[entryKind]string) func(entryKind) string {
		return func(kind entryKind) string { return kinds[kind] }
	}
	const notOurs = "agent-bootstrap did not write it"
	for _, c := range []struct {
		name     string
		existing *clientcmdapi.Config
		action   map[entryKind]entryAction // what happens, where it is not refused
		reason   func(entryKind) string    // why it is refused
	}{
		{"absent", clientcmdapi.NewConfig(), map[entryKind]entryAction{clusterEntry: actionAdd, userEntry: actionAdd, contextEntry: actionAdd}, none},
		{"ours, same hub, up to date", written(t, testEntries(nil)),
			map[entryKind]entryAction{clusterEntry: actionKeep, userEntry: actionKeep, contextEntry: actionKeep}, none},
		{"ours, same hub, with a previous credential and proxy", written(t, testEntries(func(e *clusterEntries) { e.user.Token, e.cluster.ProxyURL = "older", "http://proxy" })),
			map[entryKind]entryAction{clusterEntry: actionUpdate, userEntry: actionUpdate, contextEntry: actionKeep}, none},
		{"ours, with additions of others", reload(t, extended),
			map[entryKind]entryAction{clusterEntry: actionKeep, userEntry: actionKeep, contextEntry: actionKeep}, none},
		{"ours, other hub", written(t, testEntries(func(e *clusterEntries) {
			e.owner.Hub = "https://hub-2"
			e.cluster.Server = "https://hub-2" + v1alpha1.ProxyPath("edge-1")
		})), nil, all("it is for another hub, https://hub-2")},
		{"ours, other hub at the same URL", written(t, testEntries(func(e *clusterEntries) { e.owner.HubCA = "sha256:b" })), nil,
			all("it is for a hub at " + testHub + " with another CA")},
		{"ours, other cluster", written(t, testEntries(func(e *clusterEntries) { e.owner.Cluster = "edge-2" })), nil, all(`it is for another cluster, "edge-2"`)},
		{"ours, changed since", reload(t, changed), nil, all("it was changed after agent-bootstrap wrote it")},
		{"foreign", foreign, nil, all(notOurs)},
		{"unmarked, the same", unmarked(nil),
			map[entryKind]entryAction{clusterEntry: actionUpdate, userEntry: actionUpdate, contextEntry: actionUpdate}, none},
		{"unmarked, same hub, other credential", unmarked(func(e *clusterEntries) { e.user.Token, e.cluster.ProxyURL = "the only one", "http://proxy" }),
			map[entryKind]entryAction{clusterEntry: actionUpdate, contextEntry: actionUpdate}, only(map[entryKind]string{userEntry: notOurs})},
		{"unmarked, other hub", unmarked(func(e *clusterEntries) { e.cluster.Server = "https://hub-2" + v1alpha1.ProxyPath("edge-1") }),
			map[entryKind]entryAction{userEntry: actionUpdate, contextEntry: actionUpdate},
			only(map[entryKind]string{clusterEntry: "it reaches a cluster of this name through another hub, https://hub-2" + v1alpha1.ProxyPath("edge-1")})},
		{"unmarked, other CA", unmarked(func(e *clusterEntries) { e.cluster.CertificateAuthorityData = []byte("another") }),
			map[entryKind]entryAction{userEntry: actionUpdate, contextEntry: actionUpdate},
			only(map[entryKind]string{clusterEntry: "it reaches a cluster of this name through another hub, " + testServer})},
	} {
		for _, kind := range entryKinds {
			for _, force := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/force=%v", c.name, kind, force), func(t *testing.T) {
					existing := clientcmdapi.NewConfig()
					before := entryOf(c.existing, kind, "edge-1").copy()
					before.addTo(existing, "edge-1")
					got, err := testEntries(nil).addTo(existing, force)
					if err != nil {
						t.Fatal(err)
					}
					for _, change := range got {
						want := entryChange{kind: change.kind, name: "edge-1", action: actionAdd}
						if change.kind == kind {
							want.reason, want.action = c.reason(kind), c.action[kind]
							switch {
							case want.reason != "" && force:
								want.action = actionOverwrite
							case want.reason != "":
								want.action = actionRefuse
							}
						}
						if change != want {
							t.Errorf("got %+v, want %+v", change, want)
						}
					}
					after := entryOf(existing, kind, "edge-1")
					if c.reason(kind) != "" && !force && entryText(t, after) != entryText(t, before) {
						t.Errorf("it was refused and changed:\n%s", entryText(t, after))
					}
					if c.name == "ours, with additions of others" && cmp.Diff(entryText(t, before), entryText(t, after)) != "" {
						t.Errorf("the additions of others are gone:\n%s", entryText(t, after))
					}
				})
			}
		}
	}
}

func testWriter(file string, change func(*kubeconfigWriter)) *kubeconfigWriter {
	w := &kubeconfigWriter{entries: []*clusterEntries{testEntries(nil)}, file: file, merge: true, now: func() time.Time { return time.Unix(0, 0) }}
	if change != nil {
		change(w)
	}
	return w
}

// ownFile is a kubeconfig of the user's: with comments, a field that client-go does not know, and a
// relative reference to a file.
const ownFile = `# My clusters.
apiVersion: v1
kind: Config
current-context: prod
clusters:
- name: prod # do not touch
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority: certs/ca.crt
    field-of-the-future: 1
contexts:
- name: prod
  context:
    cluster: prod
    user: admin
users:
- name: admin
  user:
    token: the-only-one
`

func TestMerge(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(ownFile), 0o640); err != nil {
		t.Fatal(err)
	}
	result, err := testWriter(path, func(w *kubeconfigWriter) { w.dryRun = true }).write(t.Context())
	if err != nil || len(result.changes) != 3 || result.unchanged() {
		t.Fatalf("dry run: %+v, %v", result, err)
	}
	if text := readText(t, path); text != ownFile {
		t.Errorf("a dry run changed the file:\n%s", text)
	}
	for i, want := range []entryAction{actionAdd, actionKeep} {
		result, err = testWriter(path, nil).write(t.Context())
		if err != nil || result.changes[0].action != want || result.currentContext {
			t.Fatalf("run %d: %+v, %v", i, result, err)
		}
	}
	if result.backup != "" {
		t.Errorf("a run that changed nothing made a backup %s", result.backup)
	}
	text := readText(t, path)
	// Take the three entries out again: every line that was there is there still.
	var kept []string
	mine := false
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "- ") {
			mine = line != "- name: prod # do not touch" && line != "- name: prod" && line != "- name: admin"
		} else if !strings.HasPrefix(line, " ") {
			mine = false
		}
		if !mine {
			kept = append(kept, line)
		}
	}
	if diff := cmp.Diff(ownFile, strings.Join(kept, "\n")); diff != "" {
		t.Errorf("what was there before has changed (-before +after):\n%s", diff)
	}
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if config.CurrentContext != "prod" || len(config.Contexts) != 2 || config.Clusters["edge-1"].Server != testServer || config.AuthInfos["edge-1"].Token != "mine" {
		t.Errorf("merged: %+v", config)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
	backup := path + ".agent-bootstrap.bak"
	if info, err := os.Stat(backup); err != nil || info.Mode() != 0o600 || readText(t, backup) != ownFile {
		t.Errorf("the backup: %v, %v", info, err)
	}
	if _, err := os.Stat(path + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock is still there: %v", err)
	}
}

func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	own := strings.ReplaceAll(strings.ReplaceAll(ownFile, "name: prod", "name: edge-1"), "name: admin", "name: edge-1")
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, false} {
		result, err := testWriter(path, func(w *kubeconfigWriter) { w.dryRun = dryRun }).write(t.Context())
		want := path + ` was not changed, because it has entries that must not be overwritten:
  cluster "edge-1": agent-bootstrap did not write it
  user "edge-1": agent-bootstrap did not write it
  context "edge-1": agent-bootstrap did not write it
Use --name to choose another name for the entries, -o to write to another file, or --force to overwrite them and keep a backup`
		if err == nil || err.Error() != want || len(result.changes) != 3 {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if readText(t, path) != own {
			t.Error("the file was changed")
		}
	}
	if _, err := testWriter(path, func(w *kubeconfigWriter) { w.entries[0].name = "hub-1-edge-1" }).write(t.Context()); err != nil {
		t.Errorf("with --name: %v", err)
	}
	before := readText(t, path)
	result, err := testWriter(path, func(w *kubeconfigWriter) { w.force = true }).write(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := path + ".agent-bootstrap.19700101T000000Z.bak"; result.backup != want || readText(t, want) != before {
		t.Errorf("with --force, the backup is %q", result.backup)
	}
	if config, err := clientcmd.LoadFromFile(path); err != nil || config.AuthInfos["edge-1"].Token != "mine" {
		t.Errorf("with --force: %+v, %v", config, err)
	}
}

// TestMergeCurrentContext shows that the current context is set only if there is none.
func TestMergeCurrentContext(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"no file": "", "empty": "\n", "null": "apiVersion: v1\nkind: Config\nclusters: null\ncontexts: []\ncurrent-context: \"\"\n", "JSON": `{"apiVersion":"v1","kind":"Config","clusters":[],"current-context":""}`} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "config")
			if name != "no file" {
				if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			result, err := testWriter(path, nil).write(t.Context())
			if err != nil || !result.currentContext {
				t.Fatalf("%+v, %v", result, err)
			}
			config, err := clientcmd.LoadFromFile(path)
			if err != nil || config.CurrentContext != "edge-1" || len(config.Clusters) != 1 || len(config.AuthInfos) != 1 {
				t.Errorf("%+v, %v:\n%s", config, err, readText(t, path))
			}
		})
	}
}

// TestMergeSeveralFiles shows what happens if KUBECONFIG names several files, of which kubectl uses
// the first one that has an entry.
func TestMergeSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	t.Setenv("KUBECONFIG", first+string(os.PathListSeparator)+second)
	for _, path := range []string{first, second} {
		if err := clientcmd.WriteToFile(*clientcmdapi.NewConfig(), path); err != nil {
			t.Fatal(err)
		}
	}
	merge := func(wantFile string) error {
		t.Helper()
		file, others := ownKubeconfig("", "edge-1")
		if file != wantFile || len(others) != 1 {
			t.Errorf("it would write to %s, beside %v", file, others)
		}
		_, err := testWriter(file, func(w *kubeconfigWriter) { w.others = others }).write(t.Context())
		return err
	}
	if err := merge(first); err != nil {
		t.Error(err)
	}
	if err := os.Rename(first, second); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := merge(second); err != nil { // where the entries are
		t.Error(err)
	}
	config := clientcmdapi.NewConfig()
	config.AuthInfos["edge-1"] = &clientcmdapi.AuthInfo{Token: "the only one"}
	if err := os.WriteFile(first, encodeConfig(t, config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := merge(second); err == nil || !strings.Contains(err.Error(), `user "edge-1": it is in `+first) {
		t.Errorf("an entry in the other file: %v", err)
	}
}

// TestReplace shows what happens to a file that exists if -o is given without --merge.
func TestReplace(t *testing.T) {
	t.Parallel()
	replace := func(path string, force bool) (*writeResult, error) {
		return testWriter(path, func(w *kubeconfigWriter) { w.merge, w.force = false, force }).write(t.Context())
	}
	path := filepath.Join(t.TempDir(), "config")
	for range 2 {
		if _, err := replace(path, false); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"other entries": ownFile, "not a kubeconfig": "notes: [\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := replace(path, false)
		if err == nil || !strings.Contains(err.Error(), path) || readText(t, path) != text {
			t.Errorf("%s: %v", name, err)
		}
		if name == "other entries" && !strings.Contains(err.Error(), `user "admin": it would be removed`) {
			t.Errorf("%s: %v", name, err)
		}
		result, err := testWriter(path, func(w *kubeconfigWriter) {
			w.merge, w.force, w.now = false, true, func() time.Time { return time.Unix(int64(len(text)), 0) }
		}).write(t.Context())
		if err != nil || readText(t, result.backup) != text {
			t.Errorf("%s, --force: %+v, %v", name, result, err)
		}
		if config, err := clientcmd.LoadFromFile(path); err != nil || len(config.Contexts) != 1 || config.CurrentContext != "edge-1" {
			t.Errorf("%s, --force: %+v, %v", name, config, err)
		}
	}
}

// TestMergeOddFiles shows that a file which cannot be edited stays as it is.
func TestMergeOddFiles(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"not YAML":          "clusters: [",
		"not a kubeconfig":  "- a\n- b\n",
		"another kind":      "apiVersion: v1\nkind: Secret\n",
		"several documents": ownFile + "---\n" + ownFile,
		"entries twice":     strings.Replace(ownFile, "users:\n", "users:\n- name: admin\n  user: {}\n", 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := testWriter(path, func(w *kubeconfigWriter) { w.force = true }).write(t.Context()); err == nil || readText(t, path) != text {
				t.Errorf("%v; the file has\n%s", err, readText(t, path))
			}
		})
	}
}

// TestMergeLocked shows that the lock of kubectl config is respected.
func TestMergeLocked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	lock := path + ".lock"
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := testWriter(path, nil).write(t.Context())
		done <- err
	}()
	time.Sleep(100 * time.Millisecond) // either order is right; this one waits
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written under a lock")
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
