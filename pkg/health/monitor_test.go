// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// timeout is how long a test waits for something that should happen at once.
const timeout = 20 * time.Second

// hub fakes the Secrets on the hub, the store of clusters, and the clusters themselves.
type hub struct {
	// order is held while a Secret changes and the monitor is called: as with an informer, it is
	// called in the order of the changes. It is locked before mu.
	order    sync.Mutex
	mu       sync.Mutex
	monitor  *Monitor
	secrets  map[string]*corev1.Secret
	version  int
	patches  int
	events   []string
	failures map[string]error
	agents   map[string]int
	probes   map[string]int
	probing  int
	most     int
	// block, if set, blocks probes until it is closed.
	block chan struct{}
}

func newHub(t *testing.T, configure func(*Config)) *hub {
	t.Helper()
	h := &hub{secrets: map[string]*corev1.Secret{}, failures: map[string]error{}, agents: map[string]int{}, probes: map[string]int{}}
	all, _ := registered(t)
	cfg := Config{
		Clusters: h, Prober: h, Agents: h, Secrets: secretsOf{h: h}, Events: eventsOf{h: h}, Metrics: all,
		Interval: 40 * time.Millisecond, OverrideDuration: time.Hour, agentReconnectTime: time.Nanosecond,
	}
	if configure != nil {
		configure(&cfg)
	}
	h.monitor = New(cfg)
	return h
}

// run runs the monitor until the test ends.
func (h *hub) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.monitor.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (h *hub) set(s *corev1.Secret) {
	h.order.Lock()
	defer h.order.Unlock()
	h.mu.Lock()
	h.storeLocked(s)
	h.mu.Unlock()
	h.monitor.ClusterChanged(s.Name, cluster.Parse(s, cluster.ParseOptions{}))
}

func (h *hub) storeLocked(s *corev1.Secret) {
	h.version++
	s.ResourceVersion = fmt.Sprint(h.version)
	h.secrets[s.Name] = s
}

func (h *hub) copyOf(name string) *corev1.Secret {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.secrets[name].DeepCopy()
}

func (h *hub) remove(name string) {
	h.order.Lock()
	defer h.order.Unlock()
	h.mu.Lock()
	delete(h.secrets, name)
	h.mu.Unlock()
	h.monitor.ClusterChanged(name, nil)
}

func (h *hub) fail(name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[name] = err
}

func (h *hub) Get(name string) (*cluster.Cluster, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.secrets[name]
	return cluster.Parse(s, cluster.ParseOptions{}), ok
}

func (h *hub) List() []*cluster.Cluster {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*cluster.Cluster
	for _, s := range h.secrets {
		all = append(all, cluster.Parse(s, cluster.ParseOptions{}))
	}
	return all
}

// secretsOf and eventsOf are the clients of the hub. Methods that they do not define must not be
// called.
type (
	secretsOf struct {
		corev1client.SecretInterface
		h *hub
	}
	eventsOf struct {
		corev1client.EventInterface
		h *hub
	}
)

func (e eventsOf) Create(_ context.Context, event *corev1.Event, _ metav1.CreateOptions) (*corev1.Event, error) {
	e.h.mu.Lock()
	defer e.h.mu.Unlock()
	if event.Namespace != "default" || event.InvolvedObject.Kind != "ClusterGateway" || string(event.InvolvedObject.UID) != "uid-"+event.InvolvedObject.Name {
		return nil, fmt.Errorf("an unexpected Event: %+v", event)
	}
	e.h.events = append(e.h.events, event.Type+" "+event.Reason+" "+event.InvolvedObject.Name)
	return event, nil
}

