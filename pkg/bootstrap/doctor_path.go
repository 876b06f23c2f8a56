// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// checkPath sends a request to the cluster through the gateway. If it fails, the answer says at
// which stage. reached reports whether the cluster answered.
func (e *examination) checkPath(ctx context.Context) (reached bool) {
	version, err := e.hub.reach(ctx, e.name)
	if err == nil {
		e.passed(StageCredential)
		e.ok(StageCredential, "accepted. The cluster's version is %s", version)
		return true
	}
	switch causeOf(err) {
	case v1alpha1.CauseInvalidSecret:
		e.invalidSecret(err.Error())
	case v1alpha1.CauseTunnel:
		e.noAgent(ctx, err)
	case v1alpha1.CauseAgent, v1alpha1.CauseEndpoint:
		e.passed(StageAgent)
		e.broken(StageDial, err.Error(), e.dialAdvice(err))
	case v1alpha1.CauseTLS:
		e.passed(StageDial)
		e.broken(StageTLS, err.Error(), "the Secret's ca.crt or tls-server-name does not match the API server: "+e.registerAgain())
	case v1alpha1.CauseCredential:
		e.passed(StageTLS)
		e.broken(StageCredential, err.Error(), "create a new credential: agent-bootstrap rotate "+e.name+" --cluster-kubeconfig FILE")
	case v1alpha1.CauseResponse, v1alpha1.CauseRequest:
		e.passed(StageAgent)
		e.broken(StageDial, err.Error(), "a connection was established, but the answer was incomplete: check the cluster's API server and its log")
	default:
		e.pathFailed(err)
	}
	return false
}

// pathFailed reports an error that does not name a stage: it is from the hub, or from the cluster.
func (e *examination) pathFailed(err error) {
	switch {
	case apierrors.IsForbidden(err):
		// By the cluster, since checkHub found the right on the hub. In Kubernetes, every account
		// may read the version.
		e.passed(StageCredential)
		e.broken(StageRBAC, err.Error(), e.accessAdvice())
	case apierrors.IsNotFound(err) && e.route() == "":
		e.noSecret(err.Error())
	default:
		e.broken(StageHub, err.Error(), "check the log of the gateway's Pods in the hub's namespace "+e.app.hub.namespace)
	}
}

// passed records that all stages from the agent to last are ok. Another finding about a stage that
// is recorded later replaces this one.
func (e *examination) passed(last Stage) {
	agent := "connected"
	if e.route() == "" {
		agent = "connected, or not needed: the route to the cluster is not known"
	} else if tunnel := meta.FindStatusCondition(e.gateway.Status.Conditions, v1alpha1.ConditionTunnelConnected); tunnel != nil &&
		tunnel.Status == metav1.ConditionTrue && tunnel.Reason != v1alpha1.ReasonConnected {
		agent = tunnel.Message // an agent is connected, and there is a problem with another one
	}
	for _, s := range []struct {
		stage   Stage
		message string
	}{
		{StageAgent, agent}, {StageDial, "the API server accepts connections"}, {StageTLS, "the API server has the expected certificate"}, {StageCredential, "accepted"},
	} {
		e.ok(s.stage, "%s", s.message)
		if s.stage == last {
			return
		}
	}
}

// dialAdvice tells an API server that is down from a firewall, as far as possible.
func (e *examination) dialAdvice(err error) string {
	from := "the agent"
	if e.route() == routeDirect {
		from = "the gateway"
	}
	switch {
	case e.directErr != nil:
		return "the API server cannot be reached with --cluster-kubeconfig either, so it is probably down: check it. The error was:\n" + e.directErr.Error()
	case e.direct != nil:
		return fmt.Sprintf("the API server answers with --cluster-kubeconfig, so the problem is between %s and the API server:\ncheck firewalls, NetworkPolicies and the endpoint in the Secret", from)
	case strings.Contains(err.Error(), "refused"):
		return "no program listens at this address: check that the API server runs, and that the endpoint in the Secret is its address"
	default:
		return fmt.Sprintf("check that the API server runs, that the endpoint in the Secret is its address, and that no firewall or\nNetworkPolicy is between %s and it. --cluster-kubeconfig FILE finds out more", from)
	}
}
