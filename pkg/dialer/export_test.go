// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import "time"

// WithAttemptTimeout sets what the field of that name says, for tests outside the package.
func (cfg KonnectivityConfig) WithAttemptTimeout(d time.Duration) KonnectivityConfig {
	cfg.attemptTimeout = d
	return cfg
}
