// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// collector is an OpenTelemetry collector for one component.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer
	// config is the path of a TracingConfiguration for the component.
	config string

	mu    sync.Mutex
	spans []*tracepb.Span
}

// startCollector starts one. The component is to record no traces but those that it is asked for.
func startCollector(t *testing.T) *collector {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{config: filepath.Join(t.TempDir(), "tracing.yaml")}
	text := fmt.Sprintf("apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: %q\n", lis.Addr())
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(server, c)
	served := make(chan error)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return c
}

// Export implements TraceServiceServer.
func (c *collector) Export(_ context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

// span waits for a span of a trace by the beginning of its name. It must be below another span:
// the one with the ID below, or one of this component that is. API servers have spans for their
// filters in between. It returns its ID and its attributes.
func (c *collector) span(t *testing.T, trace, name, below string) (id string, attributes map[string]string) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "the span "+name, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		parents, seen := map[string]string{}, []string{}
		for _, s := range c.spans {
			if hex.EncodeToString(s.GetTraceId()) == trace {
				parents[hex.EncodeToString(s.GetSpanId())] = hex.EncodeToString(s.GetParentSpanId())
				seen = append(seen, fmt.Sprintf("%s (%x below %x)", s.GetName(), s.GetSpanId(), s.GetParentSpanId()))
			}
		}
		for _, s := range c.spans {
			id = hex.EncodeToString(s.GetSpanId())
			if parents[id] == "" || !strings.HasPrefix(s.GetName(), name) {
				continue
			}
			above := parents[id]
			for above != below && above != "" {
				above = parents[above]
			}
			if above == below {
				attributes = map[string]string{}
				for _, a := range s.GetAttributes() {
					attributes[a.GetKey()] = a.GetValue().GetStringValue()
				}
				return nil
			}
		}
		return fmt.Errorf("not below %s; the trace has %q", below, seen)
	})
	return id, attributes
}

// TestTrace sends a request with a trace through the hub to a replica without an agent of the
// cluster. The trace then has spans of the hub, of this replica, of the one with the agent, of its
// connection through the tunnel, and of the cluster, each below the one before.
func TestTrace(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 2*caseTimeout)
	const name = "traced"
	collectors := map[string]*collector{}
	for _, component := range []string{"hub", "a", "b", "cluster"} {
		collectors[component] = startCollector(t)
	}
	start := func(component string) *lab.Cluster {
		c, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{
			Name: "traced-" + component, NoControllerManager: true, NoKwok: true,
			ExtraAPIServerArgs: []string{"--tracing-config-file=" + collectors[component].config},
		})
		if err != nil {
			t.Fatal(err)
		}
		stopAfter(t, c)
		return c
	}
	hub, c := start("hub"), start("cluster")
	replica := func(id string) *lab.Gateway {
		g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
			Name: "gateway-traced-" + id, Hub: hub, Binary: shared.binary, Verbosity: shared.verbosity,
			ExtraArgs: []string{"--peer-advertise-address=127.0.0.1", "--peer-bind-address=127.0.0.1", "--peer-port=0", "--tracing-config-file=" + collectors[id].config},
		})
		if err != nil {
			t.Fatal(err)
		}
		stopAfter(t, g)
		return g
	}
	a, b := replica("a"), replica("b")
	if err := a.RegisterAPIService(ctx); err != nil {
		t.Fatal(err)
	}
	// API servers continue the traces of administrators only, so the gateway is one in the cluster.
	register(ctx, t, hub, lab.SecretOptions{Name: name, Tunnel: true, CredentialType: string(v1alpha1.CredentialTypeX509), Data: map[string][]byte{
		"endpoint": []byte(c.Endpoint()), "ca.crt": c.CAPEM(), "tls.crt": c.AdminCertPEM(), "tls.key": c.AdminKeyPEM(),
	}})
	agent, err := b.StartAgent(ctx, name, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Kill() })

	config := a.RESTConfig(lab.ViaHub)
	path := gatewayPath + "/" + name + "/proxy/api/v1/namespaces"
	labtest.Within(t, labtest.Timeout, "the other replica to be known", func() error {
		return wantCode(ask(ctx, t, config, http.MethodGet, path), http.StatusOK)
	})
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := rest.CopyConfig(config)
	traced.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			r.Header.Set("Traceparent", "00-"+trace+"-"+caller+"-01")
			return next.RoundTrip(r)
		})
	})
	// It is the first watch, which has a new connection.
	if err := wantCode(ask(ctx, t, traced, http.MethodGet, path+"?watch=1&timeoutSeconds=1"), http.StatusOK); err != nil {
		t.Fatal(err)
	}

	const proxied, request = "GET /apis/cluster.core.oam.dev/v1alpha1/clustergateways/{:name}/proxy", "Request to the managed cluster"
	inHub, _ := collectors["hub"].span(t, trace, proxied, caller)
	toGateway, _ := collectors["hub"].span(t, trace, "HTTP GET", inHub)
	inA, _ := collectors["a"].span(t, trace, proxied, toGateway)
	toReplica, _ := collectors["a"].span(t, trace, request, inA)
	inB, _ := collectors["b"].span(t, trace, "Request of another replica", toReplica)
	toCluster, attributes := collectors["b"].span(t, trace, request, inB)
	if attributes["cluster"] != name || attributes["route"] != "tunnel" || attributes["verb"] != "watch" || attributes["resource"] != "namespaces" {
		t.Errorf("the request to the cluster has the attributes %v", attributes)
	}
	_, attributes = collectors["b"].span(t, trace, "Connect to the managed cluster", toCluster)
	if attributes["cluster"] != name || attributes["route"] != "tunnel" || attributes["agent"] == "" || attributes["result"] != "success" {
		t.Errorf("the connection has the attributes %v", attributes)
	}
	collectors["cluster"].span(t, trace, "GET /api/v1/namespaces", toCluster)
}
