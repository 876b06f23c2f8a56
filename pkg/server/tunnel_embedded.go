// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/enrollment"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// EmbeddedTunnelConfig is the configuration of the Konnectivity server in this process.
type EmbeddedTunnelConfig struct {
	// BindAddress and Port are where agents are accepted. Port 0 means any free port.
	BindAddress net.IP
	Port        int
	// ServerCount is the number of replicas that each agent connects to.
	ServerCount int
	// MaxAgents is the number of agents of one cluster that are accepted.
	MaxAgents int
	// ReceiveBuffer is how many bytes each connection can buffer.
	ReceiveBuffer int

	// AdvertiseAddress is published for the commands that register clusters, as host:port. Empty means
	// that it is not known. Hosts are the names and IP addresses that a serving certificate of the
	// gateway is for.
	AdvertiseAddress string
	Hosts            []string
	// MinTLSVersion is the oldest version of TLS that agents can use.
	MinTLSVersion uint16
	// CALifetime and ServingLifetime are for certificates that the gateway creates. 0 means the
	// defaults of pkg/pki.
	CALifetime, ServingLifetime time.Duration

	// files are the certificates if they come from files. If it is nil, the gateway creates and renews
	// them.
	files *fileCertificates
}

// embeddedConfig reads the certificates if they come from files.
func (o *TunnelOptions) embeddedConfig() (*EmbeddedTunnelConfig, error) {
	c := &EmbeddedTunnelConfig{
		BindAddress: o.BindAddress, Port: o.Port, ServerCount: o.ServerCount, MaxAgents: o.MaxAgents, ReceiveBuffer: o.ConnectionBuffer,
		CALifetime: o.CALifetime, ServingLifetime: o.ServingLifetime, MinTLSVersion: o.minVersion(),
	}
	for i, address := range o.AdvertiseAddresses {
		if i == 0 {
			c.AdvertiseAddress = address
		}
		host, _ := splitAddress(address)
		c.Hosts = append(c.Hosts, host)
	}
	if o.createsCertificates() {
		return c, nil
	}
	var err error
	c.files, err = o.readCertificates()
	return c, err
}

// createsCertificates reports whether the gateway creates the certificates of the embedded server.
func (o *TunnelOptions) createsCertificates() bool {
	return o.CertFile == "" && o.PrivateKeyFile == "" && o.ClientCAFile == ""
}

// embeddedTunnel is the Konnectivity server in this process, with its listener and its
// certificates.
type embeddedTunnel struct {
	// id identifies this process.
	id           string
	server       *tunnel.Server
	listener     net.Listener
	certificates tunnelCertificates
}

var _ tunnelRoute = (*embeddedTunnel)(nil)

// otherReplicas is what the tunnel server has to know about them: [tunnel.Config.Missing] and
// [tunnel.Config.ReplicaAway]. The zero value is for replicas that do not know each other.
type otherReplicas struct {
	missing func(cluster string) bool
	away    func(cluster string) time.Duration
}

// newEmbeddedTunnel listens for agents. run accepts them.
func newEmbeddedTunnel(c *EmbeddedTunnelConfig, hub HubConfig, a *agentAcceptance, m dialer.Memory, others otherReplicas) (*embeddedTunnel, error) {
	var certificates tunnelCertificates = c.files
	if c.files == nil {
		certificates = newKeeperCertificates(c, hub)
	}
	lis, err := net.Listen("tcp", net.JoinHostPort(c.BindAddress.String(), strconv.Itoa(c.Port)))
	if err != nil {
		return nil, fmt.Errorf("cannot listen on --tunnel-bind-address %s, --tunnel-port %d: %w", c.BindAddress, c.Port, err)
	}
	id := uuid.NewString()
	server := tunnel.New(tunnel.Config{
		ServerID: id, ServerCount: c.ServerCount, TLS: certificates.tlsConfig(), ReceiveBuffer: c.ReceiveBuffer, Memory: m,
		MaxAgents: c.MaxAgents, Accept: a.accept, Enroller: newEnroller(hub), Missing: others.missing, ReplicaAway: others.away, Logger: klog.Background().WithName("tunnel"),
	})
	certificates.onTrustChange(server.Reverify)
	return &embeddedTunnel{id: id, server: server, listener: lis, certificates: certificates}, nil
}

// newEnroller registers clusters that have an invitation.
func newEnroller(hub HubConfig) *enrollment.Enroller {
	return enrollment.New(enrollment.Config{
		Secrets: hub.Client.CoreV1().Secrets(hub.SecretNamespace), Namespace: hub.SecretNamespace,
		Events: hub.Client.CoreV1().Events(events.Namespace), Logger: klog.Background().WithName("enrollment"),
	})
}

// dialer implements tunnelRoute.
func (t *embeddedTunnel) dialer(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
	return t.server.Dialer(c.Name, c.Endpoint.Host, purpose), nil
}

// run implements tunnelRoute.
func (t *embeddedTunnel) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.certificates.run(ctx) })
	group.Go(func() error { return t.server.Serve(ctx, t.listener) })
	return group.Wait()
}

// close implements tunnelRoute.
func (t *embeddedTunnel) close() { _ = t.listener.Close() } // no agent has been accepted

// endsSoon returns an error if a certificate that all clusters of the tunnel depend on expires
// soon: one from files, or one that the gateway cannot renew.
func (t *embeddedTunnel) endsSoon(now time.Time) error {
	for _, it := range []struct {
		what string
		cert *x509.Certificate
	}{{"the serving certificate of the tunnel", t.certificates.serving()}, {"the CA of the tunnel", t.certificates.ca()}, {"the CA of agents' certificates", t.certificates.agentsCA()}} {
		if err := expiresSoon(it.what, it.cert, now); err != nil {
			return err
		}
	}
	return nil
}

// withTunnelCACertificate returns how many connected agents have a certificate from the tunnel's
// CA, although there is a CA of agents.
func (t *embeddedTunnel) withTunnelCACertificate() int {
	own, ok := t.certificates.(keeperCertificates)
	if !ok {
		return 0
	}
	authority := own.keeper.Authority()
	if authority == nil {
		return 0
	}
	n := 0
	for _, certificate := range t.server.Certificates() {
		if authority.IssuedByTunnelCA(certificate) {
			n++
		}
	}
	return n
}
