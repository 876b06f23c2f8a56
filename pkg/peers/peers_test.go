// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// maxWait limits how long a test waits for something that should happen soon.
const maxWait = 20 * time.Second

const namespace = "gateway"

// newCredentials returns the certificate of the replicas that use a hub.
func newCredentials(t *testing.T, hub kubernetes.Interface, lifetime time.Duration) *pki.Keeper {
	t.Helper()
	k := pki.NewKeeper(pki.KeeperConfig{
		Client: hub, Namespace: namespace, CASecret: pki.PeerCASecret, ServingSecret: pki.PeerSecret,
		Hosts: []string{ServerName}, Organization: v1alpha1.PeerOrganization, ServingLifetime: lifetime,
	})
	if err := k.LoadOrCreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

// replica is one of several replicas, which serves with real TLS.
type replica struct {
	*Peers
	address string
	here    atomic.Pointer[string]
	// served counts the requests that were handed on.
	served atomic.Int64
	// running is closed while the replica does not run, as after SIGSTOP.
	running gate
}

// newReplica starts a replica that has an agent of the cluster here. configure may be nil.
func newReplica(t *testing.T, id, here string, c Credentials, configure func(*Config)) *replica {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{address: lis.Addr().String()}
	r.running.open()
	r.here.Store(&here)
	cfg := Config{
		Client: fake.NewClientset(), Namespace: namespace, ID: id, Address: r.address, Credentials: c, Metrics: NewMetrics(),
		Here: func(cluster string) bool { return *r.here.Load() == cluster },
		Forwarded: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.served.Add(1)
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%s served %s %s for %s: %s", id, req.Method, req.URL, ClusterOf(req.Context()), body)
		}),
	}
	if configure != nil {
		configure(&cfg)
	}
	r.Peers = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	server := r.Server()
	go func() { done <- server.Serve(ctx, pausableListener{lis, &r.running}) }()
	t.Cleanup(func() {
		r.running.open()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

// sees makes the replica see another one, with an agent of the cluster.
func (r *replica) sees(id, address, cluster string) {
	_ = leaseHandler{r.Peers}.Add(leaseOf(id, address, "1", cluster)) // never fails
}

func leaseOf(id, address, version string, clusters ...string) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Name: leasePrefix + id, Labels: map[string]string{labelPeer: "true"}, ResourceVersion: version,
		Annotations: map[string]string{annotationAddress: address, annotationClusters: newClusterSet(clusters).String()},
	}}
}

func (r *replica) forward(t *testing.T, cluster, method, body string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "/some/path?q=1", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.RoundTripper(cluster, false, false).RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), nil
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(maxWait); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestClusterSet(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 10000 {
		names = append(names, fmt.Sprintf("cluster-%d.region-%d.example.com", i, i%7))
	}
	text := newClusterSet(names).String()
	if len(text) > 60<<10 {
		t.Errorf("10,000 clusters take %d bytes", len(text))
	}
	set, err := parseClusterSet(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !set.has(hash(name)) {
			t.Fatalf("%s is not in the set", name)
		}
	}
	if set.has(hash("other")) || newClusterSet(nil).has(hash("other")) {
		t.Error("a cluster is in the set that was not put in")
	}
	if _, err := parseClusterSet("AAAAAAA"); err == nil {
		t.Error("a set that is cut off was accepted")
	}
}

