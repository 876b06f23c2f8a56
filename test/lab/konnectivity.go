// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// KonnectivityServerOptions describes a stock Konnectivity server.
type KonnectivityServerOptions struct {
	// Name is the name in errors and of the log file. Empty means "konnectivity-server".
	Name string
	// UDS makes its frontend a Unix socket without TLS. Otherwise, it is TCP with mutual TLS.
	UDS bool
	// Count is the number of servers, which the server sends to its agents. Zero means one.
	Count int
	// IPs are addresses at which agents reach the server, in addition to 127.0.0.1 and the
	// [Lab.HostAddr] of every cluster that is already running.
	IPs []net.IP
	// ExtraArgs come last, so they override.
	ExtraArgs []string
}

// KonnectivityServer is a stock Konnectivity server on the lab's host, with its own CA for both
// sides. It is safe for concurrent use.
type KonnectivityServer struct {
	*Process
	dir       string
	ca        *CA
	caFile    string
	frontend  string
	agentPort int
	health    int
	admin     int
	socket    string
	port      int

	serverCert, serverKey string
	clientCert, clientKey string
}

// StartKonnectivityServer starts a server and returns when it listens.
func (l *Lab) StartKonnectivityServer(ctx context.Context, o KonnectivityServerOptions) (*KonnectivityServer, error) {
	if o.Name == "" {
		o.Name = "konnectivity-server"
	}
	s, err := l.newKonnectivityServer(o)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
	}
	s.Process, err = l.StartProcess(ctx, ProcessOptions{
		Name:       o.Name,
		Path:       l.binaries.KonnectivityServer,
		Args:       append(append(s.args(o), l.verbosityArgs()...), o.ExtraArgs...),
		ReadyFunc:  s.listening,
		disposable: true,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (l *Lab) newKonnectivityServer(o KonnectivityServerOptions) (*KonnectivityServer, error) {
	s := &KonnectivityServer{dir: filepath.Join(l.dir, o.Name+".pki")}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	ports, err := l.freeHostPorts(4)
	if err != nil {
		return nil, err
	}
	s.agentPort, s.health, s.admin = ports[0], ports[1], ports[2]
	if o.UDS {
		s.socket = filepath.Join(s.dir, "frontend.sock")
		s.frontend = "unix://" + s.socket
	} else {
		s.port = ports[3]
		s.frontend = hostPort(s.port)
	}
	return s, s.issue(o.Name, append(l.hostAddrs(), o.IPs...))
}

func (s *KonnectivityServer) issue(name string, ips []net.IP) (err error) {
	if s.ca, err = NewCA("lab " + name); err != nil {
		return err
	}
	s.caFile = filepath.Join(s.dir, "ca.crt")
	if err = s.ca.WriteFile(s.caFile); err != nil {
		return err
	}
	serving, err := s.ca.Issue(CertOptions{CN: name, DNSNames: []string{"localhost"}, IPs: ips})
	if err != nil {
		return err
	}
	if s.serverCert, s.serverKey, err = serving.WriteFiles(s.dir, "server"); err != nil {
		return err
	}
	client, err := s.ca.Issue(CertOptions{CN: "gateway"})
	if err != nil {
		return err
	}
	s.clientCert, s.clientKey, err = client.WriteFiles(s.dir, "client")
	return err
}

// hostAddrs returns the addresses of the host as the clusters see it.
func (l *Lab) hostAddrs() []net.IP {
	l.mu.Lock()
	defer l.mu.Unlock()
	ips := []net.IP{net.ParseIP(loopback)}
	for _, c := range l.clusters {
		ip := net.ParseIP(l.HostAddr(c))
		if !slices.ContainsFunc(ips, ip.Equal) {
			ips = append(ips, ip)
		}
	}
	return ips
}

func (s *KonnectivityServer) args(o KonnectivityServerOptions) []string {
	return append([]string{
		"--logtostderr=true",
		"--mode=grpc",
		"--proxy-strategies=destHost",
		"--server-id=" + o.Name,
		"--server-count=" + strconv.Itoa(max(1, o.Count)),
		"--agent-bind-address=0.0.0.0",
		"--agent-port=" + strconv.Itoa(s.agentPort),
		"--cluster-cert=" + s.serverCert,
		"--cluster-key=" + s.serverKey,
		"--cluster-ca-cert=" + s.caFile,
		"--health-bind-address=" + loopback,
		"--health-port=" + strconv.Itoa(s.health),
		"--admin-bind-address=" + loopback,
		"--admin-port=" + strconv.Itoa(s.admin),
		"--keepalive-time=15s",
		"--frontend-keepalive-time=15s",
		// Without it, dials that no agent answers accumulate.
		"--backend-dial-timeout=10s",
	}, s.frontendArgs()...)
}

func (s *KonnectivityServer) frontendArgs() []string {
	if s.socket != "" {
		return []string{"--uds-name=" + s.socket, "--server-port=0"}
	}
	return []string{
		"--server-bind-address=" + loopback,
		"--server-port=" + strconv.Itoa(s.port),
		"--server-cert=" + s.serverCert,
		"--server-key=" + s.serverKey,
		"--server-ca-cert=" + s.caFile,
	}
}

// listening reports whether both sides of the server can be dialed.
func (s *KonnectivityServer) listening(ctx context.Context) error {
	network, address := "tcp", s.frontend
	if s.socket != "" {
		network, address = "unix", s.socket
	}
	var dialer net.Dialer
	for _, target := range [][2]string{{network, address}, {"tcp", hostPort(s.agentPort)}} {
		conn, err := dialer.DialContext(ctx, target[0], target[1])
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Address returns the frontend: "127.0.0.1:PORT" or "unix:///PATH".
func (s *KonnectivityServer) Address() string { return s.frontend }

// CAFile returns the CA of both sides.
func (s *KonnectivityServer) CAFile() string { return s.caFile }

// ClientCertFile returns the client certificate for the frontend.
// [KonnectivityServer.ClientKeyFile] returns its key.
func (s *KonnectivityServer) ClientCertFile() string { return s.clientCert }

// ClientKeyFile is the key to [KonnectivityServer.ClientCertFile].
func (s *KonnectivityServer) ClientKeyFile() string { return s.clientKey }

// AgentPort returns the port that agents dial, on every address of the host.
func (s *KonnectivityServer) AgentPort() int { return s.agentPort }

// Metrics returns the response of the server's /metrics.
func (s *KonnectivityServer) Metrics(ctx context.Context) ([]byte, error) {
	return fetch(ctx, http.DefaultClient, localURL("http", s.admin)+"/metrics")
}

// AgentFiles issues a client certificate for an agent.
func (s *KonnectivityServer) AgentFiles(cn string) (certFile, keyFile string, err error) {
	pair, err := s.ca.Issue(CertOptions{CN: cn})
	if err != nil {
		return "", "", err
	}
	return pair.WriteFiles(s.dir, "agent-"+cn)
}

// freeHostPorts returns n ports.
func (l *Lab) freeHostPorts(n int) ([]int, error) {
	list := make([]int, n)
	for i := range list {
		var err error
		if list[i], err = l.FreePort(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func hostPort(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }
