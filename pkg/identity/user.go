// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import "strings"

// User is a user as the authentication of Kubernetes describes it. It must not be changed after it
// was passed to this package.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// Names and prefixes that Kubernetes reserves (k8s.io/apiserver/pkg/authentication/user and
// serviceaccount). This package does not import an API server, because agent-bootstrap uses it,
// too.
const (
	systemPrefix = "system:"

	anonymousUser        = systemPrefix + "anonymous"
	authenticatedGroup   = systemPrefix + "authenticated"
	unauthenticatedGroup = systemPrefix + "unauthenticated"

	nodePrefix           = systemPrefix + "node:"
	serviceAccountPrefix = systemPrefix + "serviceaccount:"
	serviceAccountsGroup = systemPrefix + "serviceaccounts"
)

// hubPrefix begins the names under which clusters see the ServiceAccounts of hubs. No other user of
// a hub is carried under such a name.
const hubPrefix = "hub:"

// isAnonymous reports whether nobody has authenticated the user.
func (u User) isAnonymous() bool {
	if u.Name == anonymousUser {
		return true
	}
	for _, group := range u.Groups {
		if group == unauthenticatedGroup {
			return true
		}
	}
	return false
}

// serviceAccount returns the namespace and the name of the ServiceAccount that the user is.
func (u User) serviceAccount() (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(u.Name, serviceAccountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
		return "", "", false
	}
	return namespace, name, true
}
