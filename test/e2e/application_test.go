// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// startApplication starts an application in a Pod of the edge cluster. It returns its path on the
// cluster.
func startApplication(ctx context.Context, t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	if !shared.edge.Firewalled() {
		t.Skip("an API server does not proxy to loopback addresses; only a firewalled cluster has another address of the lab's host")
	}
	lis, err := net.Listen("tcp", net.JoinHostPort(shared.lab.HostAddr(shared.edge), "0"))
	if err != nil {
		t.Fatal(err)
	}
	application := &http.Server{ReadHeaderTimeout: time.Minute, Handler: handler}
	served := make(chan error, 1)
	go func() { served <- application.Serve(lis) }()
	t.Cleanup(func() {
		_ = application.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	client := shared.edge.Client()
	namespace := newNamespace(ctx, t, client)
	pod, err := shared.edge.RunPod(ctx, namespace, "app")
	if err != nil {
		t.Fatal(err)
	}
	// There is no container, so the Pod's address is set to that of the application.
	pod.Status.PodIP, pod.Status.PodIPs = shared.lab.HostAddr(shared.edge), []corev1.PodIP{{IP: shared.lab.HostAddr(shared.edge)}}
	if _, err := client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/api/v1/namespaces/%s/pods/app:%d/proxy/", namespace, lis.Addr().(*net.TCPAddr).Port)
}

// TestUnauthorizedApplication checks that the 401 of an application in a Pod is passed on
// unchanged, and that a 401 of the API server for the same path is not.
func TestUnauthorizedApplication(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	path := startApplication(ctx, t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "the application does not know you")
	})
	const stranger = "edge-stranger"
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: stranger, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": []byte("nonsense"),
	}})
	_, _ = startEmbeddedAgent(ctx, t, stranger)
	waitKnown(t, shared.embedded, stranger)
	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			labtest.Within(t, labtest.Timeout, "the application", func() error {
				r := ask(ctx, t, shared.embedded.ClusterRESTConfig("edge", door), http.MethodGet, path)
				if r.code != http.StatusUnauthorized || r.body != "the application does not know you" {
					return fmt.Errorf("%+v", r)
				}
				return nil
			})
			if r := ask(ctx, t, shared.embedded.ClusterRESTConfig(stranger, door), http.MethodGet, path); r.code != http.StatusBadGateway || !strings.Contains(r.body, "rejected the gateway's credential") {
				t.Errorf("with a credential that the cluster rejects: %+v", r)
			}
		})
	}
}

// TestWebApplication checks what works of a web application in a Pod, and what the answer says
// where it does not: links, redirects and cookies, with the real API server and the real
// aggregation layer.
func TestWebApplication(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	path := startApplication(ctx, t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/page/":
			w.Header().Set("Content-Type", "text/html")
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "s3cret", Path: "/"})
			_, _ = io.WriteString(w, `<html><a href="/next?x=1">rooted</a> <a href="sub">relative</a></html>`)
		case "/old":
			http.Redirect(w, r, "/next", http.StatusFound)
		default:
			_, _ = fmt.Fprintf(w, "%s %q", r.URL.RequestURI(), r.Header.Get("Cookie"))
		}
	})
	cluster := v1alpha1.BasePath + "edge/proxy"
	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			config := shared.embedded.ClusterRESTConfig("edge", door)
			transport, err := rest.TransportFor(config)
			if err != nil {
				t.Fatal(err)
			}
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			host, err := url.Parse(config.Host)
			if err != nil {
				t.Fatal(err)
			}
			jar.SetCookies(host, []*http.Cookie{{Name: "hub", Value: "of the hub", Path: "/"}})
			browser := &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			get := func(u *url.URL) (*http.Response, string) {
				t.Helper()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := browser.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp, string(body)
			}
			root := host.ResolveReference(&url.URL{Path: cluster + path})
			page := root.ResolveReference(&url.URL{Path: "page/"})
			resp, body := get(page)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s", resp.Status, body)
			}
			for _, want := range []string{`href="../next?x=1"`, `href="sub"`} {
				if !strings.Contains(body, want) {
					t.Errorf("the page does not contain %s: %s", want, body)
				}
			}
			resp, body = get(page.ResolveReference(&url.URL{Path: "../next", RawQuery: "x=1"}))
			if resp.StatusCode != http.StatusOK || body != `/next?x=1 "session=s3cret"` {
				t.Errorf("the link leads to: %s %s", resp.Status, body)
			}
			resp, body = get(root.ResolveReference(&url.URL{Path: "old"}))
			if door == lab.ViaHub {
				if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, `cluster \"edge\" answered with a redirect (302) to `+path+"next") {
					t.Errorf("a redirect through the hub: %s %s", resp.Status, body)
				}
				return
			}
			location, err := resp.Location()
			if err != nil {
				t.Fatalf("%s %s: %v", resp.Status, body, err)
			}
			if _, body = get(location); body != `/next "session=s3cret"` {
				t.Errorf("the redirect to %s leads to: %s", location, body)
			}
			// The API server itself redirects to the root of the application.
			resp, body = get(host.ResolveReference(&url.URL{Path: strings.TrimSuffix(cluster+path, "/")}))
			if location, err = resp.Location(); err != nil || location.Path != cluster+path {
				t.Errorf("without the slash at the end: %s %s, to %v", resp.Status, body, location)
			}
		})
	}
}
