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

// AgentOptions describe a Konnectivity agent.
type AgentOptions struct {
	// Name names it in errors and its log file. Empty means "konnectivity-agent".
	Name string
	// Cluster is whose API server it serves, and where it runs. Required.
	Cluster *Cluster
	// ServerHost and ServerPort are where it dials. An empty host means the lab's
	// host as the cluster sees it: [Lab.HostAddr].
	ServerHost string
	ServerPort int
	// CertFile and KeyFile are its client certificate; CAFile verifies the server.
	CertFile, KeyFile, CAFile string
	// Identifiers are what it claims to serve, each "host=NAME", "ipv4=ADDRESS",
	// "cidr=NETWORK" or "default-route=true".
	Identifiers []string
	// Hosts are names that it can dial besides "kubernetes.default.svc" and the
	// cluster's name, both of which are the API server. It needs root.
	Hosts map[string]string
	// Args, when there are any, are its arguments instead of all that the fields
	// above say, but for where its health is served.
	Args []string
	// ExtraArgs come last and so override.
	ExtraArgs []string
}

// Agent is a stock Konnectivity agent. It is safe for concurrent use.
type Agent struct {
	*Process
	health string
	client *http.Client
}

// StartAgent starts an agent and returns when it runs, which does not mean that
// it is connected: see [Agent.WaitReady].
func (l *Lab) StartAgent(ctx context.Context, o AgentOptions) (*Agent, error) {
	if o.Cluster == nil {
		return nil, errors.New("starting an agent: it needs a cluster")
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
		Cluster:   o.Cluster,
		Hosts:     o.hosts(),
		ReadyFunc: func(ctx context.Context) error { return get(ctx, a.client, a.health+"/healthz") },
		// It drains on the first signal and stops on the second.
		insist:     100 * time.Millisecond,
		disposable: true,
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
		// As manifests/konnectivity/agent has them.
		"--sync-interval=1s",
		"--sync-interval-cap=10s",
		"--probe-interval=1s",
		"--keepalive-time=30s",
	}
}

// flagsFirst moves what is no flag, "--" and one argument after it, to the end.
func flagsFirst(args []string) []string {
	i := slices.Index(args, "--")
	if i < 0 || i+1 >= len(args) {
		return args
	}
	return slices.Concat(args[:i], args[i+2:], args[i:i+2])
}

// hosts are the names of the API server, by which an agent in a Pod, or one with
// host aliases, would know it.
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

// Metrics returns what the agent's /metrics says.
func (a *Agent) Metrics(ctx context.Context) ([]byte, error) {
	return fetch(ctx, a.client, a.health+"/metrics")
}

// Drain makes the agent tell its servers to give it no new connections; what is
// open goes on. There is no way back.
func (a *Agent) Drain() error { return a.signal(syscall.SIGTERM) }
