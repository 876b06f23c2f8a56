// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/peers"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The clusters of TestReplicaFaults. The only agent of the first one is at the replica with the
// fault, and the second one has another agent at another replica.
const (
	clusterAlone = "alone"
	clusterTwice = "twice"
)

// replica is one of several gateways of a hub. Its connections to the hub, and those of the other
// replicas to it, can be cut.
type replica struct {
	*lab.Gateway
	toHub, fromPeers *lab.Relay
}

// startReplica starts a gateway.
func startReplica(ctx context.Context, t *testing.T, hub *lab.Cluster, name, binary string) *replica {
	t.Helper()
	port, err := shared.lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{
		toHub: labtest.NewRelay(t, "127.0.0.1:0", strings.TrimPrefix(hub.Endpoint(), "https://")),
		// The other replicas know one address with the port at which the replica listens.
		fromPeers: labtest.NewRelay(t, net.JoinHostPort("127.0.0.2", strconv.Itoa(port)), net.JoinHostPort("127.0.0.1", strconv.Itoa(port))),
	}
	r.Gateway, err = shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-" + name, Hub: hub, HubEndpoint: "https://" + r.toHub.Address(), Binary: binary, Verbosity: 2,
		ExtraArgs: []string{
			"--peer-advertise-address=127.0.0.2", "--peer-bind-address=127.0.0.1", "--peer-port=" + strconv.Itoa(port), "--health-probe-interval=2s",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Kill() })
	return r
}

// fault is something that happens to one of three replicas, the one that is elected, or to one of
// the two agents of a cluster, which is connected to that replica.
type fault struct {
	name string
	// strike causes the fault, which lasts for at least hold. end ends it.
	strike, end func(ctx context.Context, s *faultSite) error
	hold        time.Duration
	// lost is set if agents cannot use the replica, and moves if another one has to be elected.
	lost, moves bool
	// twice is for how long requests for the cluster with two agents can fail through the other
	// replicas, and alone the same for the cluster with one agent.
	twice, alone time.Duration
	// here is for how long requests can fail through the replica with the fault.
	here time.Duration
	// waits is how long a request may take through any replica. 0 means that it is not checked.
	waits time.Duration
}

const (
	// pinged is when connections notice that their other end does not run any more (pkg/peers,
	// pkg/proxy).
	pinged = 7 * time.Second
	// silent is when the connections through an agent are closed that does not run any more
	// (pkg/proxy).
	silent = 12500 * time.Millisecond
	// reconnected is when an agent has found another replica, and all replicas know that: it tries
	// every 10 s at the latest, and changes are published after 1 s.
	reconnected = 11 * time.Second
	// slack is for a busy machine.
	slack = 5 * time.Second
)

func faults() []fault {
	const long = peers.Timeout + slack
	do := func(f func(*faultSite)) func(context.Context, *faultSite) error {
		return func(_ context.Context, s *faultSite) error { f(s); return nil }
	}
	return []fault{
		{
			name: "replica killed", hold: long, lost: true, moves: true, alone: reconnected, here: long,
			strike: func(_ context.Context, s *faultSite) error { return s.faulty.Kill() },
			end:    func(ctx context.Context, s *faultSite) error { return s.faulty.Start(ctx) },
		},
		{
			name: "replica paused", hold: long, lost: true, moves: true, twice: pinged, alone: long, here: long,
			strike: func(_ context.Context, s *faultSite) error { return s.faulty.Pause() },
			end:    func(_ context.Context, s *faultSite) error { return s.faulty.Resume() },
		},
		{
			name: "replica cut off from the hub", hold: long, moves: true, here: long,
			strike: do(func(s *faultSite) { s.faulty.toHub.Cut() }), end: do(func(s *faultSite) { s.faulty.toHub.Mend() }),
		},
		{
			name: "replica cut off from the others", hold: peers.Timeout, twice: pinged, alone: peers.Timeout,
			strike: do(func(s *faultSite) { s.faulty.fromPeers.Cut() }), end: do(func(s *faultSite) { s.faulty.fromPeers.Mend() }),
		},
		{
			name: "agent killed", hold: slack, twice: 0, here: 0,
			strike: func(_ context.Context, s *faultSite) error { return s.agent.Kill() },
			end:    func(ctx context.Context, s *faultSite) error { return s.startAgent(ctx) },
		},
		{
			name: "agent paused", hold: 2 * long, twice: silent, here: silent, waits: silent + slack,
			strike: func(_ context.Context, s *faultSite) error { return s.agent.Pause() },
			end:    func(_ context.Context, s *faultSite) error { return s.agent.Resume() },
		},
	}
}

