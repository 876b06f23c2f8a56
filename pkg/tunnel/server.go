// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// keepaliveTime and keepaliveTimeout bound how long an agent that vanished without a word stays in the table; the sum
	// must stay below the 45 s that the gateway promises.
	keepaliveTime    = 15 * time.Second
	keepaliveTimeout = 15 * time.Second
	// attemptTimeout is how long a dial waits for one agent while there is another to try: a second more than the stock
	// agent's own limit for a dial (dialTimeout, pkg/agent/client.go), after which it answers.
	attemptTimeout = 6 * time.Second
	// stallTimeout is how long an agent may take no packet at all before its stream is ended. The stock agent stops when
	// it holds about 150 for one connection whose API server does not read; which one that is cannot be seen from here.
	stallTimeout  = 15 * time.Second
	watchInterval = 2 * time.Second
	// busyAfter is how long a packet may be on its way out before new dials prefer another stream.
	busyAfter = time.Second
	// expiryGrace is how long a stream outlives its agent's certificate: an agent that has been replaced drains meanwhile.
	expiryGrace = 5 * time.Minute
	// maxIdle is how long a peer may be connected without a stream.
	maxIdle = time.Minute
	// maxSessions bounds the streams of one cluster: a certificate that leaked, or an agent in a crash loop, must not
	// take the gateway's memory.
	maxSessions = 64
	// maxPacket is the largest packet accepted; the stock agent sends 4 KiB at a time.
	maxPacket = 1 << 20
)

// Config is what a Server needs. It does not change after New.
type Config struct {
	// ServerID identifies this replica to agents; no two replicas may share one.
	ServerID string
	// ServerCount is the number of replicas that every agent is to connect to; at least 1.
	ServerCount int
	// TLS is the serving configuration. It must require and verify client certificates against ClientCAs of its own;
	// [Server.Serve] refuses to start with one that does not. GetConfigForClient is honoured, so that certificates and CAs can
	// be reloaded, and what it returns is held to the same.
	TLS *tls.Config
	// ReceiveBuffer is the bound of each connection's buffer in bytes; 0 means dialer.DefaultReceiveBuffer.
	ReceiveBuffer int
	// Enroller is whom clusters with an invitation are handed to; nil refuses them.
	Enroller Enroller
	// Logger is where connections of agents are reported. Its zero value logs nothing.
	Logger klog.Logger

	// attemptTimeout, stallTimeout, watchInterval, maxIdle, enrolmentTimeout and servesInterval are the constants of these names, unless a test in
	// this package says otherwise.
	attemptTimeout, stallTimeout, watchInterval, maxIdle, enrolmentTimeout, servesInterval time.Duration
}

// Server is the embedded Konnectivity server. It is safe for concurrent use.
type Server struct {
	agent.UnimplementedAgentServiceServer
	cfg   Config
	began time.Time

	connections connections
	budgets     *dialer.Budgets

	mu       sync.RWMutex
	clusters map[string]*clusterSessions
	// enrolling are the streams that enrol, by the name that their invitation is for: one for each name.
	enrolling map[string]*enrolment
	closed    bool
	// loops counts the goroutines of sessions. Add happens under mu and only while not closed.
	loops sync.WaitGroup

	// onAgentsChange and onAgentLeaving do not change once Serve has started.
	onAgentsChange []func(cluster string, agents int)
	onAgentLeaving []func(cluster string)
	// reporting orders the calls of onAgentsChange, which happen without mu held. reported holds the last number of each cluster.
	reporting sync.Mutex
	reported  map[string]int
}

// clusterSessions is what is known of one cluster's agents. It stays when the last of them goes, for lastSeen.
type clusterSessions struct {
	sessions []*session
	next     int            // rotates among equals
	nextLane dialer.Purpose // see laneFor
	lastSeen time.Time
}

