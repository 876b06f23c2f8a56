// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestUnreadStreams opens many logs and execs through the tunnel that nobody reads, and sends many
// requests without a credential, all at once, to a gateway in little memory. The gateway must keep
// within it, and answer all GETs of another user, on the same cluster and on another one. In the
// long form, the 99th percentile of their times must not grow to more than three times what it was,
// or than it does without the gateway.
func TestUnreadStreams(t *testing.T) {
	besideOthers(t)
	const limitMiB = 512
	logs, execs, unauthenticated, gets := 300, 40, 200, 200
	if long() {
		logs, execs, unauthenticated, gets = 2000, 200, 1000, 2000
	}
	ctx := bounded(t, 2*caseTimeout)
	binary, err := lab.BuildGateway(ctx, shared.lab.Dir(), false) // the race detector requires several times the memory
	if err != nil {
		t.Fatal(err)
	}
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-unread", Hub: shared.embeddedHub, Binary: binary, Env: []string{fmt.Sprintf("GOMEMLIMIT=%dMiB", limitMiB)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Stop() })
	agent, err := g.StartAgent(ctx, "edge", shared.edge)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Stop() })
	if _, _, err := shared.edge.WriteLargeLog(3000); err != nil {
		t.Fatal(err)
	}
	runPod(t, shared.edge, lab.LargeLogPod)
	const greedy, neighbor = "e2e-greedy", "e2e-neighbor"
	for user, clusters := range map[string][]string{greedy: {"edge"}, neighbor: {"edge", "direct"}} {
		grant(ctx, t, user, rbacv1.PolicyRule{
			APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: clusters, Verbs: []string{"get", "create"},
		})
	}
	measured := map[string]*rawClient{}
	for _, cluster := range []string{"edge", "direct"} {
		config := callerOf(t, g, neighbor)
		config.Host += gatewayPath + "/" + cluster + "/proxy"
		measured[cluster] = newRawClient(t, config)
		answers(t, measured[cluster])
	}
	const straight = "edge without the gateway"
	measured[straight] = newRawClient(t, shared.edge.RESTConfig())
	before := slowestOfHundred(t, measured, gets)

	config := callerOf(t, g, greedy)
	config.Host += gatewayPath + "/edge/proxy"
	load, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer func() { stop(); group.Wait() }()
	opened := &outcomes{}
	unread := unreadClient(t, config)
	for range logs {
		group.Go(func() {
			opened.log(load, unread, config.Host+"/api/v1/namespaces/default/pods/"+lab.LargeLogPod+"/log?follow=true")
		})
	}
	for range execs {
		group.Go(func() { opened.exec(load, config, "/api/v1/namespaces/default/pods/"+lab.LargeLogPod+"/exec") })
	}
	eventually(t, caseTimeout, func(context.Context) error {
		if n := opened.all(); n < int64(logs+execs) {
			return fmt.Errorf("%d of %d streams are open or refused", n, logs+execs)
		}
		return nil
	})
	strangers := startStrangers(ctx, t, g.Endpoint()+gatewayPath+"/edge/proxy"+namespacePath, unauthenticated)
	during := slowestOfHundred(t, measured, gets)
	ratio := func(cluster string) float64 { return float64(during[cluster]) / float64(before[cluster]) }
	for cluster := range measured {
		t.Logf("%s: the 99th percentile of %d GETs was %s before, and is %s: %.1f×", cluster, gets, before[cluster], during[cluster], ratio(cluster))
		// The API server of the cluster has the load, too, and the gateway cannot be faster than it.
		if long() && cluster != straight && ratio(cluster) > max(3, ratio(straight)) {
			t.Errorf("%s: more than three times as much, and more than without the gateway", cluster)
		}
	}
	t.Logf("%d logs and %d execs are open, %d are refused; at most %d MiB of memory", opened.logs.Load(), opened.execs.Load(), opened.refused.Load(), peakMiB(t, g.Process))
	if out, err := strangers(); err != nil {
		t.Errorf("requests without a credential: %v: %s", err, out)
	} else {
		t.Logf("requests without a credential: %s", out)
	}
	if peak := peakMiB(t, g.Process); peak > limitMiB {
		t.Errorf("the gateway required %d MiB of memory", peak)
	}
	if opened.logs.Load()+opened.execs.Load() < 60 {
		t.Error("too few streams are open")
	}
	if n := opened.wrong.Load(); n != nil {
		t.Errorf("an unexpected answer: %v", n)
	}
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}

