// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	temporaryPrefix = "cluster-gateway-lab-"
	// keepFor is how long the logs of a lab that was not closed are kept.
	keepFor = 24 * time.Hour
)

// temporaryPattern names a temporary folder for this process.
func temporaryPattern() string { return fmt.Sprintf("%s%d-*", temporaryPrefix, os.Getpid()) }

// sweep removes what labs of ended processes have left behind: network links, the clusters' data,
// and after a day their logs.
func sweep(tempDir string) error {
	return errors.Join(sweepLinks(), sweepDirs(tempDir))
}

func sweepDirs(tempDir string) error {
	entries, err := os.ReadDir(tempDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		owner, ok := strings.CutPrefix(entry.Name(), temporaryPrefix)
		if !ok || !entry.IsDir() || !deadOwner(owner) {
			continue
		}
		errs = append(errs, sweepDir(filepath.Join(tempDir, entry.Name())))
	}
	return errors.Join(errs...)
}

func sweepDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if time.Since(info.ModTime()) > keepFor {
		return os.RemoveAll(dir)
	}
	data, err := filepath.Glob(filepath.Join(dir, "*", dataDirName))
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range data {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// deadOwner reports whether a name of the form "PID-..." belongs to a process that
// no longer exists.
func deadOwner(name string) bool {
	id, _, ok := strings.Cut(name, "-")
	pid, err := strconv.Atoi(id)
	if !ok || err != nil || pid <= 0 {
		return false
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}
