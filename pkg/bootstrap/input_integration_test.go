// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestBadInput checks that the commands refuse invalid input before they change anything, and say
// what to do.
func TestBadInput(t *testing.T) {
	ctx := site.Begin(t)
	nowhere := bootstraptest.Kubeconfig(t, site.Hub, "https://127.0.0.1:1", nil, nil)
	noHost := bootstraptest.Kubeconfig(t, site.Hub, "https://no-such-host.invalid:6443", nil, nil)
	wrongCA := bootstraptest.Kubeconfig(t, site.Hub, site.Near.Endpoint(), site.Hub.CAPEM(), nil)
	badToken := bootstraptest.Kubeconfig(t, site.Hub, site.Near.Endpoint(), site.Near.CAPEM(), &clientcmdapi.AuthInfo{Token: "nonsense"})
	proxied := withProxyPath(t, site.Near.Kubeconfig())
	token, err := site.Near.ServiceAccountToken(ctx, "default", "nobody", "view")
	if err != nil {
		t.Fatal(err)
	}
	powerless := bootstraptest.Kubeconfig(t, site.Hub, site.Near.Endpoint(), site.Near.CAPEM(), &clientcmdapi.AuthInfo{Token: token})
	ahead := func() time.Time { return time.Now().Add(10 * time.Minute) }

	hub, nearby := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
	for _, c := range []struct {
		name string
		args []string
		now  func() time.Time
		want []string // in the error
	}{
		{"name", []string{"register", "Edge_1", "--cluster-kubeconfig", site.Near.Kubeconfig()}, nil, []string{`invalid cluster name "Edge_1"`}},
		{"name of a record", []string{"register", "invitation.b", "--cluster-kubeconfig", site.Near.Kubeconfig()}, nil, []string{"reserved for the records of invitations"}},
		{"long name", []string{"kubeconfig", strings.Repeat("x", 254)}, nil, []string{"invalid cluster name"}},
		{"no kubeconfig", []string{"register", "near-1"}, nil, []string{"--cluster-kubeconfig is required"}},
		{"all faults at once", []string{"register", "Near", "--route", "over"}, nil, []string{"invalid cluster name", "--cluster-kubeconfig is required", `invalid --route "over": must be tunnel or direct`}},
		{"missing kubeconfig", []string{"register", "near-1", "--cluster-kubeconfig", "/no/such/file"}, nil, []string{"--cluster-kubeconfig", "/no/such/file"}},
		{"kubeconfig of nowhere", []string{"register", "near-1", "--cluster-kubeconfig", nowhere}, nil, []string{"points to https://127.0.0.1:1", "nothing answers"}},
		{"kubeconfig of no host", []string{"register", "near-1", "--cluster-kubeconfig", noHost}, nil, []string{"no-such-host.invalid"}},
		{"kubeconfig with another CA", []string{"register", "near-1", "--cluster-kubeconfig", wrongCA}, nil, []string{"is not the one that --cluster-kubeconfig expects"}},
		{"credential that is not accepted", []string{"register", "near-1", "--cluster-kubeconfig", badToken}, nil, []string{"does not accept the credential", "401"}},
		{"no rights", []string{"register", "near-1", "--cluster-kubeconfig", powerless}, nil, []string{"system:serviceaccount:default:nobody", `create, patch namespaces "cluster-gateway-agent"`, "--cluster-kubeconfig"}},
		// As for a gateway with --tunnel-mode=external, which makes nothing known there.
		{"no tunnel server", []string{"register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--secret-namespace", "default"}, nil,
			[]string{"the address that agents connect to is not known", "--tunnel-mode=external", "set up by hand: see docs/register.md"}},
		{"no tunnel server, an address", []string{"register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--secret-namespace", "default", "--tunnel-address", "a:1"}, nil,
			[]string{"the tunnel's CA is not on the hub", "--tunnel-mode=external"}},
		{"endpoint without TLS", site.RegisterNear("--endpoint", "http://foo"), nil, []string{`--endpoint: the scheme is "http"; only https is allowed`}},
		{"endpoint's port", site.RegisterEdge("--endpoint", "https://foo:http"), nil, []string{"--endpoint: "}},
		{"tunnel's port", []string{"register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--tunnel-address", "a:b"}, nil,
			[]string{`--tunnel-address "a:b": its port must be between 1 and 65535`}},
		{"tunnel's host", []string{"register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--tunnel-address", "https://a:1"}, nil, []string{"it must be host:port"}},
		{"kubeconfig with a proxy that the gateway cannot use", []string{"register", "near-1", "--route", "direct", "--cluster-kubeconfig", proxied}, nil,
			[]string{"could not use what would be registered", "nothing was changed", "proxy-url"}},
		{"address of this machine", []string{"register", "near-1", "--route", "direct", "--cluster-kubeconfig", site.Near.Kubeconfig()}, nil,
			[]string{"which only this machine can reach", "nothing was changed", "--endpoint " + site.Near.Endpoint()}},
		{"proxy for an agent", site.RegisterEdge("--proxy-url", "http://proxy:3128"), nil, []string{"--proxy-url requires --route=direct"}},
		{"proxy without a host", site.RegisterNear("--proxy-url", "proxy"), nil, []string{"proxy-url", "nothing was changed"}},
		{"agent's values for no agent", site.RegisterNear("--agent-values", "/no/such/file"), nil, []string{"--agent-values cannot be used with --out-dir or --route=direct", "/no/such/file"}},
		{"no such role", site.RegisterNear("--access", "no-such-role"), nil, []string{"no ClusterRole of that name", "kubectl get clusterroles"}},
		{"clock", site.RegisterNear(), ahead, []string{"clock", "10m", "apart"}},
		{"files of an agent that there is none of", site.RegisterNear("--out-dir", t.TempDir()), nil, []string{"--out-dir"}},
		{"not registered", []string{"kubeconfig", "near-1"}, nil, []string{`"near-1" is not registered`}},
		{"rotate to an address that is none", []string{"rotate", "near-1", "--tunnel-address", "a:b"}, nil, []string{"--tunnel-address \"a:b\"", "port"}},
		{"rotate what is not registered", []string{"rotate", "near-1"}, nil, []string{"not registered"}},
		{"output", []string{"list", "-o", "xml"}, nil, []string{"yaml or json"}},
		{"merged into nothing", []string{"kubeconfig", "near-1", "--merge", "-o", "-"}, nil, []string{"--merge needs a file"}},
		{"endpoint", []string{"kubeconfig", "near-1", "--endpoint", "gateway"}, nil, []string{"--gateway-address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, said, err := site.Run(ctx, bootstrap.Config{Now: c.now}, c.args...)
			if err == nil {
				t.Fatalf("it succeeded:\n%s", said)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
			labtest.Same(t, "the cluster", nearby, labtest.Objects(ctx, t, site.Near))
		})
	}
}

// TestInviteInput checks what invite refuses before it changes anything.
func TestInviteInput(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear()...)
	nowhere := bootstraptest.Kubeconfig(t, site.Hub, "https://127.0.0.1:1", nil, nil)
	hub := labtest.Objects(ctx, t, site.Hub)
	for _, c := range []struct {
		name string
		args []string
		now  func() time.Time
		want string
	}{
		{"no label", []string{"Edge_1"}, nil, `invalid cluster name "Edge_1"`},
		{"long name", []string{strings.Repeat("x", 64)}, nil, "at most 63 characters"},
		{"name of a record", []string{"invitation.b"}, nil, "reserved for the records of invitations"},
		{"registered", []string{"near-1"}, nil, `the name "near-1" is taken`},
		{"the gateway's own Secret", []string{"cluster-gateway-tunnel-ca"}, nil, "is taken"},
		{"short ttl", []string{"edge-1", "--ttl", "59s"}, nil, "invalid --ttl"},
		{"long ttl", []string{"edge-1", "--ttl", "721h"}, nil, "invalid --ttl"},
		{"negative ttl", []string{"edge-1", "--ttl=-1h"}, nil, "invalid --ttl"},
		{"hub unreachable", []string{"edge-1", "--kubeconfig", nowhere}, nil, "nothing answers"},
		{"clock", []string{"edge-1"}, func() time.Time { return time.Now().Add(10 * time.Minute) }, "clock"},
		{"address", []string{"edge-1", "--tunnel-address", "nonsense"}, nil, "it must be host:port"},
		{"token's life", []string{"edge-1", "--token-lifetime", "1m"}, nil, `invalid --token-lifetime "1m0s": must be at least 10m0s`},
		{"process without an endpoint", []string{"edge-1", "--out-dir", "/nowhere"}, nil, "--out-dir requires --endpoint"},
		{"endpoint without TLS", []string{"edge-1", "--out-dir", "/nowhere", "--endpoint", "http://a"}, nil, "--endpoint: the scheme is"},
		{"endpoint's port", []string{"edge-1", "--out-dir", "/nowhere", "--endpoint", "https://a:0"}, nil, "--endpoint: the port is not"},
		{"address's port", []string{"edge-1", "--tunnel-address", "a:b"}, nil, "its port must be between"},
		{"endpoint of a Pod", []string{"edge-1", "--endpoint", "https://a"}, nil, "--endpoint requires --out-dir"},
		{"output", []string{"edge-1", "-o", "xml"}, nil, "yaml or json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := site.Run(ctx, bootstrap.Config{Now: c.now}, append([]string{"invite"}, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want that it says %q", err, c.want)
			}
			if out != "" {
				t.Errorf("it writes\n%s", out)
			}
			labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
		})
	}
	out, _ := site.Must(ctx, t, "invite", "edge-1", "--dry-run")
	if strings.Contains(out, "tls.key: LS0") || !strings.Contains(out, "<not shown>") {
		t.Error("a dry run writes a key")
	}
	labtest.Same(t, "the hub, after a dry run", hub, labtest.Objects(ctx, t, site.Hub))
	site.Must(ctx, t, "invite", "edge-1", "-o", "json")
	once := labtest.Objects(ctx, t, site.Hub)
	if _, said := site.Must(ctx, t, "invite", "edge-1", "--dry-run"); !strings.Contains(said, "the previous invitation would be revoked") {
		t.Errorf("a dry run of another says\n%s", said)
	}
	labtest.Same(t, "the hub, after a dry run of another", once, labtest.Objects(ctx, t, site.Hub))
	_, said := site.Must(ctx, t, "unregister", "edge-1")
	if !strings.Contains(said, "invitation") {
		t.Errorf("unregister says\n%s", said)
	}
	labtest.SameNames(t, "the hub, after unregistering what was invited only", hub, labtest.Objects(ctx, t, site.Hub))
}

