// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Descriptors that a fleet needs.
const (
	// perAgent are those in the agents' process: two connections to the gateway, one to the API
	// server, and one of an attempt to connect.
	perAgent = 4
	// perCluster are those in the gateway: the two connections of its agent.
	perCluster = 2
	// spare is for everything else in a process, and for connections that are being closed.
	spare = 500
	// mostAgents is how many agents are run by one process at most.
	mostAgents = 2_500
)

// LargestFleet returns how many clusters a gateway can have if a process can have so many open
// files. Only the gateway's limit counts: there are as many processes with agents as are needed.
func LargestFleet(files int) int { return max(0, (files-spare)/perCluster) }

// agentsPerProcess returns how many agents one process can run.
func agentsPerProcess(files int) int { return max(1, min(mostAgents, (files-spare)/perAgent)) }

// OpenFilesLimit returns how many files a process can have open. It is the hard limit, because
// processes in Go raise their own limit to it when they start.
func OpenFilesLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Max, 1<<30))
}

// agentProcess is a process of this binary that runs agents.
type agentProcess struct {
	cmd    *exec.Cmd
	client *rpc.Client
	names  []string // of its agents
}

// startAgentProcess starts a process without agents. It ends when the connection to it is closed,
// and so also when this process ends.
func startAgentProcess(ctx context.Context, config AgentsConfig) (*agentProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &agentProcess{cmd: exec.CommandContext(context.WithoutCancel(ctx), self, AgentsArgument)}
	p.cmd.Stderr = os.Stderr                                // only if it crashes
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the benchmark, which then reports
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a process for agents: %w", err)
	}
	p.client = rpc.NewClient(pipe{out, in})
	if err := p.call("Configure", config, &Nothing{}); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *agentProcess) call(method string, argument, answer any) error {
	if err := p.client.Call("Agents."+method, argument, answer); err != nil {
		return fmt.Errorf("process %d with %d agents: %w", p.cmd.Process.Pid, len(p.names), err)
	}
	return nil
}

// stopTimeout is how long a process may take to end before it is killed.
const stopTimeout = 20 * time.Second

// stop ends the process and waits for it.
func (p *agentProcess) stop() error {
	_ = p.client.Close() // it may have ended by itself, which Wait tells
	kill := time.AfterFunc(stopTimeout, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("process with %d agents: %w", len(p.names), err)
	}
	return nil
}
