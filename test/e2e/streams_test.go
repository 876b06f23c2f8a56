// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// Either one switches kubectl from WebSocket, its default, to SPDY.
const (
	execOverSPDY        = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"
	portForwardOverSPDY = "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"
)

// unique returns a line that no other test logs: all Pods of a cluster share one log.
func unique(what string) string { return fmt.Sprintf("%s %s", what, rand.Text()) }

// appendLog adds a line to the log of the site's Pod.
func (s *site) appendLog(line string) func() error {
	return func() error { return s.target.AppendLog(line) }
}

func testLogs(ctx context.Context, t *testing.T, s *site) {
	line := unique("logged")
	if err := s.target.AppendLog(line); err != nil {
		t.Fatal(err)
	}
	mustContain(t, s.kubectl.run(ctx, t, "logs", podName), "hello from cluster "+s.target.Name(), line)
	mustContain(t, s.kubectl.run(ctx, t, "logs", podName, "--tail=1", "--timestamps"), line)
}

func testLogsFollow(ctx context.Context, t *testing.T, s *site) {
	first, second := unique("first"), unique("second")
	if err := s.target.AppendLog(first); err != nil {
		t.Fatal(err)
	}
	follow := s.kubectl.start(ctx, t, "logs", "-f", podName)
	follow.sees(t, first, nil)
	if err := s.target.AppendLog(second); err != nil {
		t.Fatal(err)
	}
	follow.sees(t, second, nil)
}

// TestQuietStreams checks that the time limit of ordinary requests does not end a stream, however
// quiet it is.
func TestQuietStreams(t *testing.T) {
	besideOthers(t)
	const limit = 4 * time.Second
	for _, r := range shared.impatientRoutes(t, limit) {
		t.Run(r.name, func(t *testing.T) {
			s := newSite(t, r)
			ctx := bounded(t, caseTimeout)
			first, second := unique("before the silence"), unique("after the silence")
			if err := s.target.AppendLog(first); err != nil {
				t.Fatal(err)
			}
			s.createDirectly(ctx, t, "quiet", nil)
			follow := s.kubectl.start(ctx, t, "logs", "-f", podName)
			attach := s.kubectl.start(ctx, t, "attach", podName)
			watch := s.kubectl.start(ctx, t, "get", "configmap", "-w", "-o", "name")
			run := s.kubectl.start(ctx, t, "exec", podName, "--", "sh", "-c", "echo begun; sleep 9; echo ended")
			follow.sees(t, first, nil)
			attach.sees(t, first, s.appendLog(first))
			watch.sees(t, "configmap/quiet", nil)
			run.sees(t, "begun", nil)

			// The only sleep in these tests: the silence itself is tested.
			time.Sleep(limit + limit/2)

			if err := s.target.AppendLog(second); err != nil {
				t.Fatal(err)
			}
			s.createDirectly(ctx, t, "noise", nil)
			follow.sees(t, second, nil)
			attach.sees(t, second, s.appendLog(second))
			watch.sees(t, "configmap/noise", nil)
			run.sees(t, "ended", nil)
			if <-run.done; run.err != nil {
				t.Error(run)
			}
		})
	}
}

func testExecWebSocket(ctx context.Context, t *testing.T, s *site) {
	testExec(ctx, t, s.kubectl, "v5.channel.k8s.io")
}

func testExecSPDY(ctx context.Context, t *testing.T, s *site) {
	testExec(ctx, t, s.kubectl.with(execOverSPDY), "")
}

// testExec sends standard input and compares it with standard output. It also checks standard error
// and the exit code. An empty subprotocol means SPDY.
func testExec(ctx context.Context, t *testing.T, k *kubectl, subprotocol string) {
	input := strings.Repeat("through standard input\n", 5000)
	r := k.try(ctx, t, input, "exec", "-i", podName, "-v=8", "--", "sh", "-c", "cat; echo aside >&2; exit 7")
	if r.code != 7 {
		t.Errorf("want exit code 7: %s", r)
	}
	if r.stdout != input {
		t.Errorf("%d bytes were sent, and %d different bytes were received", len(input), len(r.stdout))
	}
	mustContain(t, r.stderr, "aside\n", "command terminated with exit code 7")
	wantProtocol(t, r.stderr, subprotocol)
	if ok := k.try(ctx, t, "", "exec", podName, "--", "true"); ok.code != 0 {
		t.Error(ok)
	}
}

