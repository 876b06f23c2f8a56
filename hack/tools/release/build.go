// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
)

// target says what to build.
type target struct {
	source, command, out string
	platform             platform
	stamp                stamp
}

// stamp is what a command says about its origin (--version).
type stamp struct {
	version, commit, treeState string
	time                       time.Time
}

// flags returns the flags of the linker that set the variables of Kubernetes' version package.
func (s stamp) flags() string {
	const variable = "-X k8s.io/component-base/version."
	parts := strings.SplitN(strings.TrimPrefix(s.version, "v"), ".", 3)
	return strings.Join([]string{
		"-s -w -buildid=",
		variable + "gitVersion=" + s.version,
		variable + "gitMajor=" + parts[0],
		variable + "gitMinor=" + parts[1],
		variable + "gitCommit=" + s.commit,
		variable + "gitTreeState=" + s.treeState,
		variable + "buildDate=" + s.time.Format(time.RFC3339),
	}, " ")
}

// goBuild builds a command with the go command: static, stripped, and without the paths of this
// machine.
func goBuild(ctx context.Context, t target) error {
	toolchain, err := toolchainOf(t.source)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-ldflags", t.stamp.flags(), "-o", t.out, "./cmd/"+t.command)
	cmd.Dir = t.source
	// What changes the result is set here, whatever the user's environment and go env -w say. VCS
	// stamping would make a build in a copy of the source differ from one in a clone.
	cmd.Env = append(os.Environ(),
		"GOTOOLCHAIN="+toolchain, "GOOS="+t.platform.os, "GOARCH="+t.platform.arch, "CGO_ENABLED=0", "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=-buildvcs=false", "GOWORK=off", "GOFIPS140=off", "GOEXPERIMENT=")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s for %s: %w\n%s", t.command, t.platform, err, output.Bytes())
	}
	return nil
}

// toolchainOf returns the Go toolchain that the source asks for. A release is built with that one,
// whichever is installed: its standard library has the security updates, and two builds on
// different machines are equal.
func toolchainOf(source string) (string, error) {
	path := filepath.Join(source, "go.mod")
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	file, err := modfile.Parse(path, content, nil)
	if err != nil {
		return "", err
	}
	if file.Toolchain == nil {
		return "", fmt.Errorf("%s has no toolchain line, so it does not say which Go builds a release", path)
	}
	return file.Toolchain.Name, nil
}

// runBinary runs a program that was built, and returns what it prints.
func runBinary(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, problems.Bytes())
	}
	return out, nil
}
