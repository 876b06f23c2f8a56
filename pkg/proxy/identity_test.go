// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// seesIdentity annotates the Secret of a cluster.
func seesIdentity(secret *corev1.Secret, mode, rules string) *corev1.Secret {
	if mode != "" {
		secret.Annotations[v1alpha1.AnnotationIdentity] = mode
	}
	if rules != "" {
		secret.Annotations[v1alpha1.AnnotationProxyConfiguration] = rules
	}
	return secret
}

const (
	callerJane = `{"Name":"jane","UID":"7","Groups":["dev","system:authenticated","ops"],"Extra":{"example.com/team":["blue"],"authentication.kubernetes.io/credential-id":["X509SHA256=0"]}}`
	callerSA   = `{"Name":"system:serviceaccount:apps:robot","Groups":["system:serviceaccounts","system:serviceaccounts:apps","system:authenticated"]}`
	// smuggled are headers of a caller that must have no effect.
	smuggled = "Impersonate-User: root\r\nimpersonate-group: system:masters\r\nIMPERSONATE-UID: 0\r\nImpersonate-Extra-Example.com%2fteam: red\r\n" +
		"X-Remote-User: root\r\nX-Remote-Group: system:masters\r\nAuthorization: Bearer stolen\r\n"
)

// ask sends a request to the gateway over HTTP/1.1, as it is written.
func (g *gateway) ask(text string) (*http.Response, *bufio.Reader) {
	g.t.Helper()
	br := bufio.NewReader(g.raw(text))
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp, br
}

// TestClusterSeesTheCaller checks the whole header of what arrives: mode of the cluster × kind of
// request × door, with headers of the caller that must have no effect.
func TestClusterSeesTheCaller(t *testing.T) {
	jane := http.Header{"Impersonate-User": {"jane"}, "Impersonate-Uid": {"7"}, "Impersonate-Group": {"dev", "ops"}, "Impersonate-Extra-Example.com%2fteam": {"blue"}}
	robot := http.Header{"Impersonate-User": {"hub:prod:apps:robot"}}
	exchanged := http.Header{"Impersonate-User": {"deployer"}, "Impersonate-Group": {"system:masters"}}
	const rules = "spec: {clientIdentityExchanger: {rules: [{name: r, type: StaticMappingIdentityExchanger, source: {group: ops}, target: {user: deployer, groups: ['system:masters']}}," +
		"{name: p, type: PrivilegedIdentityExchanger, source: {user: 'system:serviceaccount:apps:robot'}}]}}"
	var mu sync.Mutex
	var got http.Header
	arrived := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = r.Header.Clone()
	}
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		arrived(r)
		if r.Header.Get("Upgrade") != "" {
			echoUpgrade(w, r)
			return
		}
		ok(w, r)
	})
	g := newGateway(t, func(c *Config) {
		c.Identities = identity.NewResolver(identity.Config{HubName: "prod", Extras: []string{"example.com/team"}})
	})
	g.set(s.secret("credential"))
	g.set(seesIdentity(s.secret("explicit"), "credential", ""))
	g.set(seesIdentity(s.secret("impersonate"), "impersonate", ""))
	g.set(seesIdentity(s.secret("rules"), "", rules))
	g.set(seesIdentity(s.secret("norules"), "rules", ""))

	kinds := map[string]struct {
		request string
		header  http.Header
		code    int
	}{
		"ordinary": {"GET %s/api/v1/pods HTTP/1.1\r\nConnection: close\r\n", http.Header{}, 200},
		"create":   {"POST %s/api/v1/pods HTTP/1.1\r\nContent-Length: 2\r\n", http.Header{"Content-Length": {"2"}}, 200},
		"watch":    {"GET %s/api/v1/pods?watch=true HTTP/1.1\r\n", http.Header{}, 200},
		"SPDY": {"POST %s/api/v1/namespaces/a/pods/b/exec?command=x HTTP/1.1\r\nConnection: Upgrade, Impersonate-User\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n",
			http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}, "Content-Length": {"0"}}, 101},
		"WebSocket": {"GET %s/api/v1/namespaces/a/pods/b/exec?command=x HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c3RvbGVu\r\n",
			http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io"}}, 101},
	}
	for cluster, callers := range map[string]map[string]http.Header{
		"credential":  {callerJane: {}, callerSA: {}, "": {}},
		"explicit":    {callerJane: {}},
		"impersonate": {callerJane: jane, callerSA: robot},
		"rules":       {callerJane: exchanged, callerSA: {}, `{"Name":"joe"}`: {"Impersonate-User": {"joe"}}},
		"norules":     {callerJane: jane},
	} {
		for caller, identityHeaders := range callers {
			for kind, test := range kinds {
				for _, door := range []string{"", throughHubHeader + ": yes\r\n"} {
					text := fmt.Sprintf(test.request, basePath+cluster+"/proxy") + "Host: gateway\r\nUser-Agent: t\r\n" + smuggled + door
					if caller != "" {
						text += userHeader + ": " + caller + "\r\n"
					}
					text += "\r\n"
					if kind == "create" {
						text += "{}"
					}
					resp, _ := g.ask(text)
					what := fmt.Sprintf("%s, %s, %q, door %q", cluster, kind, caller, door)
					if resp.StatusCode != test.code {
						body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
						t.Errorf("%s: %s: %s", what, resp.Status, body)
						continue
					}
					want := test.header.Clone()
					for name, values := range identityHeaders {
						want[name] = values
					}
					want["Authorization"], want["User-Agent"] = []string{"Bearer " + testToken}, []string{"t"}
					mu.Lock()
					diff(t, what, want, got)
					mu.Unlock()
				}
			}
		}
	}
}

