// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestExecsLeaveNothingBehind runs many execs through the tunnel, of which each second one is
// aborted in the middle of a transfer. Afterwards the gateway, the agent and the API server have no
// more connections and goroutines than before, as soon as the streams that are kept for further
// upgrades have ended. In the long form, these are 2,000.
func TestExecsLeaveNothingBehind(t *testing.T) {
	const podName, workers, slack = "execs", 8, 8
	n := 100
	if long() {
		n = 2000
	}
	r := shared.routes()[4] // embedded, by the own endpoint
	runPod(t, r.target, podName)
	f := &execFlood{t: t, route: r, pod: podName}
	var err error
	if f.client, err = rest.HTTPClientFor(r.gateway.RESTConfig(r.door)); err != nil {
		t.Fatal(err)
	}
	f.run(2, 1)
	_, _ = settled(t, r.gateway, 0, 0)
	before, err := f.held()
	if err != nil {
		t.Fatal(err)
	}
	f.run(n, workers)
	var after map[string]float64
	took := labtest.Within(t, labtest.Timeout, "as little as before to be held", func() error {
		if after, err = f.held(); err != nil {
			return err
		}
		for what, count := range after {
			if count > before[what]+slack {
				return fmt.Errorf("%s: %v before, %v after", what, before[what], count)
			}
		}
		return nil
	})
	t.Logf("%d execs were complete, %d were aborted; before %v, and after %s %v", f.complete.Load(), f.aborted.Load(), before, took.Round(time.Second), after)
}

// execFlood runs execs.
type execFlood struct {
	t                 *testing.T
	route             route
	pod               string
	complete, aborted atomic.Int64
	// client reads the metrics of the gateway, always over one connection.
	client *http.Client
}

// run runs n execs, so many at a time.
func (f *execFlood) run(n, workers int) {
	f.t.Helper()
	var group sync.WaitGroup
	var next atomic.Int64
	for range workers {
		group.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := f.exec(i%2 == 0); err != nil {
					f.t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// exec reads 1 MiB, and aborts the transfer then or is at its end.
func (f *execFlood) exec(abort bool) error {
	const size = 1 << 20
	ctx, cancel := context.WithTimeout(f.t.Context(), caseTimeout)
	defer cancel()
	command := fmt.Sprint(size)
	if abort {
		command = "1G"
	}
	config := f.route.gateway.ClusterRESTConfig(f.route.cluster, f.route.door)
	query := url.Values{"stdout": {"true"}, "command": {"head", "-c", command, "/dev/zero"}}
	executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, config.Host+"/api/v1/namespaces/default/pods/"+f.pod+"/exec?"+query.Encode())
	if err != nil {
		return err
	}
	read := 0
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: writerFunc(func(p []byte) (int, error) {
		if read += len(p); abort && read >= size {
			cancel()
			return 0, errors.New("aborted")
		}
		return len(p), nil
	})})
	switch {
	case abort && read >= size:
		f.aborted.Add(1)
	case err != nil || read != size:
		return fmt.Errorf("an exec has ended after %d bytes: %w", read, err)
	default:
		f.complete.Add(1)
	}
	return nil
}

// held returns what the gateway, the agent and the API server hold.
func (f *execFlood) held() (map[string]float64, error) {
	ctx := f.t.Context()
	agent, err := shared.embeddedAgent.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	server, err := f.route.target.Client().Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	goroutines, err := lab.SumMetric(agent, "go_goroutines")
	if err != nil {
		return nil, err
	}
	execs, err := lab.SumMetric(server, "apiserver_longrunning_requests", `subresource="exec"`)
	if err != nil {
		return nil, err
	}
	gateway, err := f.metrics(ctx)
	if err != nil {
		return nil, err
	}
	own, err := lab.SumMetric(gateway, "go_goroutines")
	if err != nil {
		return nil, err
	}
	requests, err := lab.SumMetric(gateway, "cluster_gateway_requests_in_flight", `cluster="`+f.route.cluster+`"`)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"descriptors of the gateway":    float64(descriptors(f.t, f.route.gateway.Process)),
		"goroutines of the gateway":     own,
		"requests in the gateway":       requests,
		"descriptors of the agent":      float64(descriptors(f.t, shared.embeddedAgent.Process)),
		"goroutines of the agent":       goroutines,
		"execs at the API server":       execs,
		"descriptors of the API server": float64(descriptors(f.t, f.route.target.APIServer())),
	}, nil
}

func (f *execFlood) metrics(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.route.gateway.Endpoint()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
