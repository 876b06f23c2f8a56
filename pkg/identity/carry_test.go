// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestImpersonate checks what of a caller a cluster sees: whole header maps, and what is refused.
func TestImpersonate(t *testing.T) {
	t.Parallel()
	r := NewResolver(Config{HubName: "prod", Extras: []string{"Example.com/team", "plain", "authentication.kubernetes.io/credential-id"}})
	long := strings.Repeat("g", 200)
	groups := func(n int, prefix string) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("%s%d", prefix, i))
		}
		return all
	}
	for name, test := range map[string]struct {
		caller  User
		want    http.Header
		refused Reason
		message string
	}{
		"a user with everything": {
			caller: User{Name: "jane@example.com", UID: "42", Groups: []string{"dev", "system:authenticated", "ops:éu", "dev"}, Extra: map[string][]string{
				"example.com/team": {"a", "b"}, "EXAMPLE.com/other": {"c"}, "plain": {"d"},
				"authentication.kubernetes.io/credential-id": {"X509SHA256=1"}, "authentication.kubernetes.io/node-name": {"n"},
			}},
			want: http.Header{
				"Impersonate-User": {"jane@example.com"}, "Impersonate-Uid": {"42"}, "Impersonate-Group": {"dev", "ops:éu"},
				"Impersonate-Extra-Example.com%2fteam": {"a", "b"}, "Impersonate-Extra-Plain": {"d"},
			},
		},
		"a user alone":                    {caller: User{Name: "joe"}, want: http.Header{"Impersonate-User": {"joe"}}},
		"an extra value in upper case":    {caller: User{Name: "joe", Extra: map[string][]string{"Example.COM/Team": {"A"}}}, want: http.Header{"Impersonate-User": {"joe"}, "Impersonate-Extra-Example.com%2fteam": {"A"}}},
		"an extra key without a value":    {caller: User{Name: "joe", Extra: map[string][]string{"plain": {}}}, want: http.Header{"Impersonate-User": {"joe"}}},
		"an extra key twice":              {caller: User{Name: "joe", Extra: map[string][]string{"plain": {"a"}, "PLAIN": {"b"}}}, refused: ReasonInvalid, message: "twice"},
		"an empty extra value":            {caller: User{Name: "joe", Extra: map[string][]string{"plain": {"a", ""}}}, refused: ReasonInvalid, message: "empty"},
		"a line break in an extra value":  {caller: User{Name: "joe", Extra: map[string][]string{"plain": {"a\r\nImpersonate-User: b"}}}, refused: ReasonInvalid, message: "control character"},
		"a line break that is not sent":   {caller: User{Name: "joe", Extra: map[string][]string{"other": {"a\nb"}}}, want: http.Header{"Impersonate-User": {"joe"}}},
		"nobody":                          {caller: User{Groups: []string{"dev"}}, refused: ReasonNoUser, message: "no user name"},
		"anonymous":                       {caller: User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, refused: ReasonAnonymous, message: "not authenticated"},
		"anonymous under another name":    {caller: User{Name: "joe", Groups: []string{"system:unauthenticated"}}, refused: ReasonAnonymous},
		"a Node":                          {caller: User{Name: "system:node:n1", Groups: []string{"system:nodes"}}, refused: ReasonReserved, message: "is a Node of the hub"},
		"a component":                     {caller: User{Name: "system:kube-scheduler"}, refused: ReasonReserved, message: "the hub's own"},
		"an administrator of the hub":     {caller: User{Name: "kubernetes-admin", Groups: []string{"system:masters", "system:authenticated"}}, refused: ReasonReserved, message: "group \"system:masters\""},
		"a name that is reserved":         {caller: User{Name: "hub:prod:default:x"}, refused: ReasonReserved, message: "reserved for ServiceAccounts"},
		"a name that only looks reserved": {caller: User{Name: "systems", Groups: []string{"System:masters"}}, want: http.Header{"Impersonate-User": {"systems"}, "Impersonate-Group": {"System:masters"}}},
		"a ServiceAccount": {
			caller: User{Name: "system:serviceaccount:vela-system:core", UID: "u", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:vela-system", "system:authenticated"},
				Extra: map[string][]string{"authentication.kubernetes.io/pod-name": {"p"}}},
			want: http.Header{"Impersonate-User": {"hub:prod:vela-system:core"}, "Impersonate-Uid": {"u"}},
		},
		"a ServiceAccount with a group of others": {caller: User{Name: "system:serviceaccount:a:b", Groups: []string{"system:serviceaccounts:kube-system"}}, refused: ReasonReserved, message: "kube-system"},
		"half a ServiceAccount":                   {caller: User{Name: "system:serviceaccount:a"}, refused: ReasonReserved},
		"a ServiceAccount with a colon":           {caller: User{Name: "system:serviceaccount:a:b:c"}, refused: ReasonReserved},
		"a ServiceAccount without a name":         {caller: User{Name: "system:serviceaccount:a:"}, refused: ReasonReserved},
		"a line break":                            {caller: User{Name: "joe\nImpersonate-Group: system:masters"}, refused: ReasonInvalid, message: "control character"},
		"a carriage return in a group":            {caller: User{Name: "joe", Groups: []string{"a\rb"}}, refused: ReasonInvalid},
		"a NUL in the UID":                        {caller: User{Name: "joe", UID: "a\x00"}, refused: ReasonInvalid},
		"a tab":                                   {caller: User{Name: "joe\tb"}, refused: ReasonInvalid},
		"a line separator":                        {caller: User{Name: "joe\u2028b"}, refused: ReasonInvalid},
		"a C1 control character":                  {caller: User{Name: "joe\u0085b"}, refused: ReasonInvalid},
		"not UTF-8":                               {caller: User{Name: "joe\xff"}, refused: ReasonInvalid, message: "UTF-8"},
		"a space at the end":                      {caller: User{Name: "admin "}, refused: ReasonInvalid, message: "white space"},
		"a space before a group":                  {caller: User{Name: "joe", Groups: []string{" admins"}}, refused: ReasonInvalid},
		"a space inside":                          {caller: User{Name: "Joe Doe"}, want: http.Header{"Impersonate-User": {"Joe Doe"}}},
		"a group without a name":                  {caller: User{Name: "joe", Groups: []string{""}}, refused: ReasonInvalid, message: "without a name"},
		"as many groups as fit":                   {caller: User{Name: "joe", Groups: groups(MaxHeaders-1, "g")}, want: http.Header{"Impersonate-User": {"joe"}, "Impersonate-Group": groups(MaxHeaders-1, "g")}},
		"one group more":                          {caller: User{Name: "joe", Groups: groups(MaxHeaders, "g")}, refused: ReasonTooLarge, message: "the list of groups is not cut"},
		"hundreds of groups":                      {caller: User{Name: "joe", Groups: groups(400, "g")}, refused: ReasonTooLarge, message: "400 groups"},
		"long groups":                             {caller: User{Name: "joe", Groups: groups(100, long)}, refused: ReasonTooLarge},
		"a long name":                             {caller: User{Name: strings.Repeat("n", MaxHeaderBytes)}, refused: ReasonTooLarge},
		"too many of a group that is dropped":     {caller: User{Name: "joe", Groups: make500("system:authenticated")}, want: http.Header{"Impersonate-User": {"joe"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen, err := r.Resolve(t.Context(), "c", Policy{Mode: ModeImpersonate}, test.caller)
			got, decided := seen.Headers()
			if test.refused != "" {
				var refusal *Refusal
				if !errors.As(err, &refusal) || refusal.Reason != test.refused || !strings.Contains(refusal.Message, test.message) || decided || len(got) > 0 {
					t.Errorf("got %v and %v, want the refusal %q with %q", got, err, test.refused, test.message)
				}
				return
			}
			if err != nil || !decided {
				t.Fatal(err)
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("headers (-want +got):\n%s", d)
			}
		})
	}
}

