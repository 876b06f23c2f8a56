// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package execplugin

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// The versions of the protocol between the gateway and a plugin.
const (
	APIVersionV1      = "client.authentication.k8s.io/v1"
	APIVersionV1beta1 = "client.authentication.k8s.io/v1beta1"
)

// file is the file in which the operator defines plugins.
type file struct {
	Plugins []Definition `json:"plugins"`
}

// Definition is the operator's definition of one plugin.
type Definition struct {
	// Name is how Secrets refer to the plugin.
	Name string `json:"name"`
	// Command is the absolute path of the program.
	Command string `json:"command"`
	// APIVersion is the version of the protocol. Empty means APIVersionV1.
	APIVersion string `json:"apiVersion,omitempty"`
	// Args are the arguments. $(NAME) stands for the value of a parameter, and $$(NAME) for the text
	// $(NAME).
	Args []string `json:"args,omitempty"`
	// Env are environment variables. Their values can refer to parameters as Args can.
	Env []EnvVar `json:"env,omitempty"`
	// InheritEnv are the names of the environment variables of the gateway that the plugin gets, if
	// they are set. It gets no other.
	InheritEnv []string `json:"inheritEnv,omitempty"`
	// ProvideClusterInfo is whether the plugin gets the address and the CA of the cluster.
	ProvideClusterInfo bool `json:"provideClusterInfo,omitempty"`
	// Parameters are what a Secret can set.
	Parameters []Parameter `json:"parameters,omitempty"`
}

// EnvVar is an environment variable.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Parameter is something that a Secret can set.
type Parameter struct {
	Name string `json:"name"`
	// Pattern is a regular expression that must match the whole value. Empty means defaultPattern.
	// Whatever the pattern is, no value may begin with "-" or contain control characters.
	Pattern string `json:"pattern,omitempty"`
	// Default is the value if a Secret does not set the parameter. If it is nil, Secrets must set it.
	Default *string `json:"default,omitempty"`

	pattern *regexp.Regexp
}

// defaultPattern matches names, but neither options, paths, URLs nor lists.
const defaultPattern = `[A-Za-z0-9][A-Za-z0-9._-]*`

// Plugins are the plugins that the operator has defined. Nil means none. They must not be changed,
// and are safe for concurrent use.
type Plugins struct{ byName map[string]*Definition }

// Names returns the names of all plugins, sorted.
func (p *Plugins) Names() []string {
	if p == nil {
		return nil
	}
	names := make([]string, 0, len(p.byName))
	for name := range p.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Load reads the file in which the operator defines plugins. The error contains every fault, each
// with the plugin and the field.
func Load(path string) (*Plugins, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(text)
}

// Parse parses the content of a file for [Load].
func Parse(text []byte) (*Plugins, error) {
	var documents [][]byte
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		asJSON, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			return nil, fmt.Errorf("is not valid YAML: %w", err)
		}
		if string(asJSON) != "null" { // a comment before the first separator
			documents = append(documents, asJSON)
		}
	}
	if len(documents) != 1 {
		return nil, fmt.Errorf("must contain one YAML document, and contains %d", len(documents))
	}
	var f file
	strict, err := json.UnmarshalStrict(documents[0], &f)
	if err != nil {
		return nil, fmt.Errorf("is not a list of plugins: %w", err)
	}
	return f.validate(strict)
}

