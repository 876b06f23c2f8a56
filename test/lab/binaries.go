// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	cacheDirVariable = "CLUSTER_GATEWAY_LAB_CACHE"
	assetsVariable   = "KUBEBUILDER_ASSETS"
	variablePrefix   = "CLUSTER_GATEWAY_LAB_"
	versionTimeout   = 20 * time.Second
)

// Binaries contains the paths of the components that a lab runs.
type Binaries struct {
	Etcd                  string
	KubeAPIServer         string
	KubeControllerManager string
	Kubectl               string
	Kwok                  string
	KonnectivityServer    string
	KonnectivityAgent     string
}

// BinariesOptions says which components to find, and where. The zero value is ready to use.
type BinariesOptions struct {
	// CacheDir is where built components are kept. Empty means
	// $CLUSTER_GATEWAY_LAB_CACHE, or else cluster-gateway/lab in the user's
	// cache folder.
	CacheDir string
	// APIServerOnly leaves out everything except etcd, kube-apiserver and kubectl.
	// The paths of the other components are then empty.
	APIServerOnly bool
	// Out receives progress messages about what is being built and why. Nil
	// discards them.
	Out io.Writer
}

// tool is one component. It says where its source is pinned and which field gets its path.
type tool struct {
	name    string // of the program, and of its variable: CLUSTER_GATEWAY_LAB_NAME
	folder  string // the folder of its go.mod, below hack/tools
	module  string // the module whose version is the component's
	pkg     string // its main package
	flags   func(version string) []string
	edits   func() []edit // nil means that it is built unchanged
	version []string      // the arguments that print its version; nil means that it has none
	path    func(*Binaries) *string
}

func tools() []tool {
	const (
		kubernetes   = "k8s.io/kubernetes"
		konnectivity = "sigs.k8s.io/apiserver-network-proxy"
		kwok         = "sigs.k8s.io/kwok"
		etcd         = "go.etcd.io/etcd/server/v3"
	)
	return []tool{
		{name: "etcd", folder: "etcd", module: etcd, pkg: etcd, version: []string{"--version"},
			path: func(b *Binaries) *string { return &b.Etcd }},
		{name: "konnectivity-server", folder: "konnectivity", module: konnectivity, pkg: konnectivity + "/cmd/server",
			path: func(b *Binaries) *string { return &b.KonnectivityServer }},
		{name: "konnectivity-agent", folder: "konnectivity", module: konnectivity, pkg: konnectivity + "/cmd/agent",
			path: func(b *Binaries) *string { return &b.KonnectivityAgent }},
		{name: "kube-apiserver", folder: "kubernetes", module: kubernetes, pkg: kubernetes + "/cmd/kube-apiserver",
			flags: stampKubernetes, version: []string{"--version"},
			path: func(b *Binaries) *string { return &b.KubeAPIServer }},
		{name: "kubectl", folder: "kubernetes", module: kubernetes, pkg: kubernetes + "/cmd/kubectl",
			flags: stampKubernetes, version: []string{"version", "--client"},
			path: func(b *Binaries) *string { return &b.Kubectl }},
		{name: "kube-controller-manager", folder: "kubernetes", module: kubernetes, pkg: kubernetes + "/cmd/kube-controller-manager",
			flags: stampKubernetes, version: []string{"--version"},
			path: func(b *Binaries) *string { return &b.KubeControllerManager }},
		{name: "kwok", folder: "kwok", module: kwok, pkg: kwok + "/cmd/kwok",
			edits: kwokEdits, version: []string{"--version"},
			path: func(b *Binaries) *string { return &b.Kwok }},
	}
}

// stampKubernetes returns the flags that set the version as Kubernetes' own build
// does. Without them, the components report v0.0.0-master.
func stampKubernetes(version string) []string {
	const variable = "-X k8s.io/component-base/version."
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	return []string{"-ldflags", strings.Join([]string{
		variable + "gitVersion=" + version,
		variable + "gitMajor=" + parts[0],
		variable + "gitMinor=" + parts[1],
		variable + "gitTreeState=clean",
	}, " ")}
}