// TestPresence shows what replicas know about each other through the hub.
func TestPresence(t *testing.T) {
	t.Parallel()
	hub := fake.NewClientset()
	credentials := newCredentials(t, hub, 0)
	sameHub := func(cfg *Config) { cfg.Client = hub }
	a, b := newReplica(t, "a", "", credentials, sameHub), newReplica(t, "b", "edge", credentials, sameHub)
	ctxB, stopB := context.WithCancel(t.Context())
	doneA, doneB := make(chan error, 1), make(chan error, 1)
	ctxA, stopA := context.WithCancel(t.Context())
	go func() { doneA <- a.Run(ctxA) }()
	go func() { doneB <- b.Run(ctxB) }()
	eventually(t, "both are ready", func() bool { return a.Ready() == nil && b.Ready() == nil })
	if a.Elsewhere("edge") {
		t.Error("an agent is elsewhere before one has connected")
	}
	b.SetAgents("edge", 1)
	eventually(t, "a knows that b has an agent", func() bool { return a.Elsewhere("edge") })
	if b.Elsewhere("edge") || a.Elsewhere("other") {
		t.Error("a replica would forward a request that it can serve, or that nobody can")
	}
	b.Drain()
	eventually(t, "a knows that b drains", func() bool {
		found := a.candidates("edge")
		return len(found) == 1 && found[0].draining
	})
	b.SetAgents("edge", 0)
	eventually(t, "a knows that b has lost its agent", func() bool { return !a.Elsewhere("edge") })
	if n, _ := a.known(); n != 1 {
		t.Errorf("a knows %d other replicas, want 1", n)
	}
	stopB()
	if err := <-doneB; err != nil {
		t.Error(err)
	}
	eventually(t, "b has removed its Lease", func() bool { n, _ := a.known(); return n == 0 })
	stopA()
	if err := <-doneA; err != nil {
		t.Error(err)
	}
}

// TestAbsenceIsJudgedByTheOwnClock shows that a replica counts as away when its Lease is not
// renewed any more, whatever time the Lease contains.
func TestAbsenceIsJudgedByTheOwnClock(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakeClock(time.Now())
	a := newReplica(t, "a", "", newCredentials(t, fake.NewClientset(), 0), func(cfg *Config) { cfg.Clock = clock })
	handler := leaseHandler{a.Peers}
	lease := leaseOf("b", "127.0.0.1:1", "1", "edge")
	lease.Spec.RenewTime = &metav1.MicroTime{Time: clock.Now().Add(-10 * time.Minute)} // its clock is off
	_ = handler.Replace([]any{lease}, "1")
	if !a.Elsewhere("edge") {
		t.Fatal("a replica whose clock is off counts as away")
	}
	clock.Step(Timeout)
	renewed := leaseOf("b", "127.0.0.1:1", "2", "edge")
	_ = handler.Update(renewed)
	clock.Step(Timeout)
	if !a.Elsewhere("edge") {
		t.Error("a replica that has renewed its Lease counts as away")
	}
	_ = handler.Replace([]any{renewed}, "3") // the same, listed again
	a.setFailed("127.0.0.1:1", true)
	if !a.Elsewhere("edge") || a.Away("edge") != 0 {
		t.Error("a replica that has renewed its Lease counts as away after a failed connection")
	}
	clock.Step(time.Second)
	if a.Elsewhere("edge") {
		t.Error("a replica that has not renewed its Lease, and does not answer, counts as present")
	}
	if away := a.Away("edge"); away != Timeout+time.Second {
		t.Errorf("the replica is away for %s, want %s", away, Timeout+time.Second)
	}
	_ = handler.Update(leaseOf("b", "127.0.0.1:1", "4", "edge"))
	if !a.Elsewhere("edge") {
		t.Error("a replica that is back counts as away")
	}
	_ = handler.Delete(renewed)
	if a.Elsewhere("edge") {
		t.Error("a replica that has removed its Lease counts as present")
	}
}

