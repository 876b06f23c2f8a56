// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Limits of a document with rules.
const (
	maxDocument = 1 << 20
	maxRules    = 1000
	maxPattern  = 1 << 10
	maxRuleName = 128
)

// Rules exchange callers for somebody else. The first rule that matches a caller decides. They must
// not be changed, and are safe for concurrent use.
type Rules struct {
	rules []rule
	text  []byte
}

// Len returns how many rules there are.
func (r *Rules) Len() int {
	if r == nil {
		return 0
	}
	return len(r.rules)
}

// RuleOptions are what the rules of a document may contain.
type RuleOptions struct {
	// Cluster is the name of the cluster whose Secret contains the document: its rules apply to no
	// other. Empty means that the document is the global one.
	Cluster string
	// URLs are the webhooks that the rules may name. For the global document, nil means any.
	URLs []string
}

// rule is one rule.
type rule struct {
	name   string
	kind   exchanger
	source source
	// target is for exchangerStatic, url for exchangerExternal.
	target User
	url    string
}

// source is which callers a rule matches: those that meet every condition. A nil condition is met.
type source struct {
	user, group, uid, cluster                 *string
	userPattern, groupPattern, clusterPattern *regexp.Regexp
}

// ParseRules parses a document in the format of oam-dev/cluster-gateway. The document is accepted
// or refused as a whole, because each rule takes callers away from the ones below it. The error
// contains every fault.
func ParseRules(text []byte, o RuleOptions) (*Rules, error) {
	if len(text) > maxDocument {
		return nil, fmt.Errorf("is %d bytes long; at most %d are allowed", len(text), maxDocument)
	}
	asJSON, err := onlyDocument(text)
	if err != nil {
		return nil, err
	}
	var d document
	strict, err := json.UnmarshalStrict(asJSON, &d)
	if err != nil {
		return nil, fmt.Errorf("is not a %s: %w", documentKind, err)
	}
	faults := strict
	if d.Kind != "" && d.Kind != documentKind {
		faults = append(faults, fmt.Errorf("kind is %s; it must be %s", quote(d.Kind), documentKind))
	}
	if group, _, _ := strings.Cut(d.APIVersion, "/"); d.APIVersion != "" && group != documentGroup {
		faults = append(faults, fmt.Errorf("apiVersion is %s; it must be of the group %s", quote(d.APIVersion), documentGroup))
	}
	rules := &Rules{text: slices.Clone(text)}
	if n := len(d.Spec.ClientIdentityExchanger.Rules); n > maxRules {
		return nil, fmt.Errorf("has %d rules; at most %d are allowed", n, maxRules)
	}
	for i := range d.Spec.ClientIdentityExchanger.Rules {
		p := ruleParser{options: o, in: &d.Spec.ClientIdentityExchanger.Rules[i], at: fmt.Sprintf("rule %d", i+1)}
		rules.rules = append(rules.rules, p.parse(i+1))
		faults = append(faults, p.faults...)
	}
	if len(faults) > 0 {
		return nil, utilerrors.NewAggregate(faults)
	}
	return rules, nil
}

// onlyDocument returns the one YAML document in text, as JSON. An empty document is an empty
// object.
func onlyDocument(text []byte) ([]byte, error) {
	only := []byte("{}")
	found := false
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		next, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return only, nil
		}
		if err != nil {
			return nil, err
		}
		asJSON, err := yaml.YAMLToJSONStrict(next)
		switch {
		case err != nil:
			return nil, fmt.Errorf("is not valid YAML: %w", err)
		case string(asJSON) == "null": // nothing but comments
		case found:
			return nil, errors.New("has more than one YAML document")
		default:
			only, found = asJSON, true
		}
	}
}

// ruleParser parses one rule.
type ruleParser struct {
	options RuleOptions
	in      *documentRule
	at      string
	faults  []error
}

func (p *ruleParser) fault(format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf(p.at+": "+format, args...))
}

func (p *ruleParser) parse(number int) rule {
	r := rule{name: p.in.Name, kind: p.in.Type}
	switch {
	case r.name == "":
		r.name = "#" + strconv.Itoa(number)
	case len(r.name) > maxRuleName || textProblem(r.name) != "":
		p.fault("name must be at most %d printable characters", maxRuleName)
	default:
		p.at += " (" + quote(r.name) + ")"
	}
	r.source = p.source()
	if r.kind != exchangerStatic && p.in.Target != nil {
		p.fault("target must not be set, because type is %s", quote(string(r.kind)))
	}
	if r.kind != exchangerExternal && p.in.URL != nil {
		p.fault("url must not be set, because type is %s", quote(string(r.kind)))
	}
	switch r.kind {
	case exchangerPrivileged:
	case exchangerStatic:
		r.target = p.target()
	case exchangerExternal:
		r.url = p.url()
	default:
		p.fault("type is %s; it must be %s, %s or %s", quote(string(r.kind)), exchangerPrivileged, exchangerStatic, exchangerExternal)
	}
	return r
}

