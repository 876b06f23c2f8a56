// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import "github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"

// Mode is how a cluster sees callers. The zero value is not a mode: with it, every caller is
// refused.
type Mode string

const (
	// ModeCredential means that the cluster sees the account of the gateway.
	ModeCredential Mode = v1alpha1.IdentityCredential
	// ModeImpersonate means that the cluster sees the caller.
	ModeImpersonate Mode = v1alpha1.IdentityImpersonate
	// ModeRules means that rules decide what the cluster sees. If no rule matches a caller, the
	// cluster sees the caller.
	ModeRules Mode = v1alpha1.IdentityRules
)

// Policy is how one cluster sees callers. The zero value refuses every caller. It must not be
// changed, and is safe for concurrent use.
type Policy struct {
	Mode Mode
	// Rules are those of the cluster alone, for ModeRules. They come before the global ones. Nil
	// means that there are none.
	Rules *Rules
}

// Key returns bytes that are equal for equal policies only.
func (p Policy) Key() []byte {
	key := []byte(p.Mode + "\x00")
	if p.Rules != nil {
		key = append(key, p.Rules.text...)
	}
	return key
}