func (s secretsOf) Patch(_ context.Context, name string, kind types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Secret, error) {
	var patch struct {
		Metadata struct {
			UID             types.UID          `json:"uid"`
			ResourceVersion string             `json:"resourceVersion"`
			Annotations     map[string]*string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(data, &patch); err != nil || kind != types.MergePatchType {
		return nil, errors.Join(err, fmt.Errorf("patch of type %s", kind))
	}
	h := s.h
	h.order.Lock()
	defer h.order.Unlock()
	h.mu.Lock()
	secret := h.secrets[name].DeepCopy()
	if secret == nil {
		h.mu.Unlock()
		return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	if secret.UID != patch.Metadata.UID || secret.ResourceVersion != patch.Metadata.ResourceVersion {
		h.mu.Unlock()
		return nil, fmt.Errorf("conflict: %s %s", patch.Metadata.UID, patch.Metadata.ResourceVersion)
	}
	h.patches++
	for key, value := range patch.Metadata.Annotations {
		if value == nil {
			delete(secret.Annotations, key)
		} else {
			secret.Annotations[key] = *value
		}
	}
	h.storeLocked(secret)
	h.mu.Unlock()
	h.monitor.ClusterChanged(name, cluster.Parse(secret, cluster.ParseOptions{}))
	return secret, nil
}

func (h *hub) Agents(name string) (int, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.agents[name], time.Time{}
}

func (h *hub) Ready(ctx context.Context, name string) (proxy.Readiness, error) {
	h.mu.Lock()
	h.probing++
	h.most = max(h.most, h.probing)
	block := h.block
	h.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probing--
	h.probes[name]++
	return proxy.Readiness{Latency: time.Millisecond}, h.failures[name]
}

func (h *hub) Version(context.Context, string) (string, error) { return "v1.37.2", nil }

// eventually waits for a condition under the hub's lock.
func (h *hub) eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		h.mu.Lock()
		ok := condition()
		h.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("%s: not within %s; %d patches, events %q", what, timeout, h.patches, h.events)
		}
		time.Sleep(time.Millisecond)
	}
}

func (h *hub) annotation(name, key string) string { return h.secrets[name].Annotations[key] }

// probed returns the number of probes of a cluster.
func (h *hub) probed(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.probes[name]
}

// probedTimes waits for n more probes of a cluster.
func (h *hub) probedTimes(t *testing.T, name string, n int) {
	t.Helper()
	want := h.probed(name) + n
	h.eventually(t, "probes", func() bool { return h.probes[name] >= want })
}

// A cluster becomes ready, fails, and becomes ready again. Each change is written once and reported
// once, and nothing else is.
func TestTransitions(t *testing.T) {
	h := newHub(t, nil)
	h.set(tunneled("a"))
	h.run(t)
	h.eventually(t, "ready", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	h.probedTimes(t, "a", 10)
	h.mu.Lock()
	if h.patches != 1 {
		t.Errorf("%d patches while nothing changed", h.patches)
	}
	h.mu.Unlock()

	h.fail("a", errNoAgent)
	h.eventually(t, "no agent", func() bool {
		return h.annotation("a", v1alpha1.AnnotationHealthy) == "false" && h.annotation("a", v1alpha1.AnnotationHealthyReason) == "NoAgent"
	})
	h.probedTimes(t, "a", 10)
	h.fail("a", nil)
	h.eventually(t, "ready again", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	h.probedTimes(t, "a", 10)

	h.mu.Lock()
	defer h.mu.Unlock()
	if got, want := fmt.Sprint(h.events), "[Normal Healthy a Warning NoAgent a Normal Healthy a]"; got != want || h.patches != 3 {
		t.Errorf("%d patches, events %s, want %s", h.patches, got, want)
	}
	if h.annotation("a", v1alpha1.AnnotationVersion) != "v1.37.2" || h.annotation("a", v1alpha1.AnnotationLatency) != "1ms" {
		t.Errorf("%v", h.secrets["a"].Annotations)
	}
}

// One failure may only be a broken connection.
func TestOneFailureIsNotReported(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Interval = time.Hour })
	h.set(tunneled("a"))
	h.run(t)
	h.eventually(t, "ready", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	h.fail("a", errNoAgent)
	before := h.probed("a")
	h.monitor.Trigger("a")
	h.eventually(t, "a probe", func() bool { return h.probes["a"] == before+1 })
	h.fail("a", nil)
	h.monitor.Trigger("a")
	h.eventually(t, "a probe", func() bool { return h.probes["a"] == before+2 })
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.patches != 1 {
		t.Errorf("%d patches", h.patches)
	}
}

// The interval is an hour, so that only a change can start a probe.
func TestChangesStartProbes(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Interval = time.Hour })
	h.run(t)
	h.eventually(t, "the run", func() bool { return h.monitor.currentRun() != nil })
	h.set(tunneled("a"))
	h.eventually(t, "a new cluster", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })

	for range failureThreshold {
		h.fail("a", errNoAgent)
		before := h.probed("a")
		h.monitor.AgentsChanged("a")
		h.eventually(t, "a probe", func() bool { return h.probes["a"] > before })
	}
	h.eventually(t, "the missing agent", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthyReason) == "NoAgent" })
	h.fail("a", nil)
	h.monitor.AgentsChanged("a")
	h.eventually(t, "the agent that is back", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })

	changed := h.copyOf("a")
	delete(changed.Data, "token")
	h.set(changed)
	h.eventually(t, "the invalid Secret", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthyReason) == "InvalidSecret" })
	h.remove("a")
	h.monitor.AgentsChanged("a")
	h.set(tunneled("b"))
	h.eventually(t, "another cluster", func() bool { return h.annotation("b", v1alpha1.AnnotationHealthy) == "true" })
}

