// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// checkAccess asks the cluster whether the gateway's credential has the rights of --access.
func (e *examination) checkAccess(ctx context.Context) {
	target, err := throughGateway(e.hub, e.name)
	if err != nil {
		e.unknown(StageRBAC, "%v", err)
		return
	}
	if mode := e.gateway.Status.Identity; mode == v1alpha1.IdentityImpersonate || mode == v1alpha1.IdentityRules {
		e.checkIdentity(ctx, target, mode)
		return
	}
	account := "the gateway's account"
	if name := target.whoami(ctx); name != "" {
		account = strconv.Quote(name)
	}
	access := e.gateway.Annotations[v1alpha1.AnnotationAccess]
	right, known := map[string]authorizationv1.ResourceAttributes{
		registration.AccessAdmin:       {Verb: "*", Group: "*", Resource: "*"},
		registration.AccessView:        {Verb: "list", Resource: "pods"},
		registration.AccessImpersonate: {Verb: "impersonate", Resource: "users"},
	}[access]
	if !known {
		e.checkAnyAccess(ctx, target, account, access)
		return
	}
	allowed, err := target.may(ctx, right)
	switch {
	case err != nil:
		e.unknown(StageRBAC, "%v", err)
	case !allowed:
		e.broken(StageRBAC, fmt.Sprintf("%s may not %s in the cluster. It was registered with --access=%s", account, rightText(right), access), e.accessAdvice())
	default:
		e.ok(StageRBAC, "%s has --access=%s%s", account, access, e.sharedCredential())
	}
}

// checkIdentity reports who the cluster sees, if that is not the gateway's account: then the rights
// of that account cannot be asked for through the gateway, and the caller's own are not the
// gateway's business.
func (e *examination) checkIdentity(ctx context.Context, target *clusterClient, mode string) {
	you := ""
	if name := target.whoami(ctx); name != "" {
		you = fmt.Sprintf(". You are %q there", name)
	}
	text := "the cluster sees the callers themselves"
	if mode == v1alpha1.IdentityRules {
		text = "identity rules decide who the cluster sees"
	}
	bounds := ""
	if recorded, has := e.gateway.Annotations[v1alpha1.AnnotationImpersonation]; has {
		impersonation, err := registration.ParseImpersonation(recorded)
		if err != nil {
			e.unknown(StageRBAC, "%v", err)
			return
		}
		bounds = ". The gateway may " + impersonation.Describe()
	}
	e.ok(StageRBAC, "%s%s%s%s", text, you, bounds, e.sharedCredential())
}

// sharedCredential says that a cluster has only one credential, for its users and for the gateway
// itself, and what to do. It is empty if the cluster has two, or needs only one.
func (e *examination) sharedCredential() string {
	separate := meta.FindStatusCondition(e.gateway.Status.Conditions, v1alpha1.ConditionCredentialsSeparate)
	if separate == nil || separate.Status != metav1.ConditionFalse {
		return ""
	}
	return ". But " + separate.Message
}

// accessAdvice says how to restore the gateway's rights in the cluster.
func (e *examination) accessAdvice() string {
	access := e.gateway.Annotations[v1alpha1.AnnotationAccess]
	switch access {
	case "":
		access = "ROLE"
	case registration.AccessImpersonate:
		return "give the gateway the right to impersonate again. To do so, " + e.registerAgain() + " --identity impersonate"
	}
	return "bind the role again. To do so, " + e.registerAgain() + " --access " + access
}

// checkAnyAccess checks for any right in the cluster, beyond those of every account. It is for a
// ClusterRole whose rights are not known here.
func (e *examination) checkAnyAccess(ctx context.Context, target *clusterClient, account, access string) {
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: metav1.NamespaceDefault}}
	answer, err := target.kube.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		e.unknown(StageRBAC, "%v", target.explain(err))
		return
	}
	for _, rule := range answer.Status.ResourceRules {
		for _, resource := range rule.Resources {
			if strings.HasPrefix(resource, "selfsubject") { // every account has these
				continue
			}
			role := ""
			if access != "" {
				role = " (ClusterRole " + access + ")"
			}
			e.ok(StageRBAC, "%s has rights in the cluster%s%s", account, role, e.sharedCredential())
			return
		}
	}
	e.broken(StageRBAC, fmt.Sprintf("%s has no rights in the cluster", account), e.accessAdvice())
}
