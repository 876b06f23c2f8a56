// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	ctx := bounded(t, caseTimeout)
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
	agent, err := g.StartAgent(ctx, "goaway-tunnel", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Kill()
		for _, name := range []string{"goaway-direct", "goaway-tunnel"} {
			_ = shared.embeddedHub.DeleteSecret(context.Background(), name) // with the lab at the latest
		}
	})
	const writers, duration = 20, 5 * time.Second
	for _, route := range []struct {
		name   string
		config *rest.Config
	}{
		{"without-gateway", c.RESTConfig()},
		{"direct-own-endpoint", g.ClusterRESTConfig("goaway-direct", lab.ViaOwnEndpoint)},
		{"tunnel-own-endpoint", g.ClusterRESTConfig("goaway-tunnel", lab.ViaOwnEndpoint)},
		{"direct-hub", g.ClusterRESTConfig("goaway-direct", lab.ViaHub)},
		{"tunnel-hub", g.ClusterRESTConfig("goaway-tunnel", lab.ViaHub)},
	} {
		t.Run(route.name, func(t *testing.T) {
			config := rest.CopyConfig(route.config)
			config.QPS = -1
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			namespace := "goaway-" + route.name
			if _, err := c.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			var written, failed atomic.Int64
			var first atomic.Value
			var group sync.WaitGroup
			end := time.Now().Add(duration)
			for range writers {
				group.Go(func() {
					for time.Now().Before(end) {
						o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "write-"}, Data: map[string]string{"key": "value"}}
						if _, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, o, metav1.CreateOptions{}); err != nil {
							failed.Add(1)
							first.CompareAndSwap(nil, fmt.Sprint(err))
							continue
						}
						written.Add(1)
					}
				})
			}
			group.Wait()
			list, err := c.Client().CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d writes, %d failed, %d objects; first failure: %v", written.Load(), failed.Load(), len(list.Items), first.Load())
			if failed.Load() > 0 {
				t.Errorf("%d of %d writes failed: %v", failed.Load(), written.Load()+failed.Load(), first.Load())
			}
			if n := int64(len(list.Items)); n != written.Load() {
				t.Errorf("%d writes succeeded, and there are %d objects", written.Load(), n)
			}
			if written.Load() < 200 {
				t.Errorf("only %d writes: too few to meet the end of connections", written.Load())
			}
		})
	}
}
