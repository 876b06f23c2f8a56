// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// DefaultReloadInterval is how often a File is read.
const DefaultReloadInterval = 5 * time.Second

// File are the global rules in a file. It follows the changes of the file. While the file cannot be
// read or parsed, it has no rules but an error, so that callers are refused: the rules of before
// may contain one that was just removed. It is safe for concurrent use.
type File struct {
	path    string
	logger  klog.Logger
	current atomic.Pointer[fileContent]
}

var _ GlobalRules = (*File)(nil)

// fileContent is what was last found in the file.
type fileContent struct {
	sum   [sha256.Size]byte
	rules *Rules
	err   error
}

// OpenFile reads the file, which must be valid. The logger gets what happens to it later.
func OpenFile(path string, logger klog.Logger) (*File, error) {
	f := &File{path: path, logger: logger}
	c := f.read()
	if c.err != nil {
		return nil, c.err
	}
	f.current.Store(c)
	return f, nil
}

// ReadFile reads the rules in a file once.
func ReadFile(path string) (*Rules, error) {
	text, err := readLimited(path)
	if err != nil {
		return nil, err
	}
	return ParseRules(text, RuleOptions{})
}

// Rules implements GlobalRules.
func (f *File) Rules() (*Rules, error) {
	c := f.current.Load()
	return c.rules, c.err
}

// Reload reads the file now.
func (f *File) Reload() {
	before, now := f.current.Load(), f.read()
	if same(before, now) {
		return
	}
	f.current.Store(now)
	if now.err != nil {
		f.logger.Error(now.err, "The rules for identities cannot be used. Requests to clusters with rules are refused until the file is corrected", "file", f.path)
		return
	}
	f.logger.Info("Loaded the rules for identities", "file", f.path, "rules", now.rules.Len())
}

// same reports whether the file was found as before.
func same(a, b *fileContent) bool {
	if (a.err == nil) != (b.err == nil) || !bytes.Equal(a.sum[:], b.sum[:]) {
		return false
	}
	return a.err == nil || a.err.Error() == b.err.Error()
}

// Run follows the file until ctx ends.
func (f *File) Run(ctx context.Context, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			f.Reload()
		}
	}
}

// read reads and parses the file.
func (f *File) read() *fileContent {
	c := &fileContent{}
	text, err := readLimited(f.path)
	if err == nil {
		c.sum = sha256.Sum256(text)
		if before := f.current.Load(); before != nil && before.err == nil && before.sum == c.sum {
			return before
		}
		c.rules, err = ParseRules(text, RuleOptions{})
	}
	if err != nil {
		c.rules, c.err = nil, fmt.Errorf("file %s: %w", f.path, err)
	}
	return c
}

// readLimited reads a file, but not more than ParseRules accepts.
func readLimited(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxDocument+1))
}
