// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
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

// invitationSecret is the Secret of an invitation that is not in the chart.
const invitationSecret = "edge-1-invitation"

func agentChart(t *testing.T) string {
	t.Helper()
	chart, err := filepath.Abs(filepath.Join("..", "..", "..", "charts", "cluster-gateway-agent"))
	if err != nil {
		t.Fatal(err)
	}
	return chart
}

func needsEdge(t *testing.T) {
	t.Helper()
	if !shared.edge.Firewalled() {
		t.Skip("an agent that connects to the API server as kubernetes.default.svc:443 needs a network namespace, which requires root")
	}
}

// inviteByChart invites the firewalled cluster with these flags, installs the chart there with
// these values, and waits until the cluster is registered. It returns a function that runs helm.
func inviteByChart(ctx context.Context, t *testing.T, flags, set []string) (run func(args ...string)) {
	t.Helper()
	out, _ := must(ctx, t, append([]string{"invite", "edge-1", "-o", "json"}, flags...)...)
	secret, job := handOver(t, out, invitationSecret)
	if err := shared.edge.EnsureNamespace(ctx, agentNamespace); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.edge.Client().CoreV1().Secrets(agentNamespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	run = labtest.Helm(ctx, t, shared.edgeFile, agentNamespace)
	install := []string{"install", "agent", agentChart(t), "--create-namespace", "--set", "invitation.secretName=" + invitationSecret, "--set-string", "invitation.id=" + job[len(job)-8:]}
	for _, value := range set {
		install = append(install, "--set", value)
	}
	run(install...)
	kubelet(ctx, t)
	labtest.Within(t, labtest.Timeout, "the Job", func() error { // a controller writes the cluster's CA
		agent, err := shared.lab.StartAgentJob(ctx, shared.edge, agentNamespace, job, "enroll-by-chart-"+strings.ToLower(t.Name()))
		if err == nil {
			t.Cleanup(func() { _ = agent.Kill() }) // it may have ended already
		}
		return err
	})
	labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
	return run
}

// TestInviteByChartSeesCallers registers the firewalled cluster with the chart and an invitation
// for a cluster that sees its callers: a user of the group that got rights can use the cluster, and
// one without it is refused by the cluster, by name.
func TestInviteByChartSeesCallers(t *testing.T) {
	ctx := begin(t)
	needsEdge(t)
	inviteByChart(ctx, t, []string{"--view-group", "chart-viewers"}, []string{"identity=impersonate", "impersonation.viewGroups={chart-viewers}"})
	for user, c := range map[string]struct {
		groups []string
		code   int
		says   string
	}{
		"chart-viewer": {[]string{"chart-viewers"}, http.StatusOK, "kube-root-ca.crt"},
		"chart-nobody": {nil, http.StatusForbidden, `User \"chart-nobody\" cannot list resource \"configmaps\"`},
	} {
		grantProxy(ctx, t, user)
		cert, key, err := shared.hub.ClientCertificate(user, c.groups...)
		if err != nil {
			t.Fatal(err)
		}
		config := rest.AnonymousClientConfig(shared.gateway.RESTConfig(lab.ViaOwnEndpoint))
		config.CertData, config.KeyData = cert, key
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		prefix := config.Host + "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/edge-1/proxy"
		labtest.Within(t, labtest.Timeout, user, func() error {
			code, body, err := send(ctx, client, prefix, escalation{method: http.MethodGet, path: "/api/v1/namespaces/default/configmaps"})
			if err == nil && (code != c.code || !strings.Contains(body, c.says)) {
				err = fmt.Errorf("%d: %s", code, body)
			}
			return err
		})
	}
}

// TestInviteByChart registers the firewalled cluster with the chart for the cluster's side and a
// Secret that is not in it, as charts/cluster-gateway-agent/README.md describes. Then it rotates
// the credentials and applies the chart again, as a tool does that restores what git says: the
// chart undoes nothing that the gateway has written.
func TestInviteByChart(t *testing.T) {
	ctx := begin(t)
	needsEdge(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	run := inviteByChart(ctx, t, nil, nil)
	labtest.Within(t, labtest.Timeout, "the objects of the enrollment to be deleted", func() error {
		for name := range dump(ctx, t, shared.edge) {
			if strings.Contains(name, "enrol") {
				return errors.New(name)
			}
		}
		return nil
	})

	// The cluster is registered: the invitation is removed from git.
	core := shared.edge.Client().CoreV1()
	upgrade := []string{"upgrade", "agent", agentChart(t)}
	run(upgrade...)
	if err := core.Secrets(agentNamespace).Delete(ctx, invitationSecret, metav1.DeleteOptions{}); err != nil {
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