// wantProtocol reads from kubectl's own log which protocol it uses. WebSocket has a negotiated
// subprotocol, and SPDY has none. kubectl falls back to SPDY by itself, so the log must not show an
// earlier attempt.
func wantProtocol(t *testing.T, log, subprotocol string) {
	t.Helper()
	if strings.Contains(log, "fallback") {
		t.Errorf("kubectl fell back to another protocol:\n%s", shorten(log))
	}
	got := ""
	if m := regexp.MustCompile(`(?:Subprotocol negotiated|Negotiation complete)" protocol="([^"]*)"`).FindStringSubmatch(log); m != nil {
		got = m[1]
	}
	if got != subprotocol {
		t.Errorf("kubectl negotiated the WebSocket subprotocol %q, want %q:\n%s", got, subprotocol, shorten(log))
	}
}

func testAttach(ctx context.Context, t *testing.T, s *site) {
	for name, k := range map[string]*kubectl{"WebSocket": s.kubectl, "SPDY": s.kubectl.with(execOverSPDY)} {
		line := unique("attached over " + name)
		// attach does not show what was printed before.
		k.start(ctx, t, "attach", podName).sees(t, line, s.appendLog(line))
	}
}

func testCopy(ctx context.Context, t *testing.T, s *site) {
	const size = 50 << 20
	content := make([]byte, size)
	_, _ = rand.Read(content) // never fails
	local := writeFile(t, "local", content)
	// A command in a Pod of the lab sees the files of the machine, so the two folders must differ.
	remote, back := filepath.Join(t.TempDir(), "remote"), filepath.Join(t.TempDir(), "back")
	for _, step := range []struct{ from, to, check string }{
		{local, podName + ":" + remote, remote},
		{podName + ":" + remote, back, back},
	} {
		began := time.Now()
		s.kubectl.run(ctx, t, "cp", step.from, step.to)
		t.Logf("%d MiB in %s", size>>20, time.Since(began).Round(time.Millisecond))
		got, err := os.ReadFile(step.check)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("cp %s %s: %d bytes were received that are not the %d that were sent", step.from, step.to, len(got), len(content))
		}
	}
}

func testPortForwardWebSocket(ctx context.Context, t *testing.T, s *site) {
	testPortForward(ctx, t, s.kubectl, "portforward.k8s.io")
}

func testPortForwardSPDY(ctx context.Context, t *testing.T, s *site) {
	testPortForward(ctx, t, s.kubectl.with(portForwardOverSPDY), "")
}

// testPortForward sends different data through several connections at once. Each must get its own
// data back.
func testPortForward(ctx context.Context, t *testing.T, k *kubectl, subprotocol string) {
	const connections, size = 8, 1 << 20
	forward := k.start(ctx, t, "port-forward", podName, ":7", "-v=6")
	forward.sees(t, "Forwarding from 127.0.0.1:", nil)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(forward.stdout.String())
	var group errgroup.Group
	for range connections {
		group.Go(func() error { return echo(ctx, address, size) })
	}
	if err := group.Wait(); err != nil {
		t.Errorf("%v: %s", err, forward)
	}
	wantProtocol(t, forward.stderr.String(), subprotocol)
}

// echo sends random bytes to an echo server and compares what comes back.
func echo(ctx context.Context, address string, size int) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sent, got := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(sent) // never fails
	var group errgroup.Group
	group.Go(func() error {
		_, err := conn.Write(sent)
		return err
	})
	group.Go(func() error {
		_, err := io.ReadFull(conn, got)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("the echo of %s differs from what was sent", conn.LocalAddr())
	}
	return nil
}
