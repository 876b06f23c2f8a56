// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// manyOptions are the flags of invite for several clusters.
type manyOptions struct {
	// from is the file with the names, and dir the folder for the invitations.
	from, dir string
}

// inviteArgs checks that there is a name, or a file with names.
func inviteArgs(o *inviteOptions) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case o.many.from == "":
			return oneName(cmd, args)
		case len(args) > 0:
			return trouble(fmt.Errorf("invalid arguments %q: with --from, the names are in the file", args))
		default:
			return nil
		}
	}
}

// validateMany checks what does not fit together. Each invitation is checked as one on its own.
func (o *inviteOptions) validateMany() error {
	var errs []error
	switch {
	case o.outDir != "":
		errs = append(errs, errors.New("--out-dir is for one cluster: it cannot be used with --from"))
	case o.many.dir == "" && !o.revoke && !o.dryRun:
		errs = append(errs, errors.New("--from requires --invitations-dir, the folder for the files to apply"))
	case o.many.dir != "":
		if info, err := os.Stat(o.many.dir); err != nil {
			errs = append(errs, fmt.Errorf("invalid --invitations-dir %q: %w", o.many.dir, err))
		} else if !info.IsDir() {
			errs = append(errs, fmt.Errorf("invalid --invitations-dir %q: must be a folder", o.many.dir))
		}
	}
	return errors.Join(errs...)
}

// readNames reads a file with one name on each line. It reports every fault.
func readNames(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	var names []string
	var errs []error
	lines := map[string]int{}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		name, _, _ := strings.Cut(line, "#")
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if err := registration.ValidateInvitationName(name); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", path, number, err))
		} else if lines[name] > 0 {
			errs = append(errs, fmt.Errorf("%s:%d: %q is also on line %d", path, number, name, lines[name]))
		}
		lines[name] = number
		names = append(names, name)
	}
	if len(names) == 0 {
		errs = append(errs, fmt.Errorf("%s: the file has no names", path))
	}
	return names, errors.Join(errs...)
}

// inviteMany invites each cluster, one after another, and prints one line for each. A cluster that
// cannot be invited does not keep the others from it.
func (a *app) inviteMany(ctx context.Context, o *inviteOptions) error {
	names, err := readNames(o.many.from)
	if err := errors.Join(err, o.validateMany(), a.checkOutput()); err != nil {
		return trouble(err)
	}
	// The flags are the same for all, so their faults are reported once.
	if err := o.validate(names[0]); err != nil {
		return trouble(err)
	}
	failed := 0
	for _, name := range names {
		if ctx.Err() != nil {
			return &ExitError{Code: exitInterrupted, Err: fmt.Errorf("interrupted before %q: the clusters from there on were not invited", name)}
		}
		result, err := a.inviteOneOf(ctx, o, name)
		if err != nil {
			failed++
			result = "failed: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if _, err := fmt.Fprintf(a.Out, "%s\t%s\n", name, result); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &ExitError{Code: exitFailed, Err: fmt.Errorf("%d of %d clusters failed", failed, len(names))}
	}
	return nil
}

// inviteOneOf invites one cluster, writes its file, and returns what to report.
func (a *app) inviteOneOf(ctx context.Context, o *inviteOptions, name string) (string, error) {
	var file, said bytes.Buffer
	own := *a
	own.Out, own.ErrOut = &file, &said // what a single invitation tells to do is the same for all
	if err := (&inviteRun{app: &own, o: o, name: name}).run(ctx); err != nil {
		return "", err
	}
	switch {
	case o.revoke && o.dryRun:
		return "would be revoked", nil
	case o.revoke:
		return "revoked, if there was an invitation", nil
	case o.dryRun:
		return "can be invited", nil
	}
	extension := ".yaml"
	if a.output == "json" {
		extension = ".json"
	}
	path := filepath.Join(o.many.dir, name+extension)
	if err := putFile(path, file.Bytes(), 0o600); err != nil {
		return "", fmt.Errorf("the invitation was created, but its file cannot be written (create another one, which revokes it): %w", err)
	}
	return "invited: " + path, nil
}
