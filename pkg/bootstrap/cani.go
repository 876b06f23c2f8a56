// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/policy"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

type canIOptions struct {
	groups    []string
	namespace string
}

func (a *app) canICommand() *cobra.Command {
	var o canIOptions
	cmd := &cobra.Command{
		Use:   "can-i USER CLUSTER VERB RESOURCE [NAME]",
		Short: "Check what a user may do in a cluster through the gateway",
		Long: `can-i asks the hub whether a user may do something in a cluster, and shows each rule that the gateway
looks for. The gateway always checks whether the user may use the cluster (clustergateways/proxy). If it
runs with --authorize-proxied-requests, it also checks the request itself. The rules are RBAC of the hub.

RESOURCE is written as for kubectl, with its API group: pods, pods/log, deployments.apps. It can also be a
path, such as /metrics. The exit code is 0 if everything is allowed, and 1 otherwise. Your account must be
allowed to create subjectaccessreviews on the hub.`,
		Example: `  # May jane list Pods in the namespace shop?
  agent-bootstrap can-i jane edge-1 list pods -n shop

  # May jane, as a member of the group developers, run commands in Pods?
  agent-bootstrap can-i jane edge-1 create pods/exec -n shop --as-group developers

  # May a ServiceAccount of the hub change Deployments?
  agent-bootstrap can-i system:serviceaccount:ci:deployer edge-1 patch deployments.apps -n shop`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 4 || len(args) > 5 {
				return fmt.Errorf("invalid arguments %q: must be USER CLUSTER VERB RESOURCE [NAME], for example: %s jane edge-1 list pods", args, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.canI(cmd.Context(), args, o) },
	}
	cmd.Flags().StringSliceVar(&o.groups, "as-group", o.groups, "Group of the user. Can be repeated. The groups that Kubernetes adds by itself are added here, too.")
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", o.namespace, "Namespace in the cluster. Default: all namespaces.")
	return cmd
}

// errNotAllowed is the error of can-i if something is not allowed. The answer has been printed.
var errNotAllowed = errors.New("not allowed")

func (a *app) canI(ctx context.Context, args []string, o canIOptions) error {
	name := args[1]
	if err := registration.ValidateName(name); err != nil {
		return err
	}
	target, err := parseAction(args[2], args[3], args[4:], o.namespace)
	if err != nil {
		return err
	}
	caller := &user.DefaultInfo{Name: args[0], Groups: impliedGroups(args[0], o.groups)}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return err
	}
	c, err := hub.clusterGateway(ctx, name)
	if apierrors.IsNotFound(err) {
		return notRegistered(name)
	}
	if err != nil {
		return hub.explain(err)
	}
	reviews := accessReviews{hub}
	var door []policy.Answer
	for _, verb := range doorVerbs(&target) {
		door = append(door, reviews.ask(ctx, doorCheck(caller, name, verb)))
	}
	rules := policy.Explain(ctx, reviews, &policy.Request{User: caller, Cluster: name, Labels: c.Labels, Target: target})
	for _, answer := range slices.Concat(door, rules) {
		if answer.Err != nil {
			return hub.explain(answer.Err)
		}
	}
	return a.printCanI(door, rules)
}

// parseAction reads VERB, RESOURCE and NAME.
func parseAction(verb, resource string, names []string, namespace string) (policy.Target, error) {
	t := policy.Target{Verbs: []string{strings.ToLower(verb)}}
	if strings.HasPrefix(resource, "/") {
		if len(names) > 0 || namespace != "" {
			return t, fmt.Errorf("invalid RESOURCE %q: a path has no name and no namespace", resource)
		}
		t.Path = resource
		return t, nil
	}
	t.Resource, t.Namespace = true, namespace
	kind, subresource, _ := strings.Cut(resource, "/")
	t.Kind, t.Group, _ = strings.Cut(kind, ".")
	t.Subresource = subresource
	if t.Kind == "" || strings.Contains(subresource, "/") || strings.HasSuffix(resource, "/") || strings.HasSuffix(kind, ".") {
		return t, fmt.Errorf("invalid RESOURCE %q: must be RESOURCE[.GROUP][/SUBRESOURCE] or a path that begins with /", resource)
	}
	if len(names) > 0 {
		t.Name = names[0]
	}
	switch subresource {
	case "exec", "attach", "portforward": // kubectl sends a GET, which becomes a WebSocket
		if t.Verbs[0] == "create" {
			t.Verbs = []string{"get", "create"}
		}
	}
	return t, nil
}

