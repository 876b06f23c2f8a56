// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"testing"
	"time"
)

// Timeout bounds a wait for something that takes moments on an idle machine. It is
// long so that a busy machine fails no test: a wait that succeeds does not last
// longer for it. A limit that the product promises is asserted on its own.
const Timeout = 3 * time.Minute

// Within polls condition until it returns nil, and returns how long that took. If
// it does not within the timeout, the test ends with the last error.
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