// TestReplicaFaults runs three replicas under light traffic, and has something happen to one of
// them. It reports which requests fail, and for how long. Those for a cluster with another agent go
// on, answers name the replica, and afterwards everything is as it was.
func TestReplicaFaults(t *testing.T) {
	ctx := bounded(t, 3*caseTimeout)
	const podName = "faults"
	hub, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-faults", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, hub)
	var replicas []*replica
	for _, name := range []string{"a", "b", "c"} {
		replicas = append(replicas, startReplica(ctx, t, hub, "faults-"+name, shared.binary))
	}
	runPod(t, shared.direct, podName)
	for _, name := range []string{clusterAlone, clusterTwice} {
		register(ctx, t, hub, lab.SecretOptions{Name: name, Tunnel: true, Data: map[string][]byte{
			"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
		}})
	}
	// A caller for each cluster: while the machine is short of CPU, requests of one caller that wait
	// for an agent delay others of the same caller.
	callers := map[string]callerCertificate{}
	for _, name := range []string{clusterAlone, clusterTwice} {
		caller := "e2e-faults-" + name
		grantOn(ctx, t, hub, caller, rbacv1.PolicyRule{
			APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, Verbs: []string{"*"},
		})
		cert, key, err := hub.ClientCertificate(caller)
		if err != nil {
			t.Fatal(err)
		}
		callers[name] = callerCertificate{cert, key}
	}
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			s := &faultSite{t: t, hub: hub, replicas: replicas, pod: podName, callers: callers}
			s.run(bounded(t, caseTimeout), f)
		})
	}
}

// callerCertificate authenticates a caller.
type callerCertificate struct{ cert, key []byte }

// faultSite is where something happens.
type faultSite struct {
	t        *testing.T
	hub      *lab.Cluster
	replicas []*replica
	pod      string
	callers  map[string]callerCertificate
	// faulty is the replica that is elected. It has the only agent of one cluster, and one of two of
	// the other cluster. other has the second one of those, and idle none.
	faulty, idle, other *replica
	// agent is the agent of the second cluster at faulty.
	agent *lab.Agent
	// alone leads the only agent of the first cluster to a replica, as a load balancer does.
	alone *lab.Relay
}

// config reaches a cluster through a replica.
func (s *faultSite) config(r *replica, cluster string) *rest.Config {
	config := anonymous(r.ClusterRESTConfig(cluster, lab.ViaOwnEndpoint))
	config.CertData, config.KeyData = s.callers[cluster].cert, s.callers[cluster].key
	return config
}

func tunnelAddress(r *replica) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.TunnelPort()))
}