func (p *ruleParser) source() source {
	in := p.in.Source
	if in == nil {
		p.fault("source is required; {} matches every authenticated user")
		return source{}
	}
	s := source{user: in.User, group: in.Group, uid: in.UID, cluster: in.Cluster}
	for _, condition := range []struct {
		field string
		value *string
	}{{"user", in.User}, {"group", in.Group}, {"uid", in.UID}, {"cluster", in.Cluster}} {
		if condition.value != nil && *condition.value == "" {
			p.fault("source.%s must not be empty", condition.field)
		}
	}
	if own := p.options.Cluster; own != "" && in.Cluster != nil && *in.Cluster != own {
		p.fault("source.cluster is %s, but the rule is in the Secret of cluster %s, and applies to no other", quote(*in.Cluster), quote(own))
	}
	s.userPattern = p.pattern("userPattern", in.UserPattern)
	s.groupPattern = p.pattern("groupPattern", in.GroupPattern)
	s.clusterPattern = p.pattern("clusterPattern", in.ClusterPattern)
	return s
}

// pattern compiles a regular expression that must match a whole name. One that matches a part would
// match names that others can choose, such as "admin-of-nothing".
func (p *ruleParser) pattern(field string, text *string) *regexp.Regexp {
	switch {
	case text == nil:
		return nil
	case *text == "":
		p.fault("source.%s must not be empty", field)
		return nil
	case len(*text) > maxPattern:
		p.fault("source.%s is %d bytes long; at most %d are allowed", field, len(*text), maxPattern)
		return nil
	}
	// It is compiled alone first: an unbalanced bracket could end the group around it.
	if _, err := regexp.Compile(*text); err != nil {
		p.fault("source.%s is not a regular expression: %w", field, err)
		return nil
	}
	compiled, err := regexp.Compile(`\A(?:` + *text + `)\z`)
	if err != nil {
		p.fault("source.%s is not a regular expression: %w", field, err)
	}
	return compiled
}

// target returns the user of a rule of type exchangerStatic. Without a user, the predecessor of
// this gateway would let the caller act as the account of the gateway.
func (p *ruleParser) target() User {
	in := p.in.Target
	if in == nil || in.User == "" {
		p.fault("target.user is required")
		return User{}
	}
	target := User{Name: in.User, UID: in.UID}
	for _, group := range in.Groups {
		switch {
		case group == "":
			p.fault("target.groups must not contain an empty name")
		case group == authenticatedGroup || slices.Contains(target.Groups, group): // the cluster adds it
		default:
			target.Groups = append(target.Groups, group)
		}
	}
	if refused := checkText(target); refused != nil {
		p.fault("target: %s", refused.Message)
	} else if _, refused := impersonated(ModeRules, "", target); refused != nil {
		p.fault("target: %s", refused.Message)
	}
	return target
}

func (p *ruleParser) url() string {
	if p.in.URL == nil {
		p.fault("url is required")
		return ""
	}
	text := *p.in.URL
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Hostname() == "":
		p.fault("url must be an https URL")
	case u.User != nil || u.Fragment != "" || u.ForceQuery || u.RawQuery != "":
		// The document is served as an annotation, and named in logs.
		p.fault("url must not have a user, a query or a fragment")
	case (p.options.Cluster != "" || p.options.URLs != nil) && !slices.Contains(p.options.URLs, text):
		p.fault("url %s is not among those that the operator of the gateway allows (--identity-webhook-url)", quote(text))
	}
	return text
}

// match returns the first rule that matches a caller, or nil.
func (r *Rules) match(cluster string, u User) *rule {
	if r == nil {
		return nil
	}
	for i := range r.rules {
		if r.rules[i].source.matches(cluster, u) {
			return &r.rules[i]
		}
	}
	return nil
}

// matches reports whether a caller meets every condition. A caller that nobody has authenticated
// must be named.
func (s source) matches(cluster string, u User) bool {
	if u.isAnonymous() && !is(s.user, anonymousUser) && !is(s.group, unauthenticatedGroup) {
		return false
	}
	matchesGroup := func(group string) bool { return s.groupPattern.MatchString(group) }
	switch {
	case s.user != nil && *s.user != u.Name,
		s.group != nil && !slices.Contains(u.Groups, *s.group),
		s.uid != nil && *s.uid != u.UID,
		s.cluster != nil && *s.cluster != cluster,
		s.userPattern != nil && !s.userPattern.MatchString(u.Name),
		s.groupPattern != nil && !slices.ContainsFunc(u.Groups, matchesGroup),
		s.clusterPattern != nil && !s.clusterPattern.MatchString(cluster):
		return false
	}
	return true
}

func is(text *string, value string) bool { return text != nil && *text == value }
