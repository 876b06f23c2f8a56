// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/peers"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// PeerOptions say how the replicas of the gateway reach each other. [PeerConfig] is their config.
type PeerOptions struct {
	// BindAddress and Port are where other replicas are accepted.
	BindAddress net.IP
	Port        int
	// AdvertiseAddress is the host at which other replicas reach this one. Empty means that replicas
	// do not forward requests to each other.
	AdvertiseAddress string
}

// NewPeerOptions returns the defaults.
func NewPeerOptions() *PeerOptions { return &PeerOptions{BindAddress: net.IPv4zero, Port: 8133} }

// AddFlags adds the flags of the group.
func (o *PeerOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.AdvertiseAddress, "peer-advertise-address", o.AdvertiseAddress,
		"IP address or host name at which the other replicas of the gateway reach this one, usually the IP address of the Pod. With it, a replica forwards requests for clusters whose agents are connected to other replicas. If it is empty, replicas do not forward requests, and agents must connect to each replica.")
	fs.IPVar(&o.BindAddress, "peer-bind-address", o.BindAddress, "IP address on which this replica accepts the other ones.")
	fs.IntVar(&o.Port, "peer-port", o.Port, "Port on which this replica accepts the other ones. 0 means any free port.")
}

// Validate returns every fault. mode is the --tunnel-mode.
func (o *PeerOptions) Validate(mode string) []error {
	var errs []error
	if o.Port < 0 || o.Port > 65535 {
		errs = append(errs, invalid("peer-port", o.Port, "must be between 0 and 65535"))
	}
	switch {
	case o.AdvertiseAddress == "":
	case net.ParseIP(o.AdvertiseAddress) == nil && len(validation.IsDNS1123Subdomain(o.AdvertiseAddress)) > 0:
		errs = append(errs, invalid("peer-advertise-address", o.AdvertiseAddress, "must be an IP address or a host name, without a port"))
	case mode != string(cluster.TunnelEmbedded):
		errs = append(errs, invalid("peer-advertise-address", o.AdvertiseAddress, "must not be set unless --tunnel-mode is embedded"))
	}
	return errs
}

// PeerConfig is how the replicas reach each other.
type PeerConfig struct {
	BindAddress      net.IP
	Port             int
	AdvertiseAddress string
}

// config returns nil if replicas do not forward requests.
func (o *PeerOptions) config() *PeerConfig {
	if o.AdvertiseAddress == "" {
		return nil
	}
	return &PeerConfig{BindAddress: o.BindAddress, Port: o.Port, AdvertiseAddress: o.AdvertiseAddress}
}

// replicas are the other replicas, with the listener for them and the certificate.
type replicas struct {
	*peers.Peers
	keeper   *pki.Keeper
	listener net.Listener
	server   *peers.Server
	metrics  *peers.Metrics
	// forwarded serves the requests that they forward. It is set before run.
	forwarded http.Handler
}

// newReplicas listens. run accepts other replicas.
func newReplicas(c *PeerConfig, hub HubConfig, t *embeddedTunnel, clusters proxyClusters) (*replicas, error) {
	lis, err := net.Listen("tcp", net.JoinHostPort(c.BindAddress.String(), strconv.Itoa(c.Port)))
	if err != nil {
		return nil, fmt.Errorf("cannot listen on --peer-bind-address %s, --peer-port %d: %w", c.BindAddress, c.Port, err)
	}
	logger := klog.Background().WithName("peers")
	r := &replicas{listener: lis, metrics: peers.NewMetrics()}
	r.keeper = pki.NewKeeper(pki.KeeperConfig{
		Client: hub.Client, Namespace: hub.SecretNamespace, CASecret: pki.PeerCASecret, ServingSecret: pki.PeerSecret,
		Hosts: []string{peers.ServerName}, Organization: v1alpha1.PeerOrganization, Logger: logger,
	})
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		return nil, err
	}
	r.Peers = peers.New(peers.Config{
		Client: hub.Client, Namespace: hub.SecretNamespace, ID: t.id, Address: net.JoinHostPort(c.AdvertiseAddress, port),
		Credentials: r.keeper, Metrics: r.metrics, Logger: logger,
		Here:      func(name string) bool { n, _ := t.server.Agents(name); return n > 0 },
		Answers:   t.server.Answers,
		Forwarded: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.forwarded.ServeHTTP(w, req) }),
		Dial: func(ctx context.Context, name string) (net.Conn, error) {
			known, ok := clusters.Get(name)
			if !ok || known.Err() != nil || known.Route != cluster.RouteTunnel {
				return nil, fmt.Errorf("this replica does not know cluster %q, or cannot use it", name)
			}
			d, err := t.dialer(known, dialer.ForRequests)
			if err != nil {
				return nil, err
			}
			// The dialer is not closed: it would close the connection.
			return d.DialContext(ctx, "tcp", known.Endpoint.Host)
		},
	})
	r.server = r.Peers.Server()
	return r, nil
}

// proxyClusters returns what is known about clusters. *registry.Store implements it.
type proxyClusters interface {
	Get(name string) (*cluster.Cluster, bool)
}

// run serves other replicas until ctx ends.
func (r *replicas) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.keeper.Follow(ctx) })
	group.Go(func() error { return r.Peers.Run(ctx) })
	group.Go(func() error { return r.server.Serve(ctx, r.listener) })
	return group.Wait()
}

// peerShutdown is how long requests that other replicas have forwarded may take at the end, after
// this replica has told the others that it drains.
const peerShutdown = 10 * time.Second

// drain waits for the requests that other replicas have forwarded.
func (r *replicas) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), peerShutdown)
	defer cancel()
	r.server.Shutdown(ctx)
}

// peerDialer returns the dialer for a renewal: through another replica if the agents of the cluster
// are connected there.
func (r *replicas) peerDialer(next func(*cluster.Cluster, dialer.Purpose) (dialer.Dialer, error)) func(*cluster.Cluster) (dialer.Dialer, error) {
	return func(c *cluster.Cluster) (dialer.Dialer, error) {
		if r != nil && c.Route == cluster.RouteTunnel && r.Elsewhere(c.Name) {
			return r.Dialer(c.Name), nil
		}
		return next(c, dialer.ForRequests)
	}
}
