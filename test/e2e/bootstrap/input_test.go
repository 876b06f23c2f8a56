// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
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

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestBadInput shows that what cannot be done is said before anything is done, together with what to do.
func TestBadInput(t *testing.T) {
	ctx := begin(t)
	nowhere := kubeconfig(t, "https://127.0.0.1:1", nil, nil)
	noHost := kubeconfig(t, "https://no-such-host.invalid:6443", nil, nil)
	wrongCA := kubeconfig(t, shared.nearby.Endpoint(), shared.hub.CAPEM(), nil)
	badToken := kubeconfig(t, shared.nearby.Endpoint(), shared.nearby.CAPEM(), &clientcmdapi.AuthInfo{Token: "nonsense"})
	proxied := withProxyPath(t, shared.nearbyFile)
	token, err := shared.nearby.ServiceAccountToken(ctx, "default", "nobody", "view")
	if err != nil {
		t.Fatal(err)
	}
	powerless := kubeconfig(t, shared.nearby.Endpoint(), shared.nearby.CAPEM(), &clientcmdapi.AuthInfo{Token: token})
	ahead := func() time.Time { return time.Now().Add(10 * time.Minute) }

	hub, nearby := dump(ctx, t, shared.hub), dump(ctx, t, shared.nearby)
	for _, c := range []struct {
		name string
		args []string
		now  func() time.Time
		want []string // in the error
	}{
		{"name", []string{"register", "Edge_1", "--cluster-kubeconfig", shared.nearbyFile}, nil, []string{`invalid cluster name "Edge_1"`}},
		{"name of a record", []string{"register", "invitation.b", "--cluster-kubeconfig", shared.nearbyFile}, nil, []string{"reserved for the records of invitations"}},
		{"long name", []string{"kubeconfig", strings.Repeat("x", 254)}, nil, []string{"invalid cluster name"}},
		{"no kubeconfig", []string{"register", "near-1"}, nil, []string{"--cluster-kubeconfig is required"}},
		{"all faults at once", []string{"register", "Near", "--route", "over"}, nil, []string{"invalid cluster name", "--cluster-kubeconfig is required", "--route must be tunnel or direct"}},
		{"missing kubeconfig", []string{"register", "near-1", "--cluster-kubeconfig", "/no/such/file"}, nil, []string{"--cluster-kubeconfig", "/no/such/file"}},
		{"kubeconfig of nowhere", []string{"register", "near-1", "--cluster-kubeconfig", nowhere}, nil, []string{"points to https://127.0.0.1:1", "nothing answers"}},
		{"kubeconfig of no host", []string{"register", "near-1", "--cluster-kubeconfig", noHost}, nil, []string{"no-such-host.invalid"}},
		{"kubeconfig with another CA", []string{"register", "near-1", "--cluster-kubeconfig", wrongCA}, nil, []string{"is not the one that --cluster-kubeconfig expects"}},
		{"credential that is not accepted", []string{"register", "near-1", "--cluster-kubeconfig", badToken}, nil, []string{"does not accept the credential", "401"}},
		{"no rights", []string{"register", "near-1", "--cluster-kubeconfig", powerless}, nil, []string{"system:serviceaccount:default:nobody", `create, patch namespaces "cluster-gateway-agent"`, "--cluster-kubeconfig"}},
		// As for a gateway with --tunnel-mode=external, which makes nothing known there.
		{"no tunnel server", []string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--secret-namespace", "default"}, nil,
			[]string{"it is not known where agents dial", "--tunnel-mode=external", "set up by hand: see docs/operating.md"}},
		{"no tunnel server, an address", []string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--secret-namespace", "default", "--tunnel-address", "a:1"}, nil,
			[]string{"the tunnel's CA is not on the hub", "--tunnel-mode=external"}},
		{"endpoint without TLS", nearbyArgs("--endpoint", "http://foo"), nil, []string{`--endpoint: the scheme is "http"; only https is allowed`}},
		{"endpoint's port", edgeArgs("--endpoint", "https://foo:http"), nil, []string{"--endpoint: "}},
		{"tunnel's port", []string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--tunnel-address", "a:b"}, nil,
			[]string{`--tunnel-address "a:b": its port must be between 1 and 65535`}},
		{"tunnel's host", []string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--tunnel-address", "https://a:1"}, nil, []string{"it must be host:port"}},
		{"kubeconfig with a proxy that the gateway cannot use", []string{"register", "near-1", "--route", "direct", "--cluster-kubeconfig", proxied}, nil,
			[]string{"could not use what would be registered", "nothing was changed", "proxy-url"}},
		{"no such role", nearbyArgs("--access", "no-such-role"), nil, []string{"no ClusterRole of that name", "kubectl get clusterroles"}},
		{"clock", nearbyArgs(), ahead, []string{"clock", "10m", "apart"}},
		{"files of an agent that there is none of", nearbyArgs("--out-dir", t.TempDir()), nil, []string{"--out-dir"}},
		{"not registered", []string{"kubeconfig", "near-1"}, nil, []string{`"near-1" is not registered`}},
		{"rotate to an address that is none", []string{"rotate", "near-1", "--tunnel-address", "a:b"}, nil, []string{"--tunnel-address \"a:b\"", "port"}},
		{"rotate what is not registered", []string{"rotate", "near-1"}, nil, []string{"not registered"}},
		{"output", []string{"list", "-o", "xml"}, nil, []string{"yaml or json"}},
		{"merged into nothing", []string{"kubeconfig", "near-1", "--merge", "-o", "-"}, nil, []string{"--merge needs a file"}},
		{"endpoint", []string{"kubeconfig", "near-1", "--endpoint", "gateway"}, nil, []string{"--gateway-address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, said, err := invoke(ctx, bootstrap.Config{Now: c.now}, c.args...)
			if err == nil {
				t.Fatalf("it succeeded:\n%s", said)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			same(t, "the hub", hub, dump(ctx, t, shared.hub))
			same(t, "the cluster", nearby, dump(ctx, t, shared.nearby))
		})
	}
}

// kubeconfig writes one.
func kubeconfig(t *testing.T, server string, ca []byte, user *clientcmdapi.AuthInfo) string {
	t.Helper()
	if ca == nil {
		ca = shared.hub.CAPEM()
	}
	if user == nil {
		user = &clientcmdapi.AuthInfo{Token: "any"}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := lab.WriteKubeconfig(path, server, ca, user); err != nil {
		t.Fatal(err)
	}
	return path
}

// withProxyPath copies a kubeconfig, with a proxy that answers to nobody but this machine: it has a path, which client-go ignores and the gateway does not.
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

// connect is a proxy for TLS.
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

// TestNameTaken shows that a name is not taken from another cluster, nor a cluster from its name, nor what was made by hand from who made it.
func TestNameTaken(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	hub := dump(ctx, t, shared.hub)
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"another cluster's name", []string{"register", "near-1", "--cluster-kubeconfig", shared.edgeFile, "--wait", "0"}, "registered to another cluster"},
		{"another name for the cluster", []string{"register", "near-2", "--cluster-kubeconfig", shared.nearbyFile, "--route", "direct"}, `registered already, as "near-1"`},
		{"unregister by another kubeconfig", []string{"unregister", "near-1", "--cluster-kubeconfig", shared.edgeFile}, "another cluster's"},
	} {
		if _, _, err := invoke(ctx, bootstrap.Config{}, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		same(t, c.name+": the hub", hub, dump(ctx, t, shared.hub))
	}
	must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", shared.nearbyFile)

	byHand := lab.SecretOptions{Name: "near-1", Data: map[string][]byte{"endpoint": []byte(shared.nearby.Endpoint()), "token": []byte("x")}}
	if err := shared.hub.ApplySecret(ctx, byHand); err != nil {
		t.Fatal(err)
	}
	if _, _, err := invoke(ctx, bootstrap.Config{}, nearbyArgs()...); err == nil || !strings.Contains(err.Error(), "--adopt") {
		t.Errorf("what was registered by hand: %v", err)
	}
	must(ctx, t, nearbyArgs("--adopt")...)
}

// TestUnregisterGone removes a cluster that is gone for good.
func TestUnregisterGone(t *testing.T) {
	ctx := begin(t)
	before := dump(ctx, t, shared.hub)
	must(ctx, t, edgeArgs("--wait", "0")...) // without an agent
	_, said := must(ctx, t, "unregister", "edge-1")
	if !strings.Contains(said, "cannot be reached") || !strings.Contains(said, "kubectl delete namespace "+agentNamespace) {
		t.Errorf("it does not say what is left:\n%s", said)
	}
	sameNames(t, "the hub", before, dump(ctx, t, shared.hub))
	// And what is left can be removed when the cluster turns up again.
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
}

// TestKubeconfig shows what becomes of the hub's credential.
func TestKubeconfig(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	dir := t.TempDir()
	// A hub's kubeconfig with files beside it, and an exec plugin.
	cat := filepath.Join(dir, "plugin")
	credential := `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"clientCertificateData":` +
		quoted(t, shared.hub.AdminCertPEM()) + `,"clientKeyData":` + quoted(t, shared.hub.AdminKeyPEM()) + `}}`
	if err := os.WriteFile(cat, []byte("#!/bin/sh\ncat <<'END'\n"+credential+"\nEND\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"ca.crt": shared.hub.CAPEM(), "me.crt": shared.hub.AdminCertPEM(), "me.key": shared.hub.AdminKeyPEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, user := range map[string]*clientcmdapi.AuthInfo{
		"files": {ClientCertificate: "me.crt", ClientKey: "me.key"},
		"exec":  {Exec: &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", Command: "./plugin", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}},
	} {
		t.Run(name, func(t *testing.T) {
			config := clientcmdapi.NewConfig()
			config.Clusters["hub"] = &clientcmdapi.Cluster{Server: shared.hub.Endpoint(), CertificateAuthority: "ca.crt"}
			config.AuthInfos["me"] = user
			config.Contexts["hub"] = &clientcmdapi.Context{Cluster: "hub", AuthInfo: "me", Namespace: "elsewhere"}
			config.Contexts["other"] = &clientcmdapi.Context{Cluster: "none", AuthInfo: "none"}
			config.CurrentContext = "other"
			hub := filepath.Join(dir, name+".kubeconfig")
			if err := clientcmd.WriteToFile(*config, hub); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "near-1.kubeconfig")
			must(ctx, t, "kubeconfig", "near-1", "--kubeconfig", hub, "--context", "hub", "-o", path)
			if out := kubectl(ctx, t, path, "get", "namespaces"); !strings.Contains(out, agentNamespace) {
				t.Errorf("kubectl get namespaces says\n%s", out)
			}
			// Merged into one that exists, whose current context stays.
			own := filepath.Join(t.TempDir(), "own")
			if err := os.WriteFile(own, must2(os.ReadFile(hub)), 0o600); err != nil {
				t.Fatal(err)
			}
			merge := []string{"kubeconfig", "near-1", "--kubeconfig", hub, "--context", "hub", "--merge", "-o"}
			_, said := must(ctx, t, append(merge, own, "--dry-run")...)
			if !strings.Contains(said, "In "+own+":") || !strings.Contains(said, `context "near-1" would be added`) || !bytes.Equal(must2(os.ReadFile(own)), must2(os.ReadFile(hub))) {
				t.Errorf("a dry run changed %s, or does not say what it would do:\n%s", own, said)
			}
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(own, link); err != nil {
				t.Fatal(err)
			}
			must(ctx, t, append(merge, own)...)
			must(ctx, t, append(merge, link)...)
			if leads, err := os.Readlink(link); err != nil || leads != own {
				t.Errorf("the link leads to %q: %v", leads, err)
			}
			merged, err := clientcmd.LoadFromFile(own)
			if err != nil {
				t.Fatal(err)
			}
			if merged.CurrentContext != "other" || len(merged.Contexts) != 3 {
				t.Errorf("merged: current context %q of %d", merged.CurrentContext, len(merged.Contexts))
			}
			kubectl(ctx, t, own, "--context", "near-1", "get", "namespaces")
		})
	}
	t.Run("standard output", func(t *testing.T) {
		t.Chdir(t.TempDir())
		printed, _ := must(ctx, t, "kubeconfig", "near-1")
		for _, args := range [][]string{{"-o", "-"}, {"--dry-run"}} {
			if out, _ := must(ctx, t, append([]string{"kubeconfig", "near-1"}, args...)...); out == "" || out != printed {
				t.Errorf("%v prints\n%s\nand not\n%s", args, out, printed)
			}
		}
		must(ctx, t, "kubeconfig", "near-1", "--dry-run", "-o", "file")
		if entries, err := os.ReadDir("."); err != nil || len(entries) > 0 {
			t.Errorf("files were written: %v, %v", entries, err)
		}
	})
	t.Run("gateway's own endpoint", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "kubeconfig")
		must(ctx, t, "kubeconfig", "near-1", "--endpoint", "gateway", "--gateway-address", strings.TrimPrefix(shared.gateway.Endpoint(), "https://"), "-o", path)
		kubectl(ctx, t, path, "get", "namespaces")
		if strings.Contains(string(must2(os.ReadFile(path))), "server: "+shared.hub.Endpoint()) {
			t.Error("it leads to the hub's API server")
		}
	})
}

func quoted(t *testing.T, pem []byte) string {
	t.Helper()
	return `"` + strings.ReplaceAll(string(pem), "\n", `\n`) + `"`
}

func must2(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}
