// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Limits of the work for one decision.
const (
	// maxParallelChecks is how many checks of one decision run at a time.
	maxParallelChecks = 8
	// decisionTimeout bounds a decision. It is longer than the time-out of one review (10 s), so that
	// the error of the review is the one that is reported.
	decisionTimeout = 15 * time.Second
	// maxDecisions bounds the cache. One entry takes some 500 bytes.
	maxDecisions = 20000
)

// Config configures an [Authorizer].
type Config struct {
	// Hub decides each check. It should have no cache of its own: the Authorizer has one, and the
	// lifetimes would add up.
	Hub authorizer.UnconditionalAuthorizer
	// Proxied is whether requests are authorized by what the cluster is asked to do. Otherwise,
	// Authorize allows everything.
	Proxied bool
	// AllowTTL and DenyTTL are how long decisions are kept. 0 means that they are not.
	AllowTTL, DenyTTL time.Duration
}

// Authorizer asks the hub what callers may do in clusters. It is safe for concurrent use. Use New.
type Authorizer struct {
	config    Config
	decisions *cache.LRUExpireCache
	asking    singleflight.Group
}

// New returns an Authorizer.
func New(config Config) *Authorizer {
	return &Authorizer{config: config, decisions: cache.NewLRUExpireCache(maxDecisions)}
}

// Request is a request of a caller to a cluster.
type Request struct {
	User user.Info
	// Door are the checks that the gateway made before: those on clustergateways/proxy.
	Door []authorizer.Attributes
	// Cluster is the name of the cluster, and Labels are those of its Secret.
	Cluster string
	Labels  map[string]string
	Target  Target
}

// ForbiddenError reports that the caller must not send a request.
type ForbiddenError struct {
	User, Cluster string
	// Action is what the caller must not do: list pods in namespace "shop".
	Action string
	// Reason is what the hub's authorizer says. It may be empty.
	Reason string
}

// Error implements error.
func (e *ForbiddenError) Error() string {
	text := fmt.Sprintf("user %s cannot %s in cluster %s", quote(e.User), e.Action, quote(e.Cluster))
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Authorize returns nil if the rules of the hub allow the caller to do in the cluster what the
// request asks for, or if such rules are not used. It returns a *ForbiddenError if they do not, and
// another error if the hub cannot be asked.
func (a *Authorizer) Authorize(ctx context.Context, r *Request) error {
	if !a.config.Proxied || r.Target.isDiscovery() {
		return nil
	}
	for _, verb := range r.Target.Verbs {
		decision, err := a.decide(ctx, r.checks(verb))
		if err != nil {
			return fmt.Errorf("cannot check what user %s may do in cluster %s: %w", quote(r.User.GetName()), quote(r.Cluster), err)
		}
		if !decision.allowed {
			one := r.Target
			one.Verbs = []string{verb}
			return &ForbiddenError{User: r.User.GetName(), Cluster: r.Cluster, Action: one.String(), Reason: decision.reason}
		}
	}
	return nil
}

// StillAllowed returns nil if the caller may keep the request open: if it passes the checks of the
// door again, and those of Authorize. The errors are those of Authorize.
func (a *Authorizer) StillAllowed(ctx context.Context, r *Request) error {
	for _, door := range r.Door {
		decision, err := a.decide(ctx, []authorizer.Attributes{door})
		if err != nil {
			return fmt.Errorf("cannot check whether user %s may still use cluster %s: %w", quote(r.User.GetName()), quote(r.Cluster), err)
		}
		if !decision.allowed {
			return &ForbiddenError{
				User: r.User.GetName(), Cluster: r.Cluster, Reason: decision.reason,
				Action: door.GetVerb() + " " + door.GetResource() + "." + door.GetAPIGroup() + "/" + door.GetSubresource(),
			}
		}
	}
	return a.Authorize(ctx, r)
}

// decision is the answer to several checks of which one has to be allowed.
type decision struct {
	allowed bool
	reason  string
}

// decide allows if one of the checks is allowed and none is denied. It is an error if none is
// allowed, and one could not be made.
func (a *Authorizer) decide(ctx context.Context, checks []authorizer.Attributes) (decision, error) {
	key := decisionKey(checks)
	if kept, ok := a.decisions.Get(key); ok {
		return kept.(decision), nil
	}
	asked := a.asking.DoChan(key, func() (any, error) {
		// Others may wait for this decision, so it does not end with the first caller's request.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), decisionTimeout)
		defer cancel()
		d, err := a.ask(ctx, checks)
		if err == nil {
			a.keep(key, d)
		}
		return d, err
	})
	select {
	case result := <-asked:
		return result.Val.(decision), result.Err
	case <-ctx.Done():
		return decision{}, ctx.Err()
	}
}

func (a *Authorizer) keep(key string, d decision) {
	ttl := a.config.DenyTTL
	if d.allowed {
		ttl = a.config.AllowTTL
	}
	if ttl > 0 {
		a.decisions.Add(key, d, ttl)
	}
}

// ask makes all checks: one that is denied, and not only not allowed, decides.
func (a *Authorizer) ask(ctx context.Context, checks []authorizer.Attributes) (decision, error) {
	result, err := decision{}, error(nil)
	for _, got := range askAll(ctx, a.config.Hub, checks) {
		switch got.Decision {
		case authorizer.DecisionDeny:
			return decision{reason: got.Reason}, nil
		case authorizer.DecisionAllow:
			result.allowed = true
		default:
			err = errors.Join(err, got.Err)
			if result.reason == "" {
				result.reason = got.Reason
			}
		}
	}
	if result.allowed {
		return decision{allowed: true}, nil
	}
	return result, err
}

// Answer is what the hub's authorizer says about one check.
type Answer struct {
	Check    authorizer.Attributes
	Decision authorizer.Decision
	Reason   string
	Err      error
}

func askAll(ctx context.Context, hub authorizer.UnconditionalAuthorizer, checks []authorizer.Attributes) []Answer {
	answers := make([]Answer, len(checks))
	var group errgroup.Group
	group.SetLimit(maxParallelChecks)
	for i, check := range checks {
		group.Go(func() error {
			got := &answers[i]
			got.Check = check
			got.Decision, got.Reason, got.Err = hub.Authorize(ctx, check)
			got.Reason = strings.TrimSpace(got.Reason)
			return nil
		})
	}
	_ = group.Wait() // the errors are in answers
	return answers
}

// Explain makes every check of Authorize and returns the answers, those of the same verb one after
// the other. It returns nothing for discovery, which is always allowed.
func Explain(ctx context.Context, hub authorizer.UnconditionalAuthorizer, r *Request) []Answer {
	if r.Target.isDiscovery() {
		return nil
	}
	var all []Answer
	for _, verb := range r.Target.Verbs {
		all = append(all, askAll(ctx, hub, r.checks(verb))...)
	}
	return all
}

// checks are the checks for one of the verbs, of which one has to be allowed.
func (r *Request) checks(verb string) []authorizer.Attributes {
	selectors := Selectors(r.Cluster, r.Labels)
	checks := make([]authorizer.Attributes, 0, len(selectors))
	for _, selector := range selectors {
		checks = append(checks, newCheck(r.User, selector, &r.Target, verb))
	}
	return checks
}