// outcomes counts what came of the requests of a load.
type outcomes struct {
	logs, execs, refused atomic.Int64
	wrong                atomic.Value
}

func (o *outcomes) all() int64 { return o.logs.Load() + o.execs.Load() + o.refused.Load() }

// log opens a log and does not read it.
func (o *outcomes) log(ctx context.Context, client *http.Client, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		o.wrong.Store(err.Error())
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		o.refused.Add(1)
		if ctx.Err() == nil {
			o.wrong.Store(err.Error())
		}
		return
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		o.logs.Add(1)
		<-ctx.Done()
	case http.StatusTooManyRequests:
		o.refused.Add(1)
	default:
		o.refused.Add(1)
		o.wrong.Store("log: " + resp.Status)
	}
}

// exec starts a process that writes more than anybody buffers, and does not read it.
func (o *outcomes) exec(ctx context.Context, config *rest.Config, path string) {
	query := url.Values{"stdout": {"true"}, "command": {"head", "-c", "64M", "/dev/zero"}}
	executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, config.Host+path+"?"+query.Encode())
	if err != nil {
		o.wrong.Store(err.Error())
		return
	}
	counted := sync.OnceFunc(func() { o.execs.Add(1) })
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: writerFunc(func([]byte) (int, error) {
		counted()
		<-ctx.Done()
		return 0, ctx.Err()
	})})
	if ctx.Err() == nil { // it ended before the load did
		o.refused.Add(1)
		if !regexp.MustCompile(`429|[Tt]oo many|try again later`).MatchString(fmt.Sprint(err)) {
			o.wrong.Store(fmt.Sprintf("exec: %v", err))
		}
	}
}

// The requests without a credential are sent by a child process: the handshakes of its clients must
// not delay the clients that are measured.
const (
	strangersVariable      = "E2E_STRANGERS"
	strangersCountVariable = "E2E_STRANGERS_COUNT"
)

// startStrangers sends n requests without a credential at once. The result waits for them.
func startStrangers(ctx context.Context, t *testing.T, url string, n int) (wait func() (string, error)) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = append(os.Environ(), strangersVariable+"="+url, strangersCountVariable+"="+strconv.Itoa(n))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		err := cmd.Wait()
		return strings.TrimSpace(out.String()), err
	}
}

// sendAsStrangers sends the requests, each on a connection of its own, and prints how many were
// denied. It returns the exit code: 1 if an answer was anything else.
func sendAsStrangers() (code int) {
	n, err := strconv.Atoi(os.Getenv(strangersCountVariable))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	answers := map[string]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
				InsecureSkipVerify: true, //nolint:gosec // nothing is sent that anybody could use
			}}}
			answer := "no answer" // a refused connection is not wrong
			resp, err := client.Get(os.Getenv(strangersVariable))
			if err == nil {
				answer = resp.Status
				_ = resp.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			answers[answer]++
			if err == nil && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusTooManyRequests {
				code = 1
			}
		})
	}
	group.Wait()
	fmt.Println(answers)
	return code
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// unreadClient returns a client over HTTP/2 that buffers little of what is not read.
func unreadClient(t *testing.T, config *rest.Config) *http.Client {
	t.Helper()
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// slowestOfHundred returns the 99th percentile of the times of n GETs for each client.
func slowestOfHundred(t *testing.T, clients map[string]*rawClient, n int) map[string]time.Duration {
	t.Helper()
	slowest := map[string]time.Duration{}
	for name, all := range timesOf(t, clients, n) {
		slowest[name] = percentile(all, 99)
	}
	return slowest
}

// peakMiB returns the most memory that a process has had.
func peakMiB(t *testing.T, p *lab.Process) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Pid()), "status"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

var _ io.Writer = writerFunc(nil)
