// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	readyInterval       = 50 * time.Millisecond
	defaultReadyTimeout = 4 * time.Minute
	defaultStopTimeout  = time.Minute
	checkTimeout        = 3 * time.Second
	tailBytes           = 8 << 10
	tailLines           = 25
)

// ProcessOptions describes a program to run in the lab.
type ProcessOptions struct {
	// Name names the process in errors and its log file. Required.
	Name string
	// Path is the program. Required.
	Path string
	Args []string
	// Env is added to the lab's own environment, from which proxy settings are
	// taken out: everything in a lab is on this machine.
	Env []string
	// Dir is the working directory. Empty means the current one.
	Dir string
	// Cluster is where the process runs: beside that cluster's API server, so
	// behind its firewall if it has one. Nil means on the host.
	Cluster *Cluster
	// Hosts maps names to addresses for this process only, by a hosts file of
	// its own. It needs root; without, the lab says so and starts it anyway.
	Hosts map[string]string
	// ReadyURL is polled until it answers 200, ReadyTLS being its TLS
	// configuration. ReadyFunc is polled until it returns nil. With neither, the
	// process counts as ready once started.
	ReadyURL  string
	ReadyTLS  *tls.Config
	ReadyFunc func(context.Context) error
	// ReadyTimeout is how long it may take to be ready. Zero means a minute.
	ReadyTimeout time.Duration
	// StopTimeout is how long Stop waits before it kills. Zero means 10 s.
	StopTimeout time.Duration

	// insist is how long after one SIGTERM Stop sends the next, to programs that
	// wait for a second one. Zero means never.
	insist time.Duration
	// disposable processes hold nothing worth an orderly end: closing the lab
	// kills them.
	disposable bool
	// ownPIDs puts the process into a PID namespace (with root), so that what it
	// starts cannot outlive it.
	ownPIDs bool
}

// Process is a program that the lab runs. It is safe for concurrent use.
type Process struct {
	name        string
	logFile     string
	cmd         *exec.Cmd
	stopTimeout time.Duration
	insist      time.Duration
	disposable  bool
	cluster     *Cluster // nil: on the host

	done chan struct{}
	err  error // of Wait; set before done is closed
}

// StartProcess runs a program until it is stopped or the lab is closed. It
// returns when the process is ready; ctx bounds only that. When it does not
// become ready it is killed, and the error quotes the end of its log.
func (l *Lab) StartProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	ctx, done, err := l.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", o.Name, err)
	}
	defer done()
	p, err := l.startProcess(o)
	if err != nil {
		return nil, l.noteFailure(err)
	}
	check := l.readyCheck(o)
	if check == nil {
		return p, nil
	}
	timeout := o.ReadyTimeout
	if timeout == 0 {
		timeout = defaultReadyTimeout
	}
	if err := p.waitReady(ctx, timeout, check); err != nil {
		return nil, l.noteFailure(errors.Join(err, p.Kill()))
	}
	return p, nil
}

func (l *Lab) startProcess(o ProcessOptions) (*Process, error) {
	logFile := filepath.Join(l.logDir(o.Cluster), o.Name+".log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", o.Name, err)
	}
	defer log.Close()

	cmd := exec.Command(o.Path, o.Args...)
	cmd.Dir = o.Dir
	cmd.Env = append(environment(), o.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes(o.ownPIDs)

	spawn, release, err := l.spawnerFor(o)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", o.Name, err)
	}
	fmt.Fprintf(log, "# %s\n", strings.Join(cmd.Args, " "))
	if err := spawn.do(cmd.Start); err != nil {
		release()
		return nil, fmt.Errorf("starting %s: %w", o.Name, err)
	}
	p := &Process{
		name:        o.Name,
		logFile:     logFile,
		cmd:         cmd,
		stopTimeout: o.StopTimeout,
		insist:      o.insist,
		disposable:  o.disposable,
		cluster:     o.Cluster,
		done:        make(chan struct{}),
	}
	if p.stopTimeout == 0 {
		p.stopTimeout = defaultStopTimeout
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
		release()
	}()
	l.adopt(p)
	return p, nil
}

func (l *Lab) readyCheck(o ProcessOptions) func(context.Context) error {
	if o.ReadyFunc != nil || o.ReadyURL == "" {
		return o.ReadyFunc
	}
	transport := &http.Transport{TLSClientConfig: o.ReadyTLS, DisableKeepAlives: true}
	if o.Cluster != nil {
		transport.DialContext = o.Cluster.DialContext
	}
	client := &http.Client{Transport: transport}
	return func(ctx context.Context) error { return get(ctx, client, o.ReadyURL) }
}

func get(ctx context.Context, client *http.Client, url string) error {
	_, err := fetch(ctx, client, url)
	return err
}

// fetch returns what is at url, and an error for any answer but 200.
func fetch(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s", url, response.Status, bytes.TrimSpace(body[:min(len(body), 1<<10)]))
	}
	return body, nil
}

// waitReady polls check until it returns nil, and gives up early when the
// process ends.
func (p *Process) waitReady(ctx context.Context, timeout time.Duration, check func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, readyInterval, timeout, true, func(ctx context.Context) (bool, error) {
		select {
		case <-p.done:
			return false, fmt.Errorf("it ended: %w", p.exitError())
		default:
		}
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		last = check(ctx)
		return last == nil, nil
	})
	if err == nil {
		return nil
	}
	return p.failure("did not become ready", errors.Join(context.Cause(ctx), err, last))
}

// failure is an error that shows where to look.
func (p *Process) failure(what string, cause error) error {
	return fmt.Errorf("%s %s: %w\nlog: %s, which ends with\n%s", p.name, what, cause, p.logFile, tail(p.logFile))
}

func (p *Process) exitError() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Name returns the name it was started under.
func (p *Process) Name() string { return p.name }

// Pid returns the process id; it is no longer meaningful once Done is closed.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// LogFile returns the file that holds all it has printed.
func (p *Process) LogFile() string { return p.logFile }

// Done is closed when the process has ended and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended: nil for status 0, and nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Signal sends a signal. To a process that has ended it is [os.ErrProcessDone].
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end (SIGTERM), waits, and kills it if that takes too
// long, which is an error. Stopping what has ended is none.
func (p *Process) Stop() error {
	deadline := time.NewTimer(p.stopTimeout)
	defer deadline.Stop()
	for {
		// A paused process takes its SIGTERM only once it is continued.
		if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
			return err
		}
		var again <-chan time.Time
		if p.insist > 0 {
			again = time.After(p.insist)
		}
		select {
		case <-p.done:
			return nil
		case <-again:
		case <-deadline.C:
			return errors.Join(p.failure("did not stop", fmt.Errorf("killed after %s", p.stopTimeout)), p.Kill())
		}
	}
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Pause stops the process (SIGSTOP): its sockets stay open, and nothing answers.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume continues a paused process.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

// signal is Signal, but a process that has ended is no error.
func (p *Process) signal(sig os.Signal) error {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %s to %s (process %d): %w", sig, p.name, p.Pid(), err)
	}
	return nil
}

// environment is the lab's own without proxies, which would be asked for
// connections between processes of this machine.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(variable), "=")
		return strings.HasSuffix(name, "_PROXY")
	})
}

// tail returns the last lines of a file, or why they cannot be read.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n  ")
}
