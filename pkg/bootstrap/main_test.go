// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !integration

package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hasStandIns = true

func TestMain(m *testing.M) {
	if programOf(os.Args[0]) == pluginProgram || programOf(os.Args[0]) == completionProgram {
		os.Exit(standIns["agent-bootstrap"]())
	}
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), standInPrefix); ok {
		os.Exit(standIns[name]())
	}
	os.Exit(m.Run())
}