// FindBinaries finds the components of a lab, and builds the missing ones.
//
// It uses the path in a component's environment variable (CLUSTER_GATEWAY_LAB_KUBE_APISERVER,
// …_ETCD, …_KUBECTL, …_KUBE_CONTROLLER_MANAGER, …_KWOK, …_KONNECTIVITY_SERVER,
// …_KONNECTIVITY_AGENT). If that is not set, it looks in the folder $KUBEBUILDER_ASSETS. A
// component must have the pinned version up to the patch level; if not, FindBinaries reports that
// and does not use it. Otherwise, it uses the cache, and builds missing components with "go build".
// Only one process builds at a time.
func FindBinaries(ctx context.Context, o BinariesOptions) (*Binaries, error) {
	b, err := newBuilder(o)
	if err != nil {
		return nil, err
	}
	binaries := &Binaries{}
	var missing []pinnedTool
	for _, t := range tools() {
		if o.APIServerOnly && !slices.Contains([]string{"etcd", "kube-apiserver", "kubectl"}, t.name) {
			continue
		}
		pinned, err := b.pin(t)
		if err != nil {
			return nil, err
		}
		if path := b.given(ctx, pinned); path != "" {
			*t.path(binaries) = path
			continue
		}
		*t.path(binaries) = pinned.target
		if !executable(pinned.target) {
			missing = append(missing, pinned)
		}
	}
	if err := b.build(ctx, missing); err != nil {
		return nil, err
	}
	return binaries, nil
}

// given returns the path of a component that an environment variable names, if it fits.
func (b *builder) given(ctx context.Context, t pinnedTool) string {
	for _, c := range candidates(t.name) {
		if c.optional && !executable(c.path) {
			continue
		}
		if err := fits(ctx, t, c.path); err != nil {
			fmt.Fprintf(b.out, "lab: not using %s of $%s: %v\n", c.path, c.variable, err)
			continue
		}
		fmt.Fprintf(b.out, "lab: using %s of $%s\n", c.path, c.variable)
		return c.path
	}
	return ""
}

type candidate struct {
	variable, path string
	optional       bool
}

func candidates(name string) []candidate {
	var list []candidate
	variable := variablePrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if path := os.Getenv(variable); path != "" {
		list = append(list, candidate{variable: variable, path: path})
	}
	if dir := os.Getenv(assetsVariable); dir != "" {
		list = append(list, candidate{variable: assetsVariable, path: filepath.Join(dir, name), optional: true})
	}
	return list
}

// fits returns an error unless a program has the wanted major and minor version. A component
// without a command that prints its version is assumed to fit.
func fits(ctx context.Context, t pinnedTool, path string) error {
	if !executable(path) {
		return errors.New("it is not an executable file")
	}
	if t.tool.version == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, t.tool.version...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run it to get its version: %w", err)
	}
	have, want := minor(string(out)), minor(t.version)
	if have == "" {
		return fmt.Errorf("it does not print its version; wanted %s", t.version)
	}
	if have != want {
		return fmt.Errorf("its version is %s; wanted %s", have, want)
	}
	return nil
}

// minor returns the first "MAJOR.MINOR" of the first version in text.
func minor(text string) string {
	match := regexp.MustCompile(`\bv?(\d+\.\d+)\.\d+`).FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	return match[1]
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// cacheDir is where components are kept.
func cacheDir(o BinariesOptions) (string, error) {
	if o.CacheDir != "" {
		return filepath.Abs(o.CacheDir)
	}
	if dir := os.Getenv(cacheDirVariable); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache folder (set $%s): %w", cacheDirVariable, err)
	}
	return filepath.Join(base, "cluster-gateway", "lab"), nil
}

// Binary is the name and the path of one component.
type Binary struct{ Name, Path string }

// All lists the requested components by name.
func (b *Binaries) All() []Binary {
	var list []Binary
	for _, t := range tools() {
		if path := *t.path(b); path != "" {
			list = append(list, Binary{Name: t.name, Path: path})
		}
	}
	return list
}