// New returns a Server; Serve starts it.
func New(cfg Config) *Server {
	cfg.ServerCount = max(cfg.ServerCount, 1)
	cfg.attemptTimeout = cmp.Or(cfg.attemptTimeout, attemptTimeout)
	cfg.stallTimeout = cmp.Or(cfg.stallTimeout, stallTimeout)
	cfg.watchInterval = cmp.Or(cfg.watchInterval, watchInterval)
	cfg.maxIdle = cmp.Or(cfg.maxIdle, maxIdle)
	cfg.servesInterval = cmp.Or(cfg.servesInterval, servesInterval)
	cfg.enrolmentTimeout = cmp.Or(cfg.enrolmentTimeout, EnrolmentTimeout)
	return &Server{cfg: cfg, budgets: dialer.NewBudgets(cfg.ReceiveBuffer), began: time.Now(), clusters: map[string]*clusterSessions{}, enrolling: map[string]*enrolment{}, reported: map[string]int{}}
}

// OnAgentsChange subscribes f to the number of distinct agents of each cluster. It is called each time that the number changes,
// one call after the other. f may call the Server, and must not block. OnAgentsChange must not be called after Serve.
func (s *Server) OnAgentsChange(f func(cluster string, agents int)) {
	s.onAgentsChange = append(s.onAgentsChange, f)
}

// OnAgentLeaving subscribes f to clusters that have connections through a draining agent while another agent can take them. When
// the draining agent ends, some time later, these connections are cut. f must not block. OnAgentLeaving must not be called after
// Serve.
func (s *Server) OnAgentLeaving(f func(cluster string)) {
	s.onAgentLeaving = append(s.onAgentLeaving, f)
}

// Serve accepts agents on lis until ctx ends, then ends all their streams, closes lis and waits for everything that it started.
// It can be called once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	serving, err := servingConfig(s.cfg.TLS)
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	g := grpc.NewServer(
		grpc.Creds(bounded{keepConn{credentials.NewTLS(serving)}, s}),
		// Agents always have a stream; a connection without one is nobody's.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionIdle: s.cfg.maxIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		experimental.BufferPool(&buffers{}),
		grpc.ForceServerCodecV2(newPacketCodec()),
		// For frames' headers and what is small: the content of a larger frame is read past the buffer. Each connection has one, and each
		// agent two connections.
		grpc.ReadBufferSize(4<<10),
		grpc.MaxRecvMsgSize(maxPacket),
		grpc.MaxConcurrentStreams(4),
		grpc.ConnectionTimeout(20*time.Second),
		grpc.WaitForHandlers(true),
	)
	agent.RegisterAgentServiceServer(g, s)

	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	ticker := time.NewTicker(s.cfg.watchInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.endFaulty(now)
			s.tellLeaving()
			s.connections.forget()
			continue
		case err = <-served:
			s.shut()
			g.Stop()
		case <-ctx.Done():
			s.shut()
			g.Stop()
			err = <-served
		}
		s.loops.Wait()
		return err
	}
}

// servingConfig holds a TLS configuration, and each one that it makes for a client, to what the identity of agents rests on.
func servingConfig(cfg *tls.Config) (*tls.Config, error) {
	if cfg == nil || cfg.ClientAuth != tls.RequireAndVerifyClientCert {
		return nil, errors.New("the tunnel server must require and verify client certificates")
	}
	cfg = cfg.Clone()
	// A resumed session would vouch for an agent with the CA of then. Agents connect seldom: nothing is lost.
	cfg.SessionTicketsDisabled = true
	forClient := cfg.GetConfigForClient
	if forClient == nil {
		// Without CAs of its own, crypto/tls would take the system's: any public CA could then make agents.
		if cfg.ClientCAs == nil {
			return nil, errors.New("the tunnel server needs the CA of agents' certificates")
		}
		return cfg, nil
	}
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := forClient(hello)
		switch {
		case err != nil:
			return nil, err
		case c == nil:
			c = cfg
		case c.SessionTicketsDisabled:
		default:
			c = c.Clone()
			c.SessionTicketsDisabled = true
		}
		if c.ClientAuth != tls.RequireAndVerifyClientCert || c.ClientCAs == nil {
			return nil, errors.New("the tunnel server's reloaded configuration does not verify client certificates")
		}
		return c, nil
	}
	return cfg, nil
}

// shut ends all sessions and refuses new ones.
func (s *Server) shut() {
	s.mu.Lock()
	s.closed = true
	all := s.sessionsLocked()
	s.mu.Unlock()
	for _, se := range all {
		se.end(fmt.Errorf("%w: the gateway is shutting down", errAgentGone))
	}
}

