// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootstraptest runs agent-bootstrap in the test's own process, on bare API servers: a hub
// with the objects that a gateway publishes there, and two clusters. No gateway and no agent runs.
package bootstraptest

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// Names that the tests do not import, so that a change of one in the product fails a test.
const (
	HubNamespace   = "cluster-gateway-system"
	AgentNamespace = "cluster-gateway-agent"
	// Near and Edge are the names under which tests register the clusters of a [Site].
	Near = "near-1"
	Edge = "edge-1"
)

// caseTimeout bounds each test.
const caseTimeout = 5 * time.Minute

// Site contains the API servers that the tests of a package share, one test after another.
type Site struct {
	Hub, Near, Edge *lab.Cluster

	serial sync.Mutex
}

// Main is the TestMain of a package: it fills s and runs the tests.
func Main(m *testing.M, s *Site) {
	labtest.MainAPIServers(m, map[string]**lab.Cluster{"hub": &s.Hub, "nearby": &s.Near, "edge": &s.Edge}, s.publish)
}

// publish writes to the hub what a gateway would: the CA and the address of the tunnel.
func (s *Site) publish(ctx context.Context) error {
	core := s.Hub.Client().CoreV1()
	_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: HubNamespace}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	authority, err := pki.Ensure(ctx, core.Secrets(HubNamespace), pki.Options{})
	if err != nil {
		return err
	}
	_, err = core.ConfigMaps(HubNamespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster-gateway-tunnel"},
		Data:       map[string]string{"address": "127.0.0.1:8132", "ca.crt": string(authority.Bundle())},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return s.serveGateways(ctx)
}

// serveGateways makes the hub serve the gateway's API, as a CustomResourceDefinition and without
// any ClusterGateways. Commands check that it is served before they change anything.
func (s *Site) serveGateways(ctx context.Context) error {
	client, err := dynamic.NewForConfig(s.Hub.RESTConfig())
	if err != nil {
		return err
	}
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "clustergateways.cluster.core.oam.dev", "annotations": map[string]any{"api-approved.kubernetes.io": "unapproved, for a test"}},
		"spec": map[string]any{
			"group": "cluster.core.oam.dev", "scope": "Cluster",
			"names": map[string]any{"plural": "clustergateways", "singular": "clustergateway", "kind": "ClusterGateway"},
			"versions": []any{map[string]any{
				"name": "v1alpha1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	}}
	definitions := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if _, err := definitions.Create(ctx, definition, metav1.CreateOptions{}); err != nil {
		return err
	}
	return wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) {
		_, err := s.Hub.Client().Discovery().ServerResourcesForGroupVersion("cluster.core.oam.dev/v1alpha1")
		if err != nil && !apierrors.IsNotFound(err) {
			return false, err
		}
		return err == nil, nil
	})
}

// Begin gives a test exclusive use of the site, with nothing registered, and cleans up after it.
func (s *Site) Begin(t *testing.T) context.Context {
	t.Helper()
	s.serial.Lock()
	t.Cleanup(s.serial.Unlock)
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		for name, c := range map[string]*lab.Cluster{Near: s.Near, Edge: s.Edge} {
			if _, _, err := s.Run(ctx, bootstrap.Config{}, "unregister", name, "--cluster-kubeconfig", c.Kubeconfig()); err != nil {
				t.Errorf("cleaning up: %v", err)
			}
			err := c.Client().CoreV1().Namespaces().Delete(ctx, AgentNamespace, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				t.Errorf("cleaning up: %v", err)
			}
			labtest.Objects(ctx, t, c) // waits until the namespace is gone
		}
	})
	return ctx
}

