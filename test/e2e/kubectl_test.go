// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// kubectl runs the real kubectl with a kubeconfig. It has its own home directory, and so its own
// discovery cache.
type kubectl struct {
	args, env []string
}

func newKubectl(t *testing.T, config *rest.Config, args ...string) *kubectl {
	t.Helper()
	home := t.TempDir()
	return &kubectl{
		args: append([]string{"--kubeconfig", writeKubeconfig(t, config)}, args...),
		env:  append(os.Environ(), "HOME="+home, "KUBECACHEDIR="+home, "KUBECTL_KUBERC=false"),
	}
}

// with returns a kubectl with additional environment variables.
func (k *kubectl) with(env ...string) *kubectl {
	return &kubectl{args: k.args, env: append(k.env[:len(k.env):len(k.env)], env...)}
}

// command returns a kubectl command that ends with ctx.
func (k *kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append(k.args[:len(k.args):len(k.args)], args...)...)
	cmd.Env = k.env
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// result is the output and the exit code of a command.
type result struct {
	stdout, stderr string
	code           int
	line           string
}

// String is for failures.
func (r result) String() string {
	return fmt.Sprintf("kubectl %s: exit code %d\nstdout: %s\nstderr: %s", r.line, r.code, shorten(r.stdout), shorten(r.stderr))
}

func shorten(text string) string {
	const most = 4 << 10
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s … (%d bytes)", text[:most], len(text))
}

// try runs a command, which may fail.
func (k *kubectl) try(ctx context.Context, t *testing.T, stdin string, args ...string) result {
	t.Helper()
	cmd := k.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode(), line: strings.Join(args, " ")}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%v (%v)\n%s", err, context.Cause(ctx), r)
	}
	return r
}

// run runs a command that must succeed, and returns its standard output.
func (k *kubectl) run(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	return k.runWith(ctx, t, "", args...)
}

// runWith is run with a standard input.
func (k *kubectl) runWith(ctx context.Context, t *testing.T, stdin string, args ...string) string {
	t.Helper()
	r := k.try(ctx, t, stdin, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// mustContain fails unless the text has every piece.
func mustContain(t *testing.T, text string, pieces ...string) {
	t.Helper()
	for _, piece := range pieces {
		if !strings.Contains(text, piece) {
			t.Errorf("no %q in:\n%s", piece, shorten(text))
		}
	}
}

// running is a command that has not ended. It is killed when the test ends.
type running struct {
	cmd            *exec.Cmd
	line           string
	stdout, stderr output
	cancel         context.CancelFunc
	done           chan struct{}
	err            error // set when done is closed
}

// start starts a command that runs until it is stopped.
func (k *kubectl) start(ctx context.Context, t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	r := &running{cmd: k.command(ctx, args...), line: strings.Join(args, " "), cancel: cancel, done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		r.err = r.cmd.Wait()
	}()
	t.Cleanup(r.stop)
	return r
}

// stop ends the command.
func (r *running) stop() {
	r.cancel()
	<-r.done
}

// String is for failures.
func (r *running) String() string {
	state := "runs"
	select {
	case <-r.done:
		state = fmt.Sprintf("ended: %v", r.err)
	default:
	}
	return fmt.Sprintf("kubectl %s: %s\nstdout: %s\nstderr: %s", r.line, state, shorten(r.stdout.String()), shorten(r.stderr.String()))
}

// sees waits until the command has printed a text. Meanwhile it calls the function repeatedly, if
// it is not nil.
func (r *running) sees(t *testing.T, piece string, meanwhile func() error) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "waiting for "+piece, func() error {
		if strings.Contains(r.stdout.String(), piece) {
			return nil
		}
		select {
		case <-r.done:
			if !strings.Contains(r.stdout.String(), piece) {
				t.Fatalf("it ended without %q: %s", piece, r)
			}
			return nil
		default:
		}
		if meanwhile != nil {
			if err := meanwhile(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		return errors.New(r.String())
	})
}

// output is a buffer that can be read while it is written to.
type output struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.String()
}