func (s *Server) sessionsLocked() []*session {
	var all []*session
	for _, c := range s.clusters {
		all = append(all, c.sessions...)
	}
	for _, e := range s.enrolling {
		all = append(all, e.session)
	}
	return all
}

// endFaulty ends the streams of agents that have stopped reading, and of those whose certificate has ended: the handshake, which would not
// accept it any more, may be months old.
func (s *Server) endFaulty(now time.Time) {
	s.mu.RLock()
	all := s.sessionsLocked()
	s.mu.RUnlock()
	for _, se := range all {
		if se.stalled(now, s.cfg.stallTimeout) {
			se.end(errStalled)
		}
		if end := se.peer.certificates[0].NotAfter; now.After(end.Add(expiryGrace)) {
			se.end(fmt.Errorf("%w: its certificate ended at %s", errAgentGone, end.UTC().Format(time.RFC3339)))
		}
	}
}

// tellLeaving calls the subscribers of OnAgentLeaving.
func (s *Server) tellLeaving() {
	if len(s.onAgentLeaving) == 0 {
		return
	}
	s.mu.RLock()
	var leaving []string
	for name, c := range s.clusters {
		if c.leaves() {
			leaving = append(leaving, name)
		}
	}
	s.mu.RUnlock()
	for _, name := range leaving {
		for _, f := range s.onAgentLeaving {
			f(name)
		}
	}
}

// leaves is whether there are connections to be moved from a draining agent to another, of which nobody has been told.
func (c *clusterSessions) leaves() bool {
	others := slices.ContainsFunc(c.sessions, func(se *session) bool { _, draining, _ := se.load(); return !draining })
	if !others {
		return false
	}
	leaves := false
	for _, se := range c.sessions {
		leaves = se.leave() || leaves
	}
	return leaves
}

// Reverify ends the streams of agents whose certificates no longer hold under opts (Roots and CurrentTime matter). It is to
// be called when the CA bundle has changed: the handshake of a stream may be months old.
func (s *Server) Reverify(opts x509.VerifyOptions) {
	s.mu.RLock()
	all := s.sessionsLocked()
	s.mu.RUnlock()
	for _, se := range all {
		if err := se.peer.verify(opts); err != nil {
			se.end(fmt.Errorf("the agent's certificate is no longer accepted: %w", err))
		}
	}
}

// Connect implements the Konnectivity protocol's AgentService: it is called by gRPC, once for each stream of an agent.
func (s *Server) Connect(stream agent.AgentService_ConnectServer) error {
	peer, err := identify(stream.Context())
	if err != nil {
		s.cfg.Logger.Info("Refused an agent", "reason", err.Error())
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if peer.invited {
		if serves, err := s.enrol(peer, stream); err != nil || !serves {
			return err
		}
	}
	se, err := s.admit(peer, claimedID(stream.Context()), packets{stream})
	if err != nil {
		s.cfg.Logger.Info("Refused an agent", "cluster", peer.cluster, "address", peer.address, "reason", err.Error())
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	s.report(peer.cluster)
	// The header goes first: the agent serves nothing before it. Dials that find the session already wait in its queue.
	if err := stream.SendHeader(s.headerFor(se.lane)); err != nil {
		s.loops.Add(-2)
		s.remove(se)
		return err
	}
	go func() { defer s.loops.Done(); se.sendLoop() }()
	go func() { defer s.loops.Done(); se.receiveLoop() }()
	if peer.invited {
		s.loops.Go(func() { s.keepAsking(stream.Context(), se) })
	}
	se.logger.Info("An agent connected", "address", peer.address)

	// Returning ends the stream, and with it whatever Send or Recv is still blocked in the two loops.
	<-se.done
	s.remove(se)
	se.logger.Info("An agent's stream ended", "reason", se.ended.Error(), "after", time.Since(se.since).Round(time.Second))
	switch {
	case errors.Is(se.ended, errStalled):
		// It does not read, so it would not read this either.
		return errors.Join(se.ended, peer.hangUp())
	case errors.Is(se.ended, errProtocol):
		return status.Error(codes.InvalidArgument, se.ended.Error())
	}
	return status.Error(codes.Unavailable, se.ended.Error())
}

// claimedID returns what the agent calls itself, fit for a log line.
func claimedID(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if ids := md.Get(header.AgentID); len(ids) > 0 {
		return fmt.Sprintf("%.64q", ids[0])
	}
	return `""`
}

// headerFor names a lane as a server of its own, and counts accordingly: a stock agent goes on connecting until it has a
// stream to as many servers as it is told there are.
func (s *Server) headerFor(lane dialer.Purpose) metadata.MD {
	return metadata.Pairs(
		header.ServerID, s.cfg.ServerID+"/"+strconv.Itoa(int(lane)),
		header.ServerCount, strconv.Itoa(s.cfg.ServerCount*int(dialer.Purposes)))
}

// admit makes a session and puts it into the table.
func (s *Server) admit(peer *peerIdentity, agentID string, stream packetStream) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the gateway is shutting down")
	}
	c := s.clusters[peer.cluster]
	if c == nil {
		c = &clusterSessions{}
		s.clusters[peer.cluster] = c
	}
	if len(c.sessions) >= maxSessions {
		return nil, fmt.Errorf("cluster %q already has %d streams", peer.cluster, maxSessions)
	}
	lane := c.laneFor(agentID)
	se := newSession(peer, agentID, lane, stream, s.cfg.ReceiveBuffer, s.cfg.attemptTimeout,
		s.cfg.Logger.WithValues("cluster", peer.cluster, "agent", agentID, "lane", int(lane)))
	se.drained = func() { s.drain(se) }
	c.sessions = append(c.sessions, se)
	s.loops.Add(2)
	return se, nil
}

