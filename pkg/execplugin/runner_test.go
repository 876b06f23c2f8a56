// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package execplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	clientauthenticationv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// script writes a program that runs the lines in its own directory, and adds a line to the file
// "runs" first.
func script(t *testing.T, lines string) *Command {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "plugin")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\necho run >> runs\n"+lines+"\n"), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return &Command{Name: "test", Path: path, APIVersion: APIVersionV1}
}

func (c *Command) file(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(c.Path), name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func (c *Command) runs(t *testing.T) int { return strings.Count(c.file(t, "runs"), "run") }

// prints returns lines of a script that print a credential.
func prints(status string) string {
	return `printf '%s\n' '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":` + status + `}'`
}

func newRunner(t *testing.T, cfg Config) *Runner {
	r := NewRunner(cfg)
	t.Cleanup(r.Close)
	return r
}

// A plugin gets what is declared and nothing else, whatever is in the environment of the gateway.
func TestRunEnvironment(t *testing.T) {
	for _, name := range []string{"BASH_ENV", "LD_PRELOAD_X", "HTTPS_PROXY", "INHERITED", "KUBERNETES_EXEC_INFO"} {
		t.Setenv(name, "of the gateway")
	}
	c := script(t, `tr '\0' '\n' < /proc/self/environ > environ; printf '%s\n' "$@" > args; `+prints(`{"token":"t"}`))
	c.Args = []string{"$(not expanded)", "a b"}
	c.Env, c.InheritEnv = []string{"DECLARED=yes"}, []string{"INHERITED", "NOT_SET"}
	c.ProvideClusterInfo = true
	r := newRunner(t, Config{Command: c, Cluster: clientauthenticationv1.Cluster{Server: "https://east", CertificateAuthorityData: []byte("ca")}})
	if _, err := r.Credential(t.Context()); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(c.file(t, "environ")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name == "PWD" || name == "OLDPWD" || name == "_" || name == "SHLVL" {
			continue // of the shell
		}
		names = append(names, name)
		if name != infoVariable {
			continue
		}
		var info clientauthenticationv1.ExecCredential
		if err := json.Unmarshal([]byte(value), &info); err != nil || info.APIVersion != APIVersionV1 || info.Kind != "ExecCredential" ||
			info.Spec.Interactive || info.Spec.Cluster == nil || info.Spec.Cluster.Server != "https://east" {
			t.Errorf("%s: %v", value, err)
		}
	}
	slices.Sort(names)
	if want := []string{"DECLARED", "INHERITED", infoVariable}; !slices.Equal(names, want) {
		t.Errorf("the plugin has the variables %v, want %v", names, want)
	}
	if got := c.file(t, "args"); got != "$(not expanded)\na b\n" {
		t.Errorf("args %q", got)
	}
}

// Whatever a program in the operator's directory is when its Secret is parsed, the one that runs is
// in the directory.
func TestRunLocatesTheProgram(t *testing.T) {
	outside := script(t, prints(`{"token":"outside"}`))
	inside := script(t, prints(`{"token":"inside"}`))
	dir := filepath.Dir(inside.Path)
	link := filepath.Join(dir, "link")
	to := func(target string) {
		_ = os.Remove(link)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	to(inside.Path)
	clock := clocktesting.NewFakePassiveClock(time.Now())
	retry := func() { clock.SetTime(clock.Now().Add(retryInterval)) }
	r := newRunner(t, Config{Clock: clock, Command: &Command{Name: link, Path: link, Dir: dir, APIVersion: APIVersionV1}})
	got, err := r.Credential(t.Context())
	if err != nil || got.Token != "inside" {
		t.Fatalf("%v, %v", got, err)
	}
	r.Reject(got)
	retry()
	to(outside.Path)
	if got, err := r.Credential(t.Context()); err == nil || !strings.Contains(err.Error(), "is not in --exec-credential-dir") {
		t.Errorf("%v, %v", got, err)
	}
	if n := outside.runs(t); n != 0 {
		t.Error("the program outside of the directory ran")
	}
	retry()
	to(inside.Path)
	if _, err := r.Credential(t.Context()); err != nil {
		t.Error(err)
	}
}

// The plugin runs once for all who wait, again when the credential has expired or was rejected, and
// not because of a credential that has been replaced already.
func TestCredentialIsKept(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := clocktesting.NewFakePassiveClock(now)
	c := script(t, prints(`{"token":"t","expirationTimestamp":"2030-01-01T01:00:00Z"}`))
	r := newRunner(t, Config{Command: c, Clock: clock})
	var all sync.Map
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			got, err := r.Credential(t.Context())
			if err != nil || got.Token != "t" {
				t.Error(got, err)
			}
			all.Store(i, got)
		})
	}
	wg.Wait()
	expect := func(runs int) *Credential {
		t.Helper()
		got, err := r.Credential(t.Context())
		if n := c.runs(t); err != nil || n != runs {
			t.Fatalf("%d runs, want %d: %v", n, runs, err)
		}
		return got
	}
	first := expect(1)
	clock.SetTime(now.Add(time.Hour - time.Second))
	expect(1)
	r.Reject(first)
	second := expect(2)
	r.Reject(first)
	expect(2)
	r.Reject(second)
	expect(2) // it is too new: the plugin would run for each request
	clock.SetTime(now.Add(time.Hour))
	expect(3)
	expect(3) // what has expired already is used for a second
	clock.SetTime(now.Add(time.Hour + retryInterval))
	expect(4)
}