// TestInviteMany invites the clusters of a file. One of them is registered already, which does not
// keep the others from being invited.
func TestInviteMany(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear()...)
	dir := t.TempDir()
	names := filepath.Join(dir, "names.txt")
	if err := os.WriteFile(names, []byte("# new ones\nshop-1\nnear-1\nshop-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := labtest.Objects(ctx, t, site.Hub)
	out, _, err := site.Run(ctx, bootstrap.Config{}, "invite", "--from", names, "--dry-run")
	if bootstrap.ExitCode(err) != 1 || !strings.Contains(out, "shop-1\tcan be invited\n") {
		t.Errorf("%v\n%s", err, out)
	}
	labtest.Same(t, "the hub, after a dry run", before, labtest.Objects(ctx, t, site.Hub))

	out, _, err = site.Run(ctx, bootstrap.Config{}, "invite", "--from", names, "--invitations-dir", dir)
	if bootstrap.ExitCode(err) != 1 || !strings.Contains(err.Error(), "1 of 3 clusters failed") {
		t.Errorf("exit code %d: %v", bootstrap.ExitCode(err), err)
	}
	for _, want := range []string{"shop-1\tinvited: " + dir + "/shop-1.yaml\n", "near-1\tfailed: the name \"near-1\" is taken", "shop-2\tinvited: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, name := range []string{"shop-1", "shop-2"} {
		file := filepath.Join(dir, name+".yaml")
		info, err := os.Stat(file)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "tls.key: ") {
			t.Errorf("%v: the invitation of %s has no key", err, name)
		}
		if strings.Contains(out, string(text)) {
			t.Error("the output has an invitation")
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "near-1.yaml")); err == nil {
		t.Error("there is a file for a cluster that was not invited")
	}
	if out, _, err := site.Run(ctx, bootstrap.Config{}, "invite", "--from", names, "--revoke"); err != nil || !strings.Contains(out, "shop-2\trevoked") {
		t.Errorf("%v\n%s", err, out)
	}
}

