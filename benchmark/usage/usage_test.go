// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

func self() Process {
	return Process{Name: "self", PID: os.Getpid, Goroutines: func(context.Context) (int, error) { return 7, nil }}
}

// burn uses CPU time until the account shows it.
func burn(t *testing.T, seconds float64) {
	t.Helper()
	first, err := Of(t.Context(), self())
	if err != nil {
		t.Fatal(err)
	}
	for {
		now, err := Of(t.Context(), self())
		if err != nil {
			t.Fatal(err)
		}
		if now.CPUSeconds-first.CPUSeconds >= seconds {
			return
		}
	}
}

func TestObserve(t *testing.T) {
	gone := Process{Name: "gone", PID: func() int { return 1 << 30 }}
	o := Observe(t.Context(), []Process{self(), gone})
	burn(t, 0.2)
	lines := o.End(t.Context())
	if len(lines) != 3 {
		t.Fatalf("%d lines: %+v", len(lines), lines)
	}
	during := lines[1]
	if during.CPUSeconds < 0.19 || during.PeakRSS < during.RSS/2 || during.RSS < 1<<20 || during.Descriptors < 3 || during.Goroutines != 7 {
		t.Errorf("%+v", during)
	}
}

// TestOwnWorkIsNotForeign: the work of this process and of its children does not count as work of
// others.
func TestOwnWorkIsNotForeign(t *testing.T) {
	child := exec.Command("sh", "-c", "while :; do :; done")
	if err := child.Start(); err != nil {
		t.Skipf("there is no shell to keep busy: %v", err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	before, err := Snapshot([]int{child.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	burn(t, 0.5)
	after, err := Snapshot([]int{child.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	ours := after.ours - before.ours
	if ours < 0.6 { // 0.5 here, plus the child's
		t.Errorf("%.2f s of CPU time were counted as ours in %s", ours, time.Since(began))
	}
	busy, foreign := after.Since(before)
	if foreign > busy || foreign < 0 {
		t.Errorf("busy %.2f, foreign %.2f", busy, foreign)
	}
}
