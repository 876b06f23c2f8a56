// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// putFile writes content to the file that path names. Symbolic links are followed and stay. A
// regular file, or a new one, is replaced as a whole: readers see the old content or the new one,
// also if the write is interrupted. The file gets the given mode; a file that existed keeps its
// owner. Anything that is not a regular file, such as a pipe or /dev/stdout, is opened and written
// to.
func putFile(path string, content []byte, mode fs.FileMode) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return writeInto(path, content)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if path, err = followLinks(path); err != nil {
		return err
	}
	return replaceFile(path, content, mode, info)
}

func writeInto(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}

// maxLinks bounds how many symbolic links are followed. Linux has the same limit.
const maxLinks = 40

// followLinks returns the path of the file that path leads to. The file does not have to exist, but
// its folder does: filepath.EvalSymlinks cannot follow a link to a file that does not exist yet.
func followLinks(path string) (string, error) {
	for range maxLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(path))
		target, err := os.Readlink(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return path, nil
		case err != nil:
			if info, statErr := os.Lstat(path); statErr == nil && info.Mode()&fs.ModeSymlink == 0 {
				return path, nil // not a link
			}
			return "", err
		case filepath.IsAbs(target):
			path = target
		default:
			// Not filepath.Join, which would resolve ".." before the links in target.
			path = dir + string(filepath.Separator) + target
		}
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// replaceFile writes content to a temporary file in the same folder, and renames it to path. path
// must not be a symbolic link. current describes the file that is replaced, and is nil for a new
// file.
func replaceFile(path string, content []byte, mode fs.FileMode, current fs.FileInfo) error {
	next, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) // fails after a successful rename, and that is fine
	_, err = next.Write(content)
	if err == nil && current != nil {
		err = keepOwner(next, current)
	}
	if err == nil {
		// After the owner, since a change of owner can clear bits of the mode. Before the rename, content
		// must be on the disk: otherwise a crash can leave an empty file.
		err = errors.Join(next.Chmod(mode), next.Sync())
	}
	if err := errors.Join(err, next.Close()); err != nil {
		return err
	}
	if err := os.Rename(next.Name(), path); err != nil {
		return err
	}
	syncDir(filepath.Dir(path))
	return nil
}

// syncDir makes a rename in a folder durable. A failure is ignored: not every file system can do
// it, and the file is whole in any case.
func syncDir(dir string) {
	if folder, err := os.Open(dir); err == nil {
		_ = folder.Sync()
		_ = folder.Close()
	}
}