func make500(group string) []string {
	all := make([]string, 500)
	for i := range all {
		all[i] = group
	}
	return all
}

// TestModes checks that a cluster sees the account of the gateway by ModeCredential alone.
func TestModes(t *testing.T) {
	t.Parallel()
	r := NewResolver(Config{})
	seen, err := r.Resolve(t.Context(), "c", Policy{Mode: ModeCredential}, User{})
	h, decided := seen.Headers()
	if err != nil || !decided || len(h) != 0 || seen.User != nil {
		t.Errorf("credential: %+v, %v", seen, err)
	}
	for _, mode := range []Mode{"", "Credential", "none"} {
		seen, err := r.Resolve(t.Context(), "c", Policy{Mode: mode}, User{Name: "joe"})
		if _, decided := seen.Headers(); err == nil || decided {
			t.Errorf("mode %q: %+v", mode, seen)
		}
	}
	if _, decided := (Seen{}).Headers(); decided {
		t.Error("the zero value is decided")
	}
	// The default name of the hub.
	seen, err = r.Resolve(t.Context(), "c", Policy{Mode: ModeRules}, User{Name: "system:serviceaccount:a:b"})
	if err != nil || seen.User.Name != "hub:hub:a:b" {
		t.Errorf("%+v, %v", seen, err)
	}
}
