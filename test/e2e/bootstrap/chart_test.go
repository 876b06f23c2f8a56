// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// handOver returns the Secret in the file of an invitation under another name, and the name of the
// Job there.
func handOver(t *testing.T, file, name string) (secret *corev1.Secret, job string) {
	t.Helper()
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(file), &list); err != nil {
		t.Fatal(err)
	}
	for _, item := range list.Items {
		o := &unstructured.Unstructured{}
		if err := json.Unmarshal(item, &o.Object); err != nil {
			t.Fatal(err)
		}
		switch o.GetKind() {
		case "Secret":
			secret = &corev1.Secret{}
			if err := json.Unmarshal(item, secret); err != nil {
				t.Fatal(err)
			}
			secret.ObjectMeta = metav1.ObjectMeta{Name: name}
		case "Job":
			job = o.GetName()
		}
	}
	if secret == nil || job == "" {
		t.Fatalf("no Secret or Job in\n%s", file)
	}
	return secret, job
}

// TestInviteByChart registers the firewalled cluster with the chart for the cluster's side and a
// Secret that is not in it, as charts/cluster-gateway-agent/README.md describes. Then it rotates
// the credentials and applies the chart again, as a tool does that restores what git says: the
// chart undoes nothing that the gateway has written.
func TestInviteByChart(t *testing.T) {
	ctx := begin(t)
	if !shared.edge.Firewalled() {
		t.Skip("an agent that connects to the API server as kubernetes.default.svc:443 needs a network namespace, which requires root")
	}
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	out, _ := must(ctx, t, "invite", "edge-1", "-o", "json")
	const name = "edge-1-invitation"
	secret, job := handOver(t, out, name)
	core := shared.edge.Client().CoreV1()
	if err := shared.edge.EnsureNamespace(ctx, agentNamespace); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Secrets(agentNamespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	chart, err := filepath.Abs(filepath.Join("..", "..", "..", "charts", "cluster-gateway-agent"))
	if err != nil {
		t.Fatal(err)
	}
	run := labtest.Helm(ctx, t, shared.edgeFile, agentNamespace)
	run("install", "agent", chart, "--create-namespace", "--set", "invitation.secretName="+name, "--set-string", "invitation.id="+job[len(job)-8:])
	kubelet(ctx, t)
	labtest.Within(t, labtest.Timeout, "the Job", func() error { // a controller writes the cluster's CA
		agent, err := shared.lab.StartAgentJob(ctx, shared.edge, agentNamespace, job, "enroll-by-chart")
		if err == nil {
			t.Cleanup(func() { _ = agent.Kill() }) // it may have ended already
		}
		return err
	})
	labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
	labtest.Within(t, labtest.Timeout, "the objects of the enrollment to be deleted", func() error {
		for name := range dump(ctx, t, shared.edge) {
			if strings.Contains(name, "enrol") {
				return errors.New(name)
			}
		}
		return nil
	})

	// The cluster is registered: the invitation is removed from git.
	upgrade := []string{"upgrade", "agent", chart}
	run(upgrade...)
	if err := core.Secrets(agentNamespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	first := renewed(ctx, t)
	must(ctx, t, "rotate", "edge-1")
	labtest.Within(t, labtest.Timeout, "another certificate", func() error {
		if now := renewed(ctx, t); bytes.Equal(now.certificate, first.certificate) || now.annotations == first.annotations {
			return errors.New("the agent has the previous one")
		}
		return nil
	})
	rotated := renewed(ctx, t)
	run(upgrade...)
	if now := renewed(ctx, t); !bytes.Equal(now.certificate, rotated.certificate) || now.annotations != rotated.annotations {
		t.Errorf("the chart has undone the renewal: the agent's Pods had the annotations %s, and now %s", rotated.annotations, now.annotations)
	}
	namespace, err := core.Namespaces().Get(ctx, agentNamespace, noOptions)
	if err != nil {
		t.Fatal(err)
	}
	if namespace.Annotations["cluster.core.oam.dev/cluster-name"] != "edge-1" || namespace.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
		t.Errorf("the namespace has the annotations %v and the labels %v", namespace.Annotations, namespace.Labels)
	}
	must(ctx, t, "doctor", "edge-1")
	if err := ready(ctx, "edge-1"); err != nil {
		t.Error(err)
	}

	run("uninstall", "agent")
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	if _, err := core.Namespaces().Get(ctx, agentNamespace, noOptions); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is still there, or: %v", err)
	}
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
}

// renewedObjects is what the gateway writes when it renews an agent's certificate.
type renewedObjects struct {
	certificate []byte
	annotations string
}

func renewed(ctx context.Context, t *testing.T) renewedObjects {
	t.Helper()
	secret, err := shared.edge.Client().CoreV1().Secrets(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	deployment, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := json.Marshal(deployment.Spec.Template.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	return renewedObjects{certificate: secret.Data[corev1.TLSCertKey], annotations: string(annotations)}
}