// TestReplicaCutOffFromTheHub shows that a replica which does not renew its Lease is used as long
// as it answers, and while no other one has an agent.
func TestReplicaCutOffFromTheHub(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakeClock(time.Now())
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, func(cfg *Config) { cfg.Clock = clock })
	b, c := newReplica(t, "b", "edge", credentials, nil), newReplica(t, "c", "edge", credentials, nil)
	asked := func(want string) {
		t.Helper()
		addresses, err := a.asked(t, "edge", false)
		if err != nil || !slices.Equal(addresses, []string{want}) {
			t.Errorf("asked %v (%v), want %s", addresses, err, want)
		}
	}
	a.sees("b", b.address, "edge")
	clock.Step(Timeout + time.Second)
	if !a.Elsewhere("edge") || a.Away("edge") != 0 {
		t.Error("the replica is not used although nothing has failed")
	}
	asked(b.address)
	if n, _ := a.known(); n != 0 {
		t.Error("the replica counts as present")
	}
	a.sees("c", c.address, "edge")
	for range 5 {
		asked(c.address)
	}

	// A container that has restarted has another ID, the same address, and no agent yet.
	a.sees("b-again", b.address, "")
	_ = leaseHandler{a.Peers}.Delete(leaseOf("c", c.address, "2"))
	if a.Elsewhere("edge") {
		t.Error("a replica that was replaced is used")
	}
}

