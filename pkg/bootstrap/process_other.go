// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package bootstrap

import (
	"os"
	"os/exec"
)

// There are no process groups here: only the program itself is ended.
func ownGroup(*exec.Cmd) {}

func terminateGroup(leader *os.Process) error { return leader.Kill() }

func killGroup(*os.Process) {}

// passedSignals are the signals that a program should get in place of this one.
func passedSignals() []os.Signal { return []os.Signal{os.Interrupt} }

// fromTerminal is true here: the console sends Ctrl-C to all programs that use it.
func fromTerminal(os.Signal) bool { return true }

func signalCode(*os.ProcessState) (int, bool) { return 0, false }