// drain notes for all streams of an agent what it has said on one.
func (s *Server) drain(said *session) {
	s.mu.RLock()
	var streams []*session
	for _, se := range s.clusters[said.peer.cluster].sessions {
		if se.agentID == said.agentID {
			streams = append(streams, se)
		}
	}
	s.mu.RUnlock()
	for _, se := range streams {
		se.drain()
	}
}

// laneFor gives an agent the lane that it has the fewest streams in, the first lane first. An agent that has one in every lane
// already, since one that is gone has not been noticed yet, drops the new stream if it is in the wrong lane, and tries again:
// so they are given in turn.
func (c *clusterSessions) laneFor(agentID string) dialer.Purpose {
	var have [dialer.Purposes]int
	for _, se := range c.sessions {
		if se.agentID == agentID {
			have[se.lane]++
		}
	}
	var best dialer.Purpose
	if !slices.Contains(have[:], 0) {
		c.nextLane = (c.nextLane + 1) % dialer.Purposes
		best = c.nextLane
	}
	for lane := range dialer.Purposes {
		if have[lane] < have[best] {
			best = lane
		}
	}
	return best
}

func (s *Server) remove(se *session) {
	se.end(errAgentGone)
	s.mu.Lock()
	c := s.clusters[se.peer.cluster]
	if i := slices.Index(c.sessions, se); i >= 0 {
		c.sessions = slices.Delete(c.sessions, i, i+1)
		c.lastSeen = time.Now()
	}
	s.mu.Unlock()
	s.report(se.peer.cluster)
}

// report calls the subscribers of OnAgentsChange. The count is taken after the turn, so the last call always tells the last state.
func (s *Server) report(cluster string) {
	if len(s.onAgentsChange) == 0 {
		return
	}
	s.reporting.Lock()
	defer s.reporting.Unlock()
	n, _ := s.Agents(cluster)
	if n == s.reported[cluster] {
		return
	}
	s.reported[cluster] = n
	for _, f := range s.onAgentsChange {
		f(cluster, n)
	}
}

// agents counts distinct agents; each has a stream for every lane.
func (c *clusterSessions) agents() int {
	ids := map[string]struct{}{}
	for _, se := range c.sessions {
		ids[se.agentID] = struct{}{}
	}
	return len(ids)
}

// Agents returns how many agents of the cluster are connected, and when the last stream of one went away (zero if none has).
func (s *Server) Agents(cluster string) (connected int, lastSeen time.Time) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clusters[cluster]
	if c == nil {
		return 0, time.Time{}
	}
	return c.agents(), c.lastSeen
}

