// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxHandshakes is how many connections can be in their TLS handshake at the same time. Each holds
// a descriptor, a goroutine and up to about 40 KiB. Agents that are refused try again within
// seconds, so thousands of them may connect at the same time, for example after a restart.
const maxHandshakes = 4096

var (
	errTooManyHandshakes = errors.New("too many connections at the tunnel port have not shown a certificate yet")
	errMadeRoom          = errors.New("closed before it showed a certificate, to make room for other addresses")
)

// handshakes bounds the connections that have not shown a certificate yet. Anybody who can reach
// the tunnel port can open them. When there are too many, an address that has its share of them is
// refused. Another one gets the place of the oldest connection of the address that has most. So a
// flood from one address costs agents at other addresses nothing, and agents behind one load
// balancer, which try all at once, still finish their handshakes one after the other. It is safe
// for concurrent use.
type handshakes struct {
	limit int

	mu   sync.Mutex
	open map[string][]net.Conn // by address, the oldest first
	all  int
}

// begin counts a connection, or returns an error if it must be closed. The caller calls end.
func (h *handshakes) begin(conn net.Conn) error {
	from := hostOf(conn)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = map[string][]net.Conn{}
	}
	if h.all >= h.limit {
		most := ""
		for address, conns := range h.open {
			if len(conns) > len(h.open[most]) {
				most = address
			}
		}
		if len(h.open[from])+1 >= len(h.open[most]) {
			return errTooManyHandshakes
		}
		oldest := h.open[most][0]
		h.removeLocked(most, oldest)
		_ = oldest.Close() // ends its handshake
	}
	h.open[from] = append(h.open[from], conn)
	h.all++
	return nil
}

// end ends the counting of a connection. It returns false if the connection was closed meanwhile to
// make room.
func (h *handshakes) end(conn net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removeLocked(hostOf(conn), conn)
}

func (h *handshakes) removeLocked(from string, conn net.Conn) bool {
	at := slices.Index(h.open[from], conn)
	if at < 0 {
		return false
	}
	h.all--
	if h.open[from] = slices.Delete(h.open[from], at, at+1); len(h.open[from]) == 0 {
		delete(h.open, from)
	}
	return true
}

// hostOf returns the address of a connection's other end without its port. Who has an IPv6 address
// has all of its /64 network, so that counts as one.
func hostOf(conn net.Conn) string {
	from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return "" // not TCP: all count as one
	}
	address := from.Addr().Unmap()
	if network, err := address.Prefix(64); err == nil && address.Is6() {
		return network.String()
	}
	return address.String()
}