// withProxyPath copies a kubeconfig and adds a proxy URL with a path. client-go ignores the path,
// and the gateway refuses it.
func withProxyPath(t *testing.T, file string) string {
	t.Helper()
	proxy := httptest.NewServer(http.HandlerFunc(connect))
	t.Cleanup(proxy.Close)
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Clusters {
		c.ProxyURL = proxy.URL + "/path"
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// connect is a proxy for TLS connections.
func connect(w http.ResponseWriter, r *http.Request) {
	server, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	w.WriteHeader(http.StatusOK)
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(client, server); client.Close() })
	_, _ = io.Copy(server, buffered)
	server.Close()
	back.Wait()
}

// TestNameTaken checks that a registered name is not given to another cluster, a registered cluster
// gets no second name, and a Secret that was written by hand is not overwritten without --adopt.
func TestNameTaken(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterNear()...)
	hub := labtest.Objects(ctx, t, site.Hub)
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"another cluster's name", []string{"register", "near-1", "--cluster-kubeconfig", site.Edge.Kubeconfig(), "--wait", "0"}, "registered to another cluster"},
		{"another name for the cluster", []string{"register", "near-2", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--route", "direct"}, `registered already, as "near-1"`},
		{"unregister by another kubeconfig", []string{"unregister", "near-1", "--cluster-kubeconfig", site.Edge.Kubeconfig()}, "another cluster's"},
	} {
		if _, _, err := site.Run(ctx, bootstrap.Config{}, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		labtest.Same(t, c.name+": the hub", hub, labtest.Objects(ctx, t, site.Hub))
	}
	site.Must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig())

	byHand := lab.SecretOptions{Name: "near-1", Data: map[string][]byte{"endpoint": []byte(site.Near.Endpoint()), "token": []byte("x")}}
	if err := site.Hub.ApplySecret(ctx, byHand); err != nil {
		t.Fatal(err)
	}
	if _, _, err := site.Run(ctx, bootstrap.Config{}, site.RegisterNear()...); err == nil || !strings.Contains(err.Error(), "--adopt") {
		t.Errorf("what was registered by hand: %v", err)
	}
	site.Must(ctx, t, site.RegisterNear("--adopt")...)
}

