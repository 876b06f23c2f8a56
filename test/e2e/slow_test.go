// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// longVariable runs the tests of this file, TestWritesWhileConnectionsEnd, TestUnreadStreams and
// TestLostReplicaOfMany in their long form: `make test-long`.
const longVariable = "E2E_LONG"

func long() bool { return os.Getenv(longVariable) != "" }

// besideOthers runs a test in parallel with others that call it, after all tests that do not. It is
// for tests that only wait most of the time, and that neither change what others use nor count what
// others do. In the long form, each test has the machine for itself.
func besideOthers(t *testing.T) {
	if !long() {
		t.Parallel()
	}
}

// TestSlowLog checks that a log arrives whole although its reader requires far more time than an
// ordinary request has. In the long form, these are 300 MB in 90 s, by the gateways with the
// default limit of 65 s.
func TestSlowLog(t *testing.T) {
	besideOthers(t)
	lines, duration := 24_000, 12*time.Second
	if long() {
		lines, duration = 300_000, 90*time.Second
	}
	type content struct {
		size int64
		sum  [sha256.Size]byte
	}
	written := map[*lab.Cluster]content{}
	for _, c := range []*lab.Cluster{shared.direct, shared.edge} {
		runPod(t, c, lab.LargeLogPod)
		size, sum, err := c.WriteLargeLog(lines)
		if err != nil {
			t.Fatal(err)
		}
		written[c] = content{size, sum}
	}
	for _, r := range slowRoutes(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			k := newKubectl(t, r.gateway.ClusterRESTConfig(r.cluster, r.door), "-n", "default")
			cmd := k.command(bounded(t, caseTimeout+duration), "logs", lab.LargeLogPod)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			want, hash := written[r.target], sha256.New()
			size, err := io.Copy(hash, newSlowReader(stdout, want.size, duration))
			if err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, &stderr)
			}
			if size != want.size || [sha256.Size]byte(hash.Sum(nil)) != want.sum {
				t.Errorf("%d of %d bytes arrived, or different ones", size, want.size)
			}
		})
	}
}

// TestLongProfile checks that a CPU profile of an API server arrives, although it requires more
// time than an ordinary request has. In the long form, these are 90 s.
func TestLongProfile(t *testing.T) {
	besideOthers(t)
	duration := 6 * time.Second
	if long() {
		duration = 90 * time.Second
	}
	// A process records one CPU profile at a time.
	recording := map[*lab.Cluster]*sync.Mutex{shared.direct: {}, shared.edge: {}}
	for _, r := range slowRoutes(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			recording[r.target].Lock()
			defer recording[r.target].Unlock()
			c := newRawClient(t, r.gateway.ClusterRESTConfig(r.cluster, r.door))
			ctx, cancel := context.WithTimeout(t.Context(), caseTimeout+duration)
			defer cancel()
			a, err := c.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%.0f", duration.Seconds()))
			if err != nil || a.code != 200 {
				t.Fatalf("%d %s (%v)", a.code, shorten(a.body), err)
			}
			profile, err := gzip.NewReader(bytes.NewReader([]byte(a.body)))
			if err != nil {
				t.Fatal(err)
			}
			// The checksum at its end is verified, too.
			if n, err := io.Copy(io.Discard, profile); err != nil || n == 0 {
				t.Errorf("the profile of %d bytes is not complete: %v", n, err)
			}
		})
	}
}

// slowRoutes returns the routes of all endpoints in the long form. Otherwise, their gateways have a
// time limit for ordinary requests that is shorter than the tests.
func slowRoutes(t *testing.T) []route {
	t.Helper()
	if long() {
		return shared.routes()
	}
	return shared.impatientRoutes(t, 4*time.Second)
}

// slowReader reads with a constant rate.
type slowReader struct {
	from  io.Reader
	rate  float64 // bytes per second
	read  int64
	began time.Time
}

// newSlowReader returns a reader that requires this duration for size bytes.
func newSlowReader(from io.Reader, size int64, duration time.Duration) *slowReader {
	return &slowReader{from: from, rate: float64(size) / duration.Seconds(), began: time.Now()}
}

func (r *slowReader) Read(p []byte) (int, error) {
	due := r.began.Add(time.Duration(float64(r.read) / r.rate * float64(time.Second)))
	time.Sleep(time.Until(due)) // the rate itself is tested
	n, err := r.from.Read(p)
	r.read += int64(n)
	return n, err
}
