// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"io"
	"net"
	"slices"
	"sync"
)

// Relay passes TCP connections on to its targets, in turn. While it is cut, it passes nothing: as
// in a network that loses all packets, connections stay open, and new ones are accepted.
type Relay struct {
	listener net.Listener

	mu      sync.Mutex
	targets []string
	turn    int
	conns   map[net.Conn]struct{}
	// passing is closed while the Relay passes data.
	passing chan struct{}
	closed  bool
	// running are the goroutines of the Relay.
	running sync.WaitGroup
}

// NewRelay starts a Relay that listens on an address. Port 0 means a free one.
func NewRelay(address string, targets ...string) (*Relay, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: listener, targets: slices.Clone(targets), conns: map[net.Conn]struct{}{}, passing: make(chan struct{})}
	close(r.passing)
	r.running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			r.running.Go(func() { r.carry(client) })
		}
	})
	return r, nil
}

// Address returns where the Relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Port returns the port of Address.
func (r *Relay) Port() int { return r.listener.Addr().(*net.TCPAddr).Port } // it listens on TCP

// Add adds a target for new connections.
func (r *Relay) Add(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = append(r.targets, target)
}

// Remove removes a target. Connections to it stay.
func (r *Relay) Remove(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = slices.DeleteFunc(slices.Clone(r.targets), func(other string) bool { return other == target })
}

// Cut passes nothing until Mend is called.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.passing:
		r.passing = make(chan struct{})
	default: // it is cut already
	}
}

// Mend passes again, beginning with what has been sent meanwhile.
func (r *Relay) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mendLocked()
}

func (r *Relay) mendLocked() {
	select {
	case <-r.passing:
	default:
		close(r.passing)
	}
}

// Close ends all connections.
func (r *Relay) Close() error {
	err := r.listener.Close()
	r.mu.Lock()
	r.closed = true
	for conn := range r.conns {
		_ = conn.Close()
	}
	r.mendLocked()
	r.mu.Unlock()
	r.running.Wait()
	return err
}

// next returns the target of a new connection. It is empty if there is none.
func (r *Relay) next() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.targets) == 0 {
		return ""
	}
	r.turn++
	return r.targets[r.turn%len(r.targets)]
}

// wait waits while the Relay is cut.
func (r *Relay) wait() {
	r.mu.Lock()
	passing := r.passing
	r.mu.Unlock()
	<-passing
}

// carry copies both ways until one end closes.
func (r *Relay) carry(client net.Conn) {
	defer client.Close()
	if !r.track(client) {
		return
	}
	defer r.untrack(client)
	r.wait()
	server, err := net.Dial("tcp", r.next())
	if err != nil {
		return
	}
	defer server.Close()
	if !r.track(server) {
		return
	}
	defer r.untrack(server)
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], passingReader{way[1], r}) // its end is the end of this connection
			_ = way[0].Close()
			_ = way[1].Close()
		})
	}
	both.Wait()
}

func (r *Relay) track(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[conn] = struct{}{}
	return !r.closed
}

func (r *Relay) untrack(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

// passingReader reads from a connection, and holds what it has read back while the Relay is cut.
type passingReader struct {
	conn  net.Conn
	relay *Relay
}

// Read implements io.Reader.
func (p passingReader) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b)
	p.relay.wait()
	return n, err
}
