// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// Names of the executable.
const (
	defaultProgram = "agent-bootstrap"
	// pluginProgram is the name by which kubectl finds a plugin: kubectl cg.
	pluginProgram = "kubectl-cg"
	// completionProgram is the name by which kubectl finds the completion of that plugin.
	completionProgram = "kubectl_complete-cg"
)

// programOf returns the name of an executable without its folder and extension.
func programOf(path string) string {
	return strings.TrimSuffix(filepath.Base(path), ".exe")
}

// Arguments returns the arguments for the command line that the program was started with. kubectl
// starts the program by another name if it needs completions for its plugin.
func Arguments(commandLine []string) []string {
	if len(commandLine) == 0 {
		return nil
	}
	args := commandLine[1:]
	if programOf(commandLine[0]) == completionProgram {
		return append([]string{cobra.ShellCompRequestCmd}, args...)
	}
	return args
}

// displayName is what users type to start the program.
func (a *app) displayName() string {
	switch programOf(a.Program) {
	case pluginProgram, completionProgram:
		return "kubectl cg"
	default:
		return defaultProgram
	}
}

// nameRoot gives the root command the name of the program.
func (a *app) nameRoot(root *cobra.Command) {
	root.Use = defaultProgram
	if display := a.displayName(); display != defaultProgram {
		root.Use = pluginProgram // completion scripts are for this name
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: display}
	}
}

// useProgramName puts the name of the program into the help texts and the errors of all commands.
// Texts are written with the name agent-bootstrap: many of them come from packages that the gateway
// uses too, and that do not know how this program was started.
func (a *app) useProgramName(root *cobra.Command) {
	if a.displayName() == defaultProgram {
		return
	}
	var names []string
	for _, cmd := range root.Commands() {
		names = append(append(names, cmd.Name()), cmd.Aliases...)
	}
	a.ownCommand = regexp.MustCompile(`\b` + defaultProgram + ` (` + strings.Join(names, "|") + `)\b`)
	root.Long = strings.Replace(root.Long, defaultProgram, a.displayName(), 1)
	root.Example = a.named(root.Example)
	for _, cmd := range root.Commands() {
		cmd.Short, cmd.Long, cmd.Example = a.named(cmd.Short), a.named(cmd.Long), a.named(cmd.Example)
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.nameError(run(cmd, args)) }
	}
}

// named replaces the name agent-bootstrap in the commands that a text tells the user to run. Other
// uses of the name stay, such as that of a field manager.
func (a *app) named(text string) string {
	if a.ownCommand == nil {
		return text
	}
	return a.ownCommand.ReplaceAllString(text, a.displayName()+" $1")
}

// namedError is an error with another text.
type namedError struct {
	error
	text string
}

func (e *namedError) Error() string { return e.text }

func (e *namedError) Unwrap() error { return e.error }

func (a *app) nameError(err error) error {
	if err == nil {
		return nil
	}
	text := a.named(err.Error())
	if text == err.Error() {
		return err
	}
	return &namedError{err, text}
}
