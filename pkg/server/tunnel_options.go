// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"time"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// TunnelOptions say how the gateway reaches clusters behind a firewall. [TunnelConfig] is their
// config.
type TunnelOptions struct {
	// Mode is embedded, external or off.
	Mode string
	// ConnectionBuffer is how many bytes each tunneled connection can buffer.
	ConnectionBuffer int

	// BindAddress and Port are where the embedded server accepts agents.
	BindAddress net.IP
	Port        int
	// CertFile, PrivateKeyFile and ClientCAFile are the certificates of the embedded server. If all
	// are empty, the gateway creates and renews its own.
	CertFile       string
	PrivateKeyFile string
	ClientCAFile   string
	// MinTLSVersion is the oldest version of TLS that agents can use: VersionTLS12 or VersionTLS13.
	MinTLSVersion string
	// AdvertiseAddresses are where agents reach the embedded server, as host:port or host. The first
	// one is published for the commands that register clusters.
	AdvertiseAddresses []string
	// CALifetime and ServingLifetime are for certificates that the gateway creates for the tunnel. 0
	// means the defaults of pkg/pki.
	CALifetime, ServingLifetime time.Duration
	// AgentLifetime is the longest lifetime of agent certificates that the gateway renews. 0 means the
	// default of pkg/pki.
	AgentLifetime time.Duration
	// ServerCount is the number of gateway replicas that each agent connects to. 0 means 2 if replicas
	// forward requests to each other, and otherwise 1.
	ServerCount int
	// MaxAgents is the number of agents of one cluster that the embedded server accepts.
	MaxAgents int

	// KonnectivityServers are the external servers. The files authenticate the gateway and the servers
	// to each other.
	KonnectivityServers  []string
	KonnectivityCAFile   string
	KonnectivityCertFile string
	KonnectivityKeyFile  string
}

// NewTunnelOptions returns the defaults.
func NewTunnelOptions() *TunnelOptions {
	return &TunnelOptions{
		Mode:             string(cluster.TunnelEmbedded),
		ConnectionBuffer: dialer.DefaultReceiveBuffer,
		BindAddress:      net.IPv4zero,
		Port:             8132,
		MinTLSVersion:    "VersionTLS13",
		MaxAgents:        tunnel.DefaultMaxAgents,
	}
}

