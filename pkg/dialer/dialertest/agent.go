// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	stockagent "sigs.k8s.io/apiserver-network-proxy/pkg/agent"
)

// agentVariable makes the test binary an agent. See Main.
const agentVariable = "DIALERTEST_AGENT"

// Main is the TestMain of packages that use StartAgent. It runs the tests and looks for leaked goroutines; or it is the agent.
//
// The agent is the test binary, started once more: its code closes a channel that it is still sending on, guarded by recover
// (pkg/agent, endpointConn.send), which the race detector rightly reports, and it has no way to be stopped that waits.
func Main(m *testing.M) {
	cfg := os.Getenv(agentVariable)
	if cfg == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := runAgent([]byte(cfg)); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// AgentConfig says how a stock agent is started.
type AgentConfig struct {
	// Address is the server's.
	Address string
	// CA is what the agent trusts, Pair what it presents.
	CA   *CA
	Pair tls.Certificate
	// ID and Identifiers are what the agent claims.
	ID, Identifiers string
}

// agentEnvironment is an AgentConfig on its way to the agent's process.
type agentEnvironment struct {
	Address, ID, Identifiers string
	CA, Certificate, Key     []byte // DER
}

// Agent is a running stock agent.
type Agent struct {
	t      testing.TB
	stdin  io.WriteCloser
	stdout io.Reader
	stop   func()
}

// StartAgent starts the real Konnectivity agent in a process of its own. It is stopped at the end of the test at the latest.
func StartAgent(t testing.TB, cfg AgentConfig) *Agent {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cfg.Pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	env, err := json.Marshal(agentEnvironment{
		Address: cfg.Address, ID: cfg.ID, Identifiers: cfg.Identifiers,
		CA: cfg.CA.cert.Raw, Certificate: cfg.Pair.Certificate[0], Key: key,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentVariable+"="+string(env), "GORACE=report_bugs=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &Agent{t: t, stdin: stdin, stdout: stdout, stop: sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // whether it had ended by itself shows in its connections
		_ = cmd.Wait()
	})}
	t.Cleanup(a.stop)
	return a
}

// Stop ends the agent with all its connections. It may be called more than once.
func (a *Agent) Stop() { a.stop() }

// Drain tells the agent to go, and returns when it has been told. It says so itself after the next packet of each stream.
func (a *Agent) Drain() {
	a.t.Helper()
	err := a.stdin.Close()
	if err == nil {
		_, err = io.Copy(io.Discard, a.stdout)
	}
	if err != nil {
		a.t.Errorf("drain: %v", err)
	}
}

// runAgent serves until the process is killed. It drains when standard input ends, and ends standard output when it does.
func runAgent(raw []byte) error {
	var env agentEnvironment
	if err := json.Unmarshal(raw, &env); err != nil {
		return err
	}
	ca, err := x509.ParseCertificate(env.CA)
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(env.Key)
	if err != nil {
		return err
	}
	trusted := &CA{cert: ca}
	tlsConfig := trusted.ClientTLS(tls.Certificate{Certificate: [][]byte{env.Certificate}, PrivateKey: key})

	drain, never := make(chan struct{}), make(chan struct{})
	set := (&stockagent.ClientSetConfig{
		Address: env.Address, AgentID: env.ID, AgentIdentifiers: env.Identifiers,
		SyncInterval: 20 * time.Millisecond, SyncIntervalCap: 100 * time.Millisecond, ProbeInterval: 50 * time.Millisecond,
		DialOptions:    []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig))},
		XfrChannelSize: 150,
	}).NewAgentClientSet(drain, never)
	set.SetServerCounter(stockagent.NewAggregateServerCounter(nil, stockagent.NewResponseBasedCounter(set), ""))
	set.Serve()

	_, err = bufio.NewReader(os.Stdin).ReadByte()
	close(drain)
	_ = os.Stdout.Close() // or else Drain hangs
	// A test that is killed takes its agents along: they must not outlive it for long.
	time.Sleep(time.Minute)
	if err == io.EOF {
		return nil
	}
	return err
}
