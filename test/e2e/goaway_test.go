// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestWritesWhileConnectionsEnd writes to a cluster whose API server ends its connections all the
// time (--goaway-chance, which is at most 0.02). Without the gateway no write fails, so none fails
// on the gateway's own endpoint. None is carried out twice. Through the hub, the aggregation
// layer's own connection to the gateway is not affected.
func TestWritesWhileConnectionsEnd(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 2*caseTimeout) // the long form writes for seven minutes
	c, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{
		Name: "goaway", NoControllerManager: true, NoKwok: true, ExtraAPIServerArgs: []string{"--goaway-chance=0.02"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	g := shared.embedded
	if err := g.RegisterCluster(ctx, "goaway-direct", c, false); err != nil {
		t.Fatal(err)
	}
	if err := g.RegisterCluster(ctx, "goaway-tunnel", c, true); err != nil {
		t.Fatal(err)
	}
	if err := shared.external.RegisterCluster(ctx, "goaway-external", c, true); err != nil {
		t.Fatal(err)
	}
	agent, err := g.StartAgent(ctx, "goaway-tunnel", c)
	if err != nil {
		t.Fatal(err)
	}
	external, err := shared.startExternalAgent(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = agent.Kill(), external.Kill()
		for name, hub := range map[string]*lab.Cluster{"goaway-direct": shared.embeddedHub, "goaway-tunnel": shared.embeddedHub, "goaway-external": shared.externalHub} {
			_ = hub.DeleteSecret(context.Background(), name) // with the lab at the latest
		}
	})
	const enough = 200
	duration := 5 * time.Second
	if long() {
		duration = time.Minute
	}
	for _, route := range []struct {
		name   string
		config *rest.Config
	}{
		{"without-gateway", c.RESTConfig()},
		{"direct-own-endpoint", g.ClusterRESTConfig("goaway-direct", lab.ViaOwnEndpoint)},
		{"tunnel-own-endpoint", g.ClusterRESTConfig("goaway-tunnel", lab.ViaOwnEndpoint)},
		{"external-own-endpoint", shared.external.ClusterRESTConfig("goaway-external", lab.ViaOwnEndpoint)},
		{"external-hub", shared.external.ClusterRESTConfig("goaway-external", lab.ViaHub)},
		{"direct-hub", g.ClusterRESTConfig("goaway-direct", lab.ViaHub)},
		{"tunnel-hub", g.ClusterRESTConfig("goaway-tunnel", lab.ViaHub)},
	} {
		t.Run(route.name, func(t *testing.T) {
			r := write(ctx, t, c, route.config, "goaway-"+route.name, 20, duration, enough)
			if r.failed > 0 {
				t.Errorf("%d of %d writes failed: %v", r.failed, r.written+r.failed, r.first)
			}
			if r.written < enough {
				t.Errorf("only %d writes: too few to meet the end of connections", r.written)
			}
		})
	}
}

