// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestUnauthorizedApplication checks that the 401 of an application in a Pod is passed on
// unchanged, and that a 401 of the API server for the same path is not.
func TestUnauthorizedApplication(t *testing.T) {
	if !shared.edge.Firewalled() {
		t.Skip("an API server does not proxy to loopback addresses; only a firewalled cluster has another address of the lab's host")
	}
	ctx := bounded(t, caseTimeout)
	lis, err := net.Listen("tcp", net.JoinHostPort(shared.lab.HostAddr(shared.edge), "0"))
	if err != nil {
		t.Fatal(err)
	}
	application := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "the application does not know you")
	})}
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
	const stranger = "edge-stranger"
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: stranger, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": []byte("nonsense"),
	}})
	_, _ = startEmbeddedAgent(ctx, t, stranger)
	waitKnown(t, shared.embedded, stranger)
	path := fmt.Sprintf("/api/v1/namespaces/%s/pods/app:%d/proxy/", namespace, lis.Addr().(*net.TCPAddr).Port)
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
