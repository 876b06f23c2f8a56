// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	tunnelserver "github.com/oam-dev/cluster-gateway/pkg/tunnel"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// holder is an argument of the test's binary that makes it start agents and wait, to be killed.
const holder = "hold-agents"

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	if len(os.Args) > 1 && os.Args[1] == AgentsArgument {
		if err := ServeAgents(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == holder {
		hold()
	}
	os.Exit(m.Run())
}

// startServer starts a tunnel server of the gateway and returns its port.
func startServer(t *testing.T, ca *lab.CA, id string) (*tunnelserver.Server, int) {
	t.Helper()
	pair, err := ca.Issue(lab.CertOptions{CN: id, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server := tunnelserver.New(tunnelserver.Config{ServerID: id, TLS: &tls.Config{
		Certificates: []tls.Certificate{certificate}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return server, listener.Addr().(*net.TCPAddr).Port
}

func newCA(t *testing.T) *lab.CA {
	t.Helper()
	ca, err := lab.NewCA("tunnel")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// connected returns how many clusters of some have an agent.
func connected(server *tunnelserver.Server, names ...string) (n int) {
	for _, name := range names {
		if agents, _ := server.Agents(name); agents > 0 {
			n++
		}
	}
	return n
}

func configs(t *testing.T, ca *lab.CA, names ...string) []AgentConfig {
	t.Helper()
	var all []AgentConfig
	for _, name := range names {
		pair, err := ca.Issue(lab.CertOptions{CN: name, Orgs: []string{agentOrganization}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, AgentConfig{Name: name, Certificate: pair.CertPEM, Key: pair.KeyPEM})
	}
	return all
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestAgentProcess runs agents in a process, which connect to a real tunnel server, tells when they
// have dialed, and leaves nothing behind when it is stopped.
func TestAgentProcess(t *testing.T) {
	ca := newCA(t)
	server, port := startServer(t, ca, "replica")
	p, err := startAgentProcess(t.Context(), AgentsConfig{CA: ca.CertPEM(), Ports: []int{port}})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = p.stop()
		}
	}()
	names := []string{"one", "two", "three"}
	f := &Fleet{processes: []*agentProcess{p}}
	if err := p.call("Add", configs(t, ca, names...), &Nothing{}); err != nil {
		t.Fatal(err)
	}
	p.names = slices.Clone(names)
	waiting := func() int {
		n, err := f.Waiting(1)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "all agents are connected", func() bool { return waiting() == 0 && connected(server, names...) == 3 })
	dials, err := f.Dials()
	if err != nil || len(dials) < 3 {
		t.Fatalf("%d dials of three agents, error %v", len(dials), err)
	}
	if age := time.Since(dials[0]); age < 0 || age > time.Minute {
		t.Errorf("the first dial was %s ago", age)
	}
	if err := p.call("Add", []AgentConfig{{Name: "broken"}}, &Nothing{}); err == nil || !strings.Contains(err.Error(), "3 agents: tls:") {
		t.Errorf("an agent without certificate: error %v", err)
	}
	if err := f.RemoveAgent("two"); err != nil {
		t.Error(err)
	}
	if err := f.RemoveAgent("two"); err == nil {
		t.Error("an agent was removed twice")
	}
	eventually(t, "the removed agent is gone", func() bool { return connected(server, "two") == 0 && connected(server, "one", "three") == 2 })
	stopped = true
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	eventually(t, "the server has no agents left", func() bool { return connected(server, names...) == 0 })
	if err := p.call("Dials", Nothing{}, &[]Dial{}); err == nil {
		t.Error("a process that has ended answers")
	}
}

// TestAgentsTakePortsInTurn dials two servers alternately, as a load balancer does.
func TestAgentsTakePortsInTurn(t *testing.T) {
	ca := newCA(t)
	first, port := startServer(t, ca, "first")
	second, other := startServer(t, ca, "second")
	names := []string{"a", "b", "c", "d"}
	a := NewAgents()
	defer a.Stop()
	if err := a.Configure(AgentsConfig{CA: ca.CertPEM(), Ports: []int{port, other}}, &Nothing{}); err != nil {
		t.Fatal(err)
	}
	if err := a.Configure(AgentsConfig{CA: []byte("nothing")}, &Nothing{}); err == nil {
		t.Error("a CA that is none was accepted")
	}
	if err := a.Configure(AgentsConfig{CA: ca.CertPEM(), Ports: []int{port, other}}, &Nothing{}); err != nil {
		t.Fatal(err)
	}
	if err := a.Add(configs(t, ca, names...), &Nothing{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both servers have agents", func() bool { return connected(first, names...) > 0 && connected(second, names...) > 0 })
}

// hold starts a process for agents and waits. Its test kills it.
func hold() {
	p, err := startAgentProcess(context.Background(), AgentsConfig{CA: []byte(os.Getenv("CA")), Ports: []int{1}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.cmd.Process.Pid)
	select {}
}

// TestAgentsEndWithTheirParent kills the parent of a process with agents, as kill -9 does.
func TestAgentsEndWithTheirParent(t *testing.T) {
	parent := newHolder(t, newCA(t))
	pid := parent.child
	if !runs(pid) {
		t.Fatalf("process %d does not run", pid)
	}
	parent.kill()
	eventually(t, "the process ends without its parent", func() bool { return !runs(pid) })
}

// runs tells whether a process runs. One that has ended and that nobody has waited for does not.
func runs(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// TestLargestFleet names the numbers for limits that are usual.
func TestLargestFleet(t *testing.T) {
	for files, want := range map[int][2]int{
		20_000:  {9_750, 2_500},
		4_096:   {1_798, 899},
		100:     {0, 1},
		1 << 30: {(1<<30 - spare) / perCluster, mostAgents},
	} {
		if got := [2]int{LargestFleet(files), agentsPerProcess(files)}; got != want {
			t.Errorf("%d open files: %v; wanted %v", files, got, want)
		}
	}
	if limit := OpenFilesLimit(); limit < 100 {
		t.Errorf("this process can have %d open files", limit)
	}
}
