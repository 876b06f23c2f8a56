// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// soakVariable names the environment variable with the duration of the load; make soak sets it.
const soakVariable = "SOAK_DURATION"

// soakShort is long enough for two rotations of each kind: CAs are replaced every 45 to 48 seconds.
const soakShort = 110 * time.Second

// TestSoak runs steady load over the tunnel while everything rotates, with lifetimes of a minute
// and less. No request may fail.
func TestSoak(t *testing.T) {
	exclusively(t, &shared.hubLock)
	duration := soakShort
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), duration+8*time.Minute)
	defer cancel()
	s := beginRenewing(ctx, t, 40*time.Second,
		"--tunnel-ca-lifetime=1m", "--tunnel-cert-lifetime=40s", "--tunnel-agent-cert-lifetime=40s",
		"--serving-ca-lifetime=1m", "--serving-cert-lifetime=40s")
	rolled := agents(t)
	agentBootstrap(ctx, t, registerArgs("--certificate-lifetime", "40s")...)
	shortenGrace(ctx, t)
	if _, err := shared.edge.RunPod(ctx, "default", "soak"); err != nil {
		t.Fatal(err)
	}

	l := &load{site: s, t: t, seen: map[string]map[string]bool{}}
	running, stop := context.WithTimeout(ctx, duration)
	defer stop()
	began := time.Now()
	l.run(running)
	for _, failure := range l.failures {
		t.Error(failure)
	}
	t.Logf("%s: %d requests, %d events received in %d watches, %d execs, %d failures; the agent was restarted %d times",
		time.Since(began).Round(time.Second), l.requests.Load(), l.events.Load(), l.watches.Load(), l.execs.Load(), l.failed.Load(), rolled.Rolls())
	for _, kind := range kinds {
		changes := len(l.seen[kind]) - 1
		t.Logf("%d rotations of the %s", changes, kind)
		if changes < 2 {
			t.Errorf("only %d rotations of the %s", changes, kind)
		}
	}
	if rolled.Rolls() < 2 || l.requests.Load() < 1000 || l.execs.Load() < 3 || l.events.Load() < 50 {
		t.Error("there were too few requests")
	}
}

// shortenGrace shortens the grace period of replaced agents, so that connections which are still
// open then are cut within the test. It is longer than an exec or a watch of this test.
func shortenGrace(ctx context.Context, t *testing.T) {
	t.Helper()
	patch := []byte(`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":20}}}}`)
	deployments := shared.edge.Client().AppsV1().Deployments(agentNamespace)
	if _, err := deployments.Patch(ctx, agentName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// load is the load that runs while everything rotates.
type load struct {
	*site
	t *testing.T

	requests, events, watches, execs, failed atomic.Int64

	mu       sync.Mutex
	failures []string
	// seen contains the versions of each kind of thing that rotates.
	seen map[string]map[string]bool
}

// What rotates.
const (
	kindToken         = "token"
	kindAgent         = "agent's certificate"
	kindTunnelServing = "tunnel's serving certificate"
	kindTunnelCA      = "tunnel's CA"
	kindAgentsCA      = "CA of agents"
	kindServing       = "serving certificate"
	kindCA            = "serving CA"
	kindBundle        = "APIService's CA bundle"
)

var kinds = []string{kindToken, kindAgent, kindTunnelServing, kindTunnelCA, kindAgentsCA, kindServing, kindCA, kindBundle}

// pace is the pause between two requests of a worker.
const pace = 40 * time.Millisecond

func (l *load) run(ctx context.Context) {
	var workers sync.WaitGroup
	for _, via := range []lab.Via{lab.ViaHub, lab.ViaHub, lab.ViaHub, lab.ViaOwnEndpoint} {
		client, base := l.client(via)
		workers.Go(func() { l.repeat(ctx, "GET by "+string(via), func() error { return l.get(ctx, client, base) }) })
	}
	workers.Go(func() { l.repeat(ctx, "GET over a new connection", func() error { return l.connect(ctx) }) })
	written := make(chan int, 1<<16)
	workers.Go(func() { defer close(written); l.write(ctx, written) })
	workers.Go(func() { l.watch(ctx, written) })
	workers.Go(func() { l.exec(ctx) })
	workers.Go(func() { l.observe(ctx) })
	workers.Wait()
}

// fail records a failure, unless the load has ended.
func (l *load) fail(ctx context.Context, what string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) < 20 {
		l.failures = append(l.failures, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), what, err))
	}
}

func (l *load) repeat(ctx context.Context, what string, do func() error) {
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			l.requests.Add(1)
			l.fail(ctx, what, do())
		}
	}
}

// client returns a client that sends each request once. Only Go's own HTTP client repeats a
// request, if the server has not read it.
func (l *load) client(via lab.Via) (client *http.Client, base string) {
	config := l.ClusterRESTConfig(clusterName, via)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		l.t.Error(err)
	}
	return client, config.Host
}

func (l *load) get(ctx context.Context, client *http.Client, base string) error {
	_, err := send(ctx, client, http.MethodGet, base+"/api/v1/namespaces/default", nil)
	return err
}

func send(ctx context.Context, client *http.Client, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	} else if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return answer, nil
}

