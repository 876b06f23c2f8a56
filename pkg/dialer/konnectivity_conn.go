// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"fmt"
	"net"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// konnectivityConn is a BufferedConn that is carried by a stream of its own.
type konnectivityConn struct {
	*BufferedConn
	stream       client.ProxyService_ProxyClient
	cancel       context.CancelFunc // resets the stream
	closeTimeout time.Duration
	id           int64
	server       string
	// ready has room for one token. A token means that there is something to send.
	ready chan struct{}
	// remoteGone is closed when the stream has ended.
	remoteGone chan struct{}
}

// newConn returns the net.Conn of a stream after its dial has succeeded, and starts the goroutines
// that carry its bytes. Konnectivity.Close waits for these; Close of the dialer does not, because a
// server that hangs keeps them for up to closeTimeout.
func (d *konnectivityDialer) newConn(stream client.ProxyService_ProxyClient, cancel context.CancelFunc, id int64, server string, budget *Budget) net.Conn {
	c := &konnectivityConn{
		stream: stream, cancel: cancel, closeTimeout: d.k.cfg.closeTimeout, id: id, server: server,
		ready: make(chan struct{}, 1), remoteGone: make(chan struct{}),
	}
	c.BufferedConn = NewBufferedConn(BufferedConnConfig{
		Local: Addr{Name: "tunnel"}, Remote: Addr{Name: d.cluster + "/" + d.address},
		ReceiveBuffer: d.k.cfg.ReceiveBuffer, Budget: budget, Ready: c.wakeSender,
	})
	// The dial is still counted here, so Wait cannot have returned.
	d.k.running.Go(c.receiveLoop)
	d.k.running.Go(c.sendLoop)
	return c
}

func (c *konnectivityConn) wakeSender() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// Close implements net.Conn. It does not wait for the other end.
func (c *konnectivityConn) Close() error {
	err := c.BufferedConn.Close()
	c.resetLater()
	return err
}

// resetLater bounds the time that the end may take: nothing else can end a Send that is blocked.
func (c *konnectivityConn) resetLater() {
	select {
	case <-c.remoteGone:
	default:
		time.AfterFunc(c.closeTimeout, c.cancel)
	}
}

func (c *konnectivityConn) receiveLoop() {
	defer c.cancel()
	defer close(c.remoteGone)
	for {
		p, err := c.stream.Recv()
		if err != nil {
			c.CloseRemote(fmt.Errorf("the stream from konnectivity-server %s has ended: %w", c.server, err))
			return
		}
		switch p.GetType() {
		case client.PacketType_DATA:
			if d := p.GetData(); d.GetConnectID() == c.id && c.Deliver(d.GetData()) != nil {
				c.resetLater()
			}
		case client.PacketType_CLOSE_RSP:
			if r := p.GetCloseResponse(); r.GetConnectID() == c.id {
				var reason error
				if r.GetError() != "" {
					reason = fmt.Errorf("closed by the agent: %.300s", r.GetError())
				}
				c.CloseRemote(reason)
				return
			}
		}
	}
}

// sendLoop is the only sender on the stream. It ignores errors of Send: receiveLoop gets them from
// Recv.
func (c *konnectivityConn) sendLoop() {
	for {
		select {
		case <-c.ready:
		case <-c.remoteGone:
			return
		}
		for more := true; more; {
			var p []byte
			var end bool
			p, more, end = c.TakeOutgoing()
			if len(p) > 0 && c.stream.Send(&client.Packet{
				Type:    client.PacketType_DATA,
				Payload: &client.Packet_Data{Data: &client.Data{ConnectID: c.id, Data: p}},
			}) != nil {
				return
			}
			if end {
				// receiveLoop gets the answer, and with it the end of the stream.
				_ = c.stream.Send(&client.Packet{
					Type:    client.PacketType_CLOSE_REQ,
					Payload: &client.Packet_CloseRequest{CloseRequest: &client.CloseRequest{ConnectID: c.id}},
				})
				return
			}
		}
	}
}
