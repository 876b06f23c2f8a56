// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import "time"

// WithTimes returns a copy of cfg with other time-outs, for tests outside the package. 0 keeps the
// default. (dialertest imports this package, so its users cannot be tests inside of it.)
func (cfg KonnectivityConfig) WithTimes(attempt, closing time.Duration) KonnectivityConfig {
	cfg.attemptTimeout, cfg.closeTimeout = attempt, closing
	return cfg
}