// TestRenewalIsSmall shows that the clusters are written when they change, and not with each
// renewal.
func TestRenewalIsSmall(t *testing.T) {
	t.Parallel()
	hub := fake.NewClientset()
	a := newReplica(t, "a", "", newCredentials(t, hub, 0), func(cfg *Config) { cfg.Client = hub })
	for i := range 10000 {
		a.SetAgents(fmt.Sprintf("cluster-%d", i), 1)
	}
	written := func() (leases, contents int) {
		t.Helper()
		for _, action := range hub.Actions() {
			object, ok := action.(interface{ GetObject() runtime.Object })
			if !ok {
				continue
			}
			lease, ok := object.GetObject().(*coordinationv1.Lease)
			if !ok {
				continue
			}
			if lease.Labels[labelContent] != "" {
				contents++
				continue
			}
			leases++
			if text, err := json.Marshal(lease); err != nil || len(text) > 1<<10 {
				t.Errorf("a renewal has %d bytes, %v", len(text), err)
			}
		}
		return leases, contents
	}
	for range 5 {
		a.publish(t.Context(), true)
	}
	if leases, contents := written(); leases != 5 || contents != 1 {
		t.Errorf("after five renewals, the Lease was written %d times and the clusters %d times", leases, contents)
	}
	if delay := a.publishDelay(); delay < 2*publishDelay || delay > renewInterval {
		t.Errorf("changes of 10,000 clusters are written every %s", delay)
	}
	a.SetAgents("new", 1)
	a.publish(t.Context(), false)
	if leases, contents := written(); leases != 5 || contents != 2 {
		t.Errorf("after a change, the Lease was written %d times and the clusters %d times", leases, contents)
	}

	// Somebody has deleted both.
	for _, name := range []string{a.leaseName(), a.leaseName() + contentSuffix} {
		if err := hub.CoordinationV1().Leases(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	a.content.OwnerReferences[0].UID = "earlier" // the fake hub sets none
	a.publish(t.Context(), true)
	for _, name := range []string{a.leaseName(), a.leaseName() + contentSuffix} {
		if _, err := hub.CoordinationV1().Leases(namespace).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("it was not written again: %v", err)
		}
	}
}

// TestEarlierReplicas shows that replicas know each other's clusters, though one is of an earlier
// version that has them in the first Lease.
func TestEarlierReplicas(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakeClock(time.Now())
	a := newReplica(t, "a", "", newCredentials(t, fake.NewClientset(), 0), func(cfg *Config) { cfg.Clock = clock })
	a.SetAgents("edge", 1)
	old := func() bool { // what an earlier version reads
		lease, _ := a.record()
		set, err := parseClusterSet(lease.Annotations[annotationClusters])
		return err == nil && set.has(hash("edge"))
	}
	if old() {
		t.Error("the clusters are in the Lease, though nobody reads them there")
	}
	a.sees("b", "127.0.0.1:1", "far") // as an earlier version writes it
	if !old() || a.publishDelay() != 0 {
		t.Error("an earlier version does not learn soon which clusters this one has")
	}
	if !a.Elsewhere("far") {
		t.Error("the clusters of an earlier version are not known")
	}

	// It is updated. The new one has the clusters in its second Lease, whichever is seen first.
	content := leaseOf("c", "", "1", "far", "near")
	content.Name, content.Labels = content.Name+contentSuffix, map[string]string{labelContent: "true"}
	lease := leaseOf("c", "127.0.0.1:2", "1")
	lease.Annotations[annotationForm] = formContent
	_ = contentHandler{a.Peers}.Add(content)
	if a.Elsewhere("near") {
		t.Error("a replica without a Lease counts as present")
	}
	_ = leaseHandler{a.Peers}.Add(lease)
	_ = leaseHandler{a.Peers}.Delete(leaseOf("b", "127.0.0.1:1", "1", "far"))
	if !a.Elsewhere("far") || !a.Elsewhere("near") || old() {
		t.Error("after the update, the clusters are not known, or written twice")
	}
	changed := content.DeepCopy()
	changed.Annotations[annotationClusters] = newClusterSet([]string{"near"}).String()
	_ = contentHandler{a.Peers}.Replace([]any{changed}, "2")
	if a.Elsewhere("far") || !a.Elsewhere("near") {
		t.Error("a change of the clusters was not seen")
	}
	renewed := lease.DeepCopy()
	renewed.ResourceVersion = "2"
	_ = leaseHandler{a.Peers}.Update(renewed)
	if a.Elsewhere("far") || !a.Elsewhere("near") {
		t.Error("a renewal has changed the clusters")
	}

	// An earlier version that is away does not count.
	_ = leaseHandler{a.Peers}.Add(leaseOf("d", "127.0.0.1:3", "1"))
	clock.Step(Timeout + time.Second)
	if old() {
		t.Error("the clusters are written for a replica that is away")
	}
}

// TestMissing shows when agents should look for another replica.
func TestMissing(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakeClock(time.Now())
	a := newReplica(t, "a", "edge", newCredentials(t, fake.NewClientset(), 0), func(cfg *Config) { cfg.Clock = clock })
	want := func(when string, missing bool) {
		t.Helper()
		if got := a.Missing("edge", 2); got != missing {
			t.Errorf("%s: missing: %v, want %v", when, got, missing)
		}
	}
	want("a replica alone", false)
	a.sees("b", "127.0.0.1:1", "other")
	want("another replica without an agent", true)
	if a.Missing("edge", 1) {
		t.Error("a replica is missing where one is enough")
	}
	a.sees("c", "127.0.0.1:2", "edge")
	want("two of three have an agent", false)
	leaving := leaseOf("c", "127.0.0.1:2", "2", "edge")
	leaving.Annotations[annotationDraining] = "true"
	_ = leaseHandler{a.Peers}.Update(leaving)
	want("the other one with an agent drains", true)
	clock.Step(Timeout + time.Second)
	want("all others are away", false)
}

// TestLeasesOfLostReplicasAreDeleted shows that a Lease does not stay forever.
func TestLeasesOfLostReplicasAreDeleted(t *testing.T) {
	t.Parallel()
	hub := fake.NewClientset()
	clock := clocktesting.NewFakeClock(time.Now())
	a := newReplica(t, "a", "", newCredentials(t, hub, 0), func(cfg *Config) { cfg.Client, cfg.Clock = hub, clock })
	leases := hub.CoordinationV1().Leases(namespace)
	if _, err := leases.Create(t.Context(), leaseOf("b", "127.0.0.1:1", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.sees("b", "127.0.0.1:1", "edge")
	left := func() int {
		a.forget(t.Context())
		list, err := leases.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	clock.Step(forgetAfter)
	if n := left(); n != 1 {
		t.Errorf("the Lease was deleted too early")
	}
	clock.Step(time.Second)
	if n := left(); n != 0 {
		t.Errorf("the Lease of a lost replica was not deleted")
	}
}

// TestForward shows which replica gets a request.
func TestForward(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, nil)
	b, c := newReplica(t, "b", "edge", credentials, nil), newReplica(t, "c", "edge", credentials, nil)
	want := func(serving *replica, id string) {
		t.Helper()
		before := serving.served.Load()
		code, text, err := a.forward(t, "edge", http.MethodPost, "body")
		if text != id+" served POST /some/path?q=1 for edge: body" || code != http.StatusOK || err != nil {
			t.Errorf("got %d %q, %v", code, text, err)
		}
		if n := serving.served.Load() - before; n != 1 {
			t.Errorf("the request was served %d times", n)
		}
	}
	a.sees("b", b.address, "edge")
	want(b, "b")

	// One that cannot be reached is tried once, and then avoided.
	a.sees("gone", "127.0.0.1:1", "edge")
	for range 8 {
		want(b, "b")
	}

	// One that has lost its agent says so, and the next one gets the whole request.
	none := ""
	b.here.Store(&none)
	a.sees("c", c.address, "edge")
	for range 8 {
		want(c, "c")
	}

	// If all have, nobody is blamed who is not to blame.
	c.here.Store(&none)
	_, _, err := a.forward(t, "edge", http.MethodPost, "body")
	var failed *dialer.Error
	if !errors.As(err, &failed) || failed.Stage != dialer.StagePeer {
		t.Errorf("got %v, want an error at the stage %s", err, dialer.StagePeer)
	}
}

// TestOnlyReplicasAreAdmitted shows who cannot connect to the port for replicas.
func TestOnlyReplicasAreAdmitted(t *testing.T) {
	t.Parallel()
	hub := fake.NewClientset()
	credentials := newCredentials(t, hub, 0)
	b := newReplica(t, "b", "edge", credentials, nil)
	authority := credentials.Authority()
	foreign, err := pki.NewAuthority(0)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(certPEM, keyPEM []byte, err error) []tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		p, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{p}
	}
	ownCert, ownKey := credentials.Pair()
	agent := pair(foreign.IssueAgent("edge", 0))
	for name, c := range map[string]struct {
		certificates []tls.Certificate
		maxVersion   uint16
		admitted     bool
	}{
		"a replica":                              {certificates: pair(ownCert, ownKey, nil), admitted: true},
		"no certificate":                         {},
		"an agent of the tunnel":                 {certificates: agent},
		"an agent, as if by the CA of replicas":  {certificates: pair(authority.IssueAgent("edge", 0))},
		"a serving certificate of the same CA":   {certificates: pair(authority.IssueServing([]string{ServerName}, 0))},
		"a serving certificate of another CA":    {certificates: pair(foreign.IssueServing([]string{ServerName}, 0))},
		"a replica of another gateway":           {certificates: foreignPeer(t)},
		"a replica whose certificate is expired": {certificates: expired(t, hub)},
		"a replica with TLS 1.2":                 {certificates: pair(ownCert, ownKey, nil), maxVersion: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
				RootCAs: authority.Pool(), ServerName: ServerName, MinVersion: tls.VersionTLS12, MaxVersion: c.maxVersion,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(c.certificates) == 0 {
						return &tls.Certificate{}, nil
					}
					return &c.certificates[0], nil
				},
			}}
			defer transport.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+b.address+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(headerCluster, "edge")
			resp, err := transport.RoundTrip(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			if admitted := err == nil && resp.StatusCode == http.StatusOK; admitted != c.admitted {
				t.Errorf("admitted: %v (%v), want %v", admitted, err, c.admitted)
			}
		})
	}
}

