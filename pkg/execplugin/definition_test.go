// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// parse parses definitions in which PROGRAM stands for a program.
func parse(t *testing.T, text string) (*Plugins, error) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return Parse([]byte(strings.ReplaceAll(text, "PROGRAM", program)))
}

const awsPlugin = `
# The comment of an operator.
---
plugins:
- name: aws
  command: PROGRAM
  args: [token, --cluster-id, $(cluster), --role=$(role), $$(literal)]
  env:
  - {name: AWS_REGION, value: "$(region)"}
  inheritEnv: [AWS_ROLE_ARN]
  provideClusterInfo: true
  parameters:
  - {name: cluster}
  - {name: region, default: eu-central-1}
  - {name: role, pattern: "(arn:aws:iam::[0-9]{12}:role/[A-Za-z0-9_-]+)?", default: ""}
- name: other
  command: PROGRAM
  apiVersion: client.authentication.k8s.io/v1beta1
`

func TestResolve(t *testing.T) {
	plugins, err := parse(t, awsPlugin)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"aws", "other"}; !slices.Equal(plugins.Names(), want) {
		t.Errorf("names %v, want %v", plugins.Names(), want)
	}
	c, problems := plugins.Resolve("aws", map[string]string{"cluster": "prod", "role": "arn:aws:iam::123456789012:role/reader"})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if want := []string{"token", "--cluster-id", "prod", "--role=arn:aws:iam::123456789012:role/reader", "$(literal)"}; !slices.Equal(c.Args, want) {
		t.Errorf("args %q, want %q", c.Args, want)
	}
	if want := []string{"AWS_REGION=eu-central-1"}; !slices.Equal(c.Env, want) {
		t.Errorf("env %q, want %q", c.Env, want)
	}
	if c.Name != "aws" || !filepath.IsAbs(c.Path) || c.APIVersion != APIVersionV1 || !c.ProvideClusterInfo || !slices.Equal(c.InheritEnv, []string{"AWS_ROLE_ARN"}) {
		t.Errorf("%+v", *c)
	}
	other, problems := plugins.Resolve("other", nil)
	if len(problems) > 0 || other.APIVersion != APIVersionV1beta1 {
		t.Errorf("%v, %v", other, problems)
	}
}

// A value of a parameter stays inside the argument that the operator chose for it, and is never an
// option. No message contains the value.
func TestResolveRefuses(t *testing.T) {
	plugins, err := parse(t, awsPlugin+`
- name: free
  command: PROGRAM
  args: [$(any)]
  parameters: [{name: any, pattern: ".*"}]
- name: lines
  command: PROGRAM
  args: [$(any)]
  parameters: [{name: any, pattern: "(?m)^[a-z]+$"}]
`)
	if err != nil {
		t.Fatal(err)
	}
	const value = "hunter22"
	for name, test := range map[string]struct {
		plugin     string
		parameters map[string]string
		problem    string
	}{
		"an unknown plugin":                     {"gcp", nil, "plugin must be one of those that the operator of the gateway has defined: aws, free, lines, other"},
		"no name":                               {"", nil, "plugin must be one of"},
		"a missing parameter":                   {"aws", nil, "parameters[cluster] is missing; the plugin aws requires it"},
		"an undeclared one":                     {"aws", map[string]string{"cluster": "a", value: "b"}, "parameters has a name that the plugin aws does not declare; it declares: cluster, region, role"},
		"parameters for nothing":                {"other", map[string]string{"cluster": "a"}, "parameters has a name that the plugin other does not declare"},
		"an option":                             {"aws", map[string]string{"cluster": "--kubeconfig=" + value}, "parameters[cluster] must not begin with"},
		"an option, whatever the pattern":       {"free", map[string]string{"any": "-" + value}, "parameters[any] must not begin with"},
		"a line break, whatever the pattern":    {"free", map[string]string{"any": value + "\n"}, "parameters[any] must be one line"},
		"a NUL, whatever the pattern":           {"free", map[string]string{"any": value + "\x00"}, "parameters[any] must be one line"},
		"an escape, whatever the pattern":       {"free", map[string]string{"any": value + "\x1b[2J"}, "parameters[any] must be one line"},
		"invalid UTF-8, whatever the pattern":   {"free", map[string]string{"any": value + "\xff"}, "parameters[any] must be one line"},
		"too long, whatever the pattern":        {"free", map[string]string{"any": strings.Repeat(value, 1000)}, "parameters[any] is 8000 bytes long"},
		"a match of a part of the value":        {"lines", map[string]string{"any": "a " + value}, "parameters[any] does not match"},
		"a path":                                {"aws", map[string]string{"cluster": "../" + value}, "parameters[cluster] does not match the pattern"},
		"an absolute path":                      {"aws", map[string]string{"cluster": "/etc/" + value}, "parameters[cluster] does not match the pattern"},
		"a file as some programs take it":       {"aws", map[string]string{"cluster": "@" + value}, "parameters[cluster] does not match the pattern"},
		"a URL":                                 {"aws", map[string]string{"cluster": "https://" + value}, "parameters[cluster] does not match the pattern"},
		"a space":                               {"aws", map[string]string{"cluster": "a " + value}, "parameters[cluster] does not match the pattern"},
		"a command substitution":                {"aws", map[string]string{"cluster": "$(" + value + ")"}, "parameters[cluster] does not match the pattern"},
		"an empty value":                        {"aws", map[string]string{"cluster": ""}, "parameters[cluster] does not match the pattern"},
		"an assignment":                         {"aws", map[string]string{"cluster": "a=" + value}, "parameters[cluster] does not match the pattern"},
		"a value beside the alternatives of it": {"aws", map[string]string{"cluster": "a", "role": value}, "parameters[role] does not match the pattern"},
	} {
		t.Run(name, func(t *testing.T) {
			c, problems := plugins.Resolve(test.plugin, test.parameters)
			if c != nil || len(problems) != 1 || !strings.HasPrefix(problems[0], test.problem) {
				t.Errorf("%v, %q", c, problems)
			}
			if strings.Contains(strings.Join(problems, ""), value) {
				t.Errorf("%q contains the value", problems)
			}
		})
	}
	// What was inserted is not expanded again.
	c, problems := plugins.Resolve("free", map[string]string{"any": "$(any) $$(any)"})
	if len(problems) > 0 || c.Args[0] != "$(any) $$(any)" {
		t.Errorf("%v, %q", c, problems)
	}
	var none *Plugins
	if c, problems := none.Resolve("aws", nil); c != nil || len(problems) != 1 || len(none.Names()) != 0 {
		t.Errorf("%v, %q", c, problems)
	}
}

