// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// effectTimeout bounds how long a change of a Secret takes to have an effect on a busy machine. The
// goal is one second; the tests log how long it took.
const effectTimeout = labtest.Timeout

// load repeatedly asks a cluster, without a pause, which user the gateway is there, until it is
// stopped.
type load struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu       sync.Mutex
	requests int
	failures []string
	// user is the user that the cluster reports, and since when. former are the users that it reported
	// before: a request that begins after since must not be answered as one of them.
	user   string
	since  time.Time
	former map[string]bool
}

// startLoad starts several workers at each endpoint.
func startLoad(ctx context.Context, t *testing.T, g *lab.Gateway, cluster string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, former: map[string]bool{}}
	for _, door := range doors() {
		config := g.ClusterRESTConfig(cluster, door)
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			l.group.Go(func() {
				for ctx.Err() == nil {
					l.ask(ctx, client, config.Host)
				}
			})
		}
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.cancel()
	l.group.Wait()
}

func (l *load) ask(ctx context.Context, client *http.Client, host string) {
	began := time.Now()
	user, err := whoAmI(ctx, client, host)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	switch {
	case err != nil:
		l.failures = append(l.failures, err.Error())
	case user == l.user || began.Before(l.since):
	case l.former[user]:
		l.failures = append(l.failures, fmt.Sprintf("a request was still sent as %s, although it began %s after the first one as %s", user, began.Sub(l.since), l.user))
	default:
		l.former[l.user] = true
		l.user, l.since = user, time.Now()
	}
}

