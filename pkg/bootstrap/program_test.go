// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestPluginName shows that the plugin names itself in help texts, hints and errors.
func TestPluginName(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	root := NewCommand(Config{Out: &out, Program: "/home/jane/.krew/bin/kubectl-cg"})
	texts := []string{root.Long, root.Example, root.UsageString()}
	for _, cmd := range root.Commands() {
		if !strings.HasPrefix(cmd.UseLine(), "kubectl cg ") {
			t.Errorf("the usage of %s is %q", cmd.Name(), cmd.UseLine())
		}
		if cmd.RunE != nil && !strings.Contains(cmd.Example, "kubectl cg "+cmd.Name()) {
			t.Errorf("the examples of %s do not run it:\n%s", cmd.Name(), cmd.Example)
		}
		texts = append(texts, cmd.Short, cmd.Long, cmd.Example, cmd.UsageString())
	}
	for _, text := range texts {
		for line := range strings.Lines(text) {
			if strings.Contains(line, defaultProgram+" ") && !strings.Contains(line, defaultProgram+" in the Pods") {
				t.Errorf("a text of the plugin names %s: %s", defaultProgram, line)
			}
		}
	}

	h := newFakeHub(t)
	h.program = "/usr/local/bin/kubectl-cg"
	if _, errOut, err := h.run(t, "list"); err != nil || !strings.Contains(errOut, "kubectl cg register NAME") {
		t.Errorf("%v\n%s", err, errOut)
	}
	if _, _, err := h.run(t, "status", "edge-1"); err == nil || !strings.Contains(err.Error(), `"edge-1" is not registered. To list the registered clusters: kubectl cg list`) {
		t.Error(err)
	}
	if out, _, err := h.run(t, "doctor", "edge-1"); err == nil || !strings.Contains(out, "register the cluster: kubectl cg register edge-1") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, _, err := h.run(t, "status"); err == nil || !strings.Contains(err.Error(), "kubectl cg status NAME") {
		t.Error(err)
	}
}

func TestProgramNames(t *testing.T) {
	t.Parallel()
	for program, want := range map[string]string{
		"": "agent-bootstrap", "agent-bootstrap": "agent-bootstrap", "./bin/agent-bootstrap": "agent-bootstrap", "renamed": "agent-bootstrap",
		"kubectl-cg": "kubectl cg", "/a/kubectl-cg": "kubectl cg", "/a/kubectl-cg.exe": "kubectl cg", "/a/kubectl_complete-cg": "kubectl cg",
	} {
		if got := NewCommand(Config{Program: program}).CommandPath(); got != want {
			t.Errorf("%q calls itself %q, want %q", program, got, want)
		}
	}
	for want, line := range map[string][]string{
		"list":                 {"kubectl-cg", "list"},
		"__complete status ed": {"/a/kubectl_complete-cg", "status", "ed"},
		"":                     {"agent-bootstrap"},
	} {
		if got := Arguments(line); strings.Join(got, " ") != want {
			t.Errorf("%v has the arguments %q, want %q", line, got, want)
		}
	}
	if got := Arguments(nil); got != nil {
		t.Error(got)
	}
}

// TestNamedErrorsKeepTheirCause shows that another text does not hide what went wrong.
func TestNamedErrorsKeepTheirCause(t *testing.T) {
	t.Parallel()
	a := &app{Config: Config{Program: "kubectl-cg"}}
	root := &cobra.Command{}
	root.AddCommand(&cobra.Command{Use: "rotate"})
	a.useProgramName(root)
	err := a.nameError(errors.Join(errors.New("run agent-bootstrap rotate edge-1; agent-bootstrap did not write it"), fs.ErrNotExist))
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "run kubectl cg rotate edge-1; agent-bootstrap did not write it") {
		t.Error(err)
	}
	if a.nameError(nil) != nil {
		t.Error("no error became one")
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	got := []int{ExitCode(nil), ExitCode(fs.ErrExist), ExitCode(trouble(fs.ErrExist)), ExitCode(errors.Join(&ExitError{Code: 7}, nil))}
	if want := []int{0, 1, 2, 7}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if trouble(nil) != nil {
		t.Error("no error became one")
	}
}
