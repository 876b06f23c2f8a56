// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const (
	keepLogsVariable = "CLUSTER_GATEWAY_LAB_KEEP"
	loopback         = "127.0.0.1"
	dataDirName      = "data"
	logDirName       = "logs"
)

var errClosed = errors.New("the lab is closed")

// Options configure a [Lab]. The zero value is ready to use.
type Options struct {
	// Dir is the lab's folder. Empty means a temporary folder, which is removed when the lab closes,
	// unless a component failed to start, KeepLogs returns true, or $CLUSTER_GATEWAY_LAB_KEEP is set.
	// A folder that you provide is kept, without the clusters' data.
	Dir string
	// Binaries are the components to run. Nil means those of [FindBinaries].
	Binaries *Binaries
	// Out receives progress messages. Nil discards them.
	Out io.Writer
	// Verbosity is the log level (-v) of the components.
	Verbosity int
	// KeepLogs is called by Close. If it returns true, a temporary folder is kept. It is meant for
	// testing.T.Failed. Nil means false.
	KeepLogs func() bool
}

// Lab is a set of processes, and a folder for their state and logs. It is safe for concurrent use:
// clusters can be started in parallel.
type Lab struct {
	dir       string
	temporary bool
	keepLogs  func() bool
	binaries  *Binaries
	out       *syncWriter
	verbosity int
	spawner   *spawner
	ports     *ports
	detach    func() bool // from the context of New

	// running ends when the lab begins to close. This cancels every start that is
	// in progress; starting counts these.
	running  context.Context
	end      context.CancelFunc
	starting sync.WaitGroup

	mu        sync.Mutex
	closed    bool // no new start is allowed
	failed    bool
	processes []*Process
	clusters  []*Cluster

	closeOnce sync.Once
	closeErr  error
}

// New returns an empty lab. It first removes what earlier labs have left behind. The lab closes
// when ctx ends.
func New(ctx context.Context, o Options) (*Lab, error) {
	out := &syncWriter{w: o.Out}
	if err := sweep(os.TempDir()); err != nil {
		fmt.Fprintf(out, "lab: removing what an earlier lab left behind: %v\n", err)
	}
	binaries := o.Binaries
	if binaries == nil {
		var err error
		if binaries, err = FindBinaries(ctx, BinariesOptions{Out: out}); err != nil {
			return nil, err
		}
	}
	dir, err := labDir(o.Dir)
	if err != nil {
		return nil, err
	}
	spawner, err := newSpawner(func() error { return nil })
	if err != nil {
		return nil, err
	}
	l := &Lab{
		dir:       dir,
		temporary: o.Dir == "",
		keepLogs:  o.KeepLogs,
		binaries:  binaries,
		out:       out,
		verbosity: o.Verbosity,
		spawner:   spawner,
		ports:     newPorts(),
	}
	// Not a child of ctx, so that only close cancels it.
	l.running, l.end = context.WithCancel(context.WithoutCancel(ctx))
	l.detach = context.AfterFunc(ctx, func() { l.Close() })
	return l, nil
}

func labDir(given string) (string, error) {
	dir := given
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", temporaryPattern()); err != nil {
			return "", fmt.Errorf("create the lab's folder: %w", err)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(filepath.Join(dir, logDirName), 0o755)
}

// Dir returns the lab's folder. The log of a process that belongs to a cluster is
// CLUSTER/logs/PROCESS.log; of any other process it is logs/PROCESS.log.
func (l *Lab) Dir() string { return l.dir }

// Binaries returns the paths of the components that the lab runs.
func (l *Lab) Binaries() *Binaries { return l.binaries }

// Processes returns all processes that were started, in order, including those that have ended.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.processes)
}

// FreePort returns a port of 127.0.0.1 that nothing listens on. The lab returns
// each port only once.
func (l *Lab) FreePort() (int, error) { return l.ports.free(nil) }

// HostAddr returns the address of the host as the cluster sees it. The cluster's
// agents dial this address, so the server's certificate must be valid for it, and
// the server must listen on it, or on all addresses.
func (l *Lab) HostAddr(c *Cluster) string {
	if c == nil || c.ns == nil {
		return loopback
	}
	return c.ns.outside.String()
}