// TestUnregisterOfClusterAPI checks that a cluster is not removed while the gateway would register
// it again, from its kubeconfig of Cluster API.
func TestUnregisterOfClusterAPI(t *testing.T) {
	ctx := site.Begin(t)
	secrets := site.Hub.Client().CoreV1().Secrets(metav1.NamespaceDefault)
	source := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "near-1-kubeconfig", Labels: map[string]string{"cluster.x-k8s.io/cluster-name": "near-1"}},
		Type:       "cluster.x-k8s.io/secret",
	}
	if _, err := secrets.Create(ctx, source, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = secrets.Delete(context.WithoutCancel(ctx), source.Name, metav1.DeleteOptions{}) }) // the test deletes it, too
	if err := site.Hub.ApplySecret(ctx, lab.SecretOptions{
		Name: "near-1", Data: map[string][]byte{"endpoint": []byte(site.Near.Endpoint()), "token": []byte("x")},
		Annotations: map[string]string{v1alpha1.AnnotationClusterAPISecret: "default/near-1-kubeconfig"},
	}); err != nil {
		t.Fatal(err)
	}
	label := []byte(`{"metadata":{"labels":{"` + v1alpha1.LabelManagedBy + `":"` + v1alpha1.ManagedByClusterAPI + `"}}}`)
	if _, err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Patch(ctx, "near-1", types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	hub := labtest.Objects(ctx, t, site.Hub)
	for _, more := range [][]string{{"--keep-agent"}, {"--keep-agent", "--dry-run"}, {"--cluster-kubeconfig", site.Near.Kubeconfig()}} {
		_, _, err := site.Run(ctx, bootstrap.Config{}, append([]string{"unregister", "near-1"}, more...)...)
		if err == nil || !strings.Contains(err.Error(), "from the Secret default/near-1-kubeconfig of Cluster API") ||
			!strings.Contains(err.Error(), "kubectl -n "+bootstraptest.HubNamespace+" delete secret near-1") {
			t.Errorf("%v: %v", more, err)
		}
	}
	labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))

	if err := secrets.Delete(ctx, source.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	site.Must(ctx, t, "unregister", "near-1", "--keep-agent")
	if _, err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Get(ctx, "near-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret is still there, or: %v", err)
	}
}