// Every fault of a file is reported at once, by plugin and field.
func TestParseFaults(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"empty":         {"", []string{"must contain one YAML document, and contains 0"}},
		"two documents": {awsPlugin + "---\nplugins: []\n", []string{"must contain one YAML document, and contains 2"}},
		"not YAML":      {"a: [", []string{"is not valid YAML"}},
		"a key twice":   {"plugins: []\nplugins: []\n", []string{"is not valid YAML"}},
		"a map":         {"plugins: {aws: {command: PROGRAM}}\n", []string{"is not a list of plugins"}},
		"no plugin":     {"plugins: []\n", []string{"plugins: Required value: at least one plugin must be defined"}},
		"all at once": {`
plugin: []
plugins:
- name: aws
  command: aws
  apiVersion: v1
  arguments: [a]
  args: ["$(absent)", "$(open", "$()", "$(a b)"]
  env:
  - {name: A=B, value: a}
  - {name: KUBERNETES_EXEC_INFO, value: a}
  - {name: TWICE, value: "$(gone)"}
  inheritEnv: [TWICE, "1 2"]
  parameters:
  - {name: unused}
  - {name: 1st}
  - {name: escape, pattern: "a)|(b"}
  - {name: open, pattern: "\\Qa"}
  - {name: unused, default: "--x"}
- name: aws
  command: ` + dir + `
- name: A_B
  command: ` + dir + `/absent
`, []string{
			`unknown field "plugin"`,
			`unknown field "plugins[0].arguments"`,
			`plugins[aws].command: Invalid value: "aws": must be an absolute path`,
			`plugins[aws].apiVersion: Unsupported value: "v1"`,
			`plugins[aws].args[0]: Invalid value: "$(absent)": parameters does not declare "absent"`,
			`plugins[aws].args[1]: Invalid value: "$(open": $(NAME) must contain the name of a parameter`,
			`plugins[aws].args[2]: Invalid value: "$()": $(NAME) must contain`,
			`plugins[aws].args[3]: Invalid value: "$(a b)": $(NAME) must contain`,
			`plugins[aws].env[0].name: Invalid value: "A=B"`,
			`plugins[aws].env[1].name: Invalid value: "KUBERNETES_EXEC_INFO": the gateway sets this variable`,
			`plugins[aws].inheritEnv[0]: Duplicate value: "TWICE"`,
			`plugins[aws].inheritEnv[1]: Invalid value: "1 2"`,
			`plugins[aws].env[2].value: Invalid value: "$(gone)": parameters does not declare "gone"`,
			`plugins[aws].parameters[0].name: Invalid value: "unused": neither args nor env contains $(unused)`,
			`plugins[aws].parameters[1].name: Invalid value: "1st": must consist of`,
			`plugins[aws].parameters[1].name: Invalid value: "1st": neither args nor env`,
			`plugins[aws].parameters[2].pattern: Invalid value: "a)|(b"`,
			`plugins[aws].parameters[2].name: Invalid value: "escape": neither`,
			`plugins[aws].parameters[3].pattern: Invalid value: "\\Qa"`,
			`plugins[aws].parameters[3].name: Invalid value: "open": neither`,
			`plugins[aws].parameters[4].default: Invalid value: "--x": must not begin with "-"`,
			`plugins[aws].parameters[4].name: Duplicate value: "unused"`,
			`plugins[1].name: Duplicate value: "aws"`,
			`plugins[1].command: Invalid value: "` + dir + `": must be an executable file`,
			`plugins[2].name: Invalid value: "A_B"`,
			`plugins[2].command: Invalid value: "` + dir + `/absent": stat ` + dir + `/absent: no such file or directory`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			plugins, err := parse(t, test.text)
			if err == nil || plugins != nil {
				t.Fatalf("%v, %v", plugins, err)
			}
			got := []error{err}
			var all utilerrors.Aggregate
			if errors.As(err, &all) {
				got = all.Errors()
			}
			for i, err := range got {
				if i >= len(test.want) || !strings.HasPrefix(err.Error(), test.want[i]) {
					t.Errorf("fault %d: %v", i, err)
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("%d faults, want %d", len(got), len(test.want))
			}
		})
	}
	if _, err := Load(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
