// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bootstrap

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process runs agent-bootstrap as a process, in a process group of its own. Its folder for
// temporary files is empty before.
func (h *fakeHub) process(t *testing.T, args ...string) (cmd *exec.Cmd, errOut *bytes.Buffer, tempDir string) {
	t.Helper()
	tempDir, errOut = t.TempDir(), &bytes.Buffer{}
	cmd = exec.CommandContext(t.Context(), standIn(t, "agent-bootstrap"), append([]string{"--kubeconfig", h.kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tempDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = errOut
	return cmd, errOut, tempDir
}

// liveHub has the time of this machine, for commands that run as processes.
func liveHub(t *testing.T) *fakeHub {
	t.Helper()
	h := newFakeHub(t)
	h.now = time.Now()
	return h
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept waits for a stand-in to connect, and returns its kubeconfig.
func accept(t *testing.T, l net.Listener) (conn net.Conn, kubeconfig string) {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return conn, strings.TrimSpace(line)
}

func isEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// TestEachInterrupted shows that Ctrl-C ends all programs, also those that do not end by themselves
// and those that these have started, and that the command lists what was not done.
func TestEachInterrupted(t *testing.T) {
	t.Parallel()
	h := liveHub(t)
	h.addFleet(5)
	l := listen(t)
	cmd, errOut, tempDir := h.process(t, "each", "--all", "--parallel", "2", "--timeout", "0", "--kubectl", standIn(t, "hold"), "--", "get", l.Addr().String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 4 { // two kubectls, and a child of each
		conn, kubeconfig := accept(t, l)
		if !strings.HasPrefix(kubeconfig, tempDir) {
			t.Errorf("the kubeconfig is %q", kubeconfig)
		}
		conns = append(conns, conn)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("it ended with %v\n%s", err, errOut)
	}
	for _, conn := range conns { // the end of a process ends its connection
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute)) // only so that the test does not hang
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	}
	want := `Not done:
  edge-00  interrupted
  edge-01  interrupted
  edge-02  not started
  edge-03  not started
  edge-04  not started
error: interrupted: 0 of 5 clusters were done, 0 failed, 5 were not done
`
	if errOut.String() != want {
		t.Errorf("it printed\n%s\nwant\n%s", errOut, want)
	}
	isEmpty(t, tempDir)
}

// TestWithPasses shows that a program gets the input, the kubeconfig and the signals, and that its
// exit code is passed on.
func TestWithPasses(t *testing.T) {
	t.Parallel()
	h := liveHub(t)
	h.addFleet(1)

	cmd, errOut, tempDir := h.process(t, "with", "edge-00", "--", standIn(t, "cat"))
	cmd.Stdin = strings.NewReader("input\n")
	out := &bytes.Buffer{}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil || out.String() != "input\n" || errOut.String() != "" {
		t.Errorf("%v\n%s%s", err, out, errOut)
	}
	isEmpty(t, tempDir)

	cmd, errOut, tempDir = h.process(t, "with", "edge-00", "--", standIn(t, "table"))
	out = &bytes.Buffer{}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "v1.36.1") {
		t.Errorf("%v\n%s%s", err, out, errOut)
	}
	isEmpty(t, tempDir)

	cmd, errOut, tempDir = h.process(t, "with", "edge-00", "--", standIn(t, "fail"), "--", "y")
	if code := exitCodeOf(t, cmd.Run()); code != 3 || errOut.String() != "a warning\nerror: no y\n" {
		t.Errorf("exit code %d\n%s", code, errOut)
	}
	isEmpty(t, tempDir)
}

func exitCodeOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it did not fail: %v", err)
	}
	return exit.ExitCode()
}

// TestWithPassesSignals sends a signal to agent-bootstrap alone, as kill does.
func TestWithPassesSignals(t *testing.T) {
	t.Parallel()
	h := liveHub(t)
	h.addFleet(1)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		l := listen(t)
		cmd, errOut, tempDir := h.process(t, "with", "edge-00", "--", standIn(t, "signaled"), l.Addr().String())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		conn, _ := accept(t, l)
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if code := exitCodeOf(t, cmd.Wait()); code != 40+int(s) {
			t.Errorf("%v: exit code %d\n%s", s, code, errOut)
		}
		_ = conn.Close() // nothing was written
		isEmpty(t, tempDir)
	}

	// A program that a signal ends is reported as a shell reports it.
	cmd, errOut, _ := h.process(t, "with", "edge-00", "--", "sh", "-c", "kill -KILL $$")
	if code := exitCodeOf(t, cmd.Run()); code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d\n%s", code, errOut)
	}
}

func TestWithRefuses(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	for want, args := range map[string][]string{
		"must be NAME -- COMMAND [ARGS...]":   {"edge-1", "helm", "list"},
		`invalid arguments ["edge-1"]`:        {"edge-1", "--"},
		`invalid cluster name "Edge"`:         {"Edge", "--", "cat"},
		`cluster "edge-1" is not registered`:  {"edge-1", "--", "cat"},
		`exec: "no-such-program": executable`: {"edge-1", "--", "no-such-program"},
	} {
		if _, _, err := h.run(t, append([]string{"with"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %v: %v\nwant %s", args, err, want)
		}
	}
}
