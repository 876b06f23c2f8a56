// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install installs a release on the lab from nothing but its folder: the chart, the image,
// and agent-bootstrap. It runs only if $CLUSTER_GATEWAY_RELEASE names the folder (make
// test-install). $CLUSTER_GATEWAY_RELEASE_BEFORE is the folder of the release to upgrade from.
package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	releaseVariable = "CLUSTER_GATEWAY_RELEASE"
	beforeVariable  = "CLUSTER_GATEWAY_RELEASE_BEFORE"
	hubNamespace    = "cluster-gateway-system"
	agentNamespace  = "cluster-gateway-agent"
	caseTimeout     = 15 * time.Minute
)

// env is the lab. Its hub has nothing of the gateway yet.
type env struct {
	lab       *lab.Lab
	hub, edge *lab.Cluster
}

// shared is set before the test, and does not change after that.
var shared *env

func TestMain(m *testing.M) {
	if os.Getenv(releaseVariable) == "" {
		os.Exit(m.Run())
	}
	labtest.Main(m, func(ctx context.Context, l *lab.Lab) error {
		shared = &env{lab: l}
		var group errgroup.Group
		group.Go(func() (err error) {
			// The lab has no kube-proxy: the hub connects to the endpoints of the gateway's Service itself.
			shared.hub, err = l.StartCluster(ctx, lab.ClusterOptions{Name: "hub", NoKwok: true, ExtraAPIServerArgs: []string{"--enable-aggregator-routing=true"}})
			return err
		})
		group.Go(func() (err error) {
			shared.edge, err = l.StartCluster(ctx, lab.ClusterOptions{Name: "edge", Firewalled: true})
			return err
		})
		return group.Wait()
	})
}

// release is the folder of a release, for this machine.
type release struct {
	// chart is the archive of the chart, image the reference of the image that it installs.
	chart, image string
	// program is agent-bootstrap, as a user of kubectl has it.
	program string
	gateway lab.ProcessOptions
}

