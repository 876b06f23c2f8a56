// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// NewRelay returns a [lab.Relay] that is closed when the test ends.
func NewRelay(t testing.TB, address string, targets ...string) *lab.Relay {
	t.Helper()
	r, err := lab.NewRelay(address, targets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}
