// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestGreedyUser has one user send requests from 500 workers to one cluster, through the gateway
// and straight to the cluster by turns. Another user's GETs, on the same cluster and on another
// one, must not take much longer while the requests come through the gateway.
func TestGreedyUser(t *testing.T) {
	besideOthers(t)
	const workers = 500
	gets, rounds := 40, 1
	if long() {
		gets, rounds = 300, 3
	}
	ctx := bounded(t, 2*caseTimeout)
	binary, err := lab.BuildGateway(ctx, shared.lab.Dir(), false)
	if err != nil {
		t.Fatal(err)
	}
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{Name: "gateway-greedy", Hub: shared.embeddedHub, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Stop() })
	// The workers cannot get past the firewall of the cluster "edge".
	const cluster = "greedy"
	c, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: cluster, NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	if err := g.RegisterCluster(ctx, cluster, c, true); err != nil {
		t.Fatal(err)
	}
	agent, err := g.StartAgent(ctx, cluster, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Stop()
		_ = shared.embeddedHub.DeleteSecret(context.Background(), cluster) // with the lab at the latest
	})

	const greedy, neighbor = "e2e-more", "e2e-beside"
	for user, clusters := range map[string][]string{greedy: {cluster}, neighbor: {cluster, "direct"}} {
		grant(ctx, t, user, rbacv1.PolicyRule{
			APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: clusters, Verbs: []string{"get"},
		})
	}
	grantOn(ctx, t, c, greedy, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}})
	cert, key, err := c.ClientCertificate(greedy)
	if err != nil {
		t.Fatal(err)
	}
	straight := anonymous(c.RESTConfig())
	straight.CertData, straight.KeyData = cert, key
	through := callerOf(t, g, greedy)
	through.Host += gatewayPath + "/" + cluster + "/proxy"
	measured := map[string]*rawClient{}
	for _, name := range []string{cluster, "direct"} {
		config := callerOf(t, g, neighbor)
		config.Host += gatewayPath + "/" + name + "/proxy"
		measured[name] = newRawClient(t, config)
		answers(t, measured[name])
	}
	answers(t, newRawClient(t, straight))
	answers(t, newRawClient(t, through))

	times := map[string]map[string][]time.Duration{"past": {}, "through": {}}
	for range rounds {
		for way, config := range map[string]*rest.Config{"past": straight, "through": through} {
			stop := startWorkers(ctx, t, config, workers)
			for name, all := range timesOf(t, measured, gets) {
				times[way][name] = append(times[way][name], all...)
			}
			load := stop()
			t.Logf("%d workers %s the gateway: %v", workers, way, load)
			if load["200 OK"] < workers {
				t.Errorf("%s the gateway, the load was only %v", way, load)
			}
			for answer := range load {
				if answer != "200 OK" && !strings.HasPrefix(answer, "429") {
					t.Errorf("%s the gateway, the load had the answer %q", way, answer)
				}
			}
		}
	}
	for name := range measured {
		const most = 1.5
		for _, n := range []int{50, 99} {
			past, through := percentile(times["past"][name], n), percentile(times["through"][name], n)
			ratio := float64(through) / float64(past)
			t.Logf("%s: percentile %d of another user's GETs is %s with the load past the gateway, and %s through it: %.2f×", name, n, past, through, ratio)
			// The short form has too few times for the 99th percentile. And it runs beside other tests,
			// which the gateway shares the CPUs with: that affects the other cluster most.
			if ratio > most && (long() || n == 50 && name == cluster) {
				t.Errorf("%s: percentile %d is %.2f times as long with the load through the gateway, at most %.1f times is expected", name, n, ratio, most)
			}
		}
	}
}

// answers waits until a client may get the path: RBAC takes a moment to take effect.
func answers(t *testing.T, client *rawClient) {
	t.Helper()
	eventually(t, caseTimeout, func(ctx context.Context) error {
		if a, err := client.get(ctx, namespacePath); err != nil || a.code != http.StatusOK {
			return fmt.Errorf("%d %s (%v)", a.code, a.body, err)
		}
		return nil
	})
}

// timesOf returns the times of n GETs for each client. They take turns, so that what happens on the
// machine meanwhile affects all of them.
func timesOf(t *testing.T, clients map[string]*rawClient, n int) map[string][]time.Duration {
	t.Helper()
	times := map[string][]time.Duration{}
	for range n {
		for name, client := range clients {
			began := time.Now()
			client.mustGet(t, namespacePath)
			times[name] = append(times[name], time.Since(began))
		}
	}
	return times
}

func percentile(times []time.Duration, n int) time.Duration {
	slices.Sort(times)
	return times[len(times)*n/100]
}

// The workers run in a child process, as another user's would: their work must not delay the
// clients that are measured.
const workersVariable = "E2E_WORKERS"

// workload is what the child process does. It is sent to its standard input.
type workload struct {
	URL           string
	CA, Cert, Key []byte
	Workers       int
}

// startWorkers starts workers that get the path again and again, and waits until they are under
// way. The result stops them, and counts the answers.
func startWorkers(ctx context.Context, t *testing.T, config *rest.Config, workers int) (stop func() map[string]int) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = append(os.Environ(), workersVariable+"=1")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := json.NewDecoder(stdout)
	if err := json.NewEncoder(stdin).Encode(workload{config.Host + namespacePath, config.CAData, config.CertData, config.KeyData, workers}); err != nil {
		t.Fatal(err)
	}
	// next returns what the child process prints next.
	next := func() map[string]int {
		counts := map[string]int{}
		if err := out.Decode(&counts); err != nil {
			t.Fatalf("the workers: %v: %s", err, problems.String())
		}
		return counts
	}
	next()
	return func() map[string]int {
		_ = stdin.Close()
		counts := next()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("the workers: %v: %s", err, problems.String())
		}
		return counts
	}
}

// work is the child process. It prints how many answers of each kind it has got when these are as
// many as it has workers, and when its standard input ends, and with it the process.
func work() (code int) {
	var load workload
	decoder := json.NewDecoder(os.Stdin)
	if err := decoder.Decode(&load); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	out := json.NewEncoder(os.Stdout)
	counts, answered := map[string]int{}, 0
	var mu sync.Mutex
	var group sync.WaitGroup
	const perConnection = 50 // as if ten programs did it: a connection has room for 100 to 250 requests
	for range load.Workers / perConnection {
		client, err := rest.HTTPClientFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: load.CA, CertData: load.Cert, KeyData: load.Key},
			// Without it, client-go gives all of them one connection.
			Dial: (&net.Dialer{}).DialContext})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for range perConnection {
			group.Go(func() {
				for ctx.Err() == nil {
					answer, wait := once(ctx, client, load.URL)
					if ctx.Err() != nil {
						return
					}
					mu.Lock()
					counts[answer]++
					if answered++; answered == load.Workers {
						_ = out.Encode(counts) // the parent is gone if this fails
					}
					mu.Unlock()
					select { // as client-go does
					case <-ctx.Done():
					case <-time.After(wait):
					}
				}
			})
		}
	}
	group.Wait()
	if err := out.Encode(counts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// once sends one request. It returns the answer's status and how long it says to wait.
func once(ctx context.Context, client *http.Client, url string) (answer string, wait time.Duration) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error(), time.Second
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error(), time.Second
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil {
		return resp.Status, 0
	}
	return resp.Status, time.Duration(seconds) * time.Second
}
