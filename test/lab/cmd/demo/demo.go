// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// The names under which the clusters of the demo are registered.
const (
	nearby = "nearby"
	edge   = "edge-1"
)

// startTimeout bounds starting the lab, once its components are built.
const startTimeout = 3 * time.Minute

// hubKubeconfig is the kubeconfig of the hub's administrator.
const hubKubeconfig = "hub.kubeconfig"

type demo struct {
	out     io.Writer
	lab     *lab.Lab
	hub     *lab.Cluster
	nearby  *lab.Cluster
	edge    *lab.Cluster
	gateway *lab.Gateway
	// failed lists the failed steps.
	failed []string
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) start(ctx context.Context) error {
	d.say("== Components (built once, from their Go modules)")
	binaries, err := lab.FindBinaries(ctx, lab.BinariesOptions{Out: d.out})
	if err != nil {
		return err
	}
	if d.lab, err = lab.New(ctx, lab.Options{Binaries: binaries, Out: d.out, KeepLogs: func() bool { return len(d.failed) > 0 }}); err != nil {
		return err
	}
	d.say("\n== Building the gateway")
	binary, err := lab.BuildGateway(ctx, d.lab.Dir(), false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := d.startClusters(ctx); err != nil {
		return err
	}
	if err := d.startGateway(ctx, binary); err != nil {
		return err
	}
	return d.register(ctx)
}

func (d *demo) startClusters(ctx context.Context) error {
	d.say("\n== Starting three clusters: the hub, %q, and %q behind a firewall", nearby, edge)
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&d.hub, lab.ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true}},
		{&d.nearby, lab.ClusterOptions{Name: nearby}},
		{&d.edge, lab.ClusterOptions{Name: edge, Firewalled: true}},
	} {
		group.Go(func() (err error) {
			*c.into, err = d.lab.StartCluster(ctx, c.options)
			return err
		})
	}
	return group.Wait()
}

func (d *demo) startGateway(ctx context.Context, binary string) (err error) {
	d.say("\n== Starting the gateway, and registering it with the hub's aggregation layer")
	if d.gateway, err = d.lab.StartGateway(ctx, lab.GatewayOptions{Hub: d.hub, Binary: binary, AgentsOf: d.edge}); err != nil {
		return err
	}
	return d.gateway.RegisterAPIService(ctx)
}

func (d *demo) tour(ctx context.Context) {
	hub := hubKubeconfig
	d.say("\n== The clusters, as the hub's API shows them")
	d.kubectl(ctx, hub, "get", "clustergateways", "-o", "wide")
	d.kubectl(ctx, hub, "get", "--raw", "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/"+edge+"/proxy/version")
	d.showFirewall(ctx)
	for _, name := range []string{nearby, edge} {
		d.say("\n== kubectl on %q", name)
		d.tourOf(ctx, name)
	}
}

func (d *demo) writeHubKubeconfig() error {
	return lab.WriteKubeconfig(d.path(hubKubeconfig), d.hub.Endpoint(), d.hub.CAPEM(),
		&clientcmdapi.AuthInfo{ClientCertificateData: d.hub.AdminCertPEM(), ClientKeyData: d.hub.AdminKeyPEM()})
}

// path returns the path of a file of the demo.
func (d *demo) path(name string) string { return filepath.Join(d.lab.Dir(), name) }

// showFirewall shows that the firewalled cluster can only be reached through the connection that
// its agent opened.
func (d *demo) showFirewall(ctx context.Context) {
	d.say("\n== Is %q really firewalled? Connecting to its API server from here:", edge)
	if !d.edge.Firewalled() {
		d.say("skipped: %v", d.edge.FirewallSkipped())
		return
	}
	address := strings.TrimPrefix(d.edge.Endpoint(), "https://")
	dialer := net.Dialer{Timeout: 2 * time.Second}
	d.say("$ connect %s", address)
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close() // it should not exist
		d.fail("the firewall", errors.New("a direct connection to the firewalled cluster succeeded"))
		return
	}
	d.say("%v", err)
}

func (d *demo) tourOf(ctx context.Context, name string) {
	kubeconfig := name + ".kubeconfig"
	if err := d.bootstrap(ctx, "kubeconfig", name, "-o", d.path(kubeconfig)); err != nil {
		return
	}
	manifest := "hello-" + name + ".yaml"
	if err := os.WriteFile(d.path(manifest), fmt.Appendf(nil, helloManifest, name), 0o600); err != nil {
		d.fail("write a manifest", err)
		return
	}
	if err := d.cluster(name).AppendLog("hello from " + name); err != nil {
		d.fail("write a log", err)
	}
	d.kubectl(ctx, kubeconfig, "get", "nodes")
	d.kubectl(ctx, kubeconfig, "apply", "--server-side", "-f", d.path(manifest))
	d.kubectl(ctx, kubeconfig, "wait", "--for=condition=Ready", "--timeout=60s", "pod/hello")
	d.kubectl(ctx, kubeconfig, "logs", "hello")
	d.kubectl(ctx, kubeconfig, "exec", "hello", "--", "sh", "-c", "echo 6 times 7 is $((6*7)), computed in the pod")
	d.portForward(ctx, kubeconfig)
}

func (d *demo) cluster(name string) *lab.Cluster {
	if name == edge {
		return d.edge
	}
	return d.nearby
}

// helloManifest is a ConfigMap and a Pod on the lab's only Node.
const helloManifest = `apiVersion: v1
kind: ConfigMap
metadata:
  name: hello
  namespace: default
data:
  cluster: %q
---
apiVersion: v1
kind: Pod
metadata:
  name: hello
  namespace: default
spec:
  nodeName: ` + lab.NodeName + `
  containers:
  - name: hello
    image: registry.invalid/hello
`

func (d *demo) verdict(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted")
	}
	if len(d.failed) == 0 {
		d.say("\n== Every step succeeded.")
		return nil
	}
	return fmt.Errorf("%d steps failed:\n  %s\nlogs: %s", len(d.failed), strings.Join(d.failed, "\n  "), d.lab.Dir())
}

// handOver prints commands to try, and waits for Ctrl-C if the demo runs on a terminal.
func (d *demo) handOver(ctx context.Context, interactive bool) {
	if !interactive || ctx.Err() != nil {
		return
	}
	d.say("\n== To continue in another terminal:\n")
	d.say("  export PATH=%s:$PATH", filepath.Dir(d.lab.Binaries().Kubectl))
	d.say("  kubectl --kubeconfig %s get clustergateways", d.path(hubKubeconfig))
	for _, name := range []string{nearby, edge} {
		d.say("  kubectl --kubeconfig %s get pods -A", d.path(name+".kubeconfig"))
	}
	d.say("\nCtrl-C stops and removes everything.")
	<-ctx.Done()
	d.say("\n== Stopping")
}

func (d *demo) close() error {
	if d.lab == nil {
		return nil
	}
	return d.lab.Close()
}

func (d *demo) fail(step string, err error) {
	d.failed = append(d.failed, fmt.Sprintf("%s: %v", step, err))
	d.say("FAILED: %v", err)
}
