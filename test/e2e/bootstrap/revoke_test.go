// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestRevoke shows that an agent is disconnected at once when its certificate is revoked or its
// cluster is unregistered, that it cannot come back, and that it cannot answer for another cluster
// that has the name later.
func TestRevoke(t *testing.T) {
	ctx := begin(t)
	dir := filepath.Join(t.TempDir(), "agent")
	register := edgeArgs("--out-dir", dir, "--wait", "0")
	must(ctx, t, register...)
	startProcess(ctx, t, dir, "agent-first")
	reachable(ctx, t)
	stolen := copyAgent(t, dir)

	// The new certificate is in the folder. The agent goes on with the one that it has read.
	must(ctx, t, "rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--out-dir", dir, "--wait", "0")
	if n := connected(ctx, t); n != 1 {
		t.Errorf("%v agents are connected after rotate without --revoke", n)
	}
	_, steps := must(ctx, t, "rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--out-dir", dir, "--wait", "0", "--revoke")
	begun := time.Now()
	awaitConnected(ctx, t, 0)
	t.Logf("the revoked agent was disconnected after %s", time.Since(begun))
	if !strings.Contains(steps, "the previous certificates of the agent are refused") {
		t.Errorf("rotate printed\n%s", steps)
	}
	startProcess(ctx, t, stolen, "agent-stolen")
	labtest.Within(t, labtest.Timeout, "the stolen certificate to be refused", func() error {
		return logged("Refused an agent", "edge-1", "it is revoked, or from an earlier registration")
	})
	if n := connected(ctx, t); n != 0 {
		t.Errorf("%v agents are connected with a revoked certificate", n)
	}
	second := startProcess(ctx, t, dir, "agent-second")
	awaitConnected(ctx, t, 1)
	reachable(ctx, t)
	// A repeated registration does not disconnect it.
	must(ctx, t, register...)
	if n := connected(ctx, t); n != 1 {
		t.Errorf("%v agents are connected after a repeated registration", n)
	}

	must(ctx, t, "unregister", "edge-1", "--keep-agent")
	awaitConnected(ctx, t, 0)
	other := filepath.Join(t.TempDir(), "other")
	if err := registration.AwaitNextSecond(ctx); err != nil { // times in certificates are in seconds
		t.Fatal(err)
	}
	must(ctx, t, edgeArgs("--out-dir", other, "--wait", "0")...)
	labtest.Within(t, labtest.Timeout, "the agent of the earlier registration to be refused", func() error {
		if err := logged("Refused an agent", "edge-1", "the cluster is not registered any more"); err == nil {
			return nil // it tried between the two registrations
		}
		return logged("Refused an agent", "edge-1", "from an earlier registration")
	})
	if n := connected(ctx, t); n != 0 {
		t.Errorf("%v agents of the earlier registration are connected", n)
	}
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	startProcess(ctx, t, other, "agent-other")
	awaitConnected(ctx, t, 1)
	reachable(ctx, t)
}

// copyAgent copies the folder of an agent, as a thief would.
func copyAgent(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "stolen")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	flags := filepath.Join(to, "agent.flags")
	text, err := os.ReadFile(flags)
	if err == nil {
		err = os.WriteFile(flags, []byte(strings.ReplaceAll(string(text), dir, to)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// connected returns how many agents of the cluster are connected.
func connected(ctx context.Context, t *testing.T) float64 {
	t.Helper()
	n, err := shared.gateway.Metric(ctx, "cluster_gateway_tunnel_agents", `cluster="edge-1"`)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// logged returns an error unless the gateway has logged a line with these texts.
func logged(texts ...string) error {
	log, err := os.ReadFile(shared.gateway.LogFile())
	if err != nil {
		return err
	}
lines:
	for line := range strings.Lines(string(log)) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		return nil
	}
	return fmt.Errorf("no line with %q", texts)
}

func awaitConnected(ctx context.Context, t *testing.T, want float64) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, fmt.Sprintf("%v connected agents", want), func() error {
		if n := connected(ctx, t); n != want {
			return fmt.Errorf("there are %v", n)
		}
		return nil
	})
}
