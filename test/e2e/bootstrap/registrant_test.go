// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

// TestRegistrant registers a cluster, invites one, and rotates a certificate with an account that
// may not read the key of the tunnel's CA: the gateway issues the certificates, and only for the
// names that the account has rights for.
func TestRegistrant(t *testing.T) {
	ctx := begin(t)
	names := []string{"edge-1", "invitation.edge-2", "invitation.edge-3"}
	secrets := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: append(names, "edge-2", "edge-3"), Verbs: []string{"get", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"cluster-gateway-tunnel"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, ResourceNames: []string{"kube-system"}, Verbs: []string{"get"}},
	}
	certificates := rbacv1.PolicyRule{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/agentcertificate"}, ResourceNames: []string{"edge-1", "edge-2"}, Verbs: []string{"create"},
	}
	registrant := hubUser(ctx, t, "registrant", append(secrets, certificates))
	config, err := clientcmd.BuildConfigFromFlags("", registrant)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, ca := range []string{"cluster-gateway-tunnel-ca", "cluster-gateway-agents-ca"} {
		if _, err := client.CoreV1().Secrets(hubNamespace).Get(ctx, ca, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Fatalf("the account can read a CA's key: %v", err)
		}
	}

	dir := filepath.Join(t.TempDir(), "agent")
	as := []string{"--kubeconfig", registrant}
	must(ctx, t, append(edgeArgs("--out-dir", dir, "--wait", "0", "--certificate-lifetime", "100h"), as...)...)
	must(ctx, t, append([]string{"rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--out-dir", dir, "--wait", "0"}, as...)...)
	if _, lifetime := lifetimes(ctx, t, []byte(readAll(t, dir)["tls.crt"])); lifetime.Hours() < 99 || lifetime.Hours() > 101 {
		t.Errorf("the certificate is valid for %s", lifetime)
	}
	startProcess(ctx, t, dir, "agent-of-registrant")
	awaitConnected(ctx, t, 1)
	must(ctx, t, append([]string{"invite", "edge-2"}, as...)...)

	_, _, err = invoke(ctx, bootstrap.Config{}, append([]string{"invite", "edge-3"}, as...)...)
	if err == nil || !strings.Contains(err.Error(), "create clustergateways/agentcertificate") {
		t.Errorf("a name that the account has no right for: %v", err)
	}
}
