// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"strings"
	"testing"

	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// TestPlanRefusesLocalAddresses shows which addresses in a kubeconfig the gateway cannot use, and
// that a flag overrides each refusal.
func TestPlanRefusesLocalAddresses(t *testing.T) {
	t.Parallel()
	const proxy = "http://proxy.example.com:3128"
	for _, test := range []struct {
		name             string
		form             Form
		server, viaProxy string
		change           func(spec *Spec)
		want             string // in the error
		note             string
	}{
		{name: "public", form: FormDirect, server: "https://203.0.113.1:6443"},
		{name: "private", form: FormDirect, server: "https://10.0.0.1:6443"},
		{name: "a name that begins like localhost", form: FormDirect, server: "https://localhost.example.com"},
		{name: "loopback", form: FormDirect, server: "https://127.0.0.1:6443", want: "--endpoint https://127.0.0.1:6443"},
		{name: "another loopback", form: FormDirect, server: "https://127.8.0.1:6443", want: "--endpoint"},
		{name: "IPv6 loopback", form: FormDirect, server: "https://[::1]:6443", want: "--endpoint https://[::1]:6443"},
		{name: "IPv4 in IPv6", form: FormDirect, server: "https://[::ffff:127.0.0.1]:6443", want: "--endpoint"},
		{name: "localhost", form: FormDirect, server: "https://LOCALHOST:6443", want: "--endpoint"},
		{name: "below localhost", form: FormDirect, server: "https://kind.localhost.:6443", want: "--endpoint"},
		{name: "unspecified", form: FormDirect, server: "https://0.0.0.0:6443", want: "--endpoint"},
		{name: "link-local", form: FormDirect, server: "https://169.254.1.1:6443", want: "--endpoint"},
		{name: "link-local with a zone", form: FormDirect, server: "https://[fe80::1%25eth0]:6443", want: ""},
		{name: "with a path", form: FormDirect, server: "https://localhost/k8s/clusters/c-1", want: "--endpoint"},
		{name: "as the proxy sees it", form: FormDirect, server: "https://127.0.0.1:6443", viaProxy: proxy},
		{name: "local proxy", form: FormDirect, server: "https://10.0.0.1:6443", viaProxy: "socks5://localhost:1080", want: "--proxy-url"},
		{name: "local proxy, another endpoint", form: FormDirect, server: "https://10.0.0.1:6443", viaProxy: "http://127.0.0.1:1",
			change: func(s *Spec) { s.Endpoint = "https://10.0.0.2" }, want: "--proxy-url"},
		{name: "local proxy, no proxy for the gateway", form: FormDirect, server: "https://10.0.0.1:6443", viaProxy: "http://127.0.0.1:1", change: func(s *Spec) { s.ProxyURL = ptr.To("") }},
		{name: "local proxy, another proxy for the gateway", form: FormDirect, server: "https://127.0.0.1:6443", viaProxy: "http://127.0.0.1:1", change: func(s *Spec) { s.ProxyURL = ptr.To(proxy) }},
		{name: "local proxy that the gateway uses too", form: FormDirect, server: "https://10.0.0.1:6443", viaProxy: "http://127.0.0.1:1", change: func(s *Spec) { s.ProxyURL = ptr.To("http://127.0.0.1:1") }},
		{name: "gateway on this machine", form: FormDirect, server: "https://127.0.0.1:6443", change: func(s *Spec) { s.Endpoint = "https://127.0.0.1:6443" }},
		{name: "agent in Pods", form: FormPods, server: "https://127.0.0.1:6443", viaProxy: "http://127.0.0.1:1"},
		{name: "agent as a process", form: FormProcess, server: "https://127.0.0.1:6443", viaProxy: "http://127.0.0.1:1", note: "has to run on this machine"},
		{name: "agent as a process elsewhere", form: FormProcess, server: "https://127.0.0.1:6443", change: func(s *Spec) { s.Endpoint = "https://10.0.0.2" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			f.state.Cluster.Server.URL, f.state.Cluster.Server.ProxyURL = test.server, test.viaProxy
			spec := Spec{Name: "edge", Form: test.form, Access: AccessAdmin, Now: f.now}
			if test.change != nil {
				test.change(&spec)
			}
			p, err := NewPlan(spec, f.state)
			switch {
			case test.want != "":
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "nothing was changed") {
					t.Errorf("got %v, want that it says %q", err, test.want)
				}
			case strings.Contains(test.server, "%25"): // not a URL that the gateway can use at all
				if err == nil {
					t.Error("it is accepted")
				}
			case err != nil:
				t.Error(err)
			case !strings.Contains(strings.Join(p.Notes, "\n"), test.note) || test.note == "" && len(p.Notes) > 0:
				t.Errorf("the notes are %q", p.Notes)
			}
		})
	}
}

// TestPlanKeepsServerNameAndProxy shows where the name and the proxy in a registration are from.
func TestPlanKeepsServerNameAndProxy(t *testing.T) {
	t.Parallel()
	const proxy = "http://proxy.example.com:3128"
	for _, test := range []struct {
		name              string
		form              Form
		change            func(spec *Spec)
		serverName, proxy string
	}{
		{"direct", FormDirect, nil, "kubernetes", proxy},
		{"direct with another endpoint", FormDirect, func(s *Spec) { s.Endpoint = "https://10.0.0.2" }, "kubernetes", proxy},
		{"direct with other values", FormDirect, func(s *Spec) { s.ServerName, s.ProxyURL = ptr.To("other"), ptr.To("socks5://p:1") }, "other", "socks5://p:1"},
		{"direct with none", FormDirect, func(s *Spec) { s.ServerName, s.ProxyURL = ptr.To(""), ptr.To("") }, "", ""},
		{"process", FormProcess, nil, "kubernetes", ""},
		{"process with another endpoint", FormProcess, func(s *Spec) { s.Endpoint = "https://10.0.0.2" }, "kubernetes", ""},
		{"Pods", FormPods, nil, "", ""},
		{"Pods with another endpoint", FormPods, func(s *Spec) { s.Endpoint = "https://10.0.0.2" }, "", ""},
		{"Pods with a name", FormPods, func(s *Spec) { s.ServerName = ptr.To("other") }, "other", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			f.state.Cluster.Server.ProxyURL = proxy
			spec := Spec{Name: "edge", Form: test.form, Access: AccessAdmin, Now: f.now}
			if test.change != nil {
				test.change(&spec)
			}
			p, err := NewPlan(spec, f.state)
			if err != nil {
				t.Fatal(err)
			}
			data := p.Secret.Secret().Data
			if name, via := string(data[v1alpha1.SecretKeyServerName]), string(data[v1alpha1.SecretKeyProxyURL]); name != test.serverName || via != test.proxy {
				t.Errorf("the name is %q, want %q; the proxy is %q, want %q", name, test.serverName, via, test.proxy)
			}
		})
	}
}
