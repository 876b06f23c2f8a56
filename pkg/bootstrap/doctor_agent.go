// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// noAgent reports that no agent is connected. If the agent's certificate is the reason,
// checkCertificate finds that out.
func (e *examination) noAgent(ctx context.Context, err error) {
	advice := "check that the agent runs: kubectl -n " + registration.AgentNamespace + " get pods. Its log says why it does not connect.\n" +
		"To find out more, set --cluster-kubeconfig FILE, or --out-dir DIR for an agent that runs as a process"
	switch {
	case e.directErr != nil:
		advice = "check the cluster: it cannot be reached with --cluster-kubeconfig either. The error was:\n" + e.directErr.Error()
	case e.direct != nil:
		advice = e.podAdvice(ctx)
	case e.o.outDir != "":
		advice = "check that the process runs, and that it can reach the tunnel's address. Its log says why it does not connect"
	}
	e.broken(StageAgent, err.Error(), advice)
}

// podAdvice says what to do about an agent in Pods that is not connected.
func (e *examination) podAdvice(ctx context.Context) string {
	const namespace, name = registration.AgentNamespace, registration.AgentName
	deployment, err := e.direct.kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("the cluster has no Deployment %s/%s. If the agent is to run in Pods, %s.\nIf it runs as a process, start it", namespace, name, e.registerAgain())
	case err != nil:
		return "check the agent in the cluster. Reading its Deployment failed: " + e.direct.explain(err).Error()
	case deployment.Spec.Replicas != nil && *deployment.Spec.Replicas == 0:
		return fmt.Sprintf("the agent's Deployment has 0 replicas. Scale it up: kubectl -n %s scale deployment %s --replicas 2", namespace, name)
	}
	pods, err := e.direct.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + name})
	if err != nil {
		return "check the agent in the cluster. Listing its Pods failed: " + e.direct.explain(err).Error()
	}
	if len(pods.Items) == 0 {
		return fmt.Sprintf("the agent's Deployment has no Pods. To see why: kubectl -n %s describe replicasets", namespace)
	}
	lines := []string{"check the agent's Pods. If they run, they must be able to reach the tunnel's address; their log says why they\ndo not connect:"}
	for i := range pods.Items {
		lines = append(lines, "  "+podText(&pods.Items[i]))
	}
	lines = append(lines, "For another image registry, an HTTP proxy or another place to run: agent-bootstrap register "+e.name+" --cluster-kubeconfig FILE --agent-values FILE")
	return strings.Join(lines, "\n")
}

// podText says in a line what is the matter with a Pod.
func podText(pod *corev1.Pod) string {
	text := fmt.Sprintf("Pod %s is %s", pod.Name, pod.Status.Phase)
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			text += ": " + c.Message
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			text += ": " + strings.TrimSpace(c.State.Waiting.Reason+" "+c.State.Waiting.Message)
		}
	}
	return text
}

// checkCertificate checks the agent's certificate, if it can be read. A wrong certificate is the
// reason why an agent is not connected.
func (e *examination) checkCertificate(ctx context.Context, reached bool) {
	pair, where, err := e.readCertificate(ctx, reached)
	switch {
	case err != nil:
		e.unknown(StageCertificate, "%v", err)
		return
	case pair == nil:
		e.unknown(StageCertificate, "%s", where)
		return
	}
	bundle, bundleErr := e.tunnelCA(ctx)
	cert, err := pair.Verify(bundle, e.name, e.Now())
	if err == nil {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: e.gateway.Annotations}} // the ClusterGateway has those of its Secret
		err = registration.CheckAgentCertificate(cert, registration.AgentCertificatesSince(secret))
	}
	switch {
	case err != nil:
		e.broken(StageCertificate, fmt.Sprintf("%s: %v", where, err), "create a new certificate, and restart the agent. To do so, "+e.registerAgain())
	case bundleErr != nil:
		e.unknown(StageCertificate, "%s: for cluster %q, valid until %s. Reading the CA that the gateway trusts failed: %v", where, e.name, day(cert.NotAfter), bundleErr)
	default:
		text := fmt.Sprintf("%s: for cluster %q, valid until %s", where, e.name, day(cert.NotAfter))
		// Few callers may read the CAs. For the others, it is enough that the certificate is valid.
		if authority, err := pki.Load(ctx, e.hub.kube.CoreV1().Secrets(e.app.hub.namespace)); err == nil && authority.IssuedByTunnelCA(cert) {
			text += fmt.Sprintf(". It is from the tunnel's CA. The next renewal replaces it by one from the CA of agents' certificates; to do so now: agent-bootstrap rotate %s", e.name)
		}
		e.ok(StageCertificate, "%s", text)
	}
}

// tunnelCA returns the CA bundle by which the gateway verifies agents. Without an error, it can be
// empty: then the gateway has not published it.
func (e *examination) tunnelCA(ctx context.Context) ([]byte, error) {
	info, err := e.hub.publishedTunnel(ctx, e.app.hub.namespace)
	if err != nil || len(info.bundle) > 0 {
		return info.bundle, err
	}
	authority, err := pki.Load(ctx, e.hub.kube.CoreV1().Secrets(e.app.hub.namespace))
	if err != nil {
		return nil, nil //nolint:nilerr // few callers may read the Secret, and the rest of the certificate can be checked
	}
	return authority.Bundle(), nil
}

// readCertificate reads the agent's certificate from --out-dir, or else from the cluster. where
// says where it is; without a certificate, where says why there is none.
func (e *examination) readCertificate(ctx context.Context, reached bool) (pair *registration.AgentPair, where string, err error) {
	target := e.direct
	switch {
	case e.o.outDir != "":
		pair, err = readAgentDir(e.o.outDir)
		if err == nil && pair == nil {
			err = fmt.Errorf("invalid --out-dir %q: it has no files of an agent", e.o.outDir)
		}
		return pair, filepath.Join(e.o.outDir, fileCert), err
	case target != nil:
	case e.directErr != nil:
		return nil, "", e.directErr
	case !reached:
		return nil, "cannot be read while the cluster is not reachable", nil
	default:
		if target, err = throughGateway(e.hub, e.name); err != nil {
			return nil, "", err
		}
	}
	pair, err = readAgentSecret(ctx, target)
	switch {
	case err != nil && target != e.direct:
		return nil, "the gateway accepts it. Reading it from the cluster failed", nil
	case err == nil && pair == nil && e.route() == "":
		return nil, "no agent runs in Pods in the cluster. Whether it needs one is not known", nil
	case err == nil && pair == nil:
		return nil, "the agent runs as a process. To check its certificate, set --out-dir DIR", nil
	}
	return pair, "Secret " + registration.AgentNamespace + "/" + registration.AgentName, err
}
