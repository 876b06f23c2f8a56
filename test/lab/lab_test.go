// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testTimeout bounds each test, without the build of the components.
const testTimeout = 5 * time.Minute

type testOut struct{ t *testing.T }

func (o testOut) Write(p []byte) (int, error) {
	o.t.Logf("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

func newTestLab(t *testing.T) (context.Context, *Lab) {
	t.Helper()
	binaries, err := FindBinaries(t.Context(), BinariesOptions{Out: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	l, err := New(ctx, Options{Binaries: binaries, Out: testOut{t}, KeepLogs: t.Failed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

func startTestCluster(ctx context.Context, t *testing.T, l *Lab, o ClusterOptions) *Cluster {
	t.Helper()
	start := time.Now()
	c, err := l.StartCluster(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster %s started in %s", o.Name, time.Since(start).Round(time.Millisecond))
	return c
}

// TestKubectl checks that everything that needs a kubelet works without a container runtime.
func TestKubectl(t *testing.T) {
	ctx, l := newTestLab(t)
	c := startTestCluster(ctx, t, l, ClusterOptions{Name: "plain"})
	if _, err := c.RunPod(ctx, "default", "pod"); err != nil {
		t.Fatal(err)
	}
	if err := c.AppendLog("one", "two"); err != nil {
		t.Fatal(err)
	}
	t.Run("version", func(t *testing.T) {
		version, err := c.Client().Discovery().ServerVersion()
		if err != nil {
			t.Fatal(err)
		}
		if version.GitVersion != "v1.37.2" {
			t.Errorf("the API server reports the version %s", version.GitVersion)
		}
	})
	t.Run("logs", func(t *testing.T) {
		wantOutput(t, c.Kubectl(ctx, "logs", "pod"), "hello from cluster plain\none\ntwo\n")
	})
	t.Run("logs -f", func(t *testing.T) {
		testFollow(ctx, t, c, "logs", "-f", "--tail=1", "pod")
	})
	t.Run("attach", func(t *testing.T) {
		testFollow(ctx, t, c, "attach", "pod")
	})
	t.Run("exec over WebSocket", func(t *testing.T) {
		testExec(ctx, t, c, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true")
	})
	t.Run("exec over SPDY", func(t *testing.T) {
		testExec(ctx, t, c, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false")
	})
	t.Run("cp", func(t *testing.T) {
		testCopy(ctx, t, c)
	})
	t.Run("port-forward", func(t *testing.T) {
		testPortForward(ctx, t, c)
	})
	t.Run("token", func(t *testing.T) {
		token, err := c.ServiceAccountToken(ctx, "team", "reader", "view")
		if err != nil {
			t.Fatal(err)
		}
		wantOutput(t, c.Command(ctx, l.Binaries().Kubectl, "--server", c.Endpoint(), "--certificate-authority", filepath.Join(c.pkiDir(), "ca.crt"),
			"--kubeconfig", os.DevNull, "--token", token, "auth", "can-i", "list", "pods"), "yes\n")
	})
	t.Run("API server restarts", func(t *testing.T) {
		if err := c.StopAPIServer(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Client().CoreV1().Pods("default").Get(ctx, "pod", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func wantOutput(t *testing.T, cmd *Cmd, want string) {
	t.Helper()
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	if string(got) != want {
		t.Errorf("%s printed %q, want %q", cmd, got, want)
	}
}

// testFollow starts a command that follows the log, and appends lines until it prints one: attach
// shows only what is written after it has started.
func testFollow(ctx context.Context, t *testing.T, c *Cluster, args ...string) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	cmd := c.Kubectl(ctx, args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string)
	go func() {
		defer close(seen)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			if strings.HasPrefix(scanner.Text(), "line ") {
				seen <- scanner.Text()
				return
			}
		}
	}()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case line := <-seen:
			if line == "" {
				t.Errorf("%s ended without a new line", cmd)
			}
			cancel()
			_ = cmd.Wait() // killed
			return
		case <-ticker.C:
			if err := c.AppendLog(fmt.Sprintf("line %d", n)); err != nil {
				t.Error(err)
			}
		}
	}
}

func testExec(ctx context.Context, t *testing.T, c *Cluster, env ...string) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	cmd := c.Kubectl(ctx, "exec", "-i", "pod", "--", "sh", "-c", "cat; exit 7")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = strings.NewReader("through stdin")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec ended with %v, want exit code 7", err)
	}
	if string(out) != "through stdin" {
		t.Errorf("exec printed %q", out)
	}
}

func testCopy(ctx context.Context, t *testing.T, c *Cluster) {
	content := make([]byte, 50<<20)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	local, remote, back := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(local, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][2]string{{local, "pod:" + remote}, {"pod:" + remote, back}} {
		if out, err := c.Kubectl(ctx, "cp", paths[0], paths[1]).CombinedOutput(); err != nil {
			t.Fatalf("cp %s: %v: %s", paths, err, out)
		}
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("the file came back changed")
	}
}

func testPortForward(ctx context.Context, t *testing.T, c *Cluster) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := c.Kubectl(ctx, "port-forward", "pod", ":80", ":7")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	web, echo := forwardedAddress(t, stdout), forwardedAddress(t, stdout)
	client := &http.Client{Transport: &http.Transport{DialContext: c.DialContext, DisableKeepAlives: true}}
	if err := get(ctx, client, "http://"+web); err != nil {
		t.Error(err)
	}
	conn, err := c.DialContext(ctx, "tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, 4)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Error(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("the echo server sent %q, %v", got, err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("after the end of what was sent, the echo server sent %q, %v", rest, err)
	}
	cancel()
	_ = cmd.Wait() // killed
}

// forwardedAddress reads a line like "Forwarding from 127.0.0.1:40001 -> 80".
func forwardedAddress(t *testing.T, stdout io.Reader) string {
	t.Helper()
	for {
		var line []byte
		for b := make([]byte, 1); ; line = append(line, b[0]) {
			if _, err := stdout.Read(b); err != nil {
				t.Fatalf("port-forward: %v", err)
			}
			if b[0] == '\n' {
				break
			}
		}
		if address, ok := strings.CutPrefix(string(line), "Forwarding from 127.0.0.1:"); ok {
			port, _, _ := strings.Cut(address, " ")
			return net.JoinHostPort(loopback, port)
		}
	}
}

// TestFirewalled checks that a firewalled cluster cannot be dialed, that it can dial out, that
// kubectl works inside, and that nothing is left behind.
func TestFirewalled(t *testing.T) {
	ctx, l := newTestLab(t)
	c := startTestCluster(ctx, t, l, ClusterOptions{Name: "edge", Firewalled: true})
	if !c.Firewalled() {
		t.Skipf("no firewall: %v", c.FirewallSkipped())
	}
	address := net.JoinHostPort(c.Address(), fmt.Sprint(c.Port()))

	t.Run("connections into the cluster are blocked", func(t *testing.T) {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			t.Fatal("the firewall let a connection in")
		}
		if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("dialing in failed with %v, want a timeout", err)
		}
	})
	t.Run("connections out of the cluster work", func(t *testing.T) {
		testDialOut(ctx, t, l, c)
	})
	t.Run("kubectl works inside", func(t *testing.T) {
		if _, err := c.RunPod(ctx, "default", "pod"); err != nil {
			t.Fatal(err)
		}
		testExec(ctx, t, c)
		testPortForward(ctx, t, c)
	})
	t.Run("nothing stays", func(t *testing.T) {
		link, processes := c.ns.link, l.Processes()
		if _, err := net.InterfaceByName(link); err != nil {
			t.Fatalf("the link %s does not exist at the start: %v", link, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := net.InterfaceByName(link); err == nil {
			t.Errorf("the link %s still exists", link)
		}
		for _, p := range processes {
			if err := syscall.Kill(p.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("%s (process %d) is still running: %v", p.Name(), p.Pid(), err)
			}
		}
		if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lab's folder still exists: %v", err)
		}
	})
}

func testDialOut(ctx context.Context, t *testing.T, l *Lab, c *Cluster) {
	listener, err := net.Listen("tcp", net.JoinHostPort(l.HostAddr(c), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "hello")
	}()
	conn, err := c.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestContextEnds checks that a lab closes when its context ends, even while it is starting a
// cluster.
func TestContextEnds(t *testing.T) {
	binaries, err := FindBinaries(t.Context(), BinariesOptions{Out: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := New(ctx, Options{Binaries: binaries})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		_, err := l.StartCluster(t.Context(), ClusterOptions{Name: "edge", Firewalled: true})
		started <- err
	}()
	gone(t, "the time before the second process", func() bool { return len(l.Processes()) >= 2 })
	cancel()
	if err := <-started; !errors.Is(err, errClosed) {
		t.Errorf("starting a cluster ended with %v, want %v", err, errClosed)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, p := range l.Processes() {
		if running(p.Pid()) {
			t.Errorf("%s (process %d) is still running", p.Name(), p.Pid())
		}
	}
	if _, err := l.StartCluster(t.Context(), ClusterOptions{Name: "late"}); !errors.Is(err, errClosed) {
		t.Errorf("starting a cluster in a closed lab: %v, want %v", err, errClosed)
	}
	if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's folder still exists: %v", err)
	}
}
