// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// eachOutcome is how kubectl ended in a cluster.
type eachOutcome int

const (
	eachNotDone eachOutcome = iota // interrupted, or not started
	eachDone
	eachFailed
)

// eachResult is the result in one cluster.
type eachResult struct {
	cluster string
	outcome eachOutcome
	// reason says why it failed, or why it was not done.
	reason         string
	stdout, stderr []byte
}

// eachRun runs kubectl in several clusters.
type eachRun struct {
	*eachOptions
	program  string
	args     []string
	input    []byte
	clusters []string
	target   *gatewayTarget
	session  *sessionKubeconfigs
	console  *console

	mu           sync.Mutex
	done, failed int
}

// all runs kubectl in all clusters, and returns the results in the order of the clusters.
func (r *eachRun) all(ctx context.Context) []eachResult {
	results := make([]eachResult, len(r.clusters))
	var group errgroup.Group
	group.SetLimit(r.parallel)
	r.progress(eachNotDone)
	for i, name := range r.clusters {
		results[i] = eachResult{cluster: name, reason: "not started"}
		group.Go(func() error {
			if ctx.Err() == nil {
				results[i] = r.one(ctx, name)
				r.show(&results[i])
				r.progress(results[i].outcome)
			}
			return nil
		})
	}
	_ = group.Wait() // the results have the errors
	r.console.setProgress("")
	if r.table {
		r.console.print(func(out, _ io.Writer) { writeClusterTables(out, results) })
	}
	return results
}

// endGrace is how long kubectl may take to end after it was asked to.
const endGrace = time.Second

// maxOutput bounds the output of one cluster that is kept.
const maxOutput = 64 << 20

// one runs kubectl in a cluster.
func (r *eachRun) one(ctx context.Context, name string) eachResult {
	result := eachResult{cluster: name}
	kubeconfig, err := r.session.write(name)
	if err != nil {
		result.outcome, result.reason = eachFailed, err.Error()
		return result
	}
	runCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.timeout > 0 {
		var stop context.CancelFunc
		runCtx, stop = context.WithTimeout(runCtx, r.timeout)
		defer stop()
	}
	cmd := exec.CommandContext(runCtx, r.program, r.args...) //nolint:gosec // the user's kubectl
	cmd.Env = programEnvironment(kubeconfig)
	ownGroup(cmd)
	cmd.Cancel = func() error { return terminateGroup(cmd.Process) }
	cmd.WaitDelay = endGrace
	if r.input != nil {
		cmd.Stdin = bytes.NewReader(r.input)
	}
	out := &boundedOutput{full: func() { cancel(errOutputTooLarge) }}
	errOut := &boundedOutput{full: out.full}
	cmd.Stdout, cmd.Stderr = out, errOut
	var last lastLine
	if r.prefix {
		lines, errLines := r.console.prefixed(name, false), r.console.prefixed(name, true)
		defer lines.flush()
		defer errLines.flush()
		cmd.Stdout, cmd.Stderr = lines, io.MultiWriter(errLines, &last)
	}
	err = cmd.Run()
	if runCtx.Err() != nil && cmd.Process != nil {
		killGroup(cmd.Process)
	}
	result.stdout, result.stderr = out.kept.Bytes(), errOut.kept.Bytes()
	if !r.prefix {
		_, _ = last.Write(result.stderr) // never fails
	}
	result.outcome, result.reason = r.judge(ctx, runCtx, err, last.String())
	return result
}

// judge says how kubectl ended. message is the last line that it wrote to its standard error.
func (r *eachRun) judge(ctx, runCtx context.Context, err error, message string) (eachOutcome, string) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return eachDone, ""
	case errors.Is(context.Cause(runCtx), errOutputTooLarge):
		return eachFailed, errOutputTooLarge.Error()
	case ctx.Err() != nil:
		return eachNotDone, "interrupted"
	case runCtx.Err() != nil:
		return eachFailed, strings.TrimSuffix(fmt.Sprintf("not finished after %s: %s", r.timeout, message), ": ")
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return eachFailed, strings.TrimSuffix(fmt.Sprintf("exit code %d: %s", exit.ExitCode(), message), ": ")
	default:
		return eachFailed, err.Error()
	}
}

// show prints the output of a cluster, unless it was printed line by line or is for the table.
func (r *eachRun) show(result *eachResult) {
	if r.prefix {
		return
	}
	r.console.print(func(out, errOut io.Writer) {
		if !r.table {
			fmt.Fprintf(out, "==> %s\n", result.cluster)
			writeLines(out, "", result.stdout)
			result.stdout = nil
		}
		writeLines(errOut, result.cluster+": ", result.stderr)
		result.stderr = nil
	})
}

// progress counts a result, and shows how far the command is.
func (r *eachRun) progress(outcome eachOutcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch outcome {
	case eachDone:
		r.done++
	case eachFailed:
		r.failed++
	}
	text := fmt.Sprintf("%d of %d clusters", r.done+r.failed, len(r.clusters))
	if r.failed > 0 {
		text += fmt.Sprintf(", %d failed", r.failed)
	}
	r.console.setProgress(text)
}

var errOutputTooLarge = fmt.Errorf("its output is larger than %d MiB: use --prefix, which does not keep it", maxOutput>>20)

// boundedOutput keeps what a program writes. It calls full when that is too much.
type boundedOutput struct {
	kept bytes.Buffer // not embedded: io.Copy would use its ReadFrom, which has no bound
	full func()
}

// Write implements io.Writer.
func (b *boundedOutput) Write(p []byte) (int, error) {
	if b.kept.Len()+len(p) > maxOutput {
		b.full()
		return 0, errOutputTooLarge
	}
	return b.kept.Write(p)
}

// lastLine keeps the last line with text, which says why kubectl failed.
type lastLine struct{ line, open []byte }

// Write implements io.Writer.
func (l *lastLine) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		l.open = append(l.open, line...)
		if bytes.HasSuffix(line, []byte("\n")) {
			l.end()
		}
		l.open = l.open[:min(len(l.open), 4<<10)]
	}
	return len(p), nil
}

func (l *lastLine) end() {
	if text := bytes.TrimSpace(l.open); len(text) > 0 {
		l.line = bytes.Clone(text)
	}
	l.open = l.open[:0]
}

// String returns the line.
func (l *lastLine) String() string {
	l.end()
	return untrusted.Text(string(l.line))
}
