// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Command is a plugin with everything that it is run with. It must not be changed, and is safe for
// concurrent use. It can contain secrets of the Secret that it was made from, so it is never
// printed.
type Command struct {
	// Name identifies the plugin in errors: the name of its definition, or the path of the program.
	Name string
	// Path is the absolute path of the program.
	Path string
	// Dir is the directory that must contain the program when links are resolved. Empty means that
	// the program can be anywhere, because the operator chose it.
	Dir string
	// Args are the arguments, without the name of the program.
	Args []string
	// Env is the environment, as NAME=VALUE. InheritEnv are the names of the variables of this process
	// that are added to it, if they are set.
	Env, InheritEnv []string
	// APIVersion is the version of the protocol.
	APIVersion string
	// ProvideClusterInfo is whether the program gets the address and the CA of the cluster.
	ProvideClusterInfo bool
}

// Resolve returns the command of a plugin for the values of its parameters. Otherwise, it returns
// every problem; none of them contains a value.
func (p *Plugins) Resolve(name string, values map[string]string) (*Command, []string) {
	var d *Definition
	if p != nil {
		d = p.byName[name]
	}
	if d == nil {
		return nil, []string{"plugin must be one of those that the operator of the gateway has defined: " + list(p.Names())}
	}
	var problems []string
	all := map[string]string{}
	for i := range d.Parameters {
		parameter := &d.Parameters[i]
		value, ok := values[parameter.Name]
		switch {
		case ok:
			if problem := parameter.check(value); problem != "" {
				problems = append(problems, fmt.Sprintf("parameters[%s] %s", parameter.Name, problem))
			}
		case parameter.Default == nil:
			problems = append(problems, fmt.Sprintf("parameters[%s] is missing; the plugin %s requires it", parameter.Name, d.Name))
		default:
			value = *parameter.Default
		}
		all[parameter.Name] = value
	}
	for name := range values {
		if _, declared := all[name]; !declared {
			problems = append(problems, fmt.Sprintf("parameters has a name that the plugin %s does not declare; it declares: %s",
				d.Name, list(slices.Sorted(maps.Keys(all)))))
			break
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	value := func(name string) string { return all[name] }
	c := &Command{
		Name: d.Name, Path: d.Command, InheritEnv: slices.Clone(d.InheritEnv),
		APIVersion: d.APIVersion, ProvideClusterInfo: d.ProvideClusterInfo,
	}
	for _, arg := range d.Args {
		c.Args = append(c.Args, expand(arg, value))
	}
	for _, e := range d.Env {
		c.Env = append(c.Env, e.Name+"="+expand(e.Value, value))
	}
	return c, nil
}

// list returns names for a message, which has to fit into a condition.
func list(names []string) string { return untrusted.Text(strings.Join(names, ", ")) }

// Key returns a text that is equal for equal commands only.
func (c *Command) Key() []byte {
	type plain Command
	text, _ := json.Marshal((*plain)(c)) // strings always marshal
	return text
}

// Format prints the name, whatever the verb.
func (c Command) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("Command(" + c.Name + ")")) }

// MarshalJSON returns the name.
func (c Command) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"name": c.Name})
}

// MarshalLog returns the name for klog.
func (c Command) MarshalLog() any { return c.Name }

// Locate returns the path of the program to run, without links if Dir is set. The error says in
// plain words why the program must not or cannot run.
//
// It is called for each run and not only once, because a file of a mounted ConfigMap or volume is
// behind links that change when it is updated. The path that was checked is the one that is run, so
// a link that changes in between has no effect.
func (c *Command) Locate() (string, error) {
	if c.Dir == "" {
		return c.Path, nil
	}
	return locate(c.Path, c.Dir)
}

func locate(command, dir string) (string, error) {
	if !filepath.IsAbs(command) {
		return "", errors.New("the command must be an absolute path inside --exec-credential-dir")
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", errors.New("--exec-credential-dir cannot be read")
	}
	program, err := filepath.EvalSymlinks(command)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("the command does not exist; put the program in --exec-credential-dir")
	}
	if err != nil {
		return "", errors.New("the command cannot be read")
	}
	rel, err := filepath.Rel(root, program)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", errors.New("the command is not allowed: the program is not in --exec-credential-dir")
	}
	if info, err := os.Stat(program); err != nil || !isProgram(info) {
		return "", errors.New("the command is not an executable file")
	}
	return program, nil
}

func isProgram(info fs.FileInfo) bool { return info.Mode().IsRegular() && info.Mode()&0o111 != 0 }

// environ returns the environment of a run: what is declared and nothing else. info is the value of
// infoVariable.
func (c *Command) environ(info string) []string {
	env := slices.Clone(c.Env)
	for _, name := range c.InheritEnv {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, infoVariable+"="+info)
}
