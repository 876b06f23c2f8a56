// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// Cmd is an [exec.Cmd] that runs where a cluster runs: behind its firewall, if it has one. Start it
// with the methods of Cmd, not with those of the embedded command. It ends with its context and
// with the lab's process.
type Cmd struct {
	*exec.Cmd
	spawner *spawner
}

// Command returns a command that will run where the cluster runs.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = environment()
	cmd.SysProcAttr = childAttributes(false)
	cmd.WaitDelay = checkTimeout
	return &Cmd{Cmd: cmd, spawner: c.spawner()}
}

// Kubectl returns a kubectl command for this cluster, with the administrator's credential and
// without a gateway.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *Cmd {
	return c.Command(ctx, c.lab.binaries.Kubectl, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
}

// Start starts the command without waiting for it.
func (c *Cmd) Start() error { return c.spawner.do(c.Cmd.Start) }

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output. The error contains the standard error,
// unless it is redirected.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && stderr.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns all its output.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
