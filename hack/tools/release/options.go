// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/mod/semver"
)

const (
	project          = "https://github.com/oam-dev/cluster-gateway"
	defaultImage     = "cluster-gateway"
	defaultPlatforms = "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64"
)

// platform is an operating system and an architecture, in the words of the go command.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// suffix is the part of the names of files that tells the platform.
func (p platform) suffix() string { return p.os + "_" + p.arch }

// executable returns the name of the file of a command.
func (p platform) executable(command string) string {
	if p.os == "windows" {
		return command + ".exe"
	}
	return command
}

// The commands of this project.
const (
	gateway        = "gateway"
	agentBootstrap = "agent-bootstrap"
)

// commands returns the commands that are built for the platform. The gateway does not run on
// Windows.
func (p platform) commands() []string {
	if p.os == "windows" {
		return []string{agentBootstrap}
	}
	return []string{agentBootstrap, gateway}
}

// options are what the user has given.
type options struct {
	source, dist, version, image, downloadURL, platforms, signingKey string
}

// versionForm is a version of semver.org with a leading v and without build metadata, which is not
// allowed in the tag of an image.
var versionForm = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

// commitForm is the hash of a commit. It becomes part of a flag of the linker.
var commitForm = regexp.MustCompile(`^[0-9a-f]{7,64}$`)

// complete checks the options and reads what they refer to. Every fault is reported at once.
func (o options) complete(ctx context.Context, rest []string) (*release, error) {
	var errs []error
	if len(rest) > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	if !semver.IsValid(o.version) || !versionForm.MatchString(o.version) {
		errs = append(errs, fmt.Errorf("invalid version %q: must be a semantic version with a leading v, such as v0.1.0 or v0.2.0-rc.1", o.version))
	}
	if repository, err := name.NewRepository(o.image); err != nil {
		errs = append(errs, fmt.Errorf("invalid image %q: must be the name of a repository without a tag: %w", o.image, err))
	} else if strings.ContainsAny(repository.RepositoryStr(), "@:") {
		errs = append(errs, fmt.Errorf("invalid image %q: must have no tag", o.image))
	}
	platforms, err := parsePlatforms(o.platforms)
	errs = append(errs, err)
	downloads := o.downloadURL
	if downloads == "" {
		downloads = project + "/releases/download/" + o.version
	}
	if u, err := url.Parse(downloads); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		errs = append(errs, fmt.Errorf("invalid download URL %q: must be an http or https URL", downloads))
	}
	r := &release{
		source: o.source, dist: filepath.Clean(o.dist), version: o.version, image: o.image, downloads: strings.TrimSuffix(downloads, "/"),
		platforms: platforms, build: goBuild, run: runBinary, readInfo: buildinfo.ReadFile,
	}
	if o.signingKey != "" {
		r.signer, err = readSigner(o.signingKey)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return r, r.readCommit(ctx)
}

func parsePlatforms(list string) ([]platform, error) {
	var platforms []platform
	for p := range strings.SplitSeq(list, ",") {
		if !slices.Contains(strings.Split(defaultPlatforms, ","), p) {
			return nil, fmt.Errorf("invalid platform %q: must be one of %s", p, defaultPlatforms)
		}
		system, arch, _ := strings.Cut(p, "/")
		if next := (platform{system, arch}); !slices.Contains(platforms, next) {
			platforms = append(platforms, next)
		}
	}
	slices.SortFunc(platforms, func(a, b platform) int { return strings.Compare(a.String(), b.String()) })
	if !slices.ContainsFunc(platforms, func(p platform) bool { return p.os == "linux" }) {
		return nil, fmt.Errorf("invalid platforms %q: one of them must be linux, for the image", list)
	}
	return platforms, nil
}

// readCommit finds out which commit is built and when it was made. Without git, the environment
// variables COMMIT and SOURCE_DATE_EPOCH say it; they take precedence.
func (r *release) readCommit(ctx context.Context) error {
	commit, epoch := os.Getenv("COMMIT"), os.Getenv("SOURCE_DATE_EPOCH")
	r.treeState = "clean"
	if commit == "" {
		out, err := r.git(ctx, "rev-parse", "HEAD")
		if err != nil {
			return fmt.Errorf("find the commit (without git, set COMMIT and SOURCE_DATE_EPOCH): %w", err)
		}
		commit = out
		changes, err := r.git(ctx, "status", "--porcelain", "--untracked-files=no")
		if err != nil {
			return err
		}
		if changes != "" {
			r.treeState = "dirty"
		}
	}
	if epoch == "" {
		out, err := r.git(ctx, "log", "-1", "--format=%ct", commit)
		if err != nil {
			return fmt.Errorf("find the time of the commit (without git, set SOURCE_DATE_EPOCH): %w", err)
		}
		epoch = out
	}
	if !commitForm.MatchString(commit) {
		return fmt.Errorf("invalid COMMIT %q: must be the hash of a commit", commit)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("invalid SOURCE_DATE_EPOCH %q: must be a number of seconds since 1970", epoch)
	}
	r.commit, r.time = commit, time.Unix(seconds, 0).UTC()
	return nil
}

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.source
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("git %s: %w\n%s", args[0], err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}