// validate returns the plugins, or each of the faults in them.
func (f *file) validate(faults []error) (*Plugins, error) {
	root := field.NewPath("plugins")
	if len(f.Plugins) == 0 {
		faults = append(faults, field.Required(root, "at least one plugin must be defined"))
	}
	p := &Plugins{byName: map[string]*Definition{}}
	for i := range f.Plugins {
		d := &f.Plugins[i]
		path := root.Index(i)
		problems := validation.IsDNS1123Label(d.Name)
		switch {
		case len(problems) > 0:
			faults = append(faults, field.Invalid(path.Child("name"), d.Name, problems[0]))
		case p.byName[d.Name] != nil:
			faults = append(faults, field.Duplicate(path.Child("name"), d.Name))
		default:
			path = root.Key(d.Name)
			p.byName[d.Name] = d
		}
		for _, fault := range d.validate(path) {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return nil, utilerrors.NewAggregate(faults)
	}
	return p, nil
}

func (d *Definition) validate(path *field.Path) field.ErrorList {
	faults := d.validateCommand(path.Child("command"))
	switch d.APIVersion {
	case "":
		d.APIVersion = APIVersionV1
	case APIVersionV1, APIVersionV1beta1:
	default:
		faults = append(faults, field.NotSupported(path.Child("apiVersion"), d.APIVersion, []string{APIVersionV1, APIVersionV1beta1}))
	}
	used := map[string]bool{}
	reference := func(path *field.Path, text string) {
		names, err := references(text)
		if err != nil {
			faults = append(faults, field.Invalid(path, text, err.Error()))
		}
		for _, name := range names {
			used[name] = true
			if !slices.ContainsFunc(d.Parameters, func(p Parameter) bool { return p.Name == name }) {
				faults = append(faults, field.Invalid(path, text, fmt.Sprintf("parameters does not declare %q", name)))
			}
		}
	}
	for i, arg := range d.Args {
		reference(path.Child("args").Index(i), arg)
	}
	faults = append(faults, d.validateEnv(path)...)
	for i, e := range d.Env {
		reference(path.Child("env").Index(i).Child("value"), e.Value)
	}
	declared := map[string]bool{}
	for i := range d.Parameters {
		p := &d.Parameters[i]
		path := path.Child("parameters").Index(i)
		faults = append(faults, p.validate(path)...)
		switch {
		case declared[p.Name]:
			faults = append(faults, field.Duplicate(path.Child("name"), p.Name))
		case p.Name != "" && !used[p.Name]:
			faults = append(faults, field.Invalid(path.Child("name"), p.Name, fmt.Sprintf("neither args nor env contains $(%s)", p.Name)))
		}
		declared[p.Name] = true
	}
	return faults
}

func (d *Definition) validateCommand(path *field.Path) field.ErrorList {
	if !filepath.IsAbs(d.Command) {
		return field.ErrorList{field.Invalid(path, d.Command, "must be an absolute path")}
	}
	info, err := os.Stat(d.Command)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(path, d.Command, err.Error())}
	case !isProgram(info):
		return field.ErrorList{field.Invalid(path, d.Command, "must be an executable file")}
	}
	return nil
}

func (d *Definition) validateEnv(path *field.Path) field.ErrorList {
	var faults field.ErrorList
	seen := map[string]bool{}
	check := func(path *field.Path, name string) {
		switch problems := validation.IsEnvVarName(name); {
		case len(problems) > 0:
			faults = append(faults, field.Invalid(path, name, problems[0]))
		case name == infoVariable:
			faults = append(faults, field.Invalid(path, name, "the gateway sets this variable"))
		case seen[name]:
			faults = append(faults, field.Duplicate(path, name))
		}
		seen[name] = true
	}
	for i, e := range d.Env {
		check(path.Child("env").Index(i).Child("name"), e.Name)
	}
	for i, name := range d.InheritEnv {
		check(path.Child("inheritEnv").Index(i), name)
	}
	return faults
}

// parameterName is what references can name.
var parameterName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)

func (p *Parameter) validate(path *field.Path) field.ErrorList {
	var faults field.ErrorList
	if !parameterName.MatchString(p.Name) {
		faults = append(faults, field.Invalid(path.Child("name"), p.Name, "must consist of letters, digits, '_' and '-', and begin with a letter"))
	}
	pattern := p.Pattern
	if pattern == "" {
		pattern = defaultPattern
	}
	// The pattern alone must be valid too, because "a)|(b" would otherwise escape from the anchors.
	_, err := regexp.Compile(pattern)
	if err == nil {
		p.pattern, err = regexp.Compile(`\A(?:` + pattern + `)\z`)
	}
	if err != nil {
		return append(faults, field.Invalid(path.Child("pattern"), pattern, err.Error()))
	}
	if p.Default != nil {
		if problem := p.check(*p.Default); problem != "" {
			faults = append(faults, field.Invalid(path.Child("default"), *p.Default, problem))
		}
	}
	return faults
}

// maxValue is the longest value of a parameter.
const maxValue = 1024

// check returns what is wrong with a value. The text does not contain the value, which is from a
// Secret.
func (p *Parameter) check(value string) string {
	switch {
	case len(value) > maxValue:
		return fmt.Sprintf("is %d bytes long; at most %d are allowed", len(value), maxValue)
	case strings.HasPrefix(value, "-"):
		return `must not begin with "-", because programs take such an argument for an option`
	case !isPrintable(value):
		return "must be one line of printable characters"
	case !p.pattern.MatchString(value):
		return "does not match the pattern " + untrusted.Text(p.pattern.String())
	}
	return ""
}
