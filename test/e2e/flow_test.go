// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestUploadIntoSleepingPod checks that an upload which its process does not read for longer than
// any timeout arrives, and that another exec of the same cluster lives on.
func TestUploadIntoSleepingPod(t *testing.T) {
	besideOthers(t)
	const total = 60_000_000
	for _, r := range shared.routes() {
		if r.gateway == shared.external {
			continue // docs/scale.md: no flow control for a single connection
		}
		t.Run(r.name, func(t *testing.T) {
			upload, out, uploadErr := startExec(t, r, "sleeping", bytes.NewReader(make([]byte, total)), "sh", "-c", "sleep 20; wc -c")
			stdin, lines := io.Pipe()
			echo, echoed, echoErr := startExec(t, r, "sleeping", stdin, "cat")
			for i := range 20 {
				line := fmt.Sprintf("line %d\n", i)
				if _, err := io.WriteString(lines, line); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(line))
				if _, err := io.ReadFull(echoed, got); err != nil || string(got) != line {
					t.Fatalf("the other exec returned %q for %q: %v: %s", got, line, err, echoErr)
				}
				time.Sleep(time.Second) // the silence of the upload itself is tested
			}
			_ = lines.Close()
			if err := echo.Wait(); err != nil {
				t.Errorf("the other exec: %v: %s", err, echoErr)
			}
			count, err := io.ReadAll(out)
			if err != nil {
				t.Error(err)
			}
			if err := upload.Wait(); err != nil || strings.TrimSpace(string(count)) != fmt.Sprint(total) {
				t.Errorf("the process read %q of %d bytes: %v: %s", count, total, err, uploadErr)
			}
		})
	}
}

// TestDownloadWithAPause checks that the output of execs arrives whole although their clients stop
// reading in the middle of it. In the long form, the output is 1 GiB and the pause five minutes,
// and the gateway holds less than 8 MiB for each of them meanwhile.
func TestDownloadWithAPause(t *testing.T) {
	besideOthers(t)
	const mostHeld = 8 << 20
	size, pause := int64(64<<20), 8*time.Second
	var environment []string
	if long() {
		size, pause = 1<<30, 5*time.Minute
		// Over WebSocket, kubectl gives up after a minute in which nobody reads its output, because it
		// does not read the answers to its own pings meanwhile. Over SPDY it waits.
		environment = []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"}
	}
	var routes []route
	for _, r := range shared.routes() {
		if r.gateway == shared.embedded { // external: no flow control for a single connection
			routes = append(routes, r)
		}
	}
	before := memoryInUse(t, shared.embedded)
	// The program waits until its client has read everything. If a program ends before, kubectl may
	// lose the end of what it wrote, also without the gateway: see docs/compatibility.md.
	program := fmt.Sprintf("seq 1 200000000 | head -c %d; cat", size)
	var half, whole sync.WaitGroup
	half.Add(len(routes))
	readOn := make(chan struct{})
	for _, r := range routes {
		stdin, end := io.Pipe()
		cmd, stdout, stderr := startExecIn(t, environment, r, "paused", stdin, "sh", "-c", program)
		whole.Go(func() {
			want := &numbers{}
			err := sameBytes(stdout, want, size/2)
			half.Done()
			<-readOn
			if err == nil {
				err = sameBytes(stdout, want, size-size/2)
			}
			_ = end.Close()
			if ended := cmd.Wait(); err != nil || ended != nil {
				t.Errorf("%s: %v; %v: %s", r.name, err, ended, stderr)
			}
		})
	}
	half.Wait()
	time.Sleep(pause)
	if held := (memoryInUse(t, shared.embedded) - before) / float64(len(routes)); long() && held > mostHeld {
		t.Errorf("the gateway holds %.1f MiB for each exec", held/(1<<20))
	} else {
		t.Logf("the gateway holds %.1f MiB for each of %d execs, and whatever else it does", held/(1<<20), len(routes))
	}
	close(readOn)
	whole.Wait()
}

// numbers has the output of seq: 1, 2, 3 and so on, each in a line.
type numbers struct {
	last int64
	rest []byte
}

func (n *numbers) Read(p []byte) (int, error) {
	for len(n.rest) < len(p) {
		n.last++
		n.rest = append(strconv.AppendInt(n.rest, n.last, 10), '\n')
	}
	copied := copy(p, n.rest)
	n.rest = append(n.rest[:0], n.rest[copied:]...)
	return copied, nil
}

// sameBytes reads so many bytes from both, and fails at the first difference.
func sameBytes(got, want io.Reader, size int64) error {
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < size; {
		n, err := io.ReadFull(got, a[:min(int64(len(a)), size-at)])
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at+int64(n), size, err)
		}
		if _, err := io.ReadFull(want, b[:n]); err != nil {
			return err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return fmt.Errorf("other bytes than were written, after %d of %d", at, size)
		}
		at += int64(n)
	}
	return nil
}

// memoryInUse returns how much memory of heap and stacks a gateway uses after a garbage collection.
func memoryInUse(t *testing.T, g *lab.Gateway) float64 {
	t.Helper()
	a, err := newRawClient(t, g.RESTConfig(lab.ViaOwnEndpoint)).get(t.Context(), "/debug/pprof/heap?gc=1")
	if err != nil || a.code != http.StatusOK {
		t.Fatalf("%d %s (%v)", a.code, shorten(a.body), err)
	}
	total := 0.0
	for _, name := range []string{"go_memstats_heap_inuse_bytes", "go_memstats_stack_inuse_bytes"} {
		used, err := g.Metric(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		total += used
	}
	return total
}

// startExec starts kubectl exec in a Pod of that name, which it creates if needed.
func startExec(t *testing.T, r route, pod string, stdin io.Reader, command ...string) (cmd *exec.Cmd, stdout io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	return startExecIn(t, nil, r, pod, stdin, command...)
}

// startExecIn is startExec with more environment variables for kubectl.
func startExecIn(t *testing.T, environment []string, r route, pod string, stdin io.Reader, command ...string) (cmd *exec.Cmd, stdout io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	runPod(t, r.target, pod)
	kubeconfig, err := r.gateway.ClusterKubeconfig(r.cluster, r.door)
	if err != nil {
		t.Fatal(err)
	}
	timeout := 3 * time.Minute
	if long() {
		timeout = 20 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	args := []string{"--kubeconfig", kubeconfig, "exec"}
	if stdin != nil {
		args = append(args, "-i")
	}
	cmd = exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append(append(args, pod, "--"), command...)...)
	cmd.Stdin, cmd.Env = stdin, append(os.Environ(), environment...)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	stdout, err = cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, stdout, stderr
}

// TestDoctorOnFlowControl checks that doctor says where upgrades have no flow control of their own.
func TestDoctorOnFlowControl(t *testing.T) {
	besideOthers(t)
	for _, c := range []struct {
		hub  *lab.Cluster
		want string
	}{
		{shared.externalHub, "no flow control for a single connection"},
		{shared.embeddedHub, "connected\n"},
	} {
		labtest.Within(t, labtest.Timeout, "doctor to find "+c.want, func() error {
			var out bytes.Buffer
			cmd := bootstrap.NewCommand(bootstrap.Config{Out: &out, ErrOut: &out})
			cmd.SetArgs([]string{"--kubeconfig", c.hub.Kubeconfig(), "doctor", "edge"})
			err := cmd.ExecuteContext(t.Context()) // fails if it finds anything wrong, which others may cause
			if text := out.String(); !strings.Contains(text, c.want) {
				return fmt.Errorf("doctor has found (%w):\n%s", err, text)
			}
			return nil
		})
	}
}
