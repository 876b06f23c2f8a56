// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// carrier turns a user of the hub into the user that a cluster sees.
type carrier struct {
	hubName string
	// extras are the keys of the extra values that are carried, in lower case.
	extras map[string]bool
}

// caller returns how a cluster sees a caller that is impersonated.
func (c carrier) caller(u User) (User, *Refusal) {
	if u.Name == "" {
		return User{}, refuse(ReasonNoUser, "the request has no user name")
	}
	if u.isAnonymous() {
		return User{}, refuse(ReasonAnonymous, "you are not authenticated (%s), and this cluster sees its callers", quote(u.Name))
	}
	seen := User{Name: u.Name, UID: u.UID}
	var dropped []string
	if namespace, name, ok := u.serviceAccount(); ok {
		seen.Name = hubPrefix + c.hubName + ":" + namespace + ":" + name
		// They follow from the name.
		dropped = []string{serviceAccountsGroup, serviceAccountsGroup + ":" + namespace}
	} else if refused := checkUserName(u.Name); refused != nil {
		return User{}, refused
	}
	var refused *Refusal
	if seen.Groups, refused = carriedGroups(u.Groups, dropped); refused != nil {
		return User{}, refused
	}
	if seen.Extra, refused = c.carriedExtra(u.Extra); refused != nil {
		return User{}, refused
	}
	return seen, checkText(seen)
}

// exchanged returns how a cluster sees a user that a webhook has chosen.
func (c carrier) exchanged(u User) (User, *Refusal) {
	if u.Name == "" {
		return User{}, refuse(ReasonNoUser, "the webhook has chosen no user name")
	}
	if refused := checkUserName(u.Name); refused != nil {
		return User{}, refused
	}
	seen := User{Name: u.Name, UID: u.UID}
	var refused *Refusal
	if seen.Groups, refused = carriedGroups(u.Groups, nil); refused != nil {
		return User{}, refused
	}
	if seen.Extra, refused = c.carriedExtra(u.Extra); refused != nil {
		return User{}, refused
	}
	return seen, checkText(seen)
}

// checkUserName refuses a name that means something else in each cluster.
func checkUserName(name string) *Refusal {
	switch {
	case strings.HasPrefix(name, nodePrefix):
		return refuse(ReasonReserved, "user %s is a Node of the hub, which is not a user of any other cluster", quote(name))
	case strings.HasPrefix(name, systemPrefix):
		return refuse(ReasonReserved, "user %s is one of the hub's own (%q), which is somebody else in each cluster; only a rule that names the user to be seen can exchange it",
			quote(name), systemPrefix)
	case strings.HasPrefix(name, hubPrefix):
		return refuse(ReasonReserved, "user %s has a name that is reserved for ServiceAccounts of hubs (%q)", quote(name), hubPrefix)
	}
	return nil
}

// carriedGroups returns the groups that a cluster sees, without those in dropped. A cluster adds
// the group of authenticated users by itself.
func carriedGroups(groups, dropped []string) ([]string, *Refusal) {
	var carried []string
	seen := map[string]bool{}
	for _, group := range groups {
		switch {
		case group == authenticatedGroup || slices.Contains(dropped, group) || seen[group]:
			continue
		case group == "":
			return nil, refuse(ReasonInvalid, "the user has a group without a name")
		case strings.HasPrefix(group, systemPrefix):
			return nil, refuse(ReasonReserved, "group %s is one of the hub's own (%q), which has other rights in each cluster; only a rule that names the group to be seen can exchange it",
				quote(group), systemPrefix)
		}
		seen[group] = true
		carried = append(carried, group)
	}
	return carried, nil
}

// carriedExtra returns the extra values that a cluster sees, with keys in lower case as Kubernetes
// wants them. Others are left out: they are about the caller's credential for the hub, or nobody
// has asked for them.
func (c carrier) carriedExtra(extra map[string][]string) (map[string][]string, *Refusal) {
	var carried map[string][]string
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		lower := strings.ToLower(key)
		if !c.extras[lower] || IsReservedExtra(lower) || len(extra[key]) == 0 {
			continue
		}
		if _, twice := carried[lower]; twice {
			return nil, refuse(ReasonInvalid, "the extra values have the key %s twice, in upper and lower case", quote(lower))
		}
		if slices.Contains(extra[key], "") {
			return nil, refuse(ReasonInvalid, "the extra value %s is empty", quote(key))
		}
		if carried == nil {
			carried = map[string][]string{}
		}
		carried[lower] = extra[key]
	}
	return carried, nil
}

// IsReservedExtra reports whether extra values with this key, in lower case, are never carried:
// those of Kubernetes itself say how the caller has authenticated at the hub.
func IsReservedExtra(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	for _, reserved := range []string{"kubernetes.io", "k8s.io"} {
		if domain == reserved || strings.HasSuffix(domain, "."+reserved) {
			return true
		}
	}
	return false
}

// checkText refuses an identity that would not arrive as it was sent.
func checkText(u User) *Refusal {
	check := func(what, text string) *Refusal {
		if problem := textProblem(text); problem != "" {
			return refuse(ReasonInvalid, "%s %s %s", what, quote(text), problem)
		}
		return nil
	}
	if refused := check("user name", u.Name); refused != nil {
		return refused
	}
	if refused := check("UID", u.UID); refused != nil {
		return refused
	}
	for _, group := range u.Groups {
		if refused := check("group", group); refused != nil {
			return refused
		}
	}
	for key, values := range u.Extra {
		if refused := check("the key of an extra value", key); refused != nil {
			return refused
		}
		for _, value := range values {
			if refused := check("extra value", value); refused != nil {
				return refused
			}
		}
	}
	return nil
}

// textProblem returns why a header would not carry the text unchanged, or nothing. HTTP removes
// white space around a value.
func textProblem(text string) string {
	switch {
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		return "has a control character or a line break"
	case strings.TrimSpace(text) != text:
		return "begins or ends with white space"
	}
	return ""
}
