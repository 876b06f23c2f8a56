// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"strings"
)

// DefaultHubName is the default of [Config.HubName].
const DefaultHubName = "hub"

// GlobalRules are the rules for all clusters.
type GlobalRules interface {
	// Rules returns the current rules. Nil means that there are none. The error is why they cannot
	// be used: callers are refused then, because a rule that is missing may be the one that takes a
	// right away.
	Rules() (*Rules, error)
}

// Exchanger asks the webhook of a rule.
type Exchanger interface {
	// Exchange returns the user that the cluster sees. The error is a [*DeniedError] if the webhook
	// has refused the caller, and anything else if it did not answer as it must.
	Exchange(ctx context.Context, url string, q Query) (User, error)
}

// Config is what a Resolver needs. The zero value knows no global rules and no webhooks.
type Config struct {
	// HubName is part of the names under which clusters see the ServiceAccounts of the hub:
	// hub:HUBNAME:NAMESPACE:NAME. Empty means DefaultHubName.
	HubName string
	// Extras are the keys of the extra values that are carried. Keys are compared in lower case.
	Extras []string
	// Global are the rules for all clusters with [ModeRules]. Nil means that there are none.
	Global GlobalRules
	// Webhook asks webhooks. Nil means that every caller is refused to whom such a rule applies.
	Webhook Exchanger
}

// Resolver decides who clusters see. It is safe for concurrent use.
type Resolver struct {
	carrier carrier
	global  GlobalRules
	webhook Exchanger
}

// NewResolver returns a Resolver.
func NewResolver(c Config) *Resolver {
	if c.HubName == "" {
		c.HubName = DefaultHubName
	}
	r := &Resolver{carrier: carrier{hubName: c.HubName, extras: map[string]bool{}}, global: c.Global, webhook: c.Webhook}
	for _, key := range c.Extras {
		r.carrier.extras[strings.ToLower(key)] = true
	}
	return r
}

// Resolve returns who a cluster with this policy sees when the caller sends a request. The error is
// a [*Refusal]. ctx bounds the question to a webhook, if there is one.
func (r *Resolver) Resolve(ctx context.Context, cluster string, p Policy, caller User) (Seen, error) {
	seen, refused := r.resolve(ctx, cluster, p, caller)
	if refused != nil {
		return Seen{}, refused
	}
	return seen, nil
}

func (r *Resolver) resolve(ctx context.Context, cluster string, p Policy, caller User) (Seen, *Refusal) {
	switch p.Mode {
	case ModeCredential:
		return account(p.Mode, ""), nil
	case ModeImpersonate:
		return r.caller(p.Mode, caller)
	case ModeRules:
		return r.byRules(ctx, cluster, p, caller)
	default:
		return Seen{}, refuse(ReasonRules, "nothing says who the cluster sees")
	}
}

// caller returns that the cluster sees the caller.
func (r *Resolver) caller(mode Mode, caller User) (Seen, *Refusal) {
	u, refused := r.carrier.caller(caller)
	if refused != nil {
		return Seen{}, refused
	}
	return impersonated(mode, "", u)
}

// byRules applies the rules of the cluster, and then the global ones. Even if a rule of the cluster
// matches, the global ones must be usable: with a file that cannot be read, nobody knows what the
// operator wants.
func (r *Resolver) byRules(ctx context.Context, cluster string, p Policy, caller User) (Seen, *Refusal) {
	var global *Rules
	if r.global != nil {
		var err error
		if global, err = r.global.Rules(); err != nil {
			return Seen{}, &Refusal{Reason: ReasonRules, Message: "the gateway's rules (--cluster-gateway-proxy-config) cannot be used; its log says why", Err: err, Temporary: true}
		}
	}
	if caller.Name == "" {
		return Seen{}, refuse(ReasonNoUser, "the request has no user name")
	}
	found := p.Rules.match(cluster, caller)
	if found == nil {
		found = global.match(cluster, caller)
	}
	if found == nil {
		return r.caller(p.Mode, caller)
	}
	seen, refused := r.apply(ctx, cluster, found, p.Mode, caller)
	if refused != nil {
		refused.Rule = found.name
	}
	return seen, refused
}

func (r *Resolver) apply(ctx context.Context, cluster string, found *rule, mode Mode, caller User) (Seen, *Refusal) {
	switch found.kind {
	case exchangerPrivileged:
		return account(mode, found.name), nil
	case exchangerStatic:
		return impersonated(mode, found.name, found.target)
	default:
		return r.external(ctx, cluster, found, mode, caller)
	}
}

// external asks the webhook of a rule.
func (r *Resolver) external(ctx context.Context, cluster string, found *rule, mode Mode, caller User) (Seen, *Refusal) {
	failed := refuse(ReasonExchangeFailed, "the webhook of rule %s did not answer as it must; the gateway's log says why", quote(found.name))
	failed.Temporary = true
	// What is not text could become equal to another name in the question.
	if refused := checkText(caller); refused != nil {
		return Seen{}, refused
	}
	if r.webhook == nil {
		failed.Err = errors.New("there is no webhook")
		return Seen{}, failed
	}
	u, err := r.webhook.Exchange(ctx, found.url, Query{Cluster: cluster, Rule: found.name, User: caller})
	var denied *DeniedError
	switch {
	case errors.As(err, &denied):
		refused := refuse(ReasonExchangeDenied, "the webhook of rule %s has refused user %s%s", quote(found.name), quote(caller.Name), denied.because())
		return Seen{}, refused
	case err != nil:
		failed.Err = err
		return Seen{}, failed
	}
	carried, refused := r.carrier.exchanged(u)
	if refused != nil {
		refused.Message = "the webhook of rule " + quote(found.name) + " has chosen an identity that is not carried: " + refused.Message
		return Seen{}, refused
	}
	return impersonated(mode, found.name, carried)
}
