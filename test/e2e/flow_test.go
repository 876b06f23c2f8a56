// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
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

// startExec starts kubectl exec in a Pod of that name, which it creates if needed.
func startExec(t *testing.T, r route, pod string, stdin io.Reader, command ...string) (cmd *exec.Cmd, stdout io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	runPod(t, r.target, pod)
	kubeconfig, err := r.gateway.ClusterKubeconfig(r.cluster, r.door)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	args := []string{"--kubeconfig", kubeconfig, "exec"}
	if stdin != nil {
		args = append(args, "-i")
	}
	cmd = exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append(append(args, pod, "--"), command...)...)
	cmd.Stdin = stdin
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
