// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package execplugin

import "os/exec"

// stopAll does nothing: the end of the command's context ends the program only.
func stopAll(*exec.Cmd) {}
