// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// authorize checks that the caller may carry out the plan, before anything is changed.
func (r *registerRun) authorize(ctx context.Context) error {
	rights, err := r.plan.Rights()
	if err != nil {
		return err
	}
	if r.plan.NewCertificate {
		rights.Hub = append(rights.Hub, r.certificates.rights(r.name)...)
	}
	if err := r.hub.requireRights(ctx, rights.Hub); err != nil {
		return err
	}
	required := slices.Clone(rights.Cluster)
	for _, grant := range rights.Grants {
		exempt, err := r.cluster.mayAll(ctx, grant.Exempt)
		if err != nil {
			return err
		}
		if !exempt {
			required = append(required, grant.Rights...)
		}
	}
	if err := r.cluster.requireRights(ctx, required); err != nil {
		return err
	}
	if unread := r.state.Cluster.Unread; len(unread) > 0 {
		return fmt.Errorf("%s denied a request although it reports that you have the right, and nothing was changed: %s", r.cluster.title, rightText(unread[0]))
	}
	if err := r.tryGrants(ctx); err != nil {
		return err
	}
	return r.step(ctx, "rights", "sufficient on the hub and in the cluster")
}

// tryGrants applies the roles and bindings of the plan in a dry run: the API server lets nobody
// grant rights that they do not have. It does not check roles in a namespace that does not exist.
// For these, only the rights of the plan are checked.
func (r *registerRun) tryGrants(ctx context.Context) error {
	for _, step := range r.plan.Steps {
		if step.Side != registration.SideCluster {
			continue
		}
		for _, o := range step.Apply {
			if o.GroupVersionKind().Group != rbacv1.GroupName {
				continue
			}
			_, _, err := r.cluster.apply(ctx, o, true)
			switch {
			case err == nil:
			case o.GetNamespace() == "":
				return fmt.Errorf("--access %s: %w", r.spec.Access, err)
			default:
				return fmt.Errorf("a dry run of %s %s failed, and nothing was changed: %w", o.GetKind(), o.GetName(), err)
			}
		}
	}
	return nil
}

// may asks whether the caller has a right. See [unanswered] about its error.
func (c *clusterClient) may(ctx context.Context, right registration.Right) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &right}}
	answer, err := c.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, c.explain(err)
	}
	return answer.Status.Allowed, nil
}

// mayPerhaps is like may, but returns true if the cluster does not answer. The right is then
// checked when it is used.
func (c *clusterClient) mayPerhaps(ctx context.Context, right registration.Right) (bool, error) {
	allowed, err := c.may(ctx, right)
	if unanswered(err) {
		return true, nil
	}
	return allowed, err
}

// mayAll asks whether the caller has all of these rights.
func (c *clusterClient) mayAll(ctx context.Context, rights []registration.Right) (bool, error) {
	for _, right := range rights {
		if allowed, err := c.mayPerhaps(ctx, right); err != nil || !allowed {
			return false, err
		}
	}
	return true, nil
}

// parallelReviews bounds how many rights are asked for at a time.
const parallelReviews = 8

// requireRights returns an error that names every right that the caller is missing.
func (c *clusterClient) requireRights(ctx context.Context, rights []registration.Right) error {
	allowed := make([]bool, len(rights))
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(parallelReviews)
	for i, right := range rights {
		group.Go(func() (err error) {
			allowed[i], err = c.mayPerhaps(asking, right)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var missing []registration.Right
	for i, right := range rights {
		if allowed[i] {
			continue
		}
		if n := len(missing) - 1; n >= 0 { // in one line with the previous verb
			previous := missing[n].Verb
			if missing[n].Verb = right.Verb; missing[n] == right {
				missing[n].Verb = previous + ", " + right.Verb
				continue
			}
			missing[n].Verb = previous
		}
		missing = append(missing, right)
	}
	if len(missing) == 0 {
		return nil
	}
	var lines []string
	for _, right := range missing {
		lines = append(lines, rightText(right))
	}
	return fmt.Errorf("%s lacks rights on %s, and nothing was changed. It may not:\n  %s\nAsk for these rights, or use a kubeconfig (%s) that has them",
		c.account(ctx), c.title, strings.Join(lines, "\n  "), c.source)
}

func rightText(r registration.Right) string {
	if r.Verb == "*" && r.Resource == "*" {
		return "do everything"
	}
	text := r.Verb + " " + r.Resource
	if r.Subresource != "" {
		text += "/" + r.Subresource
	}
	if r.Group != "" {
		text += " of " + r.Group
	}
	if r.Name != "" {
		text += " " + strconv.Quote(r.Name)
	}
	if r.Namespace != "" {
		text += " in namespace " + r.Namespace
	}
	return text
}
