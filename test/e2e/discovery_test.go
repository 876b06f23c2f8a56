// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"
)

// gatewayPath is the path of the ClusterGateways.
const gatewayPath = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways"

func testVersion(ctx context.Context, t *testing.T, s *site) {
	mustContain(t, s.kubectl.run(ctx, t, "version"), "Server Version: v1.37.2")
}

func testAPIResources(ctx context.Context, t *testing.T, s *site) {
	out := s.kubectl.run(ctx, t, "api-resources", "--no-headers")
	mustContain(t, out, "configmaps", "deployments", "apps/v1", "rolebindings")
	if strings.Contains(out, "clustergateways") {
		t.Errorf("the hub answered instead of the cluster:\n%s", out)
	}
	mustContain(t, s.kubectl.run(ctx, t, "api-versions"), "apps/v1")
}

func testExplain(ctx context.Context, t *testing.T, s *site) {
	mustContain(t, s.kubectl.run(ctx, t, "explain", "pod.spec.containers.image"), "KIND:", "Pod", "FIELD:", "image <string>")
}

func testAuth(ctx context.Context, t *testing.T, s *site) {
	if out := s.kubectl.run(ctx, t, "auth", "can-i", "delete", "pods"); strings.TrimSpace(out) != "yes" {
		t.Errorf("kubectl auth can-i printed %q", out)
	}
	// The cluster does not know the hub's administrator, who sends the request. It sees the credential
	// of the Secret.
	mustContain(t, s.kubectl.run(ctx, t, "auth", "whoami"), "system:serviceaccount:cluster-gateway-system:cluster-gateway")
}

func testTopLevelPaths(ctx context.Context, t *testing.T, s *site) {
	for _, path := range []string{"/healthz", "/readyz/ping", "/version", "/openapi/v3", "/openapi/v2", "/api", "/apis", "/metrics"} {
		raw := s.kubectl.run(ctx, t, "get", "--raw", path)
		byRoute, err := get(ctx, s.client, path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if path == "/metrics" { // changes all the time
			mustContain(t, raw, "apiserver_request_total")
			continue
		}
		direct, err := get(ctx, s.target.Client(), path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if len(direct) == 0 || !bytes.Equal(byRoute, direct) || raw != string(direct) {
			t.Errorf("%s: the cluster returns %q, through client-go %q, through kubectl %q", path, shorten(string(direct)), shorten(string(byRoute)), shorten(raw))
		}
	}
}

func get(ctx context.Context, client kubernetes.Interface, path string) ([]byte, error) {
	return client.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
}
