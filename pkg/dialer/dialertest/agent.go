// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// AgentConfig configures a stock agent.
type AgentConfig struct {
	// Address is the address of the server that the agent connects to.
	Address string
	// CA is the CA that the agent trusts, and Pair is its client certificate.
	CA   *CA
	Pair tls.Certificate
	// ID and Identifiers are the agent's claims about itself.
	ID, Identifiers string
}

// agentEnvironment is an AgentConfig in the form in which the agent's process gets it.
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

// StartAgent starts the real Konnectivity agent in a process of its own. The agent is stopped at
// the end of the test at the latest.
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
		_ = cmd.Process.Kill() // fails if the agent has ended by itself, which its connections show
		_ = cmd.Wait()
	})}
	t.Cleanup(a.stop)
	return a
}

// Stop kills the agent, which cuts all its connections. It may be called more than once.
func (a *Agent) Stop() { a.stop() }

// Drain asks the agent to drain, and returns when the agent has been asked. The agent reports it to
// the server after the next packet of each stream.
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