// connect opens a new connection to the gateway's own endpoint, as a client that trusts the CAs of
// the APIService.
func (l *load) connect(ctx context.Context) error {
	services, err := l.apiServices()
	if err != nil {
		return err
	}
	service, err := services.Get(ctx, apiServiceName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("the APIService: %w", err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(service.Spec.CABundle)
	pair, err := tls.X509KeyPair(l.hub.AdminCertPEM(), l.hub.AdminKeyPEM())
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: trusted, ServerName: "cluster-gateway.cluster-gateway-system.svc", Certificates: []tls.Certificate{pair},
	}}
	defer transport.CloseIdleConnections()
	return l.get(ctx, &http.Client{Transport: transport}, l.ClusterRESTConfig(clusterName, lab.ViaOwnEndpoint).Host)
}

const counter = "/api/v1/namespaces/default/configmaps/soak"

// write counts in a ConfigMap, with requests that must not be repeated.
func (l *load) write(ctx context.Context, written chan<- int) {
	client, base := l.client(lab.ViaHub)
	body := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"soak"},"data":{"count":"0"}}`)
	if _, err := send(ctx, client, http.MethodPost, base+strings.TrimSuffix(counter, "/soak"), body); err != nil {
		l.fail(ctx, "POST", err)
		return
	}
	written <- 0
	count := 0
	l.repeat(ctx, "PATCH", func() error {
		count++
		_, err := send(ctx, client, http.MethodPatch, base+counter, fmt.Appendf(nil, `{"data":{"count":"%d"}}`, count))
		if err == nil && ctx.Err() == nil {
			written <- count
		}
		return err
	})
}

// watch expects each count once, in order, over as many watches as needed. Each watch must end
// cleanly.
func (l *load) watch(ctx context.Context, written <-chan int) {
	client, base := l.client(lab.ViaHub)
	base += strings.TrimSuffix(counter, "/soak") + "?fieldSelector=metadata.name%3Dsoak&watch=true&resourceVersion="
	select {
	case <-written:
	case <-ctx.Done():
		return
	}
	answer, err := send(ctx, client, http.MethodGet, strings.Split(base, "&watch")[0], nil)
	if err != nil {
		l.fail(ctx, "LIST", err)
		return
	}
	var list struct {
		Metadata struct{ ResourceVersion string }
		Items    []struct{ Data map[string]string }
	}
	if err := json.Unmarshal(answer, &list); err != nil || len(list.Items) != 1 {
		l.fail(ctx, "LIST", fmt.Errorf("%s: %w", answer, err))
		return
	}
	var last int
	_, _ = fmt.Sscan(list.Items[0].Data["count"], &last) // the first event then does not fit
	for version := list.Metadata.ResourceVersion; ctx.Err() == nil; {
		l.watches.Add(1)
		err := l.watchOnce(ctx, client, base, &version, &last)
		l.fail(ctx, "WATCH", err)
		if err != nil {
			return
		}
	}
}

func (l *load) watchOnce(ctx context.Context, client *http.Client, base string, version *string, last *int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+*version, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	decoder := json.NewDecoder(resp.Body)
	for {
		var event struct {
			Type   string
			Object struct {
				Metadata struct{ ResourceVersion string }
				Data     map[string]string
			}
		}
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			return nil // as an API server ends it
		} else if err != nil {
			return fmt.Errorf("it ended with an error: %w", err)
		}
		if event.Type != "MODIFIED" || event.Object.Data["count"] != fmt.Sprint(*last+1) {
			return fmt.Errorf("a missing or superfluous event: %+v after %d", event, *last)
		}
		l.events.Add(1)
		*last++
		*version = event.Object.Metadata.ResourceVersion
	}
}

// exec runs one command after another in a Pod. Each prints something for some seconds.
func (l *load) exec(ctx context.Context) {
	config := l.ClusterRESTConfig(clusterName, lab.ViaHub)
	path := l.t.TempDir() + "/kubeconfig"
	err := lab.WriteKubeconfig(path, config.Host, config.CAData, &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData})
	if err != nil {
		l.t.Error(err)
		return
	}
	const script, want = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 1; done", "1\n2\n3\n4\n5\n6\n7\n8\n"
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, "--kubeconfig", path, "exec", "soak", "--", "sh", "-c", script)
		cmd.WaitDelay = 5 * time.Second
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		err := cmd.Run()
		if err == nil && out.String() != want {
			err = fmt.Errorf("it printed %q", out.String())
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, &stderr)
		}
		l.fail(ctx, "EXEC", err)
		l.execs.Add(1)
	}
}

// observe counts the versions of everything that rotates.
func (l *load) observe(ctx context.Context) {
	services, err := l.apiServices()
	if err != nil {
		l.t.Error(err)
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		for kind, from := range map[string]struct{ secret, key string }{
			kindToken: {clusterName, "token"}, kindTunnelServing: {pki.ServingSecret, "tls.crt"}, kindTunnelCA: {pki.CASecret, "tls.crt"},
			kindAgentsCA: {pki.AgentsCASecret, "tls.crt"}, kindServing: {pki.GatewayServingSecret, "tls.crt"}, kindCA: {pki.GatewayCASecret, "tls.crt"},
		} {
			if secret, err := l.hubSecret(ctx, from.secret); err == nil {
				l.saw(kind, secret.Data[from.key])
			}
		}
		if secret, err := agentSecret(ctx); err == nil {
			l.saw(kindAgent, secret.Data["tls.crt"])
		}
		if service, err := services.Get(ctx, apiServiceName, metav1.GetOptions{}); err == nil {
			l.saw(kindBundle, service.Spec.CABundle)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (l *load) saw(kind string, version []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[kind] == nil {
		l.seen[kind] = map[string]bool{}
	}
	l.seen[kind][string(version)] = true
}
