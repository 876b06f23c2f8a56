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

// options are what can be said on the command line.
type options struct {
	// direct, hub and gateway are kubeconfigs of one's own clusters; without direct, the testbed is started.
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
		"Kubeconfig that reaches the managed cluster without the gateway. Empty: a testbed is started on this machine, and all else is measured on it.")
	fs.StringVar(&o.hub, "hub", o.hub, "With --direct: kubeconfig of the hub. Each --cluster becomes a route hub/CLUSTER.")
	fs.StringVar(&o.gateway, "gateway", o.gateway, "With --direct: kubeconfig of the gateway's own endpoint. Each --cluster becomes a route own/CLUSTER.")
	fs.StringArrayVar(&o.clusters, "cluster", nil,
		"With --hub or --gateway: the name under which the managed cluster is registered. May be given more than once, for several registrations.")
	fs.StringArrayVar(&o.routes, "route", nil, "Further route as NAME=KUBECONFIG, to measure something else beside. May be given more than once.")
	fs.StringVar(&o.pod, "pod", o.pod, "With --direct: NAMESPACE/NAME of a Pod with cat in it, for exec, and with an echo server on port 7, for port-forward. Empty: these are left out.")
	fs.BoolVar(&o.quick, "quick", o.quick, "Measure less, in less than three minutes.")
	fs.StringSliceVar(&o.only, "only", nil, "Measure these parts only: "+strings.Join(partNames(), ", ")+".")
	fs.StringVar(&o.out, "out", o.out, "Folder for the reports.")
	fs.IntSliceVar(&o.fleet, "fleet", nil, "Numbers of clusters to measure the scale with. Default: 1,10,100,1000, or 1,10,50 with --quick.")
	fs.StringVar(&o.gatewayBinary, "gateway-binary", o.gatewayBinary, "On the testbed: the gateway to measure. Empty: the one of this checkout, built.")
	fs.StringArrayVar(&o.gatewayArgs, "gateway-arg", nil, "On the testbed: argument added to the gateways'. May be given more than once.")
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
				errs = append(errs, fmt.Errorf("%s needs --direct", f.flag))
			}
		}
	}
	if (o.hub != "" || o.gateway != "") != (len(o.clusters) > 0) {
		errs = append(errs, errors.New("--hub and --gateway need --cluster, and the other way round"))
	}
	for _, r := range o.routes {
		if name, file, ok := strings.Cut(r, "="); !ok || name == "" || file == "" {
			errs = append(errs, fmt.Errorf("--route %q is not NAME=KUBECONFIG", r))
		}
	}
	if namespace, name, ok := strings.Cut(o.pod, "/"); o.pod != "" && (!ok || namespace == "" || name == "") {
		errs = append(errs, fmt.Errorf("--pod %q is not NAMESPACE/NAME", o.pod))
	}
	for _, name := range o.only {
		if !slices.Contains(partNames(), name) {
			errs = append(errs, fmt.Errorf("--only %s: there is no such part; there are %s", name, strings.Join(partNames(), ", ")))
		}
	}
	for _, n := range o.fleet {
		if n < 1 {
			errs = append(errs, fmt.Errorf("--fleet %d: must be at least 1", n))
		}
	}
	return errors.Join(errs...)
}