// TestIdentityIsRefused checks that a caller who cannot be carried gets an answer that says so,
// that nothing is sent to the cluster, and that other clusters are not affected.
func TestIdentityIsRefused(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/refused") {
			t.Errorf("arrived with %v", r.Header)
		}
		ok(w, r)
	})
	g := newGateway(t, nil)
	g.set(seesIdentity(s.secret("impersonate"), "impersonate", ""))
	g.set(s.secret("credential"))
	var groups []string
	for i := range 300 {
		groups = append(groups, fmt.Sprintf("group-%d", i))
	}
	many, _ := json.Marshal(user.DefaultInfo{Name: "jane", Groups: groups})
	for name, caller := range map[string]string{
		"no caller": "", "anonymous": `{"Name":"system:anonymous","Groups":["system:unauthenticated"]}`, "a Node": `{"Name":"system:node:n1"}`,
		"an administrator": `{"Name":"admin","Groups":["system:masters"]}`, "hundreds of groups": string(many),
		"a line break": `{"Name":"a\nImpersonate-Group: system:masters"}`, "an empty name": `{"Groups":["a"]}`,
	} {
		for _, upgrade := range []string{"", "Connection: Upgrade\r\nUpgrade: websocket\r\n"} {
			text := "GET " + basePath + "%s/proxy/refused HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n" + upgrade
			if caller != "" {
				text += userHeader + ": " + caller + "\r\n"
			}
			resp, _ := g.ask(fmt.Sprintf(text, "impersonate") + "\r\n")
			var status struct {
				Message string
				Code    int
				Reason  string
				Details struct{ Causes []struct{ Reason string } }
			}
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			err := json.Unmarshal(body, &status)
			if err != nil || resp.StatusCode != 403 || status.Code != 403 || status.Reason != "Forbidden" || len(status.Details.Causes) != 1 || status.Details.Causes[0].Reason != "Identity" ||
				!strings.Contains(status.Message, `was not sent to cluster "impersonate"`) || strings.ContainsAny(status.Message, "\n\r") {
				t.Errorf("%s, %q: %s: %s", name, upgrade, resp.Status, body)
			}
		}
		header := []string{}
		if caller != "" {
			header = append(header, userHeader, caller)
		}
		resp, body := g.get("credential", "/ok", header...)
		wantCode(t, resp, body, 200)
	}
	if m := g.metrics(); !strings.Contains(m, "identity_refusals_total{cluster=impersonate,reason=too_large} 2\n") || !strings.Contains(m, "requests_total{cluster=impersonate,code=403,route=direct,verb=get} 7\n") {
		t.Error(m)
	}
	g.delete("impersonate")
	if m := g.metrics(); strings.Contains(m, "cluster=impersonate") {
		t.Error("the metrics of a deleted cluster remain:", m)
	}
}

