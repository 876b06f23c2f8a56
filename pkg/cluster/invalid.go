// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// InvalidSecretError is one fault in the Secret of a cluster.
type InvalidSecretError struct {
	// Secret is the namespace and the name of the Secret.
	Secret types.NamespacedName
	// Key is the data key, label or annotation with the fault.
	Key string
	// Problem describes the fault, and the solution if it is not obvious. It follows the key in a
	// message.
	Problem string
}

// Error returns a message with the Secret, the key and the problem.
func (e *InvalidSecretError) Error() string {
	return fmt.Sprintf("secret %s: %s: %s", e.Secret, e.Key, e.Problem)
}

// Message returns all faults in one line, without the name of the Secret. It is empty if there are
// none.
func (c *Cluster) Message() string {
	var b []byte
	for i, f := range c.faults {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = append(b, f.Key...)
		b = append(b, ": "...)
		b = append(b, f.Problem...)
	}
	return string(b)
}

// Reason returns the reason of the condition Ready for an invalid Secret. It is empty if the Secret
// is valid.
func (c *Cluster) Reason() string {
	switch {
	case c.err == nil:
		return ""
	case len(c.faults) == 1 && c.faults[0].Key == proxyConfigurationKey:
		return v1alpha1.ReasonUnsupportedProxyConfiguration
	default:
		return v1alpha1.ReasonInvalidSecret
	}
}

// RefusesSecret reports whether a reason of the condition Ready says that the Secret cannot be
// used, as Reason does.
func RefusesSecret(reason string) bool {
	return reason == v1alpha1.ReasonInvalidSecret || reason == v1alpha1.ReasonUnsupportedProxyConfiguration
}

// WithWarnings appends the warnings about a valid Secret to a message about the cluster.
func (c *Cluster) WithWarnings(message string) string {
	if c.err != nil {
		return message
	}
	return strings.Join(append([]string{message}, c.warnings...), "; ")
}

// joinFaults returns nil if there are no faults.
func joinFaults(faults []*InvalidSecretError) error {
	errs := make([]error, 0, len(faults))
	for _, f := range faults {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}
