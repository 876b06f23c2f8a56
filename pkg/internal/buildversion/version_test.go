// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package buildversion

import "testing"

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ linker, module, want string }{
		{"v0.1.0", "v0.0.0-20261126-abc", "v0.1.0"},
		{"v0.0.0-master+$Format:%H$", "v0.1.0", "v0.1.0"},
		{"v0.0.0-master+$Format:%H$", "(devel)", "unknown"},
		{"v0.0.0-master+$Format:%H$", "", "unknown"},
	} {
		if got := choose(c.linker, c.module); got != c.want {
			t.Errorf("choose(%q, %q) = %q, want %q", c.linker, c.module, got, c.want)
		}
	}
}
