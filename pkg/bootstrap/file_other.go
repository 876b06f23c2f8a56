// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package bootstrap

import (
	"io/fs"
	"os"
)

// keepOwner does nothing: a file's owner follows from its folder here.
func keepOwner(*os.File, fs.FileInfo) error { return nil }
