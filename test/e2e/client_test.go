// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// answer is the response to a raw request.
type answer struct {
	code int
	body string
}

// rawClient sends requests to one cluster by one route, without client-go.
type rawClient struct {
	http *http.Client
	base string
}

func newRawClient(t *testing.T, config *rest.Config) *rawClient {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return &rawClient{http: client, base: config.Host}
}

func (c *rawClient) get(ctx context.Context, path string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body)}, err
}

// mustGet gets a path that must exist.
func (c *rawClient) mustGet(t *testing.T, path string) answer {
	t.Helper()
	a, err := c.get(t.Context(), path)
	if err != nil || a.code != http.StatusOK {
		t.Fatalf("GET %s: %d %s (%v)", path, a.code, a.body, err)
	}
	return a
}

// parallelGets sends n requests from some workers. All of them must succeed.
func (c *rawClient) parallelGets(t *testing.T, path string, n, workers int) {
	t.Helper()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var group sync.WaitGroup
	failures := make(chan string, workers)
	for range workers {
		group.Go(func() {
			for range work {
				if a, err := c.get(t.Context(), path); err != nil || a.code != http.StatusOK {
					failures <- fmt.Sprintf("%d %s (%v)", a.code, a.body, err)
					return
				}
			}
		})
	}
	group.Wait()
	close(failures)
	for f := range failures {
		t.Errorf("GET %s: %s", path, f)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// medianGet returns the median time of n sequential requests.
func (c *rawClient) medianGet(t *testing.T, path string, n int) time.Duration {
	t.Helper()
	times := make([]time.Duration, n)
	for i := range times {
		began := time.Now()
		c.mustGet(t, path)
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[n/2]
}

// descriptors counts the open files of a process.
func descriptors(t *testing.T, p *lab.Process) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(p.Pid()), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// metric reads one of a gateway's metrics.
func metric(t *testing.T, g *lab.Gateway, name string, labels ...string) float64 {
	t.Helper()
	v, err := g.Metric(t.Context(), name, labels...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually polls until check returns nil.
func eventually(t *testing.T, within time.Duration, check func(ctx context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, within, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("not within %s: %v", within, last)
	}
}

// runPod runs a Pod for exec, once per cluster and name.
func runPod(t *testing.T, c *lab.Cluster, name string) {
	t.Helper()
	if _, err := c.RunPod(t.Context(), "default", name); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
}