func foreignPeer(t *testing.T) []tls.Certificate {
	t.Helper()
	return pairOf(t, newCredentials(t, fake.NewClientset(), 0))
}

// expired returns a certificate of the hub's replicas that has expired.
func expired(t *testing.T, hub kubernetes.Interface) []tls.Certificate {
	t.Helper()
	if err := hub.CoreV1().Secrets(namespace).Delete(t.Context(), pki.PeerSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	return pairOf(t, newCredentials(t, hub, time.Nanosecond))
}

func pairOf(t *testing.T, k *pki.Keeper) []tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(k.Pair())
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{pair}
}

// TestOnlyReplicasAreBelieved shows that no other server can take the place of a replica.
func TestOnlyReplicasAreBelieved(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, nil)
	for name, other := range map[string]Credentials{
		"another CA":      newCredentials(t, fake.NewClientset(), 0),
		"no organization": servingOnly{credentials},
	} {
		impostor := newReplica(t, "b", "edge", other, nil)
		a.sees("b", impostor.address, "edge")
		if _, text, err := a.forward(t, "edge", http.MethodGet, ""); err == nil || impostor.served.Load() > 0 {
			t.Errorf("%s: the request was sent: %q", name, text)
		}
	}
}

// servingOnly has a certificate of the CA of replicas that is not for a replica.
type servingOnly struct{ *pki.Keeper }