// Run runs agent-bootstrap.
func (s *Site) Run(ctx context.Context, config bootstrap.Config, args ...string) (stdout, stderr string, err error) {
	var out, errOut lockedBuffer
	config.Out, config.ErrOut = &out, &errOut
	cmd := bootstrap.NewCommand(config)
	cmd.SetArgs(append([]string{"--kubeconfig", s.Hub.Kubeconfig()}, args...))
	err = cmd.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

// Must runs agent-bootstrap, and fails the test if that fails.
func (s *Site) Must(ctx context.Context, t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := s.Run(ctx, bootstrap.Config{}, args...)
	if err != nil {
		t.Fatalf("agent-bootstrap %s: %v\n%s%s", strings.Join(args, " "), err, stderr, stdout)
	}
	return stdout, stderr
}

// RegisterNear returns the arguments that register the cluster Near as directly reachable, without
// waiting for a gateway.
func (s *Site) RegisterNear(more ...string) []string {
	return append([]string{"register", Near, "--cluster-kubeconfig", s.Near.Kubeconfig(), "--route", "direct", "--endpoint", s.Near.Endpoint(), "--wait", "0"}, more...)
}

// RegisterEdge returns the arguments that register the cluster Edge with an agent in Pods, without
// waiting for a gateway.
func (s *Site) RegisterEdge(more ...string) []string {
	return append([]string{"register", Edge, "--cluster-kubeconfig", s.Edge.Kubeconfig(), "--wait", "0"}, more...)
}

// HubSecret returns a Secret of the gateway's namespace on the hub.
func (s *Site) HubSecret(ctx context.Context, t *testing.T, name string) *corev1.Secret {
	t.Helper()
	secret, err := s.Hub.Client().CoreV1().Secrets(HubNamespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Invite makes an invitation and returns its file. Without arguments, it is for Near.
func (s *Site) Invite(ctx context.Context, t *testing.T, args ...string) (file string) {
	t.Helper()
	if len(args) == 0 {
		args = []string{Near}
	}
	out, _ := s.Must(ctx, t, append([]string{"invite"}, args...)...)
	file = filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Apply applies an invitation to a cluster, as somebody with the cluster's kubeconfig would.
func Apply(ctx context.Context, t *testing.T, c *lab.Cluster, file string) {
	t.Helper()
	if out, err := c.Kubectl(ctx, "apply", "--validate=strict", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// Invitation reads the record of an invitation from a hub.
func Invitation(ctx context.Context, t *testing.T, hub *lab.Cluster, name string) *registration.Invitation {
	t.Helper()
	secret, err := hub.Client().CoreV1().Secrets(HubNamespace).Get(ctx, registration.InvitationSecret(name), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i, err := registration.ReadInvitation(secret)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// CheckNotRegistered checks that a hub has no Secret of the cluster.
func CheckNotRegistered(ctx context.Context, t *testing.T, hub *lab.Cluster, name string) {
	t.Helper()
	if _, err := hub.Client().CoreV1().Secrets(HubNamespace).Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the hub has a Secret %s, or: %v", name, err)
	}
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// Kubeconfig writes a kubeconfig and returns its path. Without a CA it has the one of c, and
// without a user some token.
func Kubeconfig(t *testing.T, c *lab.Cluster, server string, ca []byte, user *clientcmdapi.AuthInfo) string {
	t.Helper()
	if ca == nil {
		ca = c.CAPEM()
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

// PatchSecret changes a Secret of a hub as a user would.
func PatchSecret(ctx context.Context, t *testing.T, hub *lab.Cluster, name, patch string) {
	t.Helper()
	_, err := hub.Client().CoreV1().Secrets(HubNamespace).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "by-hand"})
	if err != nil {
		t.Fatal(err)
	}
}

// UnwantedFields is a patch of a cluster's Secret: everything that the gateway would follow and
// that no registration of these tests asks for, and something of the user's own.
const UnwantedFields = `{
	"metadata": {
		"labels": {"team": "a"},
		"annotations": {"cluster.core.oam.dev/insecure-skip-tls-verify": "true", "note": "b"}
	},
	"stringData": {"ca": "x", "tls.crt": "x", "tls.key": "x", "exec": "{}", "proxy-url": "http://127.0.0.1:1", "tls-server-name": "elsewhere", "own": "c"}
}`

// CheckUnwantedFields checks that the unwanted ones of [UnwantedFields] are gone from a Secret, and
// that the user's own are still there.
func CheckUnwantedFields(t *testing.T, secret *corev1.Secret) {
	t.Helper()
	if _, insecure := secret.Annotations["cluster.core.oam.dev/insecure-skip-tls-verify"]; insecure {
		t.Error("the verification of the cluster's certificate is still off")
	}
	if keys := slices.Sorted(maps.Keys(secret.Data)); !slices.Equal(keys, []string{"ca.crt", "endpoint", "maintenance-token", "own", "token"}) {
		t.Errorf("the Secret has the keys %q", keys)
	}
	if secret.Labels["team"] != "a" || secret.Annotations["note"] != "b" {
		t.Error("the user's own label or annotation is gone")
	}
}
