// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// AgentOptions describes a Konnectivity agent.
type AgentOptions struct {
	// Name is the name in errors and of the log file. Empty means "konnectivity-agent".
	Name string
	// Cluster is the cluster that the agent runs in and serves. Required.
	Cluster *Cluster
	// ServerHost and ServerPort are the address to connect to. An empty host means the lab's host as
	// the cluster sees it: [Lab.HostAddr].
	ServerHost string
	ServerPort int
	// CertFile and KeyFile are the client certificate. CAFile verifies the server.
	CertFile, KeyFile, CAFile string
	// Identifiers are what the agent claims to serve: each is "host=NAME", "ipv4=ADDRESS",
	// "cidr=NETWORK" or "default-route=true".
	Identifiers []string
	// Hosts are additional names for the API server that the agent can dial, besides
	// "kubernetes.default.svc" and the cluster's name. They require root.
	Hosts map[string]string
	// Args, if set, replace the arguments that the fields above result in, except for those of the
	// health endpoint.
	Args []string
	// ExtraArgs come last, so they override.
	ExtraArgs []string
	// Env is added to the environment.
	Env []string
}

// Agent is a stock Konnectivity agent. It is safe for concurrent use.
type Agent struct {
	*Process
	health string
	client *http.Client
}

// StartAgent starts an agent and returns when its process runs. The agent may not be connected yet:
// see [Agent.WaitReady].
func (l *Lab) StartAgent(ctx context.Context, o AgentOptions) (*Agent, error) {
	if o.Cluster == nil {
		return nil, errors.New("start an agent: it requires a cluster")
	}
	if o.Name == "" {
		o.Name = "konnectivity-agent"
	}
	if o.ServerHost == "" {
		o.ServerHost = l.HostAddr(o.Cluster)
	}
	health, err := l.ports.free(o.Cluster.ns)
	if err != nil {
		return nil, err
	}
	admin, err := l.ports.free(o.Cluster.ns)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		health: localURL("http", health),
		client: &http.Client{Transport: &http.Transport{DialContext: o.Cluster.DialContext, DisableKeepAlives: true}},
	}
	a.Process, err = l.StartProcess(ctx, ProcessOptions{
		Name:      o.Name,
		Path:      l.binaries.KonnectivityAgent,
		Args:      flagsFirst(append(append(o.args(health, admin), l.verbosityArgs()...), o.ExtraArgs...)),
		Env:       o.Env,
		Cluster:   o.Cluster,
		Hosts:     o.hosts(),
		ReadyFunc: func(ctx context.Context) error { return get(ctx, a.client, a.health+"/healthz") },
		// The agent drains on the first signal and stops on the second.
		repeatSignal: 100 * time.Millisecond,
		disposable:   true,
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (o AgentOptions) args(health, admin int) []string {
	if len(o.Args) > 0 {
		return append(slices.Clone(o.Args),
			"--health-server-host="+loopback, "--health-server-port="+strconv.Itoa(health),
			"--admin-bind-address="+loopback, "--admin-server-port="+strconv.Itoa(admin))
	}
	return []string{
		"--logtostderr=true",
		"--proxy-server-host=" + o.ServerHost,
		"--proxy-server-port=" + strconv.Itoa(o.ServerPort),
		"--agent-cert=" + o.CertFile,
		"--agent-key=" + o.KeyFile,
		"--ca-cert=" + o.CAFile,
		"--agent-identifiers=" + strings.Join(o.Identifiers, "&"),
		"--health-server-host=" + loopback,
		"--health-server-port=" + strconv.Itoa(health),
		"--admin-bind-address=" + loopback,
		"--admin-server-port=" + strconv.Itoa(admin),
		// The values of manifests/konnectivity/agent.
		"--sync-interval=1s",
		"--sync-interval-cap=10s",
		"--probe-interval=1s",
		"--keepalive-time=30s",
	}
}

// flagsFirst moves arguments that are not flags, and "--" with the argument after it, to the end.
func flagsFirst(args []string) []string {
	i := slices.Index(args, "--")
	if i < 0 || i+1 >= len(args) {
		return args
	}
	return slices.Concat(args[:i], args[i+2:], args[i:i+2])
}

// hosts are the names of the API server that an agent in a Pod, or with host aliases, can resolve.
func (o AgentOptions) hosts() map[string]string {
	hosts := map[string]string{
		"kubernetes.default.svc": o.Cluster.address,
		o.Cluster.opts.Name:      o.Cluster.address,
	}
	for name, address := range o.Hosts {
		hosts[name] = address
	}
	return hosts
}

// WaitReady waits until the agent is connected to a server.
func (a *Agent) WaitReady(ctx context.Context) error {
	return a.waitReady(ctx, defaultReadyTimeout, a.ready)
}

// Ready reports whether the agent is connected to a server.
func (a *Agent) Ready(ctx context.Context) bool { return a.ready(ctx) == nil }

func (a *Agent) ready(ctx context.Context) error { return get(ctx, a.client, a.health+"/readyz") }

// Metrics returns the response of the agent's /metrics.
func (a *Agent) Metrics(ctx context.Context) ([]byte, error) {
	return fetch(ctx, a.client, a.health+"/metrics")
}

// Drain makes the agent ask its servers for no new connections. Open connections continue. It
// cannot be undone.
func (a *Agent) Drain() error { return a.signal(syscall.SIGTERM) }