func (s servingOnly) Pair() (cert, key []byte) {
	cert, key, err := s.Authority().IssueServing([]string{ServerName}, 0)
	if err != nil {
		return nil, nil
	}
	return cert, key
}

// TestDial shows the connection for the gateway's own requests: end to end, only to the API server.
func TestDial(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	far, near := net.Pipe()
	refuse := atomic.Bool{}
	a := newReplica(t, "a", "", credentials, nil)
	b := newReplica(t, "b", "edge", credentials, func(cfg *Config) {
		cfg.Dial = func(_ context.Context, cluster string) (net.Conn, error) {
			if refuse.Load() {
				return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageEndpoint, Err: x509.ErrUnsupportedAlgorithm}
			}
			return near, nil
		}
	})
	a.sees("b", b.address, "edge")
	d := a.Dialer("edge")
	conn, err := d.DialContext(t.Context(), "tcp", "api:6443")
	if err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]net.Conn{{conn, far}, {far, conn}} {
		go func() { _, _ = io.WriteString(ends[0], "hello") }()
		text := make([]byte, 5)
		if _, err := io.ReadFull(ends[1], text); err != nil || string(text) != "hello" {
			t.Errorf("got %q, %v", text, err)
		}
	}
	_ = far.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the end of the connection was not carried")
	}
	refuse.Store(true)
	var failed *dialer.Error
	if _, err := d.DialContext(t.Context(), "tcp", "api:6443"); !errors.As(err, &failed) || failed.Stage != dialer.StageEndpoint {
		t.Errorf("got %v, want the error of the other replica's dial", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestSilentAgents shows that requests go to a replica with an agent that answers, as long as there
// is one.
func TestSilentAgents(t *testing.T) {
	t.Parallel()
	c := newCredentials(t, fake.NewClientset(), 0)
	var silent atomic.Bool
	a := newReplica(t, "a", "edge", c, func(cfg *Config) { cfg.Answers = func(string) bool { return !silent.Load() } })
	b := newReplica(t, "b", "edge", c, nil)
	first := newReplica(t, "first", "", c, nil)
	first.sees("a", a.address, "edge")
	if a.Elsewhere("edge") {
		t.Error("the cluster is elsewhere, and the agent here answers")
	}
	silent.Store(true)
	if a.Elsewhere("edge") {
		t.Error("the cluster is elsewhere, and no other replica has an agent")
	}
	if code, text, err := first.forward(t, "edge", http.MethodGet, ""); err != nil || code != http.StatusOK || a.served.Load() != 1 {
		t.Errorf("%d %s (%v), want an answer of the only agent", code, text, err)
	}
	a.sees("b", b.address, "edge")
	if !a.Elsewhere("edge") {
		t.Error("the cluster is not elsewhere, and only the agent of another replica answers")
	}
	first.sees("b", b.address, "edge")
	const n = 4
	for range n {
		if code, text, err := first.forward(t, "edge", http.MethodPost, "x"); err != nil || code != http.StatusOK {
			t.Errorf("%d %s (%v), want an answer of the agent that answers", code, text, err)
		}
	}
	if a.served.Load() != 1 || b.served.Load() != n {
		t.Errorf("the replicas have served %d and %d requests, want 1 and %d", a.served.Load(), b.served.Load(), n)
	}
}