// While a plugin fails, it does not run for each request.
func TestFailureIsKept(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Now())
	c := script(t, "exit 3")
	r := newRunner(t, Config{Command: c, Clock: clock})
	for _, runs := range []int{1, 1, 2, 2} {
		_, err := r.Credential(t.Context())
		if n := c.runs(t); n != runs || err == nil || err.Error() != "test failed with exit code 3" {
			t.Errorf("%d runs, want %d: %v", n, runs, err)
		}
		clock.SetTime(clock.Now().Add(retryInterval / 2))
	}
}

func TestRunFailures(t *testing.T) {
	const secret = "hunter22"
	for name, test := range map[string]struct{ lines, want string }{
		"exit code":                           {"echo " + secret + " >&2; exit 3", "test failed with exit code 3"},
		"a signal":                            {"kill -9 $$", "test failed: signal: killed"},
		"no output":                           {"", "test did not print an ExecCredential in JSON"},
		"not JSON":                            {"echo " + secret, "test did not print an ExecCredential in JSON"},
		"another kind":                        {`echo '{"kind":"` + secret + `"}'`, "test did not print an ExecCredential in JSON"},
		"another version":                     {`echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","status":{"token":"t"}}'`, "test did not print an ExecCredential of the version client.authentication.k8s.io/v1"},
		"no status":                           {prints("null"), "test printed an ExecCredential without status"},
		"nothing":                             {prints("{}"), "test printed neither a token nor a certificate"},
		"half a pair":                         {prints(`{"clientKeyData":"` + secret + `"}`), "test printed only one of certificate and key"},
		"no pair":                             {prints(`{"clientKeyData":"` + secret + `","clientCertificateData":"x"}`), "test printed a certificate or key that cannot be parsed, or that do not belong together"},
		"a header injected":                   {prints(`{"token":"` + secret + `\r\nImpersonate-User: admin"}`), "test printed a token with characters that are not allowed in a bearer token"},
		"endless output":                      {"while :; do echo " + strings.Repeat(secret, 1000) + "; done", "test printed more than 1048576 bytes"},
		"a program that hangs, with children": {"sleep 1000 & echo $! > child; sleep 1000", "test did not finish within 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			// Before the tests run in parallel: a program that another process inherited while it was
			// written cannot be executed ("text file busy").
			c := script(t, test.lines)
			t.Parallel()
			r := newRunner(t, Config{Command: c, Timeout: 5 * time.Second})
			got, err := r.Credential(t.Context())
			if err == nil || err.Error() != test.want {
				t.Fatalf("%v, %v; want %s", got, err, test.want)
			}
			var pid int
			if _, err := fmt.Sscan(c.file(t, "child"), &pid); err != nil {
				return
			}
			for range 100 {
				if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || isZombie(pid) {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Error("the child of the program still runs")
		})
	}
	for name, path := range map[string]string{"an absent program": "/absent", "a directory": "/"} {
		r := newRunner(t, Config{Command: &Command{Name: "test", Path: path, APIVersion: APIVersionV1}})
		if _, err := r.Credential(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "test failed: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// isZombie reports whether a process has ended, but nobody has waited for it.
func isZombie(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(after, "Z")
}

// A child of the plugin that holds its output open, such as a daemon, does not delay the credential
// forever.
func TestRunWithDaemon(t *testing.T) {
	c := script(t, prints(`{"token":"t"}`)+"\nsleep 1000 & echo $! > child")
	r := newRunner(t, Config{Command: c})
	got, err := r.Credential(t.Context())
	if err != nil || got.Token != "t" {
		t.Errorf("%v, %v", got, err)
	}
	var pid int
	if _, err := fmt.Sscan(c.file(t, "child"), &pid); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// Who waits can leave, and the run goes on for the others. Close ends it.
func TestCredentialWhileThePluginHangs(t *testing.T) {
	c := script(t, "sleep 1000")
	r := NewRunner(Config{Command: c})
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := r.Credential(ctx); !errors.Is(err, gone) {
		t.Error(err)
	}
	waiting := make(chan error)
	go func() { _, err := r.Credential(t.Context()); waiting <- err }()
	for c.runs(t) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	r.Close()
	if err := <-waiting; !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if _, err := r.Credential(t.Context()); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if n := c.runs(t); n != 1 {
		t.Errorf("%d runs", n)
	}
}

// The log has what the plugin printed to its standard error, once, short and printable.
func TestErrorOutputIsLogged(t *testing.T) {
	var lines []string
	c := script(t, `printf 'no token: \033[2Jaccess denied' >&2; exit 1`)
	clock := clocktesting.NewFakePassiveClock(time.Now())
	r := newRunner(t, Config{Command: c, Clock: clock, Logger: funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})})
	for range 3 {
		_, err := r.Credential(t.Context())
		if err == nil || strings.Contains(err.Error(), "denied") {
			t.Errorf("%v; the error must not contain the output", err)
		}
		clock.SetTime(clock.Now().Add(retryInterval))
	}
	r.Close()
	if len(lines) != 1 || !strings.Contains(lines[0], "no token: [2Jaccess denied") {
		t.Errorf("%q", lines)
	}
}