func (s *faultSite) run(ctx context.Context, f fault) {
	t := s.t
	s.faulty = s.leader(ctx, s.replicas)
	others := slices.DeleteFunc(slices.Clone(s.replicas), func(r *replica) bool { return r == s.faulty })
	s.idle, s.other = others[0], others[1]
	s.startAgents(ctx)
	before := s.before(ctx)

	traffic := startTraffic(ctx, s)
	streams := s.openStreams(ctx)
	struck := time.Now()
	if err := f.strike(ctx, s); err != nil {
		t.Fatal(err)
	}
	if f.lost {
		s.alone.Remove(tunnelAddress(s.faulty))
		s.alone.Add(tunnelAddress(s.other))
	}
	if f.moves {
		s.leader(ctx, others)
		moved := time.Since(struck)
		t.Logf("another replica was elected after %s", moved.Round(100*time.Millisecond))
		if moved > peers.Timeout+slack {
			t.Errorf("another replica was elected only after %s", moved)
		}
	}
	time.Sleep(time.Until(struck.Add(f.hold)))
	if err := f.end(ctx, s); err != nil {
		t.Fatal(err)
	}
	ended := time.Since(struck)
	time.Sleep(2 * slack)
	traffic.stop()
	t.Logf("the fault lasted %s", ended.Round(100*time.Millisecond))
	if f.waits > 0 {
		traffic.checkWaits(t, f.waits)
	}
	traffic.check(t, struck, func(r *replica, cluster string) time.Duration {
		switch {
		case r == s.faulty:
			if f.here == 0 || f.waits > 0 {
				return f.here // the replica works
			}
			return max(f.here, ended) // it serves again when the fault is over
		case cluster == clusterAlone:
			return f.alone
		default:
			return f.twice
		}
	}, s, !f.lost)
	for what, stream := range streams {
		select {
		case <-stream.done:
			t.Logf("%s has ended: %s", what, stream)
		default:
			t.Logf("%s goes on", what)
		}
		stream.stop()
	}
	labtest.Within(t, time.Minute, "everything to be as before", func() error {
		after, err := s.state(ctx)
		if err == nil && !maps.Equal(before, after) {
			err = fmt.Errorf("the state is\n%v\nwant\n%v", after, before)
		}
		return err
	})
}

// before returns the state before a fault, when all replicas reach both clusters.
func (s *faultSite) before(ctx context.Context) (state map[string]string) {
	for _, r := range s.replicas {
		for _, cluster := range []string{clusterAlone, clusterTwice} {
			labtest.Within(s.t, labtest.Timeout, cluster+" to be served by "+r.Name(), func() error {
				return wantCode(ask(ctx, s.t, s.config(r, cluster), http.MethodGet, "/version"), http.StatusOK)
			})
		}
	}
	labtest.Within(s.t, time.Minute, "the replicas to be idle", func() (err error) {
		state, err = s.state(ctx)
		if err == nil && (state[clusterTwice+" is Ready"] != "True Healthy" || state[clusterAlone+" is Ready"] != "True Healthy") {
			err = fmt.Errorf("%v", state)
		}
		return err
	})
	return state
}

// leader waits until one of the replicas is elected.
func (s *faultSite) leader(ctx context.Context, among []*replica) (found *replica) {
	labtest.Within(s.t, labtest.Timeout, "a replica to be elected", func() error {
		for _, r := range among {
			if n, err := r.Metric(ctx, "leader_election_master_status"); err == nil && n == 1 {
				found = r
				return nil
			}
		}
		return errors.New("none is")
	})
	return found
}