// whoAmI creates a SelfSubjectReview.
func whoAmI(ctx context.Context, client *http.Client, host string) (string, error) {
	const review = `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, host+"/apis/authentication.k8s.io/v1/selfsubjectreviews", strings.NewReader(review))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("%d %s", resp.StatusCode, body)
	}
	var reviewed struct {
		Status struct{ UserInfo struct{ Username string } }
	}
	err = json.Unmarshal(body, &reviewed)
	return reviewed.Status.UserInfo.Username, err
}

// current returns the user that the cluster reported last.
func (l *load) current() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.user
}

// waitForMore waits until n more requests have been answered.
func (l *load) waitForMore(t *testing.T, n int) {
	t.Helper()
	answered := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.requests
	}
	before := answered()
	labtest.Within(t, labtest.Timeout, "the load to continue", func() error {
		if now := answered(); now < before+n {
			return fmt.Errorf("only %d of %d requests have been answered", now-before, n)
		}
		return nil
	})
}

// check reports the requests that have failed.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed, the first ones: %s", len(l.failures), l.requests, l.failures[0])
	}
	t.Logf("%d requests, %d of them failed", l.requests, len(l.failures))
}

// watching is a watch of ConfigMaps that must not end.
type watching struct {
	watch.Interface
	namespace string
	create    kubernetes.Interface
}

// startWatch starts a watch by a route, in a namespace of its own.
func startWatch(ctx context.Context, t *testing.T, g *lab.Gateway, cluster string, door lab.Via, target *lab.Cluster) *watching {
	t.Helper()
	client, err := kubernetes.NewForConfig(g.ClusterRESTConfig(cluster, door))
	if err != nil {
		t.Fatal(err)
	}
	namespace := newNamespace(ctx, t, target.Client())
	w, err := client.CoreV1().ConfigMaps(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return &watching{w, namespace, target.Client()}
}

// checkEvent creates a ConfigMap, and waits until the watch reports it.
func (w *watching) checkEvent(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := w.create.CoreV1().ConfigMaps(w.namespace).Create(ctx, made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.After(time.Minute); ; {
		select {
		case event, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("%s: the watch has ended", name)
			}
			if o, is := event.Object.(*corev1.ConfigMap); is && o.Name == name {
				return
			}
		case <-deadline:
			t.Fatalf("%s: the watch reports nothing", name)
		}
	}
}

// TestSecretChangesUnderLoad changes every key of a cluster's Secret that connections depend on,
// one after another, while requests are sent.
func TestSecretChangesUnderLoad(t *testing.T) {
	for _, tunnel := range []bool{false, true} {
		target, name := shared.direct, "changing-direct"
		if tunnel {
			target, name = shared.edge, "changing-embedded"
		}
		t.Run(name, func(t *testing.T) { testSecretChanges(t, name, target, tunnel) })
	}
}

func testSecretChanges(t *testing.T, name string, target *lab.Cluster, tunnel bool) {
	ctx := bounded(t, 2*caseTimeout)
	g, hub := shared.embedded, shared.embeddedHub
	nextCA, err := lab.NewCA("the next CA of " + name)
	if err != nil {
		t.Fatal(err)
	}
	first, second := newFront(t, target, target.CA(), ""), newFront(t, target, target.CA(), "")
	data := map[string][]byte{"endpoint": []byte(first.url), "ca.crt": target.CAPEM(), "token": token(t, target, "e2e-first")}
	register(ctx, t, hub, lab.SecretOptions{Name: name, Tunnel: tunnel, Data: data})
	if tunnel {
		startAgent(ctx, t, func() (lab.AgentOptions, error) { return g.AgentOptions(name, target) })
	}
	waitKnown(t, g, name)
	works(ctx, t, g, name, lab.ViaHub)
	var watches []*watching
	for _, door := range doors() {
		watches = append(watches, startWatch(ctx, t, g, name, door, target))
	}
	l := startLoad(ctx, t, g, name)
	// change applies a change of the Secret and waits until the condition shows its effect.
	change := func(what, key string, value []byte, done func() error) {
		t.Helper()
		data = maps.Clone(data)
		data[key] = value
		if err := hub.ApplySecret(ctx, lab.SecretOptions{Name: name, Tunnel: tunnel, Data: data}); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: in effect after %s", what, labtest.Within(t, effectTimeout, what, done).Round(time.Millisecond))
		l.waitForMore(t, 50)
		for _, w := range watches {
			w.checkEvent(ctx, t, strings.ToLower(strings.ReplaceAll(what, " ", "-")))
		}
	}
	userIs := func(account string) func() error {
		return func() error {
			if user := l.current(); user != "system:serviceaccount:"+namespaceOfSecrets+":"+account {
				return fmt.Errorf("the cluster sees %q", user)
			}
			return nil
		}
	}
	// moreConnections is true once a front has more connections than now.
	moreConnections := func(f *front) func() error {
		before := f.opened.Load()
		return func() error {
			if f.opened.Load() == before {
				return errors.New("no connection has been opened")
			}
			return nil
		}
	}
	labtest.Within(t, effectTimeout, "the load", userIs("e2e-first"))
	change("credential rotated", "token", token(t, target, "e2e-second"), userIs("e2e-second"))
	change("endpoint moved", "endpoint", []byte(second.url), moreConnections(second))
	change("CA added", "ca.crt", bytes.Join([][]byte{target.CAPEM(), nextCA.CertPEM()}, nil), moreConnections(second))
	second.present(t, nextCA, shared.lab.HostAddr(target))
	change("CA replaced", "ca.crt", nextCA.CertPEM(), moreConnections(second))

	first.seen()
	l.stop()
	l.check(t)
	if late := first.seen(); len(late) > 0 {
		t.Errorf("a request was sent to the previous endpoint: %q", late)
	}
	// The connections that the watches kept open are closed with them.
	for _, w := range watches {
		w.Stop()
	}
	labtest.Within(t, effectTimeout, "the connections to the previous endpoint to be closed", func() error {
		if n := first.open.Load(); n > 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// TestSecretDeleted checks that deleting the Secret takes effect at once, for new requests and for
// requests in flight.
func TestSecretDeleted(t *testing.T) {
	for _, tunnel := range []bool{false, true} {
		target, name := shared.direct, "deleted-direct"
		if tunnel {
			target, name = shared.edge, "deleted-embedded"
		}
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t, caseTimeout)
			g := shared.embedded
			register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: tunnel, Data: map[string][]byte{
				"endpoint": []byte(target.Endpoint()), "ca.crt": target.CAPEM(), "token": token(t, target, "cluster-gateway"),
			}})
			if tunnel {
				startAgent(ctx, t, func() (lab.AgentOptions, error) { return g.AgentOptions(name, target) })
			}
			waitKnown(t, g, name)
			works(ctx, t, g, name, lab.ViaHub)
			s := newSite(t, route{name, name, g, target, lab.ViaOwnEndpoint})
			shell := s.kubectl.start(ctx, t, "exec", "-i", podName, "--", "sh", "-c", "echo begun; sleep 60")
			shell.sees(t, "begun", nil)
			requests := begin(ctx, t, g, name, 1)
			if n, err := g.Metric(ctx, "cluster_gateway_connections", `cluster="`+name+`"`); err != nil || n < 2 {
				t.Errorf("there are %v connections (%v), want one for requests and one for the exec", n, err)
			}

			if err := shared.embeddedHub.DeleteSecret(ctx, name); err != nil {
				t.Fatal(err)
			}
			deleted := time.Now()
			for _, door := range doors() {
				labtest.Within(t, effectTimeout, "a 404 by "+string(door), func() error {
					return wantCode(ask(ctx, t, g.ClusterRESTConfig(name, door), http.MethodGet, "/version"), http.StatusNotFound)
				})
				t.Logf("404 by %s after %s", door, time.Since(deleted).Round(time.Millisecond))
			}
			mustEnd(t, deleted, requests, "404")
			select {
			case <-shell.done:
			case <-time.After(hang):
				t.Errorf("the exec continues: %s", shell)
			}
			labtest.Within(t, effectTimeout, "the metrics of the cluster to be deleted", func() error {
				text, err := g.Metrics(ctx)
				if err != nil {
					return err
				}
				for line := range bytes.Lines(text) {
					// Those of the tunnel are about the agent, which is still connected.
					if bytes.HasPrefix(line, []byte("cluster_gateway_")) && !bytes.HasPrefix(line, []byte("cluster_gateway_tunnel_")) &&
						bytes.Contains(line, []byte(`cluster="`+name+`"`)) {
						return fmt.Errorf("%s", line)
					}
				}
				return nil
			})
		})
	}
}