// Dialer returns the Dialer of one cluster. address, as host:port, is the cluster's registered API server, and the only one
// that is ever dialled; lane is the stream that is preferred.
func (s *Server) Dialer(cluster, address string, lane dialer.Purpose) dialer.Dialer {
	return s.budgets.Dialer(cluster, func(ctx context.Context, _, requested string, budget *dialer.Budget) (net.Conn, error) {
		if requested != address {
			return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageTunnel, Address: requested, Err: dialer.ErrAddressNotAllowed}
		}
		return s.dial(ctx, cluster, address, lane, budget)
	})
}

func (s *Server) noAgent(lastSeen time.Time) error {
	since := lastSeen
	if since.IsZero() {
		since = s.began
	}
	return &dialer.NoAgentError{LastSeen: lastSeen, Since: since}
}

// dial asks one agent after the other until one of them has connected: each once, and each of its streams once as long as the
// agent itself has not said that it cannot reach the address. An agent that turns out to drain is asked again if no other connects.
func (s *Server) dial(ctx context.Context, cluster, address string, lane dialer.Purpose, budget *dialer.Budget) (net.Conn, error) {
	candidates, lastSeen := s.candidates(cluster, lane)
	if len(candidates) == 0 {
		return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageTunnel, Address: address, Err: s.noAgent(lastSeen)}
	}
	var failures []error
	said := map[string]bool{} // agents that answered
	for i := 0; i < len(candidates); i++ {
		se := candidates[i]
		if said[se.agentID] {
			continue
		}
		drained := se.drains()
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(candidates)-1 {
			attempt, cancel = context.WithTimeout(ctx, s.cfg.attemptTimeout)
		}
		conn, err := se.dial(attempt, address, budget)
		cancel()
		if err == nil && !drained && se.drains() && slices.ContainsFunc(candidates[i+1:], func(se *session) bool { return !se.drains() }) {
			_ = conn.Close() // never used
			candidates = append(candidates, se)
			continue
		}
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
		said[se.agentID] = atEndpoint(err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, mostTelling(failures)
}

func atEndpoint(err error) bool {
	var de *dialer.Error
	return errors.As(err, &de) && de.Stage == dialer.StageEndpoint
}

// mostTelling returns the failure that came furthest: an API server that an agent could not reach says more than another agent's
// silence.
func mostTelling(failures []error) error {
	for _, err := range failures {
		if atEndpoint(err) {
			return err
		}
	}
	return failures[len(failures)-1]
}

// candidates returns the cluster's sessions, the one to try first first: not draining, answering, of the lane, least loaded, and
// in turn among equals.
func (s *Server) candidates(cluster string, lane dialer.Purpose) ([]*session, time.Time) {
	s.mu.Lock()
	c := s.clusters[cluster]
	if c == nil {
		s.mu.Unlock()
		return nil, time.Time{}
	}
	c.next++
	n := len(c.sessions)
	rotated := make([]*session, 0, n)
	for i := range n {
		rotated = append(rotated, c.sessions[(c.next+i)%n])
	}
	lastSeen := c.lastSeen
	s.mu.Unlock()

	rank := make(map[*session]int, n)
	now := time.Now()
	for _, se := range rotated {
		open, draining, unanswered := se.load()
		r := open
		if se.lane != lane {
			r += 1 << 20
		}
		if unanswered || se.stalled(now, busyAfter) {
			r += 1 << 21
		}
		if draining {
			r += 1 << 22
		}
		rank[se] = r
	}
	slices.SortStableFunc(rotated, func(a, b *session) int { return cmp.Compare(rank[a], rank[b]) })
	return rotated, lastSeen
}

// AgentCertificate is that which ends first, of the certificates that the cluster's agents have connected with. It is nil without an
// agent, and must not be changed.
func (s *Server) AgentCertificate(cluster string) *x509.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var first *x509.Certificate
	if c := s.clusters[cluster]; c != nil {
		for _, se := range c.sessions {
			if cert := se.peer.certificates[0]; first == nil || cert.NotAfter.Before(first.NotAfter) {
				first = cert
			}
		}
	}
	return first
}
