// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"strconv"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Reason is why an identity was refused, as a label of metrics.
type Reason string

// The reasons of refusals.
const (
	// ReasonNoUser: the request has no user, or one without a name.
	ReasonNoUser Reason = "no_user"
	// ReasonAnonymous: nobody has authenticated the caller.
	ReasonAnonymous Reason = "anonymous"
	// ReasonReserved: a name or a group is one that means something else in each cluster.
	ReasonReserved Reason = "reserved"
	// ReasonInvalid: a name, group, UID or extra value cannot be sent in a header.
	ReasonInvalid Reason = "invalid"
	// ReasonTooLarge: the identity does not fit into the headers of a request.
	ReasonTooLarge Reason = "too_large"
	// ReasonRules: the rules cannot be used.
	ReasonRules Reason = "rules"
	// ReasonExchangeDenied: the webhook of a rule has refused the caller.
	ReasonExchangeDenied Reason = "exchange_denied"
	// ReasonExchangeFailed: the webhook of a rule did not answer as it must.
	ReasonExchangeFailed Reason = "exchange_failed"
)

// Refusal is the error about an identity that is not carried to a cluster.
type Refusal struct {
	Reason Reason
	// Message says what was refused and why. It is printable, and meant for the caller.
	Message string
	// Temporary is whether the same caller may be admitted later, without a change of the caller.
	Temporary bool
	// Rule is the name of the rule that was applied, or empty.
	Rule string
	// Err is an error with details for the log, or nil. The caller does not see it.
	Err error
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Message + ": " + r.Err.Error()
	}
	return r.Message
}

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// quote returns a name as printable text of limited length.
func quote(name string) string { return strconv.Quote(untrusted.Limit(name, 128)) }
