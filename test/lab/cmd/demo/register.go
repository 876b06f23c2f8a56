// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// register registers both clusters with agent-bootstrap. The agent of the firewalled one runs as a
// process with the files that agent-bootstrap writes, because the lab has no container runtime.
func (d *demo) register(ctx context.Context) error {
	if err := d.writeHubKubeconfig(); err != nil {
		return err
	}
	d.say("\n== Registering %q, which the gateway reaches directly", nearby)
	if err := d.bootstrap(ctx, "register", nearby, "--cluster-kubeconfig", d.nearby.Kubeconfig(), "--route", "direct", "--endpoint", d.nearby.Endpoint()); err != nil {
		return err
	}
	d.say("\n== Registering %q behind its firewall, and starting its agent there", edge)
	bastion, err := d.edge.BastionKubeconfig()
	if err != nil {
		return err
	}
	dir := d.path(edge + "-agent")
	registration := []string{"register", edge, "--cluster-kubeconfig", bastion, "--out-dir", dir}
	if err := d.bootstrap(ctx, append(registration, "--wait", "0")...); err != nil {
		return err
	}
	flags, err := os.ReadFile(dir + "/agent.flags")
	if err != nil {
		return err
	}
	d.say("\n$ proxy-agent $(cat %s/agent.flags) &", d.short(dir))
	if _, err := d.lab.StartAgent(ctx, lab.AgentOptions{Name: "agent-" + edge, Cluster: d.edge, Args: strings.Fields(string(flags))}); err != nil {
		return err
	}
	// The second call changes nothing, and waits until the cluster responds.
	return d.bootstrap(ctx, registration...)
}

// bootstrap runs agent-bootstrap, and prints the command line as a user would type it.
func (d *demo) bootstrap(ctx context.Context, args ...string) error {
	shown := make([]string, len(args))
	for i, a := range args {
		shown[i] = d.short(a)
	}
	d.say("\n$ agent-bootstrap --kubeconfig %s %s", hubKubeconfig, strings.Join(shown, " "))
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: d.out, ErrOut: d.out})
	cmd.SetArgs(append([]string{"--kubeconfig", d.path(hubKubeconfig)}, args...))
	if err := cmd.ExecuteContext(ctx); err != nil {
		err = fmt.Errorf("agent-bootstrap %s: %w", args[0], err)
		d.fail("agent-bootstrap "+args[0], err)
		return err
	}
	return nil
}

// short returns a path relative to the lab's folder.
func (d *demo) short(path string) string { return strings.TrimPrefix(path, d.lab.Dir()+"/") }