// startAgents starts the agents of both clusters.
func (s *faultSite) startAgents(ctx context.Context) {
	s.alone = labtest.NewRelay(s.t, "127.0.0.1:0", tunnelAddress(s.faulty))
	startAgent(ctx, s.t, func() (lab.AgentOptions, error) {
		o, err := s.faulty.AgentOptions(clusterAlone, shared.direct)
		o.ServerPort = s.alone.Port()
		return o, err
	})
	startAgent(ctx, s.t, func() (lab.AgentOptions, error) { return s.other.AgentOptions(clusterTwice, shared.direct) })
	if err := s.startAgent(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// startAgent starts the agent that a fault can concern.
func (s *faultSite) startAgent(ctx context.Context) (err error) {
	if s.agent, err = s.faulty.StartAgent(ctx, clusterTwice, shared.direct); err == nil {
		s.t.Cleanup(func() { _ = s.agent.Kill() })
	}
	return err
}

// openStreams opens an exec and a watch of each cluster through the replica without agents.
func (s *faultSite) openStreams(ctx context.Context) map[string]*running {
	open := map[string]*running{}
	for _, cluster := range []string{clusterAlone, clusterTwice} {
		k := newKubectl(s.t, s.config(s.idle, cluster), "-n", "default")
		exec := k.start(ctx, s.t, "exec", s.pod, "--", "sh", "-c", "while echo tick; do sleep 5; done")
		exec.sees(s.t, "tick", nil)
		watch := k.start(ctx, s.t, "get", "pods", "--watch")
		watch.sees(s.t, s.pod, nil)
		open["exec in "+cluster], open["watch of "+cluster] = exec, watch
	}
	return open
}

// state returns what must not be changed by a fault that is over.
func (s *faultSite) state(ctx context.Context) (map[string]string, error) {
	state := map[string]string{}
	for _, cluster := range []string{clusterAlone, clusterTwice} {
		// An agent can have found a second replica meanwhile.
		least := map[string]float64{clusterAlone: 1, clusterTwice: 2}[cluster]
		for _, what := range []string{"cluster_gateway_tunnel_agents", "cluster_gateway_requests_in_flight"} {
			sum := 0.0
			for _, r := range s.replicas {
				n, err := r.Metric(ctx, what, `cluster="`+cluster+`"`)
				if err != nil {
					return nil, err
				}
				sum += n
			}
			if what == "cluster_gateway_tunnel_agents" {
				sum = min(sum, least)
			}
			state[what+" of "+cluster] = fmt.Sprint(sum)
		}
		gateway := &v1alpha1.ClusterGateway{}
		r := s.replicas[0]
		reply, err := tryAsk(ctx, r.RESTConfig(lab.ViaOwnEndpoint), http.MethodGet, gatewayPath+"/"+cluster)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(reply.body), gateway); err != nil {
			return nil, err
		}
		for _, c := range gateway.Status.Conditions {
			state[cluster+" is "+c.Type] = fmt.Sprint(c.Status, " ", c.Reason)
		}
	}
	for _, r := range s.replicas {
		n, err := r.Metric(ctx, "cluster_gateway_peers")
		if err != nil || n != float64(len(s.replicas)-1) {
			return nil, fmt.Errorf("%s sees %v others (%w)", r.Name(), n, err)
		}
		for _, use := range []string{"requests", "streams", "tunnels"} {
			n, err := r.Metric(ctx, "cluster_gateway_memory_used_bytes", `use="`+use+`"`)
			if err != nil {
				return nil, err
			}
			state["memory of "+r.Name()+" for "+use] = fmt.Sprint(n)
		}
	}
	secrets, err := s.hub.Client().CoreV1().Secrets(namespaceOfSecrets).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, secret := range secrets.Items {
		state["Secret "+secret.Name] = fmt.Sprint(secret.UID, len(secret.Data))
	}
	return state, nil
}

// traffic sends requests for both clusters through all replicas.
type traffic struct {
	stop func()

	mu   sync.Mutex
	sent map[way][]sentRequest
}

// way is how requests are sent.
type way struct {
	through *replica
	cluster string
}

// sentRequest is one request and its outcome. failure is empty for an answer of the cluster.
type sentRequest struct {
	began   time.Time
	took    time.Duration
	failure string
}

// trafficInterval is the time between two requests for one cluster through one replica.
const trafficInterval = 250 * time.Millisecond

// startTraffic sends requests until stop is called, or the test ends.
func startTraffic(ctx context.Context, s *faultSite) *traffic {
	s.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	tr := &traffic{sent: map[way][]sentRequest{}}
	var group sync.WaitGroup
	tr.stop = func() { cancel(); group.Wait() }
	s.t.Cleanup(tr.stop)
	for _, r := range s.replicas {
		for _, cluster := range []string{clusterAlone, clusterTwice} {
			config := s.config(r, cluster)
			client, err := rest.HTTPClientFor(config)
			if err != nil {
				s.t.Fatal(err)
			}
			client.Timeout = hang
			group.Go(func() {
				ticker := time.NewTicker(trafficInterval)
				defer ticker.Stop()
				for {
					select {
					case <-ctx.Done():
						return
					case <-ticker.C:
					}
					group.Go(func() { tr.send(ctx, client, config.Host+"/api/v1/namespaces/default", way{r, cluster}) })
				}
			})
		}
	}
	return tr
}

func (tr *traffic) send(ctx context.Context, client *http.Client, url string, by way) {
	sent := sentRequest{began: time.Now()}
	if err := getOK(ctx, client, url); err != nil {
		sent.failure = err.Error()
	}
	if sent.took = time.Since(sent.began); ctx.Err() != nil {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.sent[by] = append(tr.sent[by], sent)
}

// getOK fails with the message of the Status if the answer is not 200.
func getOK(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusOK {
		return err
	}
	status := metav1.Status{Message: string(body)}
	_ = json.Unmarshal(body, &status) // or it is text
	return fmt.Errorf("%d %s", resp.StatusCode, status.Message)
}

var (
	// changing is what differs between answers for the same reason.
	changing = regexp.MustCompile(`127\.0\.0\.\d:\d+|\d{4}-\d\d-\d\dT[0-9:.]+Z|stream ID \d+|for \d+s`)
	// truthful are answers about an agent or a replica that is lost.
	truthful = regexp.MustCompile(`replica of the gateway|agent|the gateway cannot ask the hub`)
	// brokenOff is an answer that was lost after it had begun, so that it cannot become another one.
	brokenOff = regexp.MustCompile(`INTERNAL_ERROR; received from peer$`)
)

// checkWaits fails if a request took longer than limit.
func (tr *traffic) checkWaits(t *testing.T, limit time.Duration) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for by, all := range tr.sent {
		for _, sent := range all {
			if sent.took > limit {
				t.Errorf("a request for %s through %s took %s, want at most %s: %s", by.cluster, by.through.Name(), sent.took, limit, sent.failure)
			}
		}
	}
}

// check logs which requests have failed, and how long after the fault they were sent. It fails if
// one was sent later than may gives, or if its answer names the wrong party. works is whether the
// replica with the fault works: a load balancer sends nothing to one that does not.
func (tr *traffic) check(t *testing.T, struck time.Time, may func(*replica, string) time.Duration, s *faultSite, works bool) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, r := range []struct {
		*replica
		role string
	}{{s.faulty, "with the fault"}, {s.idle, "without agents"}, {s.other, "with the other agent"}} {
		for _, cluster := range []string{clusterAlone, clusterTwice} {
			all := tr.sent[way{r.replica, cluster}]
			kinds := map[string][]sentRequest{}
			slowest, slow := time.Duration(0), 0
			for _, sent := range all {
				if slowest = max(slowest, sent.took); sent.took > time.Second {
					slow++
				}
				if sent.failure != "" {
					kind := changing.ReplaceAllString(sent.failure, "…")
					kinds[kind] = append(kinds[kind], sent)
				}
			}
			t.Logf("%s through the replica %s: %d requests, of which %d took more than a second, at most %s", cluster, r.role, len(all), slow, slowest.Round(time.Millisecond))
			for kind, failed := range kinds {
				slices.SortFunc(failed, func(a, b sentRequest) int { return a.began.Compare(b.began) })
				first, last := failed[0].began.Sub(struck), failed[len(failed)-1].began.Sub(struck)
				t.Logf("    %d sent between %s and %s: %s", len(failed), first.Round(100*time.Millisecond), last.Round(100*time.Millisecond), kind)
				if limit := may(r.replica, cluster) + slack; last > limit {
					t.Errorf("a request for %s through the replica %s has failed that was sent %s after the fault, want at most %s: %s", cluster, r.role, last, limit, kind)
				}
				broken := brokenOff.MatchString(kind) && failed[len(failed)-1].began.Before(struck.Add(slack))
				if strings.Contains(kind, "check that the agent runs") || !broken && !truthful.MatchString(kind) && (r.replica != s.faulty || works) {
					t.Errorf("an answer for %s through the replica %s names the wrong party: %s", cluster, r.role, kind)
				}
			}
		}
	}
}
