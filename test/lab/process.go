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
	// Name is the name in errors and of the log file. Required.
	Name string
	// Path is the program. Required.
	Path string
	Args []string
	// Env is added to the lab's own environment without proxy settings: everything in a lab is on this
	// machine.
	Env []string
	// Dir is the working directory. Empty means the current one.
	Dir string
	// Cluster is the cluster where the process runs: beside its API server, behind its firewall if it
	// has one. Nil means on the host.
	Cluster *Cluster
	// Hosts maps names to addresses for this process only, with its own hosts file. It requires root.
	// Without root, the lab reports that and starts the process without it.
	Hosts map[string]string
	// Container, if set, runs the program in a container. It requires root, and excludes Cluster and
	// Hosts.
	Container *Container
	// ReadyURL is polled until it responds with 200; ReadyTLS is its TLS configuration. ReadyFunc is
	// polled until it returns nil. Without either, the process counts as ready once it has started.
	ReadyURL  string
	ReadyTLS  *tls.Config
	ReadyFunc func(context.Context) error
	// ReadyTimeout bounds the time until it is ready. Zero means one minute.
	ReadyTimeout time.Duration
	// StopTimeout is how long Stop waits before it kills the process. Zero means 10 s.
	StopTimeout time.Duration

	// repeatSignal is the time between two SIGTERMs of Stop, for programs that wait for a second one.
	// Zero means that Stop sends only one.
	repeatSignal time.Duration
	// disposable means that the process need not shut down gracefully: closing the lab kills it.
	disposable bool
	// ownPIDs puts the process into a PID namespace (with root), so that its children cannot outlive
	// it.
	ownPIDs bool
}

// Process is a program that the lab runs. It is safe for concurrent use.
type Process struct {
	name         string
	logFile      string
	cmd          *exec.Cmd
	stopTimeout  time.Duration
	repeatSignal time.Duration
	disposable   bool
	cluster      *Cluster // nil means on the host

	done chan struct{}
	err  error // the error of Wait; set before done is closed
}

// StartProcess runs a program until it is stopped or the lab is closed. It returns when the process
// is ready. ctx bounds only that. If the process does not become ready, it is killed, and the error
// quotes the end of its log.
func (l *Lab) StartProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	ctx, done, err := l.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
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
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
	}
	defer log.Close()

	cmd := exec.Command(o.Path, o.Args...)
	cmd.Dir = o.Dir
	cmd.Env = append(environment(), o.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes(o.ownPIDs)
	if o.Container != nil {
		cmd.Dir, cmd.Env = "/", o.Env
		o.Container.enter(cmd.SysProcAttr)
	}

	spawn, release, err := l.spawnerFor(o)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
	}
	fmt.Fprintf(log, "# %s\n", strings.Join(cmd.Args, " "))
	if err := spawn.do(cmd.Start); err != nil {
		release()
		return nil, fmt.Errorf("start %s: %w", o.Name, err)
	}
	p := &Process{
		name:         o.Name,
		logFile:      logFile,
		cmd:          cmd,
		stopTimeout:  o.StopTimeout,
		repeatSignal: o.repeatSignal,
		disposable:   o.disposable,
		cluster:      o.Cluster,
		done:         make(chan struct{}),
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

// fetch returns the response of a URL, and an error for any code except 200.
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

// waitReady polls check until it returns nil. It returns early if the process ends.
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

// failure returns an error that contains the end of the log.
func (p *Process) failure(what string, cause error) error {
	return fmt.Errorf("%s %s: %w\nlog: %s, which ends with\n%s", p.name, what, cause, p.logFile, tail(p.logFile))
}

func (p *Process) exitError() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Name returns the name of the process.
func (p *Process) Name() string { return p.name }

// Pid returns the process ID. It means nothing once Done is closed.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// LogFile returns the file with all output of the process.
func (p *Process) LogFile() string { return p.logFile }

// Done is closed when the process has ended and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended. It returns nil for status 0, and nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Signal sends a signal. It returns [os.ErrProcessDone] if the process has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end (SIGTERM) and waits. If that takes too long, it kills the process
// and returns an error. It returns nil if the process has already ended.
func (p *Process) Stop() error {
	deadline := time.NewTimer(p.stopTimeout)
	defer deadline.Stop()
	for {
		// A paused process receives its SIGTERM only when it continues.
		if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
			return err
		}
		var again <-chan time.Time
		if p.repeatSignal > 0 {
			again = time.After(p.repeatSignal)
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

// Kill ends the process at once (SIGKILL) and waits until it has ended.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Pause stops the process (SIGSTOP): its sockets stay open, but do not respond.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume continues a paused process.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

// signal is like Signal, but returns nil if the process has ended.
func (p *Process) signal(sig os.Signal) error {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s (process %d): %w", sig, p.name, p.Pid(), err)
	}
	return nil
}

// environment returns the lab's own environment without proxies, which would be used for
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