// changingHub is a hub whose Secrets change after they were listed and before the list is returned.
type changingHub struct {
	*hub
	changes func()
}

func (o changingHub) List() []*cluster.Cluster {
	all := o.hub.List()
	changed := make(chan struct{})
	go func() { defer close(changed); o.changes() }()
	select {
	case <-changed: // handled before the list
	case <-time.After(100 * time.Millisecond): // the change waits until the list is handled
	}
	return all
}

// A Secret that changes while the run starts is handled like any other change, and a deleted one is
// dropped.
func TestChangeDuringList(t *testing.T) {
	var h *hub
	h = newHub(t, func(c *Config) {
		c.Clusters = changingHub{hub: c.Clusters.(*hub), changes: func() {
			changed := h.copyOf("a")
			changed.Data["token"] = []byte("another-token")
			h.set(changed)
			h.remove("b")
		}}
	})
	h.set(tunneled("a"))
	h.set(tunneled("b"))
	h.run(t)
	h.eventually(t, "ready", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	h.eventually(t, "the removal of the other", func() bool {
		current := h.monitor.currentRun()
		current.mu.Lock()
		defer current.mu.Unlock()
		return current.clusters["b"] == nil
	})
}

// Probes do not change an operator's override, but their results are kept beside it.
func TestOverride(t *testing.T) {
	h := newHub(t, func(c *Config) { c.OverrideDuration = time.Hour })
	h.set(tunneled("a"))
	h.run(t)
	h.eventually(t, "ready", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	s := h.copyOf("a")
	s.Annotations[v1alpha1.AnnotationHealthy], s.Annotations[v1alpha1.AnnotationHealthyReason] = "false", "UnderRepair"
	s.Annotations[v1alpha1.AnnotationOverride] = time.Now().UTC().Format(time.RFC3339)
	h.set(s)
	h.probedTimes(t, "a", 10)
	h.mu.Lock()
	if h.patches != 1 || h.annotation("a", v1alpha1.AnnotationHealthyReason) != "UnderRepair" {
		t.Errorf("%d patches, %v", h.patches, h.secrets["a"].Annotations)
	}
	h.mu.Unlock()
	h.fail("a", errNoAgent)
	h.eventually(t, "the result of the probe", func() bool { return h.patches == 2 })
	h.mu.Lock()
	conditions := cluster.ParseHealth(h.secrets["a"].Annotations).Conditions
	if brief(conditions[:2]) != "Ready=False/NoAgent TunnelConnected=False/NoAgent" || h.annotation("a", v1alpha1.AnnotationHealthyReason) != "UnderRepair" {
		t.Errorf("%v", h.secrets["a"].Annotations)
	}
	h.mu.Unlock()
	s = h.copyOf("a")
	s.Annotations[v1alpha1.AnnotationOverride] = "2026-01-01T00:00:00Z"
	h.set(s)
	h.eventually(t, "the override to expire", func() bool {
		_, there := h.secrets["a"].Annotations[v1alpha1.AnnotationOverride]
		return !there && h.annotation("a", v1alpha1.AnnotationHealthyReason) == "NoAgent"
	})
}

// A replica that has just started waits for agents to connect before it reports that they are
// missing.
func TestAgentsHaveTimeToReconnect(t *testing.T) {
	h := newHub(t, func(c *Config) { c.agentReconnectTime = time.Hour })
	s := tunneled("a")
	s.Annotations[v1alpha1.AnnotationHealthy], s.Annotations[v1alpha1.AnnotationHealthyReason] = "true", "Healthy"
	s.Annotations[v1alpha1.AnnotationConditions] = `[{"type":"Ready","status":"True","reason":"Healthy"}]`
	h.fail("a", errNoAgent)
	h.set(s)
	h.set(secretOf("b", v1alpha1.EndpointTypeConst))
	h.run(t)
	h.eventually(t, "a probe", func() bool { return h.probes["a"] > 0 })
	h.eventually(t, "the other", func() bool { return h.annotation("b", v1alpha1.AnnotationHealthy) == "true" })
	h.mu.Lock()
	if h.annotation("a", v1alpha1.AnnotationHealthy) != "true" || h.patches != 1 {
		t.Errorf("%v", h.secrets["a"].Annotations)
	}
	h.agents["a"] = 1
	h.mu.Unlock()
	h.fail("a", nil)
	h.monitor.AgentsChanged("a")
	h.eventually(t, "all conditions", func() bool { return len(cluster.ParseHealth(h.secrets["a"].Annotations).Conditions) == 4 })
}

// Clusters that do not answer cause no more probes than the limit, and Run waits for the running
// probes.
func TestConcurrency(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Concurrency = 3; c.Timeout = time.Hour })
	h.block = make(chan struct{})
	for i := range 20 {
		h.set(tunneled(fmt.Sprintf("c%d", i)))
	}
	h.run(t)
	h.eventually(t, "three probes", func() bool { return h.probing == 3 })
	close(h.block)
	h.eventually(t, "all", func() bool {
		for _, s := range h.secrets {
			if s.Annotations[v1alpha1.AnnotationHealthy] != "true" {
				return false
			}
		}
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.most > 3 {
		t.Errorf("%d probes at a time", h.most)
	}
}

func TestRunFailsWhileRunning(t *testing.T) {
	h := newHub(t, nil)
	h.run(t)
	h.eventually(t, "the run", func() bool { return h.monitor.currentRun() != nil })
	if err := h.monitor.Run(t.Context()); err == nil {
		t.Error("a second Run did not fail")
	}
}

func TestDelayAfter(t *testing.T) {
	r := &run{cfg: &Config{Interval: 10 * time.Second}}
	c := cluster.Parse(tunneled("a"), cluster.ParseOptions{})
	for failures, want := range map[int]time.Duration{0: 10, 2: 2500 * time.Millisecond / time.Second, 5: 10, 31: 20, 200: 40} {
		want *= time.Second
		if failures == 2 {
			want = 2500 * time.Millisecond
		}
		for range 100 {
			if got := r.delayAfter(c, failures); got < want*9/10 || got > want*11/10 {
				t.Errorf("after %d failures: %s", failures, got)
			}
		}
	}
}