// TestInvalidRulesRefuse checks that a cluster whose rules cannot be used is not served: neither as
// the caller nor with the credential.
func TestInvalidRulesRefuse(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("arrived with %v", r.Header)
		ok(w, r)
	})
	g := newGateway(t, nil)
	const rule = "spec: {clientIdentityExchanger: {rules: [{type: PrivilegedIdentityExchanger, source: {user: jane}}]}}"
	for name, annotations := range map[string][2]string{
		"broken rules": {"", "spec: {clientIdentityExchanger: {rules: [{type: PrivilegedIdentityExchanger, source: {userPattern: '('}}]}}"},
		"text":         {"", "none"}, "an unknown mode": {"Impersonate", ""}, "an empty mode": {" ", ""},
		"credential and rules": {"credential", rule}, "impersonate and rules": {"impersonate", rule},
	} {
		g.set(seesIdentity(s.secret("a"), annotations[0], annotations[1]))
		resp, body := g.get("a", "/", userHeader, callerJane)
		if resp.StatusCode != 503 || !strings.Contains(body, "its Secret is invalid: annotation cluster.core.oam.dev/") {
			t.Errorf("%s: %s: %s", name, resp.Status, body)
		}
	}
	// The file of all clusters.
	path := filepath.Join(t.TempDir(), "rules")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(rule)
	file, err := identity.OpenFile(path, klog.Logger{})
	if err != nil {
		t.Fatal(err)
	}
	g = newGateway(t, func(c *Config) { c.Identities = identity.NewResolver(identity.Config{Global: file}) })
	g.parse.DefaultIdentity = identity.ModeRules
	g.set(s.secret("a"))
	write(rule + "]")
	file.Reload()
	resp, body := g.get("a", "/", userHeader, callerJane)
	if resp.StatusCode != 503 || !strings.Contains(body, "--cluster-gateway-proxy-config") || strings.Contains(body, path) {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

// TestIdentityChangesWithTheCredential checks that requests are never sent by the rule of one
// version of a cluster with the credential of another one, and that probes are the gateway's own.
func TestIdentityChangesWithTheCredential(t *testing.T) {
	const other = "another-token-0123456789"
	mismatch := make(chan string, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		caller, token := r.Header.Get("Impersonate-User"), r.Header.Get("Authorization")
		if strings.HasPrefix(r.URL.Path, "/x") && (caller == "") != (token == "Bearer "+testToken) || r.URL.Path == "/readyz" && caller != "" {
			select {
			case mismatch <- r.URL.Path + " as " + caller + " with " + token:
			default:
			}
		}
		ok(w, r)
	})
	g := newGateway(t, nil)
	versions := []*corev1.Secret{s.secret("a"), seesIdentity(s.secret("a", "token", other), "impersonate", "")}
	g.set(versions[0])
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				resp, body := g.get("a", "/x", userHeader, callerJane)
				if resp.StatusCode != 200 {
					t.Errorf("%s: %s", resp.Status, body)
				}
			}
		})
	}
	for i := range 40 {
		g.set(versions[i%2])
		if _, err := g.handler.Ready(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	}
	close(done)
	group.Wait()
	select {
	case m := <-mismatch:
		t.Error(m)
	default:
	}
}