// TestWritesWhileAPIServersRestart writes to a cluster with two API servers behind one address, one
// of which is always about to be restarted gracefully. What a client without the gateway loses in
// the same run is the measure for all routes.
func TestWritesWhileAPIServersRestart(t *testing.T) {
	besideOthers(t)
	duration, writers := 15*time.Second, 4
	if long() {
		duration, writers = time.Minute, 20
	}
	const every = 10 * time.Second
	ctx := bounded(t, caseTimeout+duration)
	c, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "restarts", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	second, err := c.StartSecondAPIServer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	balancer := newBalancer(t, net.JoinHostPort(c.Address(), strconv.Itoa(c.Port())), second.Address())
	g := shared.embedded
	direct := lab.SecretOptions{Name: "restarts-direct", Data: map[string][]byte{
		"endpoint": []byte("https://" + balancer), "ca.crt": c.CAPEM(), "token": token(t, c, "cluster-gateway"),
	}}
	tunnel := direct
	tunnel.Name, tunnel.Tunnel = "restarts-tunnel", true
	register(ctx, t, shared.embeddedHub, direct)
	register(ctx, t, shared.embeddedHub, tunnel)
	waitKnown(t, g, direct.Name)
	waitKnown(t, g, tunnel.Name)
	agent, err := g.StartAgent(ctx, tunnel.Name, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Kill() })
	straight := c.RESTConfig()
	straight.Host = "https://" + balancer

	var writing, restarting errgroup.Group
	results := map[string]*written{}
	for name, config := range map[string]*rest.Config{
		"without-gateway":     straight,
		"direct-own-endpoint": g.ClusterRESTConfig(direct.Name, lab.ViaOwnEndpoint),
		"tunnel-own-endpoint": g.ClusterRESTConfig(tunnel.Name, lab.ViaOwnEndpoint),
		"direct-hub":          g.ClusterRESTConfig(direct.Name, lab.ViaHub),
		"tunnel-hub":          g.ClusterRESTConfig(tunnel.Name, lab.ViaHub),
	} {
		r := &written{}
		results[name] = r
		writing.Go(func() error {
			*r = write(ctx, t, c, config, "restarts-"+name, writers, duration, 0)
			return nil
		})
	}
	restarts, end := 0, time.Now().Add(duration)
	restarting.Go(func() error {
		for next := time.Now().Add(every / 2); next.Before(end); next = next.Add(every) {
			time.Sleep(time.Until(next)) // the rhythm itself is tested
			var err error
			if restarts++; restarts%2 == 1 {
				err = second.Restart(ctx)
			} else if err = c.StopAPIServer(); err == nil {
				err = c.StartAPIServer(ctx)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(restarting.Wait(), writing.Wait()); err != nil {
		t.Fatal(err)
	}
	allowed := results["without-gateway"].failed
	t.Logf("%d restarts", restarts)
	for name, r := range results {
		if r.failed > allowed {
			t.Errorf("%s: %d of %d writes failed, and %d without the gateway: %v", name, r.failed, r.written+r.failed, allowed, r.first)
		}
		if r.written < 100 {
			t.Errorf("%s: only %d writes", name, r.written)
		}
	}
}

// written is what came of some writes.
type written struct {
	written, failed int64
	first           error // of the failures
}

// write creates objects with generated names, by some workers, for this time, and up to five times
// as long if fewer than least were written. It fails the test if a write was carried out twice, or
// if one was reported as done and was not.
func write(ctx context.Context, t *testing.T, c *lab.Cluster, config *rest.Config, namespace string, workers int, duration time.Duration, least int64) (result written) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Error(err)
		return result
	}
	if err := c.EnsureNamespace(ctx, namespace); err != nil {
		t.Error(err)
		return result
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	began := time.Now()
	goesOn := func() bool {
		mu.Lock()
		defer mu.Unlock()
		took := time.Since(began)
		return took < duration || result.written < least && took < 5*duration
	}
	for range workers {
		group.Go(func() {
			for goesOn() {
				o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "write-"}, Data: map[string]string{"key": "value"}}
				_, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, o, metav1.CreateOptions{})
				mu.Lock()
				if err == nil {
					result.written++
				} else if result.failed++; result.first == nil {
					result.first = err
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	list, err := c.Client().CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Error(err)
		return result
	}
	t.Logf("%s: %d writes, %d failed, %d objects; first failure: %v", namespace, result.written, result.failed, len(list.Items), result.first)
	if n := int64(len(list.Items)); n < result.written || n > result.written+result.failed {
		t.Errorf("%s: %d writes succeeded, %d failed, and there are %d objects", namespace, result.written, result.failed, n)
	}
	return result
}

// newBalancer returns the address of a TCP load balancer that sends each connection to one of the
// servers, in turn, and to another one if that server does not accept it. It is closed when the
// test ends.
func newBalancer(t *testing.T, servers ...string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); group.Wait() })
	group.Go(func() {
		for turn := 0; ; turn++ {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer client.Close()
				stop := context.AfterFunc(t.Context(), func() { _ = client.Close() })
				defer stop()
				for i := range servers {
					server, err := net.Dial("tcp", servers[(turn+i)%len(servers)])
					if err != nil {
						continue
					}
					defer server.Close()
					var both sync.WaitGroup
					for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
						both.Go(func() {
							_, _ = io.Copy(way[0], way[1]) // its end is the end of this connection
							_ = way[0].Close()
							_ = way[1].Close()
						})
					}
					both.Wait()
					return
				}
			})
		}
	})
	return listener.Addr().String()
}
