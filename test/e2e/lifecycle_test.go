// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestDrain checks that a stopped gateway completes the requests in flight, ends its watches
// cleanly, and exits with success.
func TestDrain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-drain", Hub: shared.embeddedHub, Binary: shared.binary, TunnelOff: true, Verbosity: 2,
		ExtraArgs: []string{"--proxy-shutdown-grace-period=1s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Each client has its own connection, so that they do not affect each other.
	requests, watches := newRawClient(t, g.ClusterRESTConfig("direct", lab.ViaOwnEndpoint)), newRawClient(t, g.ClusterRESTConfig("direct", lab.ViaOwnEndpoint))
	requests.mustGet(t, namespacePath)

	body, finish := io.Pipe()
	created := make(chan error, 1)
	go func() { created <- requests.create(ctx, body) }()
	// Once the gateway reads the body, the request is in flight.
	if _, err := io.WriteString(finish, `{"apiVersion":"v1","kind":"ConfigMap",`); err != nil {
		t.Fatal(err)
	}
	watch, err := watches.stream(ctx, "/api/v1/namespaces?watch=1")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	events := bufio.NewReader(watch)
	if _, err := events.ReadBytes('\n'); err != nil {
		t.Fatalf("the first event of the watch: %v", err)
	}
	eventually(t, labtest.Timeout, func(ctx context.Context) error {
		n, err := g.Metric(ctx, "cluster_gateway_requests_in_flight", `cluster="direct"`)
		if err == nil && n < 2 {
			err = fmt.Errorf("%v requests are in flight", n)
		}
		return err
	})

	if err := g.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, events); err != nil {
		t.Errorf("the watch did not end cleanly: %v", err)
	}
	if _, err := io.WriteString(finish, `"metadata":{"generateName":"drain-"}}`); err != nil {
		t.Error(err)
	}
	if err := finish.Close(); err != nil {
		t.Error(err)
	}
	if err := <-created; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	select {
	case <-g.Done():
		if err := g.Err(); err != nil {
			t.Errorf("the gateway exited with %v", err)
		}
	case <-ctx.Done():
		t.Error("the gateway did not stop")
	}
}

// create creates a ConfigMap as a dry run.
func (c *rawClient) create(ctx context.Context, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/api/v1/namespaces/default/configmaps?dryRun=All", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusCreated {
		err = errors.Join(err, fmt.Errorf("%s: %s", resp.Status, answer))
	}
	return err
}

// stream returns the body of a response that does not end.
func (c *rawClient) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, errors.New(resp.Status)
	}
	return resp.Body, nil
}

// TestNotReadyWithoutClusters checks that a gateway which cannot read the clusters is alive, is not
// ready, and reports why.
func TestNotReadyWithoutClusters(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Its ServiceAccount may read only the Secrets of its own namespace, so it gets its certificates
	// from one of them.
	pair, err := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets).Get(ctx, pki.GatewayServingSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-blind", Hub: shared.embeddedHub, Binary: shared.binary, TunnelOff: true, ReadyPath: "/livez", ExtraArgs: []string{
			"--secret-namespace=kube-public",
			"--tls-cert-file=" + writeFile(t, "tls.crt", pair.Data[corev1.TLSCertKey]), "--tls-private-key-file=" + writeFile(t, "tls.key", pair.Data[corev1.TLSPrivateKeyKey]),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	client := newRawClient(t, g.RESTConfig(lab.ViaOwnEndpoint))
	// A gateway that is not ready may not know yet whom the hub trusts.
	labtest.Within(t, labtest.Timeout, "the reason why it is not ready", func() error {
		a, err := client.get(ctx, "/readyz?verbose")
		if err != nil || a.code != http.StatusInternalServerError || !strings.Contains(a.body, "[-]clusters-synced failed") {
			return fmt.Errorf("/readyz: %d %s (%w)", a.code, a.body, err)
		}
		return nil
	})
}

// TestFaultsAtStart checks that a gateway which cannot start names the flag, the fault and the
// remedy.
func TestFaultsAtStart(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(shared.embedded.Endpoint(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	tunnelPort := strconv.Itoa(shared.embedded.TunnelPort())
	hub := shared.embeddedHub
	as := func(name, token string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := lab.WriteKubeconfig(path, hub.Endpoint(), hub.CAPEM(), &clientcmdapi.AuthInfo{Token: token}); err != nil {
			t.Fatal(err)
		}
		return path
	}
	nobody, err := hub.ServiceAccountToken(ctx, "default", "nobody", "")
	if err != nil {
		t.Fatal(err)
	}
	stranger, powerless := as("stranger", "nonsense"), as("powerless", nobody)
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"the port is in use", []string{"--kubeconfig=" + hub.Kubeconfig(), "--tunnel-mode=off", "--bind-address=127.0.0.1", "--secure-port=" + port},
			[]string{"--bind-address 127.0.0.1, --secure-port " + port + ": ", "address already in use"}},
		{"the tunnel's port is in use", []string{"--kubeconfig=" + hub.Kubeconfig(), "--tunnel-port=" + tunnelPort},
			[]string{"--tunnel-bind-address 0.0.0.0, --tunnel-port " + tunnelPort + ": ", "address already in use"}},
		{"the hub does not know it", []string{"--kubeconfig=" + stranger, "--tunnel-mode=off"}, []string{"--kubeconfig " + stranger + ": the hub does not accept the credential"}},
		{"it may do nothing on the hub", []string{"--kubeconfig=" + powerless, "--tunnel-mode=off"},
			[]string{"--kubeconfig " + powerless, "the hub does not allow what the gateway needs; apply manifests/gateway/rbac.yaml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := exec.CommandContext(ctx, shared.binary, c.args...).CombinedOutput()
			if code := (*exec.ExitError)(nil); !errors.As(err, &code) || code.ExitCode() != 1 {
				t.Errorf("it exited with %v", err)
			}
			for _, text := range c.want {
				if !strings.Contains(string(out), text) {
					t.Errorf("its output does not contain %q:\n%s", text, out)
				}
			}
		})
	}
}
