// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"testing"
	"time"
)

// Within polls until a condition holds, which says why it does not yet, and returns how long that took. The test ends when it does not in
// time.
func Within(t testing.TB, timeout time.Duration, what string, condition func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := condition()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > timeout {
			t.Fatalf("%s: not within %s:\n%v", what, timeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
