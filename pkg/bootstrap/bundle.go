// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oam-dev/cluster-gateway/pkg/internal/buildversion"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

type bundleOptions struct {
	out      string
	parallel int
	timeout  time.Duration
}

func (a *app) supportBundleCommand() *cobra.Command {
	o := &bundleOptions{parallel: 10, timeout: 30 * time.Second}
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Collect what a maintainer needs to find a fault, without secrets",
		Long: `support-bundle writes one file, a .tar.gz, with what a maintainer needs to find out why something does not
work:

  - the ClusterGateways with their conditions and endpoints, and what doctor finds out about each cluster
  - the objects of the gateway on the hub: APIService, Deployments, Pods, Services, ConfigMaps, Leases, Events
  - the names, types, labels and keys of the Secrets in the gateway's namespace, but no values
  - /version, /metrics and /debug/tunnels of each replica, and the end of the logs of its Pods
  - the Deployment and the Pods of the agent in each cluster that answers

Secrets are removed from everything: the values of the Secrets that the command can read and of your own
credential, in each usual encoding, and what looks like a key, a token or a password. Names, addresses and
labels stay. Look at the file before you give it to somebody.

The command collects what you may read, and what answers. It lists what is missing, and why, at the end and
in index.yaml in the file. It changes nothing on the hub and in the clusters.

The exit code is 0 if nothing is missing, 1 if something is missing in the file, 2 if no file was written,
and 130 after Ctrl-C.`,
		Example: `  agent-bootstrap support-bundle
  agent-bootstrap support-bundle --out /tmp/bundle.tar.gz`,
		Args: func(cmd *cobra.Command, args []string) error { return trouble(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error { return a.supportBundle(cmd.Context(), o) },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return trouble(flagError(cmd, err)) })
	fs := cmd.Flags()
	fs.StringVar(&o.out, "out", o.out, "File to write. It must not exist. Default: cluster-gateway-support-TIME.tar.gz in the current folder.")
	fs.IntVar(&o.parallel, "parallel", o.parallel, "How many clusters are read at the same time.")
	fs.DurationVar(&o.timeout, "timeout", o.timeout, "How long reading one cluster, one replica or one kind of object may take.")
	return cmd
}

func (o *bundleOptions) validate() error {
	var errs []error
	if o.parallel < 1 {
		errs = append(errs, fmt.Errorf("invalid --parallel %d: must be at least 1", o.parallel))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("invalid --timeout %s: must be positive", o.timeout))
	}
	return errors.Join(errs...)
}

const bundleSuffix = ".tar.gz"

// supportBundle collects everything and writes the file. The file is created first, so that nothing
// is collected for a file that cannot be written.
func (a *app) supportBundle(ctx context.Context, o *bundleOptions) error {
	if err := o.validate(); err != nil {
		return trouble(err)
	}
	now := a.Now().UTC()
	path := cmp.Or(o.out, "cluster-gateway-support-"+now.Format("20060102-150405")+bundleSuffix)
	hub, err := a.connectHub(ctx)
	if err != nil {
		return trouble(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return trouble(fmt.Errorf("%s exists: choose another file with --out", path))
	}
	if err != nil {
		return trouble(fmt.Errorf("--out: %w", err))
	}
	b := &bundle{
		app: a, o: o, hub: hub, files: map[string]any{}, redactor: &redactor{},
		index: bundleIndex{Time: now.Format(time.RFC3339), Command: buildversion.String(), Hub: hub.version, Missing: []missingPart{}},
	}
	err = b.collect(ctx)
	if err == nil {
		err = writeArchive(file, strings.TrimSuffix(filepath.Base(path), bundleSuffix), now, b.render())
	}
	if err := errors.Join(err, file.Close()); err != nil {
		_ = os.Remove(path) // it is not complete
		if ctx.Err() != nil {
			return &ExitError{exitInterrupted, errors.New("interrupted: no file was written")}
		}
		return trouble(err)
	}
	return b.report(path)
}

// report lists what is missing, and returns the error of the command.
func (b *bundle) report(path string) error {
	if len(b.index.Missing) > 0 {
		b.say("Missing:")
	}
	for _, m := range b.index.Missing {
		b.say("  %s: %s", m.What, untrusted.Text(m.Reason))
	}
	b.say("The bundle is %s. Secrets were removed, names and addresses were not: look at it before you give it to somebody.", path)
	if n := len(b.index.Missing); n > 0 {
		return &ExitError{exitFailed, fmt.Errorf("%d parts are missing in the bundle", n)}
	}
	return nil
}