// impliedGroups adds the groups that a Kubernetes API server adds to those of a user.
func impliedGroups(name string, groups []string) []string {
	all := slices.Clone(groups)
	add := func(group string) {
		if !slices.Contains(all, group) {
			all = append(all, group)
		}
	}
	if name == user.Anonymous {
		add(user.AllUnauthenticated)
		return all
	}
	if account, ok := strings.CutPrefix(name, "system:serviceaccount:"); ok {
		if namespace, _, ok := strings.Cut(account, ":"); ok {
			add("system:serviceaccounts")
			add("system:serviceaccounts:" + namespace)
		}
	}
	add(user.AllAuthenticated)
	return all
}

// doorVerbs are the verbs on clustergateways/proxy that a request needs: those of its HTTP method.
func doorVerbs(t *policy.Target) []string {
	var verbs []string
	for _, verb := range t.Verbs {
		switch verb {
		case "list", "watch", "head":
			verb = "get"
		case "deletecollection":
			verb = "delete"
		case "post":
			verb = "create"
		case "put":
			verb = "update"
		}
		if !slices.Contains(verbs, verb) {
			verbs = append(verbs, verb)
		}
	}
	return verbs
}

func doorCheck(caller user.Info, name, verb string) authorizer.Attributes {
	return authorizer.AttributesRecord{
		User: caller, Verb: verb, APIGroup: v1alpha1.GroupName, APIVersion: v1alpha1.SchemeGroupVersion.Version,
		Resource: v1alpha1.ResourceName, Subresource: v1alpha1.ProxySubresource, Name: name, ResourceRequest: true,
	}
}

// accessReviews authorizes with SubjectAccessReviews of the hub.
type accessReviews struct{ hub *clusterClient }

var _ authorizer.UnconditionalAuthorizer = accessReviews{}

func (r accessReviews) ask(ctx context.Context, check authorizer.Attributes) policy.Answer {
	answer := policy.Answer{Check: check}
	answer.Decision, answer.Reason, answer.Err = r.Authorize(ctx, check)
	return answer
}

// Authorize implements authorizer.UnconditionalAuthorizer.
func (r accessReviews) Authorize(ctx context.Context, c authorizer.Attributes) (authorizer.Decision, string, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: c.GetUser().GetName(), Groups: c.GetUser().GetGroups()}}
	if c.IsResourceRequest() {
		review.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
			Verb: c.GetVerb(), Group: c.GetAPIGroup(), Version: c.GetAPIVersion(), Resource: c.GetResource(),
			Subresource: c.GetSubresource(), Namespace: c.GetNamespace(), Name: c.GetName(),
		}
	} else {
		review.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Verb: c.GetVerb(), Path: c.GetPath()}
	}
	answer, err := r.hub.kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	switch {
	case err != nil:
		return authorizer.DecisionNoOpinion, "", err
	case answer.Status.Denied:
		return authorizer.DecisionDeny, answer.Status.Reason, nil
	case answer.Status.Allowed:
		return authorizer.DecisionAllow, answer.Status.Reason, nil
	default:
		return authorizer.DecisionNoOpinion, answer.Status.Reason, nil
	}
}

// printCanI prints the answers. Its error is errNotAllowed if something is not allowed.
func (a *app) printCanI(door, rules []policy.Answer) error {
	doorAllowed, rulesAllowed := everyVerb(door), everyVerb(rules)
	fmt.Fprintln(a.Out, yesNo(doorAllowed && rulesAllowed))
	table := a.newTable()
	fmt.Fprintln(table, "\nALLOWED\tVERB\tON\tREASON")
	for _, answer := range slices.Concat(door, rules) {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", yesNo(answer.Decision == authorizer.DecisionAllow), answer.Check.GetVerb(), checkText(answer.Check), orDash(answer.Reason))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	switch {
	case !doorAllowed:
		a.say("The user may not use the cluster: the gateway needs the verbs above on clustergateways/proxy.")
	case !rulesAllowed:
		a.say("The user may use the cluster. If the gateway runs with --authorize-proxied-requests, this request also needs one of the rules above for each verb.")
	default:
		return nil
	}
	return errNotAllowed
}

// everyVerb reports whether each verb has a check that is allowed, and no check is denied.
func everyVerb(answers []policy.Answer) bool {
	allowed := map[string]bool{}
	for _, answer := range answers {
		if answer.Decision == authorizer.DecisionDeny {
			return false
		}
		verb := answer.Check.GetVerb()
		allowed[verb] = allowed[verb] || answer.Decision == authorizer.DecisionAllow
	}
	for _, ok := range allowed {
		if !ok {
			return false
		}
	}
	return true
}

// checkText is what a rule has to be about.
func checkText(c authorizer.Attributes) string {
	if !c.IsResourceRequest() {
		return c.GetPath()
	}
	text := c.GetResource()
	if c.GetSubresource() != "" {
		text += "/" + c.GetSubresource()
	}
	if c.GetName() != "" {
		text += " " + c.GetName()
	}
	text += " in API group " + c.GetAPIGroup()
	if c.GetNamespace() != "" {
		text += ", namespace " + c.GetNamespace()
	}
	return text
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
