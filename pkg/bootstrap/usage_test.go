// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// TestWrongCommandLine shows that the error about a command line, or about the caller's kubeconfig,
// says what to do.
func TestWrongCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const twoContexts = "apiVersion: v1\nkind: Config\ncurrent-context: nope\n" +
		"contexts: [{name: one, context: {cluster: h}}, {name: two, context: {cluster: h}}]\nclusters: [{name: h, cluster: {server: 'https://127.0.0.1:1'}}]\n"
	hub := file("hub", strings.Replace(twoContexts, "nope", "one", 1))
	for _, c := range []struct {
		name string
		env  string
		args []string
		want string
	}{
		{"command", "", []string{"regster"}, "unknown command \"regster\": did you mean register?\nTo see the commands: agent-bootstrap --help"},
		{"no similar command", "", []string{"frobnicate"}, "unknown command \"frobnicate\"\nTo see the commands"},
		{"flag", "", []string{"list", "--nope"}, "unknown flag: --nope\nTo see the flags: agent-bootstrap list --help"},
		{"days", "", []string{"rotate", "a", "--token-lifetime", "30d"}, `"30d" for "--token-lifetime" flag: must be a duration like "30s" or "5m". Days are not a unit: for example, 30 days are 720h`},
		{"format for a file", "", []string{"kubeconfig", "a", "-o", "yaml"}, `invalid --output "yaml": must be a file, not a format. For a file of that name: ./yaml`},
		{"arguments of can-i", "", []string{"can-i", "jane"}, "must be USER CLUSTER VERB RESOURCE [NAME], for example: agent-bootstrap can-i jane edge-1 list pods"},
		{"no file", "", []string{"doctor", "a", "--kubeconfig", filepath.Join(dir, "none")}, "--kubeconfig: stat "},
		{"empty file", "", []string{"list", "--kubeconfig", file("empty", "")}, "is empty, or has no current context"},
		{"empty file in the environment", file("empty", ""), []string{"list"}, "$KUBECONFIG: " + filepath.Join(dir, "empty") + " does not exist, is empty, or has no current context"},
		{"context", "", []string{"list", "--kubeconfig", file("two", twoContexts)}, `--kubeconfig: there is no context "nope". The contexts are: one, two`},
		{"hub of the environment", hub, []string{"list"}, "the hub: $KUBECONFIG points to https://127.0.0.1:1, where nothing answers"},
		{"hub of a flag", "", []string{"list", "--kubeconfig", hub}, "the hub: --kubeconfig points to https://127.0.0.1:1"},
		{"kubeconfig of the cluster", "", []string{"register", "a", "--kubeconfig", hub, "--cluster-kubeconfig", filepath.Join(dir, "none")}, "--cluster-kubeconfig: stat "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(clientcmd.RecommendedConfigPathEnvVar, c.env)
			cmd := NewCommand(Config{})
			cmd.SetArgs(c.args)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

// TestHelpWidth shows that help texts are wrapped.
func TestHelpWidth(t *testing.T) {
	t.Parallel()
	for _, cmd := range NewCommand(Config{}).Commands() {
		_, flags, _ := strings.Cut(cmd.UsageString(), "\nFlags:")
		for line := range strings.Lines(flags) {
			if len(line) > maxHelpWidth+1 {
				t.Errorf("%s --help has a line of %d characters: %s", cmd.Name(), len(line), line)
			}
		}
	}
}
