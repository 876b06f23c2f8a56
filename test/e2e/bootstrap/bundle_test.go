// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

// TestSupportBundle collects a bundle from a hub with a cluster whose agent runs, and one whose API
// server is down.
func TestSupportBundle(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	kubelet(ctx, t)
	must(ctx, t, edgeArgs("--wait", "2m")...)
	if err := shared.nearby.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shared.nearby.StartAPIServer(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	_, said, err := invoke(ctx, bootstrap.Config{}, "support-bundle", "--out", path)
	if err != nil {
		t.Fatalf("support-bundle: %v\n%s", err, said)
	}
	t.Log(said)
	files := unpack(t, path)
	for name, wants := range map[string][]string{
		"index.yaml":                      {"missing: []", "hub: v1."},
		"doctor.yaml":                     {"broken: dial", "cluster: edge-1", "cluster: near-1"},
		"hub/clustergateways.yaml":        {"name: edge-1", "name: near-1", shared.nearby.Endpoint()},
		"hub/secrets.yaml":                {"name: edge-1", "- maintenance-token"},
		"hub/leases.yaml":                 {"name: cluster-gateway"},
		"hub/configmaps.yaml":             {"name: cluster-gateway-tunnel"},
		"hub/apiservice.yaml":             {"caBundle: "},
		"hub/events-clusters.yaml":        {"name: edge-1"},
		"gateways/localhost/version.json": {`"gitVersion"`},
		"gateways/localhost/readyz.txt":   {"readyz check passed"},
		"gateways/localhost/tunnels.json": {`"cluster":"edge-1"`},
		"gateways/localhost/metrics.txt":  {`cluster_gateway_ready{cluster="near-1"} `},
		"clusters/edge-1/agent.yaml":      {"kind: Deployment", "name: konnectivity-agent"},
		"hub/service.yaml":                {"externalName: localhost"},
		"hub/deployments.yaml":            nil, // the gateway of the lab is a process
	} {
		text, found := files[name]
		if !found {
			t.Errorf("there is no %s", name)
		}
		for _, want := range wants {
			if !strings.Contains(strings.ReplaceAll(text, `": "`, `":"`), want) {
				t.Errorf("%s has no %q:\n%.2000s", name, want, text)
			}
		}
	}
	noSecrets(ctx, t, files, said)
}

// noSecrets searches texts for what is secret on the hub.
func noSecrets(ctx context.Context, t *testing.T, files map[string]string, said string) {
	t.Helper()
	secrets, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	searched := 0
	for _, s := range secrets.Items {
		for _, key := range []string{"token", "maintenance-token", "tls.key"} {
			value := strings.TrimSpace(string(s.Data[key]))
			if value == "" {
				continue
			}
			searched++
			for _, part := range strings.Split(value, "\n") {
				if strings.HasPrefix(part, "-----") {
					continue
				}
				for name, text := range files {
					if strings.Contains(text+said, part) || strings.Contains(text+said, base64.RawStdEncoding.EncodeToString([]byte(part))) {
						t.Errorf("%s has the %s of Secret %s", name, key, s.Name)
					}
				}
			}
		}
	}
	if searched < 4 {
		t.Errorf("only %d secrets were found on the hub", searched)
	}
}

// unpack returns the files in a .tar.gz, without their folder.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	compressed, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(compressed); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		folder, name, found := strings.Cut(header.Name, "/")
		if folder != "bundle" || !found {
			t.Errorf("the archive has the file %s", header.Name)
		}
		files[name] = string(text)
	}
}
