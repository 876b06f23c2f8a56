// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// putFile writes a file where path leads: a regular file, or one that is new, is put in its place whole; a symbolic link stays, and what it leads to
// is written; and what is no file, as a pipe or /dev/stdout, is written into.
func putFile(path string, content []byte, mode fs.FileMode) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return writeInto(path, os.O_WRONLY, content, mode)
	case err == nil:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		if _, err := os.Lstat(path); err == nil { // a link to what does not exist yet
			return writeInto(path, os.O_WRONLY|os.O_CREATE, content, mode)
		}
	}
	return replaceFile(path, content, mode)
}

func writeInto(path string, flags int, content []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, flags, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}

// replaceFile puts a file in its place whole.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	next, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) // not there any more if all went well
	_, err = next.Write(content)
	err = errors.Join(err, next.Chmod(mode), next.Close())
	if err != nil {
		return err
	}
	return os.Rename(next.Name(), path)
}
