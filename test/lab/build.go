// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	modulePath       = "github.com/oam-dev/cluster-gateway"
	buildLock        = "build.lock"
	progressInterval = 20 * time.Second
	// firstBuild is the approximate duration of a build without a cache.
	firstBuild = "about 8 minutes on 2 cores, once; later builds take seconds"
)

// builder builds components into the cache.
type builder struct {
	root  string // the folder of this module
	cache string
	out   io.Writer
}

// pinnedTool is a tool with its version and its path in the cache. The path contains everything
// that affects the build.
type pinnedTool struct {
	tool
	version string
	target  string
}

func newBuilder(o BinariesOptions) (*builder, error) {
	out := o.Out
	if out == nil {
		out = io.Discard
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir(o)
	if err != nil {
		return nil, err
	}
	return &builder{root: root, cache: cache, out: out}, nil
}

// moduleRoot finds the folder of this module's go.mod: above the working directory, or above this
// source file.
func moduleRoot() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	for _, start := range starts {
		for dir := start; ; dir = filepath.Dir(dir) {
			if isModuleRoot(dir) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("find hack/tools: neither the working directory nor this source is inside %s", modulePath)
}

func isModuleRoot(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(first) == "module "+modulePath
}

// pin reads the version of a tool from its go.mod.
func (b *builder) pin(t tool) (pinnedTool, error) {
	hash := sha256.New()
	var version string
	for _, name := range []string{"go.mod", "go.sum"} {
		path := filepath.Join(b.root, "hack", "tools", t.folder, name)
		data, err := os.ReadFile(path)
		if err != nil {
			return pinnedTool{}, fmt.Errorf("read the version of %s: %w", t.name, err)
		}
		hash.Write(data)
		if name == "go.mod" {
			version = requiredVersion(data, t.module)
		}
		if version == "" {
			return pinnedTool{}, fmt.Errorf("%s does not require %s", path, t.module)
		}
	}
	pinned := pinnedTool{tool: t, version: version}
	fmt.Fprintln(hash, runtime.GOOS, runtime.GOARCH, pinned.arguments(""))
	if t.edits != nil {
		fmt.Fprintln(hash, t.edits())
	}
	folder := fmt.Sprintf("%s-%s-%x", t.name, version, hash.Sum(nil)[:5])
	pinned.target = filepath.Join(b.cache, folder, t.name)
	return pinned, nil
}

func requiredVersion(gomod []byte, module string) string {
	line := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(module) + `\s+(v\S+)`)
	match := line.FindSubmatch(gomod)
	if match == nil {
		return ""
	}
	return string(match[1])
}

// arguments returns the arguments of the go command that builds the tool.
func (t pinnedTool) arguments(output string, extra ...string) []string {
	arguments := append([]string{"build", "-mod=readonly", "-buildvcs=false"}, extra...)
	if t.flags != nil {
		arguments = append(arguments, t.flags(t.version)...)
	}
	return append(arguments, "-o", output, t.pkg)
}

// build builds the missing components, unless another process builds them first.
func (b *builder) build(ctx context.Context, missing []pinnedTool) error {
	if len(missing) == 0 {
		return nil
	}
	lock, err := lockFile(ctx, filepath.Join(b.cache, buildLock), func() {
		fmt.Fprintf(b.out, "lab: another process is building components; waiting for it\n")
	})
	if err != nil {
		return err
	}
	defer lock.Close()

	missing = slices.DeleteFunc(missing, func(t pinnedTool) bool { return executable(t.target) })
	if len(missing) == 0 {
		return nil
	}
	start := time.Now()
	fmt.Fprintf(b.out, "lab: building %d components into %s (%s)\n", len(missing), b.cache, firstBuild)
	for i, t := range missing {
		if err := b.buildOne(ctx, t, fmt.Sprintf("%d of %d", i+1, len(missing)), start); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "lab: built %d components in %s\n", len(missing), seconds(start))
	return nil
}

func (b *builder) buildOne(ctx context.Context, t pinnedTool, position string, start time.Time) error {
	fmt.Fprintf(b.out, "lab: [%s] building %s %s (%s so far)\n", position, t.name, t.version, seconds(start))
	begin := time.Now()
	defer b.progress(func() string {
		return fmt.Sprintf("lab: [%s] still building %s (%s)", position, t.name, seconds(begin))
	})()

	dir := filepath.Dir(t.target)
	// Built beside its final path and renamed, so that the path never contains an incomplete program.
	scratch := filepath.Join(dir, ".building")
	if err := os.RemoveAll(scratch); err != nil { // left by a build that was killed
		return err
	}
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	var extra []string
	if t.edits != nil {
		var err error
		if extra, err = b.editedModule(ctx, t, scratch); err != nil {
			return err
		}
	}
	output := filepath.Join(scratch, t.name)
	cmd := exec.CommandContext(ctx, "go", t.arguments(output, extra...)...)
	cmd.Dir = b.toolDir(t)
	cmd.Env = buildEnvironment()
	cmd.WaitDelay = checkTimeout
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s %s: %w\n%s", t.name, t.version, errors.Join(err, ctx.Err()), lastLines(out))
	}
	return os.Rename(output, t.target)
}

// progress prints a line from time to time, until the function it returns is called.
func (b *builder) progress(line func() string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(progressInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				fmt.Fprintln(b.out, line())
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

func (b *builder) toolDir(t pinnedTool) string {
	return filepath.Join(b.root, "hack", "tools", t.folder)
}

// buildEnvironment disables a workspace of the user.
func buildEnvironment() []string { return append(os.Environ(), "GOWORK=off") }

func seconds(since time.Time) time.Duration { return time.Since(since).Round(time.Second) }

func lastLines(out []byte) []byte {
	lines := bytes.Split(bytes.TrimRight(out, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-tailLines):], []byte("\n"))
}
