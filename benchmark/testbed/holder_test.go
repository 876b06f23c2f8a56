// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// heldAgents is a process of the test's binary that has started one with agents.
type heldAgents struct {
	child int // the PID of that one
	kill  func()
}

func newHolder(t *testing.T, ca *lab.CA) heldAgents {
	t.Helper()
	cmd := exec.Command(os.Args[0], holder)
	cmd.Env = append(os.Environ(), "CA="+string(ca.CertPEM()))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(line)
	}
	return heldAgents{child: pid, kill: kill}
}