// open finds in a folder what a user needs.
func open(t *testing.T, dir string) release {
	t.Helper()
	one := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s has %q for %s: %v", dir, found, pattern, err)
		}
		return found[0]
	}
	r := release{chart: one("cluster-gateway-[0-9]*.tgz")}
	version := "v" + strings.TrimSuffix(strings.TrimPrefix(filepath.Base(r.chart), "cluster-gateway-"), ".tgz")
	r.image = "cluster-gateway:" + version
	archive, err := os.Open(one("agent-bootstrap_*_" + runtime.GOOS + "_" + runtime.GOARCH + ".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	bin := t.TempDir()
	if err := extract(archive, bin); err != nil {
		t.Fatal(err)
	}
	r.program = filepath.Join(bin, "agent-bootstrap")
	r.gateway = layout(filepath.Join(dir, "image")).unpack(t)
	return r
}

// TestRelease installs the release of before, registers a cluster with an invitation, uses it,
// upgrades to this release, rolls back and upgrades again while requests flow, and uninstalls.
func TestRelease(t *testing.T) {
	dir := os.Getenv(releaseVariable)
	if dir == "" {
		t.Skip("$" + releaseVariable + " names no release: make test-install")
	}
	if !shared.edge.Firewalled() {
		t.Skip("containers and a firewalled cluster need namespaces, which require root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	defer cancel()
	now := open(t, dir)
	before := now
	if other := os.Getenv(beforeVariable); other != "" {
		before = open(t, other)
	} else {
		t.Logf("$%s names no release, so the upgrade only changes values", beforeVariable)
	}
	contents := everything(ctx, t)

	address := shared.lab.HostAddr(shared.edge)
	port, err := shared.lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	gateways, err := shared.lab.RunGatewayDeployment(lab.GatewayDeploymentOptions{
		Hub: shared.hub, Address: address, TunnelPort: port,
		Program: func(image string) (lab.ProcessOptions, error) {
			for _, r := range []release{before, now} {
				if r.image == image {
					own := *r.gateway.Container // each gateway has its own mounts
					options := r.gateway
					options.Container = &own
					return options, nil
				}
			}
			return lab.ProcessOptions{}, fmt.Errorf("there is no image %s", image)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gateways.Stop(); err != nil {
			t.Error(err)
		}
	})
	agents := shared.lab.RunAgentDeployment(shared.edge, agentNamespace, "konnectivity-agent")
	t.Cleanup(func() {
		if err := agents.Stop(); err != nil {
			t.Error(err)
		}
	})

	// Install.
	helm := labtest.Helm(ctx, t, shared.hub.Kubeconfig(), hubNamespace)
	advertise := "tunnel.advertiseAddress=" + net.JoinHostPort(address, strconv.Itoa(port))
	helm("install", "gateway", before.chart, "--create-namespace", "--set", advertise)
	kubectl(ctx, t, shared.hub.Kubeconfig(), "label", "namespace", hubNamespace, "pod-security.kubernetes.io/enforce=restricted")
	kubectl(ctx, t, shared.hub.Kubeconfig(), "wait", "--for=condition=Available", "apiservice/"+apiService, "--timeout=3m")
	checkContainer(t, gateways)

	// Register and use a cluster.
	user := newUser(t, before.program)
	user.register(ctx, t, "edge-1")
	if out := kubectl(ctx, t, user.kubeconfig, "--context", "edge-1", "get", "nodes", "-o", "name"); strings.TrimSpace(out) != "node/"+lab.NodeName {
		t.Errorf("kubectl get nodes through the gateway printed %q", out)
	}

	// Upgrade, roll back, upgrade.
	requests := send(ctx, t, "edge-1")
	for i, step := range [][]string{
		{"upgrade", "gateway", now.chart, "--set", advertise, "--set", "loggingFormat=json"},
		{"rollback", "gateway", "1"},
		{"upgrade", "gateway", now.chart, "--set", advertise, "--set", "loggingFormat=json"},
	} {
		sent := requests.count()
		helm(step...)
		labtest.Within(t, labtest.Timeout, "another gateway", func() error {
			if _, rolls := gateways.Process(); rolls != i+1 {
				return cmp.Or(gateways.Err(), fmt.Errorf("%d replacements", rolls))
			}
			return nil
		})
		checkContainer(t, gateways)
		user.program = []string{now.program, before.program, now.program}[i]
		user.run(ctx, t, "doctor", "edge-1")
		kubectl(ctx, t, user.kubeconfig, "--context", "edge-1", "get", "nodes")
		if requests.count() == sent {
			t.Errorf("no request was sent during %s", step[0])
		}
	}
	requests.end(t)

	// Remove.
	edge, err := shared.edge.BastionKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	user.run(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", edge)
	if err := agents.Stop(); err != nil {
		t.Error(err)
	}
	order := deletions(ctx, t)
	helm("uninstall", "gateway", "--wait")
	order.check(t)
	labtest.Within(t, labtest.Timeout, "the gateway to end", func() error {
		if process, _ := gateways.Process(); process != nil {
			return errors.New("it runs")
		}
		return nil
	})
	for name := range objects(ctx, t, "app.kubernetes.io/instance=gateway") {
		t.Errorf("%s is left of the release", name)
	}
	kubectl(ctx, t, shared.hub.Kubeconfig(), "delete", "namespace", hubNamespace, "--timeout=1m")
	for name := range everything(ctx, t) {
		if !contents[name] {
			t.Errorf("%s is left on the hub", name)
		}
	}
	if _, err := shared.edge.Client().CoreV1().Namespaces().Get(ctx, agentNamespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the agent's namespace is still in the cluster, or: %v", err)
	}
}

var apiService = v1alpha1.SchemeGroupVersion.Version + "." + v1alpha1.GroupName

// checkContainer checks that the gateway runs as it does in a restricted Pod.
func checkContainer(t *testing.T, gateways *lab.GatewayDeployment) {
	t.Helper()
	process, _ := gateways.Process()
	if process == nil {
		t.Fatalf("no gateway runs: %v", gateways.Err())
	}
	proc := filepath.Join("/proc", strconv.Itoa(process.Pid()))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`Uid:(\s65532){4}`, `Gid:(\s65532){4}`, `Groups:\s*`, `NSpid:\s\d+\s1`, `NoNewPrivs:\s1`, `CapPrm:\s0+`, `CapBnd:\s0+`, `CapAmb:\s0+`} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).Match(status) {
			t.Errorf("the status of the gateway's process has no %s:\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !slices.Contains(strings.Split(fields[5], ","), "ro") {
			t.Errorf("the gateway can write to %s", fields[4])
		}
	}
	if bytes.Count(mounts, []byte("\n")) != 2 {
		t.Errorf("the gateway sees the mounts\n%s", mounts)
	}
}

// user is somebody with agent-bootstrap, kubectl and the kubeconfig of the hub.
type user struct{ program, kubeconfig string }

func newUser(t *testing.T, program string) *user {
	t.Helper()
	u := &user{program: program, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	err := lab.WriteKubeconfig(u.kubeconfig, shared.hub.Endpoint(), shared.hub.CAPEM(),
		&clientcmdapi.AuthInfo{ClientCertificateData: shared.hub.AdminCertPEM(), ClientKeyData: shared.hub.AdminKeyPEM()})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// run runs agent-bootstrap.
func (u *user) run(ctx context.Context, t *testing.T, args ...string) (stdout string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, u.program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+u.kubeconfig)
	return run(t, cmd)
}

// register registers the firewalled cluster with an invitation, and adds it to the kubeconfig.
func (u *user) register(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	invitation := u.run(ctx, t, "invite", name)
	apply := shared.edge.Kubectl(ctx, "apply", "--validate=strict", "-f", "-")
	apply.Stdin = strings.NewReader(invitation)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	job := regexp.MustCompile(`konnectivity-agent-enrol-[0-9a-f]{8}`).FindString(invitation)
	labtest.Within(t, labtest.Timeout, "the Job", func() error { // a controller writes the cluster's CA
		agent, err := shared.lab.StartAgentJob(ctx, shared.edge, agentNamespace, job, "enroll")
		if err == nil {
			t.Cleanup(func() { _ = agent.Kill() }) // it may have ended already
		}
		return err
	})
	labtest.Within(t, labtest.Timeout, "Ready", func() error {
		out, err := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, "--kubeconfig", u.kubeconfig, "get", "clustergateway", name,
			"-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`).CombinedOutput()
		if err == nil && string(out) != "True" {
			err = errors.New("not Ready")
		}
		return err
	})
	u.run(ctx, t, "kubeconfig", name, "--merge")
}

func kubectl(ctx context.Context, t *testing.T, kubeconfig string, args ...string) (stdout string) {
	t.Helper()
	return run(t, exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig}, args...)...))
}

func run(t *testing.T, cmd *exec.Cmd) (stdout string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &stderr, 5*time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, &stderr, out)
	}
	return string(out)
}

