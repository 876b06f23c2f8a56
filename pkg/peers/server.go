// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// maxStreams is how many requests one connection of another replica can carry at a time.
	// Another connection is made for more.
	maxStreams = 1000
	// uploadWindow is what one request can send before it is read. pkg/proxy takes that much from
	// the memory budget.
	uploadWindow = 256 << 10
	// readHeaderTimeout limits the header of a request.
	readHeaderTimeout = 10 * time.Second
	// maxRequestHeader is what a kube-apiserver accepts.
	maxRequestHeader = 1 << 20
	// dialTimeout limits a dial on behalf of another replica.
	dialTimeout = 10 * time.Second
)

// Server serves other replicas. It is made by Peers.Server, and runs once.
type Server struct {
	peers  *Peers
	server *http.Server
	// tunnels are the connections of dials, which http.Server does not know any more.
	mu      sync.Mutex
	tunnels map[io.Closer]struct{}
	closed  bool
}

// Server returns the server for other replicas.
func (p *Peers) Server() *Server {
	s := &Server{peers: p, tunnels: map[io.Closer]struct{}{}}
	mux := http.NewServeMux()
	s.server = &http.Server{
		Handler: s.guard(mux), TLSConfig: serverTLS(p.cfg.Credentials), ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: 2 * idleTimeout,
		MaxHeaderBytes: maxRequestHeader, ErrorLog: log.New(logWriter{p.cfg.Logger}, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: uploadWindow,
			// All requests of a connection together never wait for one that is not read.
			MaxReceiveBufferPerConnection: maxStreams * uploadWindow, SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
		},
	}
	mux.HandleFunc("GET "+dialPath, s.dial)
	mux.Handle("/", p.cfg.Forwarded)
	return s
}

// Serve accepts other replicas until ctx ends. It closes the listener.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	defer s.peers.client.close()
	defer context.AfterFunc(ctx, s.close)()
	err := s.server.ServeTLS(lis, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		<-ctx.Done() // after Shutdown, connections are still in use
		s.close()
		return nil
	}
	return err
}

// Shutdown stops to accept connections, and waits until all requests that are not upgrades have
// ended, or until ctx ends.
func (s *Server) Shutdown(ctx context.Context) { _ = s.server.Shutdown(ctx) }

func (s *Server) close() {
	_ = s.server.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.tunnels {
		_ = c.Close()
	}
}

// guard hands on requests of other replicas, for clusters that have an agent here.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The TLS configuration has verified the certificate. A connection can outlive it.
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || verifyPeer(r.TLS.PeerCertificates) != nil ||
			s.peers.cfg.Clock.Now().After(r.TLS.PeerCertificates[0].NotAfter) {
			w.Header().Set("Connection", "close")
			http.Error(w, errNotAPeer.Error(), http.StatusForbidden)
			return
		}
		cluster := r.Header.Get(headerCluster)
		r.Header.Del(headerCluster)
		if cluster == "" || !s.peers.cfg.Here(cluster) || s.peers.Elsewhere(cluster) {
			w.Header().Set(headerRefused, "no-agent")
			http.Error(w, "no agent of the cluster that answers is connected to this replica", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), clusterKey{}, cluster)))
	})
}

type clusterKey struct{}

// ClusterOf returns the cluster for which a request was forwarded. A request for any other cluster
// must not be served.
func ClusterOf(ctx context.Context) string {
	cluster, _ := ctx.Value(clusterKey{}).(string)
	return cluster
}

// dial connects another replica with the API server of a cluster.
func (s *Server) dial(w http.ResponseWriter, r *http.Request) {
	cluster := ClusterOf(r.Context())
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	conn, err := s.peers.cfg.Dial(ctx, cluster)
	if err != nil {
		stage := dialer.StageEndpoint
		var failed *dialer.Error
		if errors.As(err, &failed) {
			stage, err = failed.Stage, failed.Err
		}
		w.Header().Set(headerStage, string(stage))
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer conn.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	defer client.Close()
	if !s.track(client) {
		return
	}
	defer s.untrack(client)
	_ = client.SetDeadline(time.Time{}) // it has deadlines
	_, err = buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + tunnelProtocol + "\r\n\r\n")
	if cmp.Or(err, buffered.Flush()) != nil {
		return
	}
	splice(conn, &readConn{Conn: client, reader: buffered.Reader})
}

func (s *Server) track(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.tunnels[c] = struct{}{}
	return true
}

func (s *Server) untrack(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tunnels, c)
}

// splice copies in both directions, until one of them ends. TLS inside has said by then that it is
// the end.
func splice(a, b net.Conn) {
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1]) // either end may leave at any time
			done <- struct{}{}
		}()
	}
	<-done
	_, _ = a.Close(), b.Close()
	<-done
}

// logWriter logs what http.Server reports, such as failed handshakes.
type logWriter struct{ logger klog.Logger }

func (l logWriter) Write(p []byte) (int, error) {
	l.logger.V(2).Info(string(p))
	return len(p), nil
}
