// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// decisionKey returns a key that is equal only for equal checks of equal callers: a hash, because a
// caller can have hundreds of groups. Each value is hashed with its length, so that no value can
// look like two.
func decisionKey(checks []authorizer.Attributes) string {
	var b strings.Builder
	b.Grow(512)
	write := func(values ...string) {
		for _, value := range values {
			b.WriteString(strconv.Itoa(len(value)))
			b.WriteByte(':')
			b.WriteString(value)
		}
	}
	list := func(values []string) {
		b.WriteString(strconv.Itoa(len(values)))
		b.WriteByte('[')
		write(values...)
	}
	for i, c := range checks {
		if caller := c.GetUser(); i == 0 && caller != nil { // the checks of a decision have one caller
			write(caller.GetName(), caller.GetUID())
			list(caller.GetGroups())
			extra := caller.GetExtra()
			for _, key := range slices.Sorted(maps.Keys(extra)) {
				write(key)
				list(extra[key])
			}
		}
		write(c.GetVerb(), c.GetAPIGroup(), c.GetResource(), c.GetSubresource(), c.GetNamespace(), c.GetName(), c.GetPath())
	}
	sum := sha256.Sum256([]byte(b.String()))
	return string(sum[:])
}

// quote quotes a value for a message, and shortens it.
func quote(value string) string {
	const limit = 128
	if len(value) > limit {
		return strconv.Quote(value[:limit]) + "…"
	}
	return strconv.Quote(value)
}