// Close stops everything, waits until it has ended, and returns the errors. It can be called more
// than once, and concurrently.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.detach()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.starting.Wait()

	// From here on, nothing is added to the lists.
	errs := []error{stopAll(l.processes)}
	for _, c := range l.clusters {
		errs = append(errs, c.Stop())
	}
	l.spawner.close()
	errs = append(errs, l.cleanDir())
	return errors.Join(errs...)
}

// stopAll stops the processes that shut down gracefully first, all at once, and then kills the
// rest.
func stopAll(processes []*Process) error {
	var errs []error
	for _, disposable := range []bool{false, true} {
		results := make(chan error)
		started := 0
		for _, p := range processes {
			if p.disposable != disposable {
				continue
			}
			started++
			stop := p.Stop
			if disposable {
				stop = p.Kill
			}
			go func() { results <- stop() }()
		}
		for range started {
			errs = append(errs, <-results)
		}
	}
	return errors.Join(errs...)
}

func (l *Lab) cleanDir() error {
	if l.temporary && !l.keep() {
		return os.RemoveAll(l.dir)
	}
	var errs []error
	for _, c := range l.clusters {
		errs = append(errs, os.RemoveAll(c.dataDir()))
	}
	fmt.Fprintf(l.out, "lab: the logs are in %s\n", l.dir)
	return errors.Join(errs...)
}

func (l *Lab) keep() bool {
	l.mu.Lock()
	failed := l.failed
	l.mu.Unlock()
	return failed || os.Getenv(keepLogsVariable) != "" || l.keepLogs != nil && l.keepLogs()
}

// begin announces that something is being started. The returned context replaces
// ctx, and ends early if the lab closes. The caller must call done at the end.
func (l *Lab) begin(ctx context.Context) (_ context.Context, done func(), _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, errClosed
	}
	l.starting.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(l.running, func() { cancel(errClosed) })
	return ctx, func() {
		detach()
		cancel(nil)
		l.starting.Done()
	}, nil
}

// adopt makes the lab responsible for a process.
func (l *Lab) adopt(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
}

// noteFailure makes Close keep the logs, because an error refers to them. It ignores the error of a
// closed lab.
func (l *Lab) noteFailure(err error) error {
	if err != nil && !errors.Is(err, errClosed) {
		l.mu.Lock()
		l.failed = true
		l.mu.Unlock()
	}
	return err
}

func (l *Lab) logDir(c *Cluster) string {
	if c == nil {
		return filepath.Join(l.dir, logDirName)
	}
	return c.LogDir()
}

// spawnerFor returns the spawner that starts a process, and a function to call
// when the process has ended.
func (l *Lab) spawnerFor(o ProcessOptions) (*spawner, func(), error) {
	if o.Container != nil {
		own, err := newContainerSpawner(o.Container)
		if err != nil {
			return nil, nil, fmt.Errorf("a container: %w", err)
		}
		return own, own.close, nil
	}
	shared := l.spawner
	var ns *namespace
	if o.Cluster != nil {
		shared, ns = o.Cluster.spawner(), o.Cluster.ns
	}
	if len(o.Hosts) == 0 {
		return shared, func() {}, nil
	}
	if reason := missingCapability(); reason != nil {
		fmt.Fprintf(l.out, "lab: %s has no hosts file of its own: %v\n", o.Name, reason)
		return shared, func() {}, nil
	}
	file, err := l.writeHosts(o)
	if err != nil {
		return nil, nil, err
	}
	own, err := newHostsSpawner(ns, file)
	if err != nil {
		return nil, nil, err
	}
	return own, own.close, nil
}

// writeHosts writes the hosts file of one process: that of the machine, with the process's names in
// front, because the first line of a name has precedence.
func (l *Lab) writeHosts(o ProcessOptions) (string, error) {
	path := filepath.Join(l.logDir(o.Cluster), o.Name+".hosts")
	var content []byte
	for name, ip := range o.Hosts {
		content = fmt.Appendf(content, "%s %s\n", ip, name)
	}
	system, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the machine's hosts file: %w", err)
	}
	return path, os.WriteFile(path, append(content, system...), 0o644)
}

// syncWriter lets several goroutines print. A nil writer discards the output.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	if s.w == nil {
		return len(p), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
