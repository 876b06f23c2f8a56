// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestForwardedByAnotherReplica sends requests through one replica to a cluster whose only agent is
// connected to the other one: by both endpoints, as the caller, with audit, and counted once. Then
// the replica with the agent is killed, and the agent comes to the first one.
func TestForwardedByAnotherReplica(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 2*caseTimeout)
	const name, podName, caller, group = "forwarded", "forwarded", "e2e-forwarded", "e2e-forwarded-group"
	hub, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-replicas", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, hub)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules: [{level: Metadata}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	replica := func(id string) (g *lab.Gateway, auditLog string) {
		auditLog = filepath.Join(t.TempDir(), id+".log")
		g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
			Name: "gateway-replica-" + id, Hub: hub, Binary: shared.binary, Verbosity: shared.verbosity,
			ExtraArgs: []string{"--peer-advertise-address=127.0.0.1", "--peer-bind-address=127.0.0.1", "--peer-port=0", "--audit-policy-file=" + policy, "--audit-log-path=" + auditLog},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Stop() }) // one of them was killed
		return g, auditLog
	}
	a, auditA := replica("a")
	b, auditB := replica("b")
	if err := a.RegisterAPIService(ctx); err != nil {
		t.Fatal(err)
	}
	register(ctx, t, hub, lab.SecretOptions{Name: name, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": token(t, shared.edge, "cluster-gateway"),
	}})
	if _, err := hub.Client().CoreV1().Secrets(namespaceOfSecrets).Patch(ctx, name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"cluster.core.oam.dev/identity":"impersonate"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: caller}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}
	if _, err := shared.edge.Client().RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	grantOn(ctx, t, hub, caller, rbacv1.PolicyRule{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{name}, Verbs: []string{"*"},
	})
	agent, err := b.StartAgent(ctx, name, shared.edge)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Kill() })
	runPod(t, shared.edge, podName)
	cert, key, err := hub.ClientCertificate(caller, group)
	if err != nil {
		t.Fatal(err)
	}

	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			config := anonymous(a.RESTConfig(door))
			config.CertData, config.KeyData = cert, key
			config.Host += gatewayPath + "/" + name + "/proxy"
			labtest.Within(t, labtest.Timeout, "the other replica to be known", func() error {
				return wantCode(ask(ctx, t, config, http.MethodGet, "/version"), http.StatusOK)
			})
			k := newKubectl(t, config, "-n", "default")
			mustContain(t, k.run(ctx, t, "get", "pods"), podName)
			mustContain(t, k.run(ctx, t, "auth", "whoami"), caller, group)
			mustContain(t, k.run(ctx, t, "exec", podName, "--", "echo", "inside"), "inside")
			watch := k.start(ctx, t, "get", "pods", "--watch")
			watch.sees(t, podName, nil)
			watch.cancel()

			object := "e2e-forwarded-" + string(door)
			answer := ask(ctx, t, config, http.MethodGet, "/api/v1/namespaces/default/configmaps/"+object)
			if err := wantCode(answer, http.StatusNotFound); err != nil {
				t.Error(err)
			}
			own := auditedOnce(t, auditA, object)
			for annotation, want := range map[string]string{"forwarded": "true", "user": caller, "identity": "impersonate", "cluster": name} {
				if got := own.Annotations["proxy.cluster.core.oam.dev/"+annotation]; got != want {
					t.Errorf("the audit annotation %s is %q, want %q", annotation, got, want)
				}
			}
			if own.User.Username != caller {
				t.Errorf("the audit event is of %s", own.User.Username)
			}
		})
	}
	if text, err := os.ReadFile(auditB); err != nil || bytes.Contains(text, []byte("e2e-forwarded-")) {
		t.Errorf("the other replica has audited the requests, too (%v)", err)
	}
	for g, counts := range map[*lab.Gateway]bool{a: true, b: false} {
		n, err := g.Metric(ctx, "cluster_gateway_requests_total", `cluster="`+name+`"`)
		if err != nil || (n > 0) != counts {
			t.Errorf("one of the replicas has counted %v requests (%v)", n, err)
		}
	}
	labtest.Within(t, labtest.Timeout, "the cluster to be reported as ready", func() error {
		s, err := hub.Client().CoreV1().Secrets(namespaceOfSecrets).Get(ctx, name, metav1.GetOptions{})
		if err == nil && s.Annotations[v1alpha1.AnnotationHealthy] != "true" {
			err = fmt.Errorf("annotations %v", s.Annotations)
		}
		return err
	})

	config := anonymous(a.RESTConfig(lab.ViaOwnEndpoint))
	config.CertData, config.KeyData = cert, key
	config.Host += gatewayPath + "/" + name + "/proxy"
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	failed := ask(ctx, t, config, http.MethodGet, "/version")
	if err := wantCode(failed, http.StatusBadGateway, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	mustContain(t, failed.body, "another replica of the gateway", "says nothing about the cluster")
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	again, err := a.StartAgent(ctx, name, shared.edge)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Kill() })
	if err := wantCode(ask(ctx, t, config, http.MethodGet, "/version"), http.StatusOK); err != nil {
		t.Error(err)
	}
}

// auditedOnce returns the only event about an object in an audit log.
func auditedOnce(t *testing.T, file, object string) auditv1.Event {
	t.Helper()
	var found []auditv1.Event
	labtest.Within(t, labtest.Timeout, "the audit event about "+object, func() error {
		found = nil
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			var e auditv1.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil && strings.Contains(e.RequestURI, object) {
				found = append(found, e)
			}
		}
		if len(found) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	if len(found) != 1 {
		t.Errorf("there are %d audit events about %s", len(found), object)
	}
	return found[0]
}
