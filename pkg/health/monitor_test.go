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
	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// patience is how long a test waits for what should come at once.
const patience = 20 * time.Second

// hub is the hub's Secrets, the store of clusters over them, and the clusters themselves, in one.
type hub struct {
	// order is held over the change of a Secret and what the monitor is told of it: as of an informer, it hears of changes in the order in
	// which they were made. It is taken before mu.
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
	// block, if set, holds up probes.
	block chan struct{}
}

func newHub(t *testing.T, configure func(*Config)) *hub {
	t.Helper()
	h := &hub{secrets: map[string]*corev1.Secret{}, failures: map[string]error{}, agents: map[string]int{}, probes: map[string]int{}}
	all := NewMetrics()
	registry := metrics.NewKubeRegistry()
	for _, m := range all.All() {
		registry.MustRegister(m)
	}
	cfg := Config{
		Clusters: h, Prober: h, Agents: h, Secrets: secretsOf{h: h}, Events: eventsOf{h: h}, Metrics: all,
		Interval: 40 * time.Millisecond, OverrideDuration: time.Hour, agentsReturn: time.Nanosecond,
	}
	if configure != nil {
		configure(&cfg)
	}
	h.monitor = New(cfg)
	return h
}

// run runs the monitor for as long as the test.
func (h *hub) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.monitor.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
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

// secretsOf and eventsOf are the hub's clients; what they do not define is not called.
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
		return nil, fmt.Errorf("a strange Event: %+v", event)
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
	deadline := time.Now().Add(patience)
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
			t.Fatalf("%s: not within %s; %d patches, events %q", what, patience, h.patches, h.events)
		}
		time.Sleep(time.Millisecond)
	}
}

func (h *hub) annotation(name, key string) string { return h.secrets[name].Annotations[key] }

// probed is how many probes of a cluster have been made.
func (h *hub) probed(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.probes[name]
}

// probedTimes waits for so many more probes of a cluster, which come by themselves.
func (h *hub) probedTimes(t *testing.T, name string, n int) {
	t.Helper()
	want := h.probed(name) + n
	h.eventually(t, "probes", func() bool { return h.probes[name] >= want })
}

// TestTransitions: found well, failing, well again; each is written once and told once, and nothing in between.
func TestTransitions(t *testing.T) {
	h := newHub(t, nil)
	h.set(tunnelled("a"))
	h.run(t)
	h.eventually(t, "well", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
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
	h.eventually(t, "well again", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
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

// TestOneFailureIsNotTold: it may have been a connection that broke.
func TestOneFailureIsNotTold(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Interval = time.Hour })
	h.set(tunnelled("a"))
	h.run(t)
	h.eventually(t, "well", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
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

// TestEventsAreFollowed: with an interval of an hour, only what the monitor is told makes it look.
func TestEventsAreFollowed(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Interval = time.Hour })
	h.run(t)
	h.eventually(t, "the term", func() bool { return h.monitor.term() != nil })
	h.set(tunnelled("a"))
	h.eventually(t, "a new cluster", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })

	for range failuresToTell { // it goes, and is not back when its next one comes and goes
		h.fail("a", errNoAgent)
		before := h.probed("a")
		h.monitor.AgentsChanged("a")
		h.eventually(t, "a probe", func() bool { return h.probes["a"] > before })
	}
	h.eventually(t, "an agent that has gone", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthyReason) == "NoAgent" })
	h.fail("a", nil)
	h.monitor.AgentsChanged("a")
	h.eventually(t, "an agent that is back", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })

	changed := h.copyOf("a")
	delete(changed.Data, "token")
	h.set(changed)
	h.eventually(t, "a Secret that is invalid", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthyReason) == "InvalidSecret" })
	h.remove("a")
	h.monitor.AgentsChanged("a")
	h.set(tunnelled("b"))
	h.eventually(t, "another cluster", func() bool { return h.annotation("b", v1alpha1.AnnotationHealthy) == "true" })
}

// overtaken is a hub where Secrets change when the list of them has been taken and not yet been returned.
type overtaken struct {
	*hub
	changes func()
}

