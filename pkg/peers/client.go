// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// connectTimeout limits a connection to another replica, with TLS. Replicas are near.
	connectTimeout = 3 * time.Second
	// idleTimeout closes unused connections.
	idleTimeout = 5 * time.Minute
	// pingAfter and pingTimeout detect a replica that has vanished or does not run any more, by the
	// connections to it. Its requests in flight fail then. A replica that has much to do answers in
	// this time.
	pingAfter   = 2 * time.Second
	pingTimeout = 5 * time.Second
	// requestWindow and streamWindow limit how much of an answer is held for a client that does not
	// read it. They are those of the transports to clusters in pkg/proxy.
	requestWindow = 1 << 20
	streamWindow  = 128 << 10
	// maxResponseHeader is the same limit as for the answers of clusters.
	maxResponseHeader = 1 << 20
)

// client has the connections to all other replicas.
type client struct {
	// requests, streams and upgrades are for ordinary requests, for long-running ones, and for
	// upgrades. Each upgrade has a connection to itself, so one that is not read delays no other.
	requests, streams, upgrades *http.Transport
}

func newClient(cfg *Config) *client {
	return &client{requests: newTransport(cfg, requestWindow), streams: newTransport(cfg, streamWindow), upgrades: newTransport(cfg, 0)}
}

// newTransport returns a transport for HTTP/2 with a receive window, or for HTTP/1.1 without one.
func newTransport(cfg *Config, window int) *http.Transport {
	protocol := "http/1.1"
	t := &http.Transport{
		DisableCompression: true, IdleConnTimeout: idleTimeout, Protocols: &http.Protocols{}, MaxResponseHeaderBytes: maxResponseHeader,
		WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
	}
	t.Protocols.SetHTTP1(true)
	if window == 0 {
		t.MaxIdleConnsPerHost = -1 // each upgrade has a connection to itself
	} else {
		protocol = "h2"
		t.Protocols.SetHTTP2(true)
		t.ForceAttemptHTTP2 = true
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: cfg.pingAfter, PingTimeout: cfg.pingTimeout, MaxReceiveBufferPerStream: window}
		// As in pkg/proxy: it does not repeat a request that may have been processed.
		h2, err := http2.ConfigureTransports(t) //nolint:staticcheck // deprecated in favor of net/http
		if err == nil {                         // it fails only for a transport that has been configured already
			h2.MaxHeaderListSize = maxResponseHeader //nolint:staticcheck // the same
		}
	}
	t.DialTLSContext = func(ctx context.Context, _, address string) (net.Conn, error) {
		return connect(ctx, cfg, address, protocol)
	}
	return t
}

// connectError is the error of a connection that was not established. Nothing was sent.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// connect connects to another replica.
func connect(ctx context.Context, cfg *Config, address, protocol string) (*tls.Conn, error) {
	config, err := tlsConfig(cfg.Credentials, protocol)
	if err != nil {
		return nil, &connectError{err}
	}
	bounded, cancel := context.WithTimeout(ctx, cfg.connectTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(bounded, "tcp", address)
	if err != nil {
		if bounded.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("it has not accepted a connection within %s", cfg.connectTimeout)
		}
		return nil, &connectError{err}
	}
	return conn.(*tls.Conn), nil // as DialContext documents
}

func (c *client) close() {
	for _, t := range []*http.Transport{c.requests, c.streams, c.upgrades} {
		t.CloseIdleConnections()
	}
}

// Headers between replicas.
const (
	// headerCluster names the cluster whose agents are needed.
	headerCluster = "Cluster-Gateway-Peer-Cluster"
	// headerRefused is in answers of a replica that has not handed the request on.
	headerRefused = "Cluster-Gateway-Peer-Refused"
	// headerStage is in answers to a dial that failed: the stage at which it did.
	headerStage = "Cluster-Gateway-Peer-Stage"
)

// errNoAgentThere is why another replica refuses a request.
var errNoAgentThere = errors.New("the replica of the gateway that had an agent of the cluster has none any more that answers")

// maxCandidates is how many replicas are tried for one request.
const maxCandidates = 3

// RoundTripper returns a RoundTripper that sends requests to a replica that has an agent of the
// cluster. If no connection can be made, or if the replica refuses the request because it has no
// agent, another replica is tried. Its errors are a *dialer.Error at StagePeer if no replica has
// got the request, and otherwise those of the connection to the replica.
func (p *Peers) RoundTripper(cluster string, longRunning, upgrade bool) http.RoundTripper {
	next := p.client.requests
	switch {
	case upgrade:
		next = p.client.upgrades
	case longRunning:
		next = p.client.streams
	}
	return &forwarder{peers: p, cluster: cluster, next: next}
}

// forwarder sends requests to a replica that has an agent of a cluster.
type forwarder struct {
	peers   *Peers
	cluster string
	next    *http.Transport
}

var _ http.RoundTripper = (*forwarder)(nil)

// WrappedRoundTripper returns the RoundTripper that sends the requests.
func (f *forwarder) WrappedRoundTripper() http.RoundTripper { return f.next }

// RoundTrip implements http.RoundTripper.
func (f *forwarder) RoundTrip(req *http.Request) (*http.Response, error) {
	last := errNoAgentThere
	outcome := OutcomeNoAgent
	for i, other := range f.peers.candidates(f.cluster) {
		if i == maxCandidates {
			break
		}
		out, err := f.request(req, other.address, i > 0)
		if err != nil {
			f.peers.cfg.Metrics.forwarded(OutcomeFailed)
			return nil, err
		}
		sent := f.peers.begin(&other)
		resp, err := f.send(sent, out)
		var failed *connectError
		switch {
		case err == nil && resp.Header.Get(headerRefused) == "":
			sent.worked()
			sent.follow(req.Context(), resp)
			f.peers.cfg.Metrics.forwarded(OutcomeAnswered)
			return resp, nil
		case err == nil:
			_ = resp.Body.Close() // it was not for the caller
			sent.worked()
			sent.end()
			last, outcome = errNoAgentThere, OutcomeNoAgent
		case errors.As(err, &failed) && req.Context().Err() == nil:
			sent.broke(req.Context(), err)
			sent.end()
			last, outcome = err, OutcomeUnreachable
		default:
			// The replica may have processed it. The transport itself repeats a request that the
			// replica has refused to process, and then a connection fails at the latest.
			sent.broke(req.Context(), err)
			sent.end()
			f.peers.cfg.Metrics.forwarded(OutcomeFailed)
			return nil, err
		}
	}
	closeBody(req)
	f.peers.cfg.Metrics.forwarded(outcome)
	return nil, unreachable(f.cluster, last)
}

// errSilent ends an upgrade whose replica does not run any more.
var errSilent = errors.New("the replica does not respond any more")

// send sends a request to one replica. The connection of an upgrade has no pings, so while there is
// no answer, other connections show whether the replica still runs.
func (f *forwarder) send(s *sent, req *http.Request) (*http.Response, error) {
	if f.next != f.peers.client.upgrades {
		return f.next.RoundTrip(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	s.cancel = cancel
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		if f.peers.silent(watchCtx, s.to.address) {
			cancel(errSilent)
		}
	}()
	resp, err := f.next.RoundTrip(req.WithContext(ctx))
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		err = errSilent
	}
	return resp, err
}

// maxUnanswered is how many connections in a row a replica does not answer until it counts as
// silent.
const maxUnanswered = 2

// silent returns true when a replica does not accept connections any more, and false when ctx ends.
func (p *Peers) silent(ctx context.Context, address string) bool {
	for unanswered := 0; unanswered < maxUnanswered; {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(p.cfg.pingAfter):
		}
		conn, err := connect(ctx, &p.cfg, address, "h2")
		if unanswered++; err == nil {
			unanswered = 0
			_ = conn.Close() // nothing was sent
		}
	}
	return ctx.Err() == nil
}

// request returns the request for one replica.
func (f *forwarder) request(req *http.Request, address string, again bool) (*http.Request, error) {
	out := req.WithContext(req.Context())
	target := *req.URL
	out.URL, out.Host = &target, ""
	out.URL.Scheme, out.URL.Host = "https", address
	out.Header = maps.Clone(req.Header) // its values are not changed
	out.Header[headerCluster] = []string{f.cluster}
	if !again || req.Body == nil || req.Body == http.NoBody {
		return out, nil
	}
	if req.GetBody == nil {
		return nil, unreachable(f.cluster, errNoAgentThere)
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	out.Body = body
	return out, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// Dialer returns a Dialer whose connections lead to the API server of the cluster, through another
// replica and an agent there.
func (p *Peers) Dialer(cluster string) dialer.Dialer {
	return dialer.New(cluster, func(ctx context.Context, _, address string) (net.Conn, error) {
		return p.dial(ctx, cluster, address)
	})
}

// tunnelProtocol is what a connection becomes after a dial.
const tunnelProtocol = "cluster-gateway-tunnel"

// dialPath is where a replica accepts dials.
const dialPath = "/dial"

func (p *Peers) dial(ctx context.Context, cluster, address string) (net.Conn, error) {
	last := errNoAgentThere
	for i, other := range p.candidates(cluster) {
		if i == maxCandidates {
			break
		}
		conn, err := p.dialThrough(ctx, cluster, address, &other)
		var failed *dialer.Error
		if err == nil || errors.As(err, &failed) || ctx.Err() != nil {
			return conn, err
		}
		last = err
	}
	return nil, unreachable(cluster, last)
}

// dialThrough asks one replica. An error of its dial is a *dialer.Error.
func (p *Peers) dialThrough(ctx context.Context, cluster, address string, other *peer) (net.Conn, error) {
	sent := p.begin(other)
	conn, err := connect(ctx, &p.cfg, other.address, "http/1.1")
	if err != nil {
		sent.broke(ctx, err)
		sent.end()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	reader := bufio.NewReader(conn)
	err = ask(ctx, conn, reader, cluster, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		sent.end()
		return nil, err
	}
	return &loadedConn{readConn: readConn{Conn: conn, reader: reader}, sent: sent}, nil
}

// ask sends the request for a connection, and reads the answer.
func ask(ctx context.Context, conn net.Conn, reader *bufio.Reader, cluster, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+ServerName+dialPath, nil)
	if err != nil {
		return err
	}
	req.Header.Set(headerCluster, cluster)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", tunnelProtocol)
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	defer resp.Body.Close()
	if resp.Header.Get(headerRefused) != "" {
		return errNoAgentThere
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status code says enough
	err = fmt.Errorf("another replica of the gateway reports: %s", text)
	if stage := dialer.Stage(resp.Header.Get(headerStage)); stage != "" {
		return &dialer.Error{Cluster: cluster, Stage: stage, Address: address, Err: err}
	}
	return err
}

// readConn is a connection of which a part may have been read already.
type readConn struct {
	net.Conn
	reader *bufio.Reader
}

// Read implements net.Conn.
func (c *readConn) Read(p []byte) (int, error) { return c.reader.Read(p) }