// AddFlags adds the flags of the group.
func (o *TunnelOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Mode, "tunnel-mode", o.Mode,
		"How to reach clusters on the tunnel route (in the Secret: endpoint type ClusterProxy). One of: embedded (agents connect to this process), external (agents connect to the servers in --konnectivity-server), off.")
	fs.IntVar(&o.ConnectionBuffer, "tunnel-connection-buffer", o.ConnectionBuffer,
		"Number of bytes that each tunneled connection can buffer for a client that reads too slowly. When the buffer is full, the connection is closed. Only exec, attach, cp and port-forward can fill it.")

	fs.IPVar(&o.BindAddress, "tunnel-bind-address", o.BindAddress, "IP address on which the embedded tunnel server accepts agents.")
	fs.IntVar(&o.Port, "tunnel-port", o.Port, "Port on which the embedded tunnel server accepts agents. 0 means any free port.")
	fs.StringVar(&o.CertFile, "tunnel-cert-file", o.CertFile,
		"File with the serving certificate of the embedded tunnel server, in PEM. Requires --tunnel-private-key-file and --tunnel-client-ca-file. The gateway reloads the file when it changes. If none of the three flags is set, the gateway creates and renews these certificates in Secrets of --secret-namespace.")
	fs.StringVar(&o.PrivateKeyFile, "tunnel-private-key-file", o.PrivateKeyFile,
		"File with the private key of --tunnel-cert-file, in PEM. The gateway reloads the file when it changes.")
	fs.StringVar(&o.ClientCAFile, "tunnel-client-ca-file", o.ClientCAFile,
		"File with the CA bundle that verifies the certificates of agents, in PEM. The common name of an agent's certificate is the name of its cluster. The gateway reloads the file when it changes.")
	fs.StringVar(&o.MinTLSVersion, "tunnel-tls-min-version", o.MinTLSVersion,
		"Oldest version of TLS that agents can use. One of: VersionTLS12, VersionTLS13.")
	fs.StringArrayVar(&o.AdvertiseAddresses, "tunnel-advertise-address", o.AdvertiseAddresses,
		"Address where agents reach the embedded tunnel server, as host:port. Can be repeated; further values can also be a host without a port. The serving certificate that the gateway creates is valid for all of them. The agents of newly registered clusters connect to the first one. If it is not set, clusters are registered with agent-bootstrap --tunnel-address.")
	fs.DurationVar(&o.CALifetime, "tunnel-ca-lifetime", o.CALifetime,
		"Lifetime of the CA that the gateway creates for the tunnel. The gateway replaces it after 80 % of this time. Default (0): 10 years.")
	fs.DurationVar(&o.ServingLifetime, "tunnel-cert-lifetime", o.ServingLifetime,
		"Lifetime of the serving certificate that the gateway creates for the tunnel. The gateway renews it after 80 % of this time. Default (0): 90 days.")
	fs.DurationVar(&o.AgentLifetime, "tunnel-agent-cert-lifetime", o.AgentLifetime,
		"Longest lifetime of the agent certificates that the gateway renews. If the previous certificate of an agent had a shorter lifetime, the new one has the same. Default (0): 1 year.")
	fs.IntVar(&o.ServerCount, "tunnel-server-count", o.ServerCount, "Number of gateway replicas that each agent connects to. Default (0): 2 if --peer-advertise-address is set, otherwise 1. If --peer-advertise-address is not set, use the number of replicas.")
	fs.IntVar(&o.MaxAgents, "tunnel-max-agents", o.MaxAgents,
		"Maximum number of agents of one cluster that the embedded tunnel server of each gateway replica accepts. More are refused. Raise it if agents run as a DaemonSet on more nodes.")

	fs.StringArrayVar(&o.KonnectivityServers, "konnectivity-server", o.KonnectivityServers,
		"Address of a konnectivity-server for --tunnel-mode=external, as host:port or unix:///path. Can be repeated. The gateway uses the first server that has an agent of the cluster.")
	fs.StringVar(&o.KonnectivityCAFile, "konnectivity-ca-file", o.KonnectivityCAFile,
		"File with the CA bundle that verifies the certificates of the konnectivity-servers, in PEM.")
	fs.StringVar(&o.KonnectivityCertFile, "konnectivity-cert-file", o.KonnectivityCertFile,
		"File with the client certificate of the gateway for the konnectivity-servers, in PEM.")
	fs.StringVar(&o.KonnectivityKeyFile, "konnectivity-key-file", o.KonnectivityKeyFile,
		"File with the private key of --konnectivity-cert-file, in PEM.")
}

// TunnelConfig is how the gateway reaches clusters behind a firewall.
type TunnelConfig struct {
	Mode cluster.TunnelMode
	// Embedded is set if the mode is embedded, External if it is external.
	Embedded *EmbeddedTunnelConfig
	External *dialer.KonnectivityConfig
	// AgentLifetime is the longest lifetime of agent certificates that the gateway renews. 0 means the
	// default of pkg/pki.
	AgentLifetime time.Duration
}

// config reads the files and returns the values. The options must be valid.
func (o *TunnelOptions) config() (TunnelConfig, error) {
	c := TunnelConfig{Mode: cluster.TunnelMode(o.Mode), AgentLifetime: o.AgentLifetime}
	var err error
	switch c.Mode {
	case cluster.TunnelEmbedded:
		c.Embedded, err = o.embeddedConfig()
	case cluster.TunnelExternal:
		c.External, err = o.externalConfig()
	case cluster.TunnelOff:
	}
	return c, err
}
