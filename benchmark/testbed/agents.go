// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/rpc"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"sigs.k8s.io/apiserver-network-proxy/pkg/agent"
)

// AgentsArgument makes the benchmark's binary run agents instead of the benchmark: see
// [ServeAgents].
const AgentsArgument = "serve-agents"

// ServeAgents runs agents with the stock agent's library, as its parent tells it over in, and
// answers on out. It returns when in ends, which it also does if the parent is killed. So no agents
// are left behind.
func ServeAgents(in io.Reader, out io.Writer) error {
	agents := NewAgents()
	defer agents.Stop()
	server := rpc.NewServer()
	if err := server.RegisterName("Agents", agents); err != nil {
		return err
	}
	server.ServeConn(pipe{in, out})
	return nil
}

// pipe is the two pipes between a process and its parent.
type pipe struct {
	io.Reader
	io.Writer
}

// Close closes what can be closed.
func (p pipe) Close() error {
	var errs []error
	for _, end := range []any{p.Reader, p.Writer} {
		if c, ok := end.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// AgentsConfig is the same for all agents of a process.
type AgentsConfig struct {
	// CA is the certificate of the tunnel servers' CA, in PEM.
	CA []byte
	// Ports are those of the tunnel servers, to which the agents connect in turn.
	Ports []int
}

// AgentConfig is that of one agent.
type AgentConfig struct {
	// Name is what the agent claims to be called.
	Name string
	// Certificate and Key are in PEM. The certificate names the cluster.
	Certificate, Key []byte
}

// Agents are agents that use the stock agent's library and its default settings, in this process.
// If that is one that [ServeAgents] serves, its parent calls the methods that return an error. They
// are safe for concurrent use after Configure.
type Agents struct {
	config AgentsConfig
	roots  *x509.CertPool

	mu      sync.Mutex
	running map[string]runningAgent // by name
	dials   []Dial
	next    int
}

// Dial is an attempt of an agent to connect. The TLS handshake follows unless the port is closed.
type Dial struct {
	At    time.Time
	Agent string
	// Port is that of the tunnel server.
	Port int
}

// runningAgent is an agent that has been started.
type runningAgent struct {
	*agent.ClientSet
	stop chan struct{}
}

// NewAgents returns no agents yet.
func NewAgents() *Agents { return &Agents{running: map[string]runningAgent{}} }

// Nothing is an answer or an argument without content.
type Nothing struct{}

// Configure is called once, before agents are added.
func (a *Agents) Configure(config AgentsConfig, _ *Nothing) error {
	a.config, a.roots = config, x509.NewCertPool()
	if !a.roots.AppendCertsFromPEM(config.CA) {
		return errors.New("the CA is not a certificate in PEM")
	}
	return nil
}

// Add starts agents. It does not wait until they are connected.
func (a *Agents) Add(configs []AgentConfig, _ *Nothing) error {
	for _, c := range configs {
		certificate, err := tls.X509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return err
		}
		a.add(c.Name, certificate)
	}
	return nil
}

func (a *Agents) add(name string, certificate tls.Certificate) {
	stop := make(chan struct{})
	set := (&agent.ClientSetConfig{
		Address: "127.0.0.1", AgentID: name,
		// The stock agent's defaults.
		SyncInterval: time.Second, SyncIntervalCap: 10 * time.Second, ProbeInterval: time.Second, XfrChannelSize: 150,
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
				MinVersion: tls.VersionTLS12, RootCAs: a.roots, Certificates: []tls.Certificate{certificate}, ServerName: "127.0.0.1",
			})),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Hour, PermitWithoutStream: true}),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return a.dial(ctx, name) }),
		},
	}).NewAgentClientSet(make(chan struct{}), stop)
	set.SetServerCounter(agent.NewAggregateServerCounter(nil, agent.NewResponseBasedCounter(set), ""))
	set.Serve()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running[name] = runningAgent{ClientSet: set, stop: stop}
}

// Remove stops an agent. It does not wait until its connections are closed.
func (a *Agents) Remove(name string, _ *Nothing) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	running, ok := a.running[name]
	if !ok {
		return errors.New("there is no agent " + name)
	}
	close(running.stop)
	delete(a.running, name)
	return nil
}

// dial connects to the next tunnel server, as a load balancer does, and records the attempt.
func (a *Agents) dial(ctx context.Context, name string) (net.Conn, error) {
	a.mu.Lock()
	port := a.config.Ports[a.next%len(a.config.Ports)]
	a.next++
	a.dials = append(a.dials, Dial{At: time.Now(), Agent: name, Port: port})
	a.mu.Unlock()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// Waiting returns how many agents have fewer connections that a tunnel server has answered.
func (a *Agents) Waiting(answered int, waiting *int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.running {
		if r.HealthyClientsCount() < answered {
			*waiting++
		}
	}
	return nil
}

// Dials returns when agents have dialed since the last call.
func (a *Agents) Dials(_ Nothing, dials *[]Dial) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*dials, a.dials = a.dials, nil
	return nil
}

// Stop stops all agents. It does not wait until their connections are closed.
func (a *Agents) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.running {
		close(r.stop)
	}
	clear(a.running)
}
