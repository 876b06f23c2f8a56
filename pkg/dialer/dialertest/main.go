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
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	stockagent "sigs.k8s.io/apiserver-network-proxy/pkg/agent"
)

// agentVariable is the environment variable that makes the test binary an agent. See Main.
const agentVariable = "DIALERTEST_AGENT"

// Main is the TestMain of packages that use StartAgent. It runs the tests and then looks for leaked
// goroutines. In a process that StartAgent has started, it runs the agent instead.
//
// The agent runs in a second process of the test binary for two reasons. Its code closes a channel
// that it still sends on and recovers from the panic (pkg/agent, endpointConn.send), which the race
// detector rightly reports. And it cannot be stopped in a way that waits for its goroutines.
func Main(m *testing.M, options ...goleak.Option) {
	cfg := os.Getenv(agentVariable)
	if cfg == "" {
		goleak.VerifyTestMain(m, options...)
		return
	}
	if err := runAgent([]byte(cfg)); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// runAgent runs the agent until the process is killed. When standard input is closed, it makes the
// agent drain and closes standard output.
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
	_ = os.Stdout.Close() // Drain waits for it
	// If the tests are killed, standard input is closed as well. The agents must not outlive the tests
	// for long.
	time.Sleep(time.Minute)
	if err == io.EOF {
		return nil
	}
	return err
}
