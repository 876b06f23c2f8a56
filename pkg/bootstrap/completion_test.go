// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func completionHub(t *testing.T) *fakeHub {
	t.Helper()
	h := newFakeHub(t)
	h.fleetOf("edge-1", "edge-2", "near-1")
	h.answer("GET /apis/rbac.authorization.k8s.io/v1/clusterroles", &rbacv1.ClusterRoleList{
		TypeMeta: metav1.TypeMeta{Kind: "ClusterRoleList", APIVersion: "rbac.authorization.k8s.io/v1"},
		Items:    []rbacv1.ClusterRole{{ObjectMeta: metav1.ObjectMeta{Name: "view"}}, {ObjectMeta: metav1.ObjectMeta{Name: "pod-reader"}}},
	})
	return h
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	h := completionHub(t)
	for line, want := range map[string]string{
		"status ":                       "edge-1 edge-2 near-1 :4",
		"unregister edge-1 ":            ":0",
		"each edge-1 ":                  "edge-2 near-1 :4",
		"with edge-1 -- ":               ":0",
		"can-i ":                        ":4",
		"can-i jane ":                   "edge-1 edge-2 near-1 :4",
		"register edge-3 --access ":     "admin pod-reader view :4",
		"list --context ":               "hub :4",
		"kubeconfig edge-1 --endpoint ": "hub gateway :4",
		"export edge-1 --format ":       "kubeconfig argocd flux headlamp clusterprofile :4",
		"status --kubeconfig /none ":    ":4",
		"invite ":                       ":0",
		"register edge-3 --cluster-kubeconfig " + h.kubeconfig + " --cluster-context ": "hub :4",
	} {
		words := strings.Split(line, " ")
		args := append([]string{"__complete"}, words[0])
		if !strings.Contains(line, "/none") {
			args = append(args, "--kubeconfig", h.kubeconfig)
		}
		var out strings.Builder
		cmd := NewCommand(Config{Out: &out, Program: "kubectl-cg"})
		cmd.SetArgs(append(args, words[1:]...))
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(want, strings.Join(strings.Fields(out.String()), " ")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
}

// TestCompletionInBash has bash complete a line, with the script that the command prints.
func TestCompletionInBash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	h := completionHub(t)
	h.program = "kubectl-cg"
	script, _, err := h.run(t, "completion", "bash")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"kubectl-cg", "kubectl_complete-cg"} {
		if err := os.Symlink(standIn(t, "agent-bootstrap"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "completion.bash")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	// What readline does when the user presses the tab key.
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "--noprofile", "-c", `
		source "$1"
		COMP_LINE="kubectl-cg status edge"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
		COMP_WORDS=(kubectl-cg status edge); COMP_CWORD=2
		_get_comp_words_by_ref() { cur=edge; prev=status; words=("${COMP_WORDS[@]}"); cword=2; }
		compopt() { :; }
		__start_kubectl-cg
		printf '%s\n' "${COMPREPLY[@]}"`, "bash", file)
	cmd.Env = append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "KUBECONFIG="+h.kubeconfig)
	out, err := cmd.CombinedOutput()
	if got := strings.Fields(string(out)); err != nil || strings.Join(got, " ") != "edge-1 edge-2" {
		t.Errorf("%v\n%s", err, out)
	}

	// What kubectl runs to complete "kubectl cg status e".
	cmd = exec.CommandContext(t.Context(), filepath.Join(dir, "kubectl_complete-cg"), "status", "e")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+h.kubeconfig)
	if text, err := cmd.Output(); err != nil || string(text) != "edge-1\nedge-2\nnear-1\n:4\n" {
		t.Errorf("%v\n%s", err, text)
	}
}