// requests are requests to a cluster through the hub and the gateway.
type requests struct {
	stop    context.CancelFunc
	sending sync.WaitGroup

	mu     sync.Mutex
	sent   int
	failed []string
}

// send sends requests until end.
func send(ctx context.Context, t *testing.T, name string) *requests {
	t.Helper()
	client, err := rest.HTTPClientFor(shared.hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	url := shared.hub.Endpoint() + v1alpha1.ProxyPath(name) + "/api/v1/namespaces/default"
	r := &requests{}
	ctx, r.stop = context.WithCancel(ctx)
	r.sending.Go(func() {
		for ctx.Err() == nil {
			err := get(ctx, client, url)
			r.mu.Lock()
			r.sent++
			if err != nil && ctx.Err() == nil {
				r.failed = append(r.failed, fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err))
			}
			r.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { r.stop(); r.sending.Wait() })
	return r
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var body bytes.Buffer
		_, _ = body.ReadFrom(response.Body) // it only explains the status
		return fmt.Errorf("%s: %s", response.Status, &body)
	}
	return nil
}

func (r *requests) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

// end stops, and checks that no request has failed.
func (r *requests) end(t *testing.T) {
	t.Helper()
	r.stop()
	r.sending.Wait()
	if len(r.failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(r.failed), r.sent, strings.Join(r.failed[:min(len(r.failed), 5)], "\n"))
	}
	t.Logf("%d requests", r.sent)
}

// deletion records when the APIService and the Service are deleted.
type deletion struct{ versions map[string]chan uint64 }

func deletions(ctx context.Context, t *testing.T) *deletion {
	t.Helper()
	client, err := metadata.NewForConfig(shared.hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	d := &deletion{versions: map[string]chan uint64{}}
	for resource, name := range map[schema.GroupVersionResource]string{
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}: apiService,
		{Version: "v1", Resource: "services"}:                                     "cluster-gateway",
		{Group: "apps", Version: "v1", Resource: "deployments"}:                   "cluster-gateway",
	} {
		watch, err := client.Resource(resource).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(watch.Stop)
		deleted := make(chan uint64, 1)
		d.versions[resource.Resource] = deleted
		go func() {
			for event := range watch.ResultChan() {
				o, ok := event.Object.(*metav1.PartialObjectMetadata)
				if !ok || event.Type != "DELETED" {
					continue
				}
				version, _ := strconv.ParseUint(o.ResourceVersion, 10, 64)
				deleted <- version
				return
			}
		}()
	}
	return d
}

// check checks that the APIService was deleted before what it refers to.
func (d *deletion) check(t *testing.T) {
	t.Helper()
	versions := map[string]uint64{}
	for resource, deleted := range d.versions {
		select {
		case versions[resource] = <-deleted:
		case <-time.After(labtest.Timeout):
			t.Fatalf("the deletion of %s was not seen", resource)
		}
	}
	if first := versions["apiservices"]; first == 0 || first > versions["services"] || first > versions["deployments"] {
		t.Errorf("the APIService must be deleted first, but the resource versions of the deletions are %v", versions)
	}
}

// everything returns the objects of all kinds on the hub, except for Events and Leases.
func everything(ctx context.Context, t *testing.T) map[string]bool {
	t.Helper()
	return objects(ctx, t, "")
}

// objects returns the objects with these labels of all kinds on the hub, except for Events and
// Leases. Discovery must be complete.
func objects(ctx context.Context, t *testing.T, selector string) map[string]bool {
	t.Helper()
	quiet := shared.hub.RESTConfig()
	quiet.WarningHandler = rest.NoWarnings{} // there are deprecated kinds
	client, err := metadata.NewForConfig(quiet)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := shared.hub.Client().Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	resources, err := discovery.GroupVersionResources(discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list"}}, lists))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, resource := range slices.Collect(maps.Keys(resources)) {
		if resource.Resource == "events" || resource.Resource == "leases" {
			continue
		}
		list, err := client.Resource(resource).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			t.Fatalf("list %s: %v", resource, err)
		}
		for _, o := range list.Items {
			found[resource.GroupResource().String()+" "+o.Namespace+"/"+o.Name] = true
		}
	}
	if selector == "" && len(found) < 50 {
		t.Fatalf("there are only %d objects", len(found))
	}
	return found
}
