// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// upgrader runs commands in the Pod "grows", each over its own upgraded connection, without
// kubectl.
type upgrader struct {
	config *rest.Config
	client kubernetes.Interface
}

func newUpgrader(t *testing.T, r route) *upgrader {
	t.Helper()
	config := r.gateway.ClusterRESTConfig(r.cluster, r.door)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &upgrader{config: config, client: client}
}

// echo opens n upgraded connections, one after another.
func (u *upgrader) echo(t *testing.T, n int) {
	t.Helper()
	url := u.client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("grows").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"cat"}, Stdin: true, Stdout: true}, scheme.ParameterCodec).URL()
	for range n {
		executor, err := remotecommand.NewWebSocketExecutor(u.config, "GET", url.String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), labtest.Timeout)
		var out bytes.Buffer
		err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
		cancel()
		if err != nil || out.String() != "hello" {
			t.Fatalf("exec cat: %q (%v)", out.String(), err)
		}
	}
}
