// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"time"
)

// file is a file of an archive or of a layer. A folder has a name that ends with a slash.
type file struct {
	name string
	data []byte
	// mode has the permissions, and for the folder /tmp the sticky bit.
	mode int64
}

const (
	modeFile       = 0o644
	modeExecutable = 0o755
)

// inOrder returns the files sorted by name, so that the caller's order does not matter. Two files
// of one name are an error.
func inOrder(files []file) ([]file, error) {
	sorted := slices.Clone(files)
	slices.SortFunc(sorted, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].name == sorted[i-1].name {
			return nil, fmt.Errorf("there are two files %s", sorted[i].name)
		}
	}
	return sorted, nil
}

// writeTar writes a tar archive that depends on nothing but its arguments. All files belong to root
// and have this time.
func writeTar(w io.Writer, files []file, t time.Time) error {
	sorted, err := inOrder(files)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	for _, f := range sorted {
		// The format has no fields for sub-second times, nor for the names of users.
		header := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: t}
		if f.name[len(f.name)-1] == '/' {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := archive.Write(f.data); err != nil {
			return err
		}
	}
	return archive.Close()
}

// tarGz returns a compressed tar archive. Its gzip header has neither a name nor a time.
func tarGz(files []file, t time.Time) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if err := writeTar(w, files, t); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// writeZip returns a zip archive that depends on nothing but its arguments.
func writeZip(files []file, t time.Time) ([]byte, error) {
	sorted, err := inOrder(files)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, f := range sorted {
		w, err := archive.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: t})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
