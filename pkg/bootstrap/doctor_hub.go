// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// checkHub checks that the hub and its gateway answer, and that the caller may use the cluster.
func (e *examination) checkHub(ctx context.Context) bool {
	const checkFlags = "check that --kubeconfig and --context name the hub, which is the cluster that runs the gateway"
	var err error
	if e.hub, err = e.connectHub(ctx); err == nil {
		err = e.requireGateway(ctx, e.hub)
	}
	if err != nil {
		e.broken(StageHub, err.Error(), checkFlags)
		return false
	}
	right := authorizationv1.ResourceAttributes{
		Verb: "get", Group: v1alpha1.GroupName, Resource: v1alpha1.ResourceName, Subresource: v1alpha1.ProxySubresource, Name: e.name,
	}
	allowed, err := e.hub.mayPerhaps(ctx, right)
	switch {
	case err != nil:
		e.broken(StageHub, err.Error(), checkFlags)
		return false
	case !allowed:
		e.broken(StageHub, fmt.Sprintf("%s may not use this cluster: it lacks the right to %s", e.hub.account(ctx), rightText(right)),
			"ask an administrator of the hub for a ClusterRole with the verbs get, create, update, patch and delete on\n"+
				"clustergateways/proxy of "+v1alpha1.GroupName+", resourceNames "+e.name)
		return false
	}
	e.ok(StageHub, "%s (%s)", e.hub.config.Host, e.hub.version)
	return true
}

// checkSecret checks that the cluster is registered, and that the gateway can use its Secret.
func (e *examination) checkSecret(ctx context.Context) bool {
	var err error
	e.gateway, err = e.hub.clusterGateway(ctx, e.name)
	switch {
	case apierrors.IsNotFound(err):
		e.notRegistered(ctx)
		return false
	case err != nil: // the caller may use the cluster, but not read its ClusterGateway
		e.unknown(StageSecret, "%v", e.hub.explain(err))
		e.gateway = &v1alpha1.ClusterGateway{ObjectMeta: metav1.ObjectMeta{Name: e.name}}
		return true
	}
	ready := meta.FindStatusCondition(e.gateway.Status.Conditions, v1alpha1.ConditionReady)
	if ready != nil && cluster.RefusesSecret(ready.Reason) {
		e.invalidSecret(ready.Message)
		return false
	}
	e.ok(StageSecret, "%s/%s, route %s", e.app.hub.namespace, e.name, e.route())
	return true
}

// notRegistered reports a cluster without a Secret. It may be invited.
func (e *examination) notRegistered(ctx context.Context) {
	record, err := e.hub.readInvitation(ctx, e.app.hub.namespace, e.name)
	if err != nil || record == nil {
		e.noSecret(fmt.Sprintf("the cluster is not registered: the hub has no Secret %s/%s that describes a cluster", e.app.hub.namespace, e.name))
		return
	}
	e.broken(StageSecret, "the cluster is invited, but it is not registered yet. Invitation: "+e.invitationText(record),
		fmt.Sprintf("apply the invitation to the cluster with kubectl apply. If you did, read the log of the Job %s-... in the\nnamespace %s there. To create another invitation: agent-bootstrap invite %s",
			registration.EnrollName, registration.AgentNamespace, e.name))
}

func (e *examination) noSecret(message string) {
	e.broken(StageSecret, message, "register the cluster: agent-bootstrap register "+e.name+" --cluster-kubeconfig FILE")
}

func (e *examination) invalidSecret(message string) {
	e.broken(StageSecret, message, "correct the key of the Secret that the message names, or "+e.registerAgain())
}
