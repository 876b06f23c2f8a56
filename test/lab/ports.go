// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

const (
	lowestPort          = 10000
	defaultEphemeralLow = 32768
	portAttempts        = 200
)

// ports returns ports below the range from which the kernel takes the local ports of outgoing
// connections. A port in that range could be taken by such a connection while its server is down
// for a test. A connection to that port could even be connected to itself.
type ports struct {
	high int

	mu    sync.Mutex
	given map[int]bool
}

func newPorts() *ports {
	return &ports{high: ephemeralLow(), given: map[int]bool{}}
}

// free finds a free port by listening on it, inside ns or on the host.
func (p *ports) free(ns *namespace) (int, error) {
	listener, err := p.listen(ns)
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// listen listens on a free port.
func (p *ports) listen(ns *namespace) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for range portAttempts {
		port := lowestPort + rand.IntN(p.high-lowestPort)
		if p.given[port] {
			continue
		}
		listener, err := listen(ns, net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.given[port] = true
		return listener, nil
	}
	return nil, fmt.Errorf("find a free port: %w", errors.Join(errs...))
}

func listen(ns *namespace, address string) (net.Listener, error) {
	if ns != nil {
		return ns.listen("tcp", address)
	}
	return net.Listen("tcp", address)
}

func ephemeralLow() int {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return defaultEphemeralLow
	}
	fields := strings.Fields(string(data))
	if len(fields) == 0 {
		return defaultEphemeralLow
	}
	low, err := strconv.Atoi(fields[0])
	if err != nil || low <= lowestPort {
		return defaultEphemeralLow
	}
	return low
}
