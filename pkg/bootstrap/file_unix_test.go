// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bootstrap

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestPutFile shows that what a path leads to is written, and that the path leads there still.
func TestPutFile(t *testing.T) {
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := putFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(t *testing.T, path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v; want %q", filepath.Base(path), got, err, want)
		}
	}
	typeOf := func(t *testing.T, path string) fs.FileMode {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Type()
	}
	t.Run("file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		for _, text := range []string{"first", "2nd"} {
			write(t, path, text)
			read(t, path, text)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("its mode is %v, %v", info.Mode(), err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("there is more beside it: %v, %v", entries, err)
		}
	})
	t.Run("links", func(t *testing.T) {
		dir := t.TempDir()
		target, link, again := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "again")
		if err := os.Symlink("target", link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link, again); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"to what was not there", "to what is"} {
			write(t, again, text)
			read(t, target, text)
			if typeOf(t, link) != fs.ModeSymlink || typeOf(t, again) != fs.ModeSymlink || typeOf(t, target) != 0 {
				t.Errorf("%s: link %v, again %v, target %v", text, typeOf(t, link), typeOf(t, again), typeOf(t, target))
			}
		}
	})
	for _, name := range []string{"pipe", "link to a pipe"} {
		t.Run(name, func(t *testing.T) {
			pipe := filepath.Join(t.TempDir(), "pipe")
			if err := syscall.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			path := pipe
			if name != "pipe" {
				path = filepath.Join(t.TempDir(), "link")
				if err := os.Symlink(pipe, path); err != nil {
					t.Fatal(err)
				}
			}
			// Open for both, so that neither end waits for the other.
			reader, err := os.OpenFile(pipe, os.O_RDWR|syscall.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			write(t, path, "through")
			if typeOf(t, pipe) != fs.ModeNamedPipe {
				t.Fatalf("the pipe has become %v", typeOf(t, pipe))
			}
			if err := reader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 20)
			if n, err := reader.Read(got); err != nil || string(got[:n]) != "through" {
				t.Errorf("the pipe brought %q, %v", got[:n], err)
			}
		})
	}
	t.Run("folder", func(t *testing.T) {
		if err := putFile(t.TempDir(), nil, 0o600); err == nil {
			t.Error("a folder was written")
		}
	})
}
