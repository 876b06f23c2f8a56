// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// release makes one release. All fields are required, except signer.
type release struct {
	source, dist       string
	version            string
	commit, treeState  string
	time               time.Time
	image, downloads   string
	platforms          []platform
	signer             crypto.Signer // nil means that the release is not signed
	log                io.Writer
	build              func(context.Context, target) error
	run                func(ctx context.Context, program string, args ...string) ([]byte, error)
	readInfo           func(binary string) (*debug.BuildInfo, error)
	goVersion, license string // read by make
}

// make builds the release in a folder beside dist, and then puts it in the place of dist. So dist
// is always a whole release.
func (r *release) make(ctx context.Context) error {
	if err := replaceable(r.dist); err != nil {
		return err
	}
	parent := filepath.Dir(r.dist)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, "."+filepath.Base(r.dist)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is gone after a success
	if r.treeState != "clean" {
		r.say("Warning: the source has changes that are not committed. Nobody can build this release again.")
	}
	if err := r.fill(ctx, dir); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(r.dist); err != nil {
		return err
	}
	if err := os.Rename(dir, r.dist); err != nil {
		return err
	}
	r.say("%s has release %s of commit %s", r.dist, r.version, r.commit)
	return nil
}

// replaceable returns an error if dir has something that is not a release.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, sumsFile)); err != nil {
		return fmt.Errorf("the folder %s is not empty and holds no release: choose another one, or remove it", dir)
	}
	return nil
}

func (r *release) fill(ctx context.Context, dir string) error {
	license, err := os.ReadFile(filepath.Join(r.source, "LICENSE"))
	if err != nil {
		return err
	}
	r.license = string(license)
	work, err := os.MkdirTemp("", "cluster-gateway-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // a temporary folder
	binaries, err := r.buildAll(ctx, work)
	if err != nil {
		return err
	}
	r.say("Writing the files")
	completions, err := r.completions(ctx, work, binaries)
	if err != nil {
		return err
	}
	if err := writeFiles(filepath.Join(dir, "completions"), completions); err != nil {
		return err
	}
	archives, err := r.writeArchives(dir, binaries, completions)
	if err != nil {
		return err
	}
	digest, err := r.writeImage(filepath.Join(dir, imageDir), binaries)
	if err != nil {
		return err
	}
	var files []file
	for _, part := range []func() ([]file, error){
		func() ([]file, error) { return r.sboms(binaries) },
		r.charts,
		func() ([]file, error) { return r.install(digest.String()) },
		func() ([]file, error) { return r.krew(archives) },
		func() ([]file, error) { return r.notes(digest.String()) },
	} {
		more, err := part()
		if err != nil {
			return err
		}
		files = append(files, more...)
	}
	if err := writeFiles(dir, files); err != nil {
		return err
	}
	return r.writeSums(dir)
}

func (r *release) say(format string, args ...any) { fmt.Fprintf(r.log, format+"\n", args...) }

// buildAll builds the commands for all platforms, and returns their paths.
func (r *release) buildAll(ctx context.Context, work string) (map[platform]map[string]string, error) {
	binaries := map[platform]map[string]string{}
	for _, p := range r.platforms {
		binaries[p] = map[string]string{}
		for _, command := range p.commands() {
			r.say("Building %s for %s", command, p)
			out, err := r.buildOne(ctx, work, command, p)
			if err != nil {
				return nil, err
			}
			binaries[p][command] = out
		}
	}
	return binaries, nil
}

func (r *release) buildOne(ctx context.Context, work, command string, p platform) (string, error) {
	out := filepath.Join(work, p.suffix(), p.executable(command))
	return out, r.build(ctx, target{
		source: r.source, command: command, out: out, platform: p,
		stamp: stamp{version: r.version, commit: r.commit, treeState: r.treeState, time: r.time},
	})
}

// completions returns the scripts for shells. A binary of this machine's platform prints them.
func (r *release) completions(ctx context.Context, work string, binaries map[platform]map[string]string) ([]file, error) {
	host := platform{runtime.GOOS, runtime.GOARCH}
	program := binaries[host][agentBootstrap]
	if program == "" {
		var err error
		if program, err = r.buildOne(ctx, work, agentBootstrap, host); err != nil {
			return nil, err
		}
	}
	var files []file
	for shell, extension := range map[string]string{"bash": "bash", "zsh": "zsh", "fish": "fish", "powershell": "ps1"} {
		script, err := r.run(ctx, program, "completion", shell)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: agentBootstrap + "." + extension, data: script, mode: modeFile})
	}
	return inOrder(files)
}

// archive is an archive of a command for a platform.
type archive struct {
	command  string
	platform platform
	name     string
	data     []byte
}

func (r *release) writeArchives(dir string, binaries map[platform]map[string]string, completions []file) ([]archive, error) {
	var archives []archive
	for _, p := range r.platforms {
		for _, command := range p.commands() {
			a, err := r.archive(command, p, binaries[p][command], completions)
			if err != nil {
				return nil, err
			}
			if err := writeFiles(dir, []file{{name: a.name, data: a.data, mode: modeFile}}); err != nil {
				return nil, err
			}
			archives = append(archives, a)
		}
	}
	return archives, nil
}

func (r *release) archive(command string, p platform, binary string, completions []file) (archive, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return archive{}, err
	}
	files := []file{
		{name: p.executable(command), data: program, mode: modeExecutable},
		{name: "LICENSE", data: []byte(r.license), mode: modeFile},
	}
	if command == agentBootstrap {
		for _, f := range completions {
			f.name = "completions/" + f.name
			files = append(files, f)
		}
	}
	a := archive{command: command, platform: p, name: fmt.Sprintf("%s_%s_%s", command, r.version, p.suffix())}
	if p.os == "windows" {
		a.name += ".zip"
		a.data, err = writeZip(files, r.time)
	} else {
		a.name += ".tar.gz"
		a.data, err = tarGz(files, r.time)
	}
	return a, err
}

// writeFiles writes files into a folder, which it makes.
func writeFiles(dir string, files []file) error {
	sorted, err := inOrder(files)
	if err != nil {
		return err
	}
	for _, f := range sorted {
		path := filepath.Join(dir, filepath.FromSlash(f.name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, os.FileMode(f.mode)); err != nil {
			return err
		}
	}
	return nil
}

// onlyLine replaces the one line that is equal to old.
func onlyLine(lines []string, old, replacement string) error {
	first := slices.Index(lines, old)
	if first < 0 {
		return fmt.Errorf("there is no line %q", old)
	}
	if slices.Contains(lines[first+1:], old) {
		return fmt.Errorf("there are several lines %q", old)
	}
	lines[first] = replacement
	return nil
}
