// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
)

const predecessorExample = `apiVersion: cluster.core.oam.dev/v1alpha1
kind: ClusterGatewayProxyConfiguration
spec:
  clientIdentityExchanger:
    rules:
      - name: super-user
        source:
          group: sudoer
        type: PrivilegedIdentityExchanger
      - name: mapping
        source:
          user: user-12345
          cluster: cluster-34567
        target:
          user: user-34567
          groups: [projected, "system:authenticated"]
          uid: "7"
        type: StaticMappingIdentityExchanger
      - name: pattern
        source:
          userPattern: test-.*
          groupPattern: team-[a-z]+
          clusterPattern: cluster-\d+|edge
        target:
          user: "system:serviceaccount:apps:deployer"
        type: StaticMappingIdentityExchanger
      - name: anonymous
        source: {user: "system:anonymous", cluster: public}
        target: {user: guest}
        type: StaticMappingIdentityExchanger
`

// TestRules checks which rule applies to whom, and what becomes of callers without a rule.
func TestRules(t *testing.T) {
	t.Parallel()
	rules, err := ParseRules([]byte(predecessorExample), RuleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if rules.Len() != 4 {
		t.Error(rules.Len())
	}
	r := NewResolver(Config{Global: fixed{rules: rules}})
	own, err := ParseRules([]byte("spec: {clientIdentityExchanger: {rules: [{name: own, type: StaticMappingIdentityExchanger, source: {group: sudoer, user: joe}, target: {user: own}}]}}"),
		RuleOptions{Cluster: "with-rules"})
	if err != nil {
		t.Fatal(err)
	}
	type seen struct{ rule, user, groups string }
	for name, test := range map[string]struct {
		cluster string
		caller  User
		want    seen
		refused Reason
	}{
		"privileged":                     {"any", User{Name: "joe", Groups: []string{"a", "sudoer"}}, seen{rule: "super-user"}, ""},
		"static":                         {"cluster-34567", User{Name: "user-12345"}, seen{"mapping", "user-34567", "projected"}, ""},
		"static on another cluster":      {"cluster-1", User{Name: "user-12345"}, seen{"", "user-12345", ""}, ""},
		"by patterns":                    {"cluster-1", User{Name: "test-1", Groups: []string{"x", "team-a"}}, seen{"pattern", "system:serviceaccount:apps:deployer", ""}, ""},
		"by the other alternative":       {"edge", User{Name: "test-1", Groups: []string{"team-a"}}, seen{"pattern", "system:serviceaccount:apps:deployer", ""}, ""},
		"the user pattern in the middle": {"cluster-1", User{Name: "a-test-1", Groups: []string{"team-a"}}, seen{"", "a-test-1", "team-a"}, ""},
		"the group pattern in the middle": {"cluster-1", User{Name: "test-1", Groups: []string{"team-a1", "my-team-a"}},
			seen{"", "test-1", "team-a1,my-team-a"}, ""},
		"the cluster pattern in the middle":    {"edge-2", User{Name: "test-1", Groups: []string{"team-a"}}, seen{"", "test-1", "team-a"}, ""},
		"a line break after the pattern":       {"cluster-1\n", User{Name: "test-1", Groups: []string{"team-a"}}, seen{"", "test-1", "team-a"}, ""},
		"the rules of the cluster come first":  {"with-rules", User{Name: "joe", Groups: []string{"sudoer"}}, seen{"own", "own", ""}, ""},
		"then the global ones":                 {"with-rules", User{Name: "jim", Groups: []string{"sudoer"}}, seen{rule: "super-user"}, ""},
		"no rule, and an administrator":        {"any", User{Name: "admin", Groups: []string{"system:masters"}}, seen{}, ReasonReserved},
		"anonymous without a rule":             {"any", User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, seen{}, ReasonAnonymous},
		"anonymous with a rule that names it":  {"public", User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, seen{"anonymous", "guest", ""}, ""},
		"anonymous in a group that is matched": {"any", User{Name: "joe", Groups: []string{"sudoer", "system:unauthenticated"}}, seen{}, ReasonAnonymous},
		"nobody":                               {"any", User{Groups: []string{"sudoer"}}, seen{}, ReasonNoUser},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Policy{Mode: ModeRules}
			if test.cluster == "with-rules" {
				p.Rules = own
			}
			got, err := r.Resolve(t.Context(), test.cluster, p, test.caller)
			var refusal *Refusal
			if errors.As(err, &refusal) != (test.refused != "") || refusal != nil && refusal.Reason != test.refused {
				t.Fatalf("%+v, %v", got, err)
			}
			if refusal != nil {
				return
			}
			is := seen{rule: got.Rule}
			if got.User != nil {
				is.user, is.groups = got.User.Name, strings.Join(got.User.Groups, ",")
			}
			if d := cmp.Diff(test.want, is, cmp.AllowUnexported(seen{})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestRulesThatMatchEverybody checks that no pattern matches a caller that nobody has
// authenticated.
func TestRulesThatMatchEverybody(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"{}", "{userPattern: '.*'}", "{groupPattern: '.*'}", "{clusterPattern: c}"} {
		rules, err := ParseRules([]byte("spec: {clientIdentityExchanger: {rules: [{type: PrivilegedIdentityExchanger, source: "+source+"}]}}"), RuleOptions{Cluster: "c"})
		if err != nil {
			t.Fatal(err)
		}
		r, p := NewResolver(Config{}), Policy{Mode: ModeRules, Rules: rules}
		if seen, err := r.Resolve(t.Context(), "c", p, User{Name: "joe", Groups: []string{"a"}}); err != nil || seen.Rule != "#1" || seen.User != nil {
			t.Errorf("%s: %+v, %v", source, seen, err)
		}
		if seen, err := r.Resolve(t.Context(), "c", p, User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}); err == nil {
			t.Errorf("%s: %+v", source, seen)
		}
	}
}

// TestRulesFaults checks that a document is refused as a whole, with every fault.
func TestRulesFaults(t *testing.T) {
	t.Parallel()
	rule := func(text string) string { return "spec: {clientIdentityExchanger: {rules: [" + text + "]}}" }
	const good = "{name: good, type: PrivilegedIdentityExchanger, source: {user: a}}"
	var many []string
	for range maxRules + 1 {
		many = append(many, good)
	}
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"not YAML":                    {"\tx: [", []string{"is not valid YAML"}},
		"a list":                      {"[]", []string{"is not a ClusterGatewayProxyConfiguration"}},
		"text":                        {"not rules", []string{"is not a ClusterGatewayProxyConfiguration"}},
		"two documents":               {"spec: {}\n---\nspec: {}", []string{"more than one YAML document"}},
		"a key twice":                 {"spec: {}\nspec: {}", []string{"is not valid YAML"}},
		"another kind":                {"kind: Secret", []string{"kind is \"Secret\""}},
		"another group":               {"apiVersion: v1", []string{"apiVersion is \"v1\""}},
		"an unknown field":            {rule("{type: PrivilegedIdentityExchanger, source: {userPatern: a}}"), []string{"unknown field \"spec.clientIdentityExchanger.rules[0].source.userPatern\""}},
		"a field in other case":       {rule("{type: PrivilegedIdentityExchanger, source: {User: a}}"), []string{"unknown field"}},
		"an unknown exchanger":        {"spec: {clientIdentityExchange: {rules: []}}", []string{"unknown field"}},
		"a number as a user":          {rule("{type: PrivilegedIdentityExchanger, source: {user: 1}}"), []string{"is not a ClusterGatewayProxyConfiguration"}},
		"an unknown type":             {rule("{type: Privileged, source: {user: a}}"), []string{"type is \"Privileged\""}},
		"no type":                     {rule("{source: {user: a}}"), []string{"type is \"\""}},
		"no source":                   {rule("{name: x, type: PrivilegedIdentityExchanger}"), []string{"rule 1 (\"x\"): source is required"}},
		"a null source":               {rule("{type: PrivilegedIdentityExchanger, source: null}"), []string{"source is required"}},
		"an empty user":               {rule("{type: PrivilegedIdentityExchanger, source: {user: ''}}"), []string{"source.user must not be empty"}},
		"an empty pattern":            {rule("{type: PrivilegedIdentityExchanger, source: {userPattern: ''}}"), []string{"source.userPattern must not be empty"}},
		"a broken pattern":            {rule("{type: PrivilegedIdentityExchanger, source: {groupPattern: 'a('}}"), []string{"source.groupPattern is not a regular expression"}},
		"a pattern that ends a group": {rule("{type: PrivilegedIdentityExchanger, source: {userPattern: 'a)|(?:.*'}}"), []string{"source.userPattern is not a regular expression"}},
		"a long pattern":              {rule("{type: PrivilegedIdentityExchanger, source: {userPattern: '" + strings.Repeat("a", maxPattern+1) + "'}}"), []string{"1025 bytes long"}},
		"another cluster":             {rule("{type: PrivilegedIdentityExchanger, source: {cluster: other}}"), []string{"source.cluster is \"other\""}},
		"privileged with a target":    {rule("{type: PrivilegedIdentityExchanger, source: {user: a}, target: {user: b}}"), []string{"target must not be set"}},
		"static without a target":     {rule("{type: StaticMappingIdentityExchanger, source: {user: a}}"), []string{"target.user is required"}},
		"static without a user":       {rule("{type: StaticMappingIdentityExchanger, source: {user: a}, target: {groups: [b]}}"), []string{"target.user is required"}},
		"static with an empty target": {rule("{type: StaticMappingIdentityExchanger, source: {user: a}, target: {}}"), []string{"target.user is required"}},
		"static with a line break":    {rule("{type: StaticMappingIdentityExchanger, source: {user: a}, target: {user: \"b\\nc\"}}"), []string{"control character"}},
		"static with an empty group":  {rule("{type: StaticMappingIdentityExchanger, source: {user: a}, target: {user: b, groups: ['']}}"), []string{"target.groups must not contain an empty name"}},
		"static with a URL":           {rule("{type: StaticMappingIdentityExchanger, source: {user: a}, target: {user: b}, url: 'https://a'}"), []string{"url must not be set"}},
		"external without a URL":      {rule("{type: ExternalIdentityExchanger, source: {user: a}}"), []string{"url is required"}},
		"external without TLS":        {rule("{type: ExternalIdentityExchanger, source: {user: a}, url: 'http://a'}"), []string{"url must be an https URL"}},
		"external with a password":    {rule("{type: ExternalIdentityExchanger, source: {user: a}, url: 'https://u:p@allowed'}"), []string{"url must not have a user"}},
		"external, not allowed":       {rule("{type: ExternalIdentityExchanger, source: {user: a}, url: 'https://allowed/other'}"), []string{"--identity-webhook-url"}},
		"a long name":                 {rule("{name: " + strings.Repeat("n", maxRuleName+1) + ", type: PrivilegedIdentityExchanger, source: {user: a}}"), []string{"name must be at most"}},
		"too many":                    {rule(strings.Join(many, ",")), []string{"has 1001 rules"}},
		"too long":                    {strings.Repeat("#", maxDocument+1), []string{"bytes long"}},
		"a good rule and two bad ones": {rule(good + ", {type: x, source: {user: a}}, {type: PrivilegedIdentityExchanger}"),
			[]string{"rule 2: type is \"x\"", "rule 3: source is required"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules, err := ParseRules([]byte(test.text), RuleOptions{Cluster: "own", URLs: []string{"https://allowed"}})
			if err == nil || rules != nil {
				t.Fatalf("accepted: %+v", rules)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v lacks %q", err, want)
				}
			}
		})
	}
	for name, text := range map[string]string{
		"nothing": "", "a comment": "# none", "no spec": "kind: ClusterGatewayProxyConfiguration\nmetadata: {name: x}", "no exchanger": "spec: {}",
		"null": "spec: {clientIdentityExchanger: null}", "no rules": "spec: {clientIdentityExchanger: {rules: []}}",
		"allowed": rule("{type: ExternalIdentityExchanger, source: {cluster: own}, url: 'https://allowed'}"), "JSON": "{\"spec\":{}}", "a separator": "---\nspec: {}\n",
	} {
		if _, err := ParseRules([]byte(text), RuleOptions{Cluster: "own", URLs: []string{"https://allowed"}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The operator's file may name any webhook.
	if _, err := ParseRules([]byte(rule("{type: ExternalIdentityExchanger, source: {}, url: 'https://any'}")), RuleOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := ParseRules([]byte(rule("{type: ExternalIdentityExchanger, source: {}, url: 'https://any'}")), RuleOptions{Cluster: "own"}); err == nil {
		t.Error("a Secret names a webhook, and none is allowed")
	}
}

// fixed are rules that do not change.
type fixed struct {
	rules *Rules
	err   error
}

func (f fixed) Rules() (*Rules, error) { return f.rules, f.err }

// TestInvalidGlobalRulesRefuse checks that nobody is let through while the file is invalid, not
// even by a rule of the cluster.
func TestInvalidGlobalRulesRefuse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "rules.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const rule = "spec: {clientIdentityExchanger: {rules: [{name: %s, type: %s, source: {user: joe}%s}]}}"
	write("x")
	if _, err := OpenFile(path, klog.Logger{}); err == nil {
		t.Fatal("started with an invalid file")
	}
	write(fmt.Sprintf(rule, "first", "PrivilegedIdentityExchanger", ""))
	f, err := OpenFile(path, klog.Logger{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := ParseRules([]byte(fmt.Sprintf(rule, "own", "PrivilegedIdentityExchanger", "")), RuleOptions{Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	r := NewResolver(Config{Global: f})
	resolve := func(rules *Rules) (string, error) {
		seen, err := r.Resolve(t.Context(), "c", Policy{Mode: ModeRules, Rules: rules}, User{Name: "joe"})
		return seen.Rule, err
	}
	if rule, err := resolve(nil); rule != "first" || err != nil {
		t.Error(rule, err)
	}
	for _, text := range []string{"spec: {clientIdentityExchanger: {rules: [{name: typo", "kind: x", "spec: {clientIdentityExchanger: {rule: []}}"} {
		write(text)
		f.Reload()
		for _, rules := range []*Rules{nil, own} {
			var refusal *Refusal
			if rule, err := resolve(rules); !errors.As(err, &refusal) || refusal.Reason != ReasonRules || !refusal.Temporary || strings.Contains(refusal.Message, path) {
				t.Errorf("%q: %q, %v", text, rule, err)
			}
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.Reload()
	if rule, err := resolve(nil); err == nil {
		t.Errorf("without a file: %q", rule)
	}
	// Clusters without rules go on.
	if _, err := r.Resolve(t.Context(), "c", Policy{Mode: ModeImpersonate}, User{Name: "joe"}); err != nil {
		t.Error(err)
	}
	write(fmt.Sprintf(rule, "second", "StaticMappingIdentityExchanger", ", target: {user: x}"))
	f.Reload()
	if rule, err := resolve(nil); rule != "second" || err != nil {
		t.Error(rule, err)
	}
}

func TestPolicyKey(t *testing.T) {
	t.Parallel()
	a, _ := ParseRules([]byte("# a"), RuleOptions{})
	b, _ := ParseRules([]byte("# b"), RuleOptions{})
	seen := map[string]Policy{}
	for _, p := range []Policy{{}, {Mode: ModeCredential}, {Mode: ModeImpersonate}, {Mode: ModeRules}, {Mode: ModeRules, Rules: a}, {Mode: ModeRules, Rules: b}} {
		if other, twice := seen[string(p.Key())]; twice {
			t.Errorf("%+v and %+v have the same key", p, other)
		}
		seen[string(p.Key())] = p
	}
}

// FuzzRules checks that no document makes a cluster see a reserved identity that the document does
// not name, or the account of the gateway without a rule that says so.
func FuzzRules(f *testing.F) {
	f.Add([]byte(predecessorExample), "joe", "dev", "edge")
	f.Add([]byte("spec: {clientIdentityExchanger: {rules: [{type: StaticMappingIdentityExchanger, source: {userPattern: 'a|b'}, target: {user: c}}]}}"), "a", "", "c")
	f.Add([]byte("spec: &a {clientIdentityExchanger: *a}"), "system:anonymous", "system:masters", "c")
	f.Fuzz(func(t *testing.T, text []byte, user, group, cluster string) {
		rules, err := ParseRules(text, RuleOptions{})
		if (err == nil) == (rules == nil) {
			t.Fatal("rules and an error, or neither")
		}
		if err != nil {
			return
		}
		r := NewResolver(Config{Global: fixed{rules: rules}})
		seen, err := r.Resolve(t.Context(), cluster, Policy{Mode: ModeRules}, User{Name: user, Groups: []string{group}})
		h, decided := seen.Headers()
		if decided != (err == nil) || err != nil && len(h) > 0 {
			t.Fatalf("%+v and %v", seen, err)
		}
		if err != nil {
			return
		}
		if seen.User == nil && (seen.Rule == "" || !strings.Contains(string(text), string(exchangerPrivileged)) && !strings.Contains(string(text), "\\")) {
			t.Fatalf("the account of the gateway by rule %q of %q", seen.Rule, text)
		}
		for name, values := range h {
			for _, value := range values {
				if textProblem(value) != "" || value == "" {
					t.Fatalf("%s: %q", name, value)
				}
				if seen.Rule == "" && strings.HasPrefix(value, systemPrefix) {
					t.Fatalf("%s: %q without a rule", name, value)
				}
			}
		}
	})
}