func (o overtaken) List() []*cluster.Cluster {
	all := o.hub.List()
	told := make(chan struct{})
	go func() { defer close(told); o.changes() }()
	select {
	case <-told: // before the list
	case <-time.After(100 * time.Millisecond): // it waits until the list has been taken over
	}
	return all
}

// TestChangeDuringList: a Secret that changes while a term begins is followed like any other, and one that goes is forgotten.
func TestChangeDuringList(t *testing.T) {
	var h *hub
	h = newHub(t, func(c *Config) {
		c.Clusters = overtaken{hub: c.Clusters.(*hub), changes: func() {
			changed := h.copyOf("a")
			changed.Data["token"] = []byte("another-token")
			h.set(changed)
			h.remove("b")
		}}
	})
	h.set(tunnelled("a"))
	h.set(tunnelled("b"))
	h.run(t)
	h.eventually(t, "well", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
	h.eventually(t, "the end of the other", func() bool {
		running := h.monitor.term()
		running.mu.Lock()
		defer running.mu.Unlock()
		return running.clusters["b"] == nil
	})
}

// TestOverride: an operator's word stands, and what was found is kept beside it.
func TestOverride(t *testing.T) {
	h := newHub(t, func(c *Config) { c.OverrideDuration = time.Hour })
	h.set(tunnelled("a"))
	h.run(t)
	h.eventually(t, "well", func() bool { return h.annotation("a", v1alpha1.AnnotationHealthy) == "true" })
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
	h.eventually(t, "what was found", func() bool { return h.patches == 2 })
	h.mu.Lock()
	conditions := cluster.ParseHealth(h.secrets["a"].Annotations).Conditions
	if brief(conditions[:2]) != "Ready=False/NoAgent TunnelConnected=False/NoAgent" || h.annotation("a", v1alpha1.AnnotationHealthyReason) != "UnderRepair" {
		t.Errorf("%v", h.secrets["a"].Annotations)
	}
	h.mu.Unlock()
	s = h.copyOf("a")
	s.Annotations[v1alpha1.AnnotationOverride] = "2026-01-01T00:00:00Z"
	h.set(s)
	h.eventually(t, "the end of the override", func() bool {
		_, there := h.secrets["a"].Annotations[v1alpha1.AnnotationOverride]
		return !there && h.annotation("a", v1alpha1.AnnotationHealthyReason) == "NoAgent"
	})
}

// TestAgentsReturn: a replica that has just started does not call clusters lost whose agents are on their way.
func TestAgentsReturn(t *testing.T) {
	h := newHub(t, func(c *Config) { c.agentsReturn = time.Hour })
	s := tunnelled("a")
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

// TestConcurrency: stuck clusters do not make more probes than there may be, and Run waits for those under way.
func TestConcurrency(t *testing.T) {
	h := newHub(t, func(c *Config) { c.Concurrency = 3; c.Timeout = time.Hour })
	h.block = make(chan struct{})
	for i := range 20 {
		h.set(tunnelled(fmt.Sprintf("c%d", i)))
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

func TestRunsOnceAtATime(t *testing.T) {
	h := newHub(t, nil)
	h.run(t)
	h.eventually(t, "the term", func() bool { return h.monitor.term() != nil })
	if err := h.monitor.Run(t.Context()); err == nil {
		t.Error("a second Run")
	}
}

func TestAfter(t *testing.T) {
	term := &term{cfg: &Config{Interval: 10 * time.Second}}
	c := cluster.Parse(tunnelled("a"), cluster.ParseOptions{})
	for failures, want := range map[int]time.Duration{0: 10, 2: 2500 * time.Millisecond / time.Second, 5: 10, 31: 20, 200: 40} {
		want *= time.Second
		if failures == 2 {
			want = 2500 * time.Millisecond
		}
		for range 100 {
			if got := term.after(c, failures); got < want*9/10 || got > want*11/10 {
				t.Errorf("after %d failures: %s", failures, got)
			}
		}
	}
}
