// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package buildversion

import (
	"runtime/debug"
	"strings"

	"k8s.io/component-base/version"
)

// unset begins the version that k8s.io/component-base has if the linker did not set it.
const unset = "v0.0.0-master"

// String returns the version of the program.
func String() string {
	var module string
	if info, ok := debug.ReadBuildInfo(); ok {
		module = info.Main.Version
	}
	return choose(version.Get().GitVersion, module)
}

// choose returns the version that the linker has set, or that of the module, or unknown.
func choose(linker, module string) string {
	switch {
	case !strings.HasPrefix(linker, unset):
		return linker
	case module != "" && module != "(devel)":
		return module
	default:
		return "unknown"
	}
}
