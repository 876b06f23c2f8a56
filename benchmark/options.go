// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// options are the values of the command-line flags.
type options struct {
	// direct, hub and gateway are kubeconfigs of the user's own clusters. If direct is empty, the
	// testbed is started.
	direct, hub, gateway string
	clusters             []string
	routes               []string
	pod                  string

	quick bool
	only  []string
	out   string
	fleet []int

	gatewayBinary string
	gatewayArgs   []string
}

func newOptions() *options {
	return &options{out: "benchmark-report"}
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.direct, "direct", o.direct,
		"Kubeconfig that reaches the managed cluster without the gateway. If it is empty, the benchmark starts a testbed on this machine.")
	fs.StringVar(&o.hub, "hub", o.hub, "With --direct: kubeconfig of the hub. Each --cluster adds a route hub/CLUSTER.")
	fs.StringVar(&o.gateway, "gateway", o.gateway, "With --direct: kubeconfig of the gateway's own endpoint. Each --cluster adds a route own/CLUSTER.")
	fs.StringArrayVar(&o.clusters, "cluster", nil,
		"With --hub or --gateway: the name under which the managed cluster is registered. Repeat it if the cluster is registered more than once.")
	fs.StringArrayVar(&o.routes, "route", nil, "An additional route to measure, as NAME=KUBECONFIG. Can be repeated.")
	fs.StringVar(&o.pod, "pod", o.pod, "With --direct: NAMESPACE/NAME of a Pod for exec and port-forward. It must contain cat, and an echo server on port 7. If it is empty, exec and port-forward are not measured.")
	fs.BoolVar(&o.quick, "quick", o.quick, "Take fewer measurements, in less than three minutes.")
	fs.StringSliceVar(&o.only, "only", nil, "Run only these measurements: "+strings.Join(partNames(), ", ")+".")
	fs.StringVar(&o.out, "out", o.out, "Folder for the reports.")
	fs.IntSliceVar(&o.fleet, "fleet", nil, "Numbers of clusters for the scale test. Default: 1,10,100,1000, or 1,10,50 with --quick.")
	fs.StringVar(&o.gatewayBinary, "gateway-binary", o.gatewayBinary, "On the testbed: the gateway to measure. If it is empty, the gateway of this checkout is built.")
	fs.StringArrayVar(&o.gatewayArgs, "gateway-arg", nil, "On the testbed: an additional argument for the gateways. Can be repeated.")
}

func (o *options) validate(rest []string) error {
	var errs []error
	if len(rest) > 0 {
		errs = append(errs, fmt.Errorf("unexpected arguments: %s", strings.Join(rest, " ")))
	}
	if o.direct == "" {
		for _, f := range []struct {
			flag string
			set  bool
		}{{"--hub", o.hub != ""}, {"--gateway", o.gateway != ""}, {"--cluster", len(o.clusters) > 0}, {"--pod", o.pod != ""}} {
			if f.set {
				errs = append(errs, fmt.Errorf("%s requires --direct", f.flag))
			}
		}
	}
	if (o.hub != "" || o.gateway != "") != (len(o.clusters) > 0) {
		errs = append(errs, errors.New("--hub and --gateway require --cluster, and --cluster requires one of them"))
	}
	for _, r := range o.routes {
		if name, file, ok := strings.Cut(r, "="); !ok || name == "" || file == "" {
			errs = append(errs, fmt.Errorf("invalid --route %q: must be NAME=KUBECONFIG", r))
		}
	}
	if namespace, name, ok := strings.Cut(o.pod, "/"); o.pod != "" && (!ok || namespace == "" || name == "") {
		errs = append(errs, fmt.Errorf("invalid --pod %q: must be NAMESPACE/NAME", o.pod))
	}
	for _, name := range o.only {
		if !slices.Contains(partNames(), name) {
			errs = append(errs, fmt.Errorf("invalid --only %q: must be one of %s", name, strings.Join(partNames(), ", ")))
		}
	}
	for _, n := range o.fleet {
		if n < 1 {
			errs = append(errs, fmt.Errorf("invalid --fleet %d: must be at least 1", n))
		}
	}
	return errors.Join(errs...)
}
