// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// kubeconfig writes a kubeconfig and returns its path.
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

// TestUnregisterGone removes a cluster that no longer exists.
func TestUnregisterGone(t *testing.T) {
	ctx := begin(t)
	before := dump(ctx, t, shared.hub)
	must(ctx, t, edgeArgs("--wait", "0")...) // without an agent
	_, said := must(ctx, t, "unregister", "edge-1")
	if !strings.Contains(said, "cannot be reached") || !strings.Contains(said, "kubectl delete namespace "+agentNamespace) {
		t.Errorf("it does not report what is left:\n%s", said)
	}
	sameNames(t, "the hub", before, dump(ctx, t, shared.hub))
	// What is left can be removed when the cluster is back.
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
}

// TestKubeconfig checks how each form of the hub's credential is copied.
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
				t.Errorf("kubectl get namespaces printed\n%s", out)
			}
			// Merged into an existing one, whose current context does not change.
			own := filepath.Join(t.TempDir(), "own")
			if err := os.WriteFile(own, must2(os.ReadFile(hub)), 0o600); err != nil {
				t.Fatal(err)
			}
			merge := []string{"kubeconfig", "near-1", "--kubeconfig", hub, "--context", "hub", "--merge", "-o"}
			_, said := must(ctx, t, append(merge, own, "--dry-run")...)
			if !strings.Contains(said, "In "+own+":") || !strings.Contains(said, `context "near-1" would be added`) || !bytes.Equal(must2(os.ReadFile(own)), must2(os.ReadFile(hub))) {
				t.Errorf("a dry run changed %s, or does not report what it would do:\n%s", own, said)
			}
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(own, link); err != nil {
				t.Fatal(err)
			}
			must(ctx, t, append(merge, own)...)
			must(ctx, t, append(merge, link)...)
			if leads, err := os.Readlink(link); err != nil || leads != own {
				t.Errorf("the link points to %q: %v", leads, err)
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
				t.Errorf("%v prints\n%s\ninstead of\n%s", args, out, printed)
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
			t.Error("it contains the address of the hub's API server")
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
