// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files with the checksums and their signature. No other file is outside of the checksums.
const (
	sumsFile      = "SHA256SUMS"
	signatureFile = "SHA256SUMS.sig"
)

// writeSums writes the checksums of all files in the folder, in the format of sha256sum, and signs
// them if there is a signer.
func (r *release) writeSums(dir string) error {
	sums, err := sumsOf(dir)
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, name := range sortedKeys(sums) {
		fmt.Fprintf(&out, "%s  %s\n", sums[name], name)
	}
	files := []file{{name: sumsFile, data: []byte(out.String()), mode: modeFile}}
	if r.signer != nil {
		signature, err := sign(r.signer, []byte(out.String()))
		if err != nil {
			return err
		}
		files = append(files, file{name: signatureFile, data: signature, mode: modeFile})
	}
	return writeFiles(dir, files)
}

// sumsOf returns the checksum of each file, by its path in the folder.
func sumsOf(dir string) (map[string]string, error) {
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		inside, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(inside)
		if !entry.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", name)
		}
		if name == sumsFile || name == signatureFile {
			return nil
		}
		sums[name], err = fileDigest(path)
		return err
	})
	return sums, err
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// readSums reads the checksums of a release.
func readSums(data []byte) (map[string]string, error) {
	sums := map[string]string{}
	for line := range strings.Lines(string(data)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || len(sum) != 64 {
			return nil, fmt.Errorf("%s has the line %q, which is not a checksum", sumsFile, line)
		}
		sums[name] = sum
	}
	return sums, nil
}

// verify checks that a release has exactly the files that its checksums name, that they are
// unchanged, and that the image is well-formed. With a public key it checks the signature, too.
func verify(dist, key string) error {
	data, err := os.ReadFile(filepath.Join(dist, sumsFile))
	if err != nil {
		return err
	}
	if key != "" {
		signature, err := os.ReadFile(filepath.Join(dist, signatureFile))
		if err != nil {
			return fmt.Errorf("the release has no signature: %w", err)
		}
		if err := verifySignature(key, data, signature); err != nil {
			return err
		}
	}
	want, err := readSums(data)
	if err != nil {
		return err
	}
	got, err := sumsOf(dist)
	if err != nil {
		return err
	}
	if err := differences(want, got, "the checksums", dist); err != nil {
		return err
	}
	return validateImage(dist)
}

// compare returns an error that names what differs between two releases. Their signatures are files
// like the others.
func compare(a, b string) error {
	var sums [2]map[string]string
	for n, dir := range []string{a, b} {
		var err error
		if sums[n], err = sumsOf(dir); err != nil {
			return err
		}
		for _, name := range []string{sumsFile, signatureFile} {
			sum, err := fileDigest(filepath.Join(dir, name))
			if err == nil {
				sums[n][name] = sum
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return differences(sums[0], sums[1], a, b)
}

// differences compares the checksums of a with those of b.
func differences(a, b map[string]string, nameA, nameB string) error {
	var errs []error
	for _, name := range sortedKeys(a) {
		switch sum, ok := b[name]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s: missing in %s", name, nameB))
		case sum != a[name]:
			errs = append(errs, fmt.Errorf("%s: SHA-256 %s according to %s, %s in %s", name, a[name], nameA, sum, nameB))
		}
	}
	for _, name := range sortedKeys(b) {
		if _, ok := a[name]; !ok {
			errs = append(errs, fmt.Errorf("%s: missing in %s", name, nameA))
		}
	}
	return errors.Join(errs...)
}
