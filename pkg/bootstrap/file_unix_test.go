// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package bootstrap

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// TestPutFile shows that the file at the end of a path is written, and that links on the path stay.
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
			t.Errorf("there are other files beside it: %v, %v", entries, err)
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
		for _, text := range []string{"to a file that does not exist yet", "to one that does"} {
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
				t.Fatalf("the pipe was replaced by %v", typeOf(t, pipe))
			}
			if err := reader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 20)
			if n, err := reader.Read(got); err != nil || string(got[:n]) != "through" {
				t.Errorf("read %q from the pipe, %v", got[:n], err)
			}
		})
	}
	t.Run("link in a folder that is a link", func(t *testing.T) {
		// bin -> real/bin, and real/bin/file -> ../file is real/file.
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "real", "bin"), 0o700); err != nil {
			t.Fatal(err)
		}
		for link, target := range map[string]string{"bin": "real/bin", "real/bin/file": "../file"} {
			if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		for _, text := range []string{"new", "replaced"} {
			write(t, filepath.Join(dir, "bin", "file"), text)
			read(t, filepath.Join(dir, "real", "file"), text)
		}
	})
	t.Run("link to itself", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "loop")
		if err := os.Symlink(path, path); err != nil {
			t.Fatal(err)
		}
		if err := putFile(path, nil, 0o600); err == nil {
			t.Error("a link to itself was written")
		}
	})
	t.Run("owner", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("only root can give a file to another user")
		}
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "first")
		if err := os.Chown(path, 1234, 5678); err != nil {
			t.Fatal(err)
		}
		write(t, path, "second")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 1234 || owner.Gid != 5678 {
			t.Errorf("the file belongs to %d:%d", owner.Uid, owner.Gid)
		}
	})
	t.Run("folder", func(t *testing.T) {
		if err := putFile(t.TempDir(), nil, 0o600); err == nil {
			t.Error("a folder was written")
		}
	})
}

// The environment of a process that merges a kubeconfig, for tests that interrupt it: the file, and
// the greatest size of a file that the process may write.
const (
	mergeFile  = "TEST_MERGE_FILE"
	mergeLimit = "TEST_MERGE_LIMIT"
)

// TestMergeProcess is not a test: it is the process that the tests below start.
func TestMergeProcess(t *testing.T) {
	file := os.Getenv(mergeFile)
	if file == "" {
		t.Skip("it is started by TestMergeInterrupted and TestMergeFullDisk")
	}
	if limit := os.Getenv(mergeLimit); limit != "" {
		size, err := strconv.ParseUint(limit, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: size}); err != nil {
			t.Fatal(err)
		}
		if _, err := testWriter(file, nil).write(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	parent := os.Getppid()
	for i := 0; os.Getppid() == parent; i++ { // until it is killed, or its test has been
		if _, err := testWriter(file, func(w *kubeconfigWriter) { w.entries[0].user.Token = strconv.Itoa(i) }).write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func mergeProcess(ctx context.Context, environment ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMergeProcess$")
	cmd.Env = append(os.Environ(), environment...)
	return cmd
}

// longFile is a kubeconfig that takes a while to write.
func longFile() string {
	var users strings.Builder
	for i := range 500 {
		fmt.Fprintf(&users, "- name: user-%d\n  user:\n    token: %s\n", i, strings.Repeat("x", 200))
	}
	return ownFile + users.String()
}

// checkWhole shows that a kubeconfig has everything that longFile has.
func checkWhole(t *testing.T, path string) {
	t.Helper()
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	delete(config.AuthInfos, "edge-1")
	if len(config.AuthInfos) != 501 || config.AuthInfos["admin"].Token != "the-only-one" || config.CurrentContext != "prod" {
		t.Errorf("%d users are left, and the current context is %q", len(config.AuthInfos), config.CurrentContext)
	}
}

// TestMergeInterrupted kills a process while it writes a kubeconfig, which stays whole.
func TestMergeInterrupted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(longFile()), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		before := readText(t, path)
		cmd := mergeProcess(t.Context(), mergeFile+"="+path)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		changed := false // once: later, it may write the same content as before
		for !changed && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
			changed = readText(t, path) != before
		}
		time.Sleep(time.Duration(round*7) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.Exited() {
			t.Fatalf("it ended by itself: %v\n%s", err, &out)
		}
		if !changed {
			t.Fatal("it never wrote the file")
		}
		checkWhole(t, path)
		if backup := path + ".agent-bootstrap.bak"; round > 0 {
			checkWhole(t, backup)
		}
		// The killed process may have held the lock.
		if err := os.Remove(path + ".lock"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// TestMergeFullDisk shows that a kubeconfig stays as it is if there is no room for the next one, or
// not even for the backup.
func TestMergeFullDisk(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]int{"backup": 10_000, "next": len(longFile()) + 10} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, []byte(longFile()), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := mergeProcess(t.Context(), mergeFile+"="+path, mergeLimit+"="+strconv.Itoa(limit)).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "file too large") {
				t.Fatalf("%v:\n%s", err, out)
			}
			if readText(t, path) != longFile() {
				t.Error("the file was changed")
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if entry.Name() != "config" && entry.Name() != "config.agent-bootstrap.bak" {
					t.Errorf("%s was left behind", entry.Name())
				}
			}
		})
	}
}
