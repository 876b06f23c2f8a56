// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bootstrap

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a new file the owner and the group of the file that it replaces.
func keepOwner(next *os.File, current fs.FileInfo) error {
	info, err := next.Stat()
	if err != nil {
		return err
	}
	want, ok := current.Sys().(*syscall.Stat_t)
	got, okToo := info.Sys().(*syscall.Stat_t)
	if !ok || !okToo || want.Uid == got.Uid && want.Gid == got.Gid {
		return nil
	}
	if err := next.Chown(int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("keeping the file's owner: %w", err)
	}
	return nil
}
