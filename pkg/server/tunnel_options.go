// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/enrollment"
	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// TunnelOptions say how firewalled clusters are reached.
type TunnelOptions struct {
	// Mode is embedded, external or off.
	Mode string
	// ConnectionBuffer bounds the receive buffer of each tunnelled connection, in bytes.
	ConnectionBuffer int

	// The embedded server: where agents connect, the serving pair, the CA of agent certificates. Without any of the three files
	// the gateway makes and renews them itself.
	BindAddress    net.IP
	Port           int
	CertFile       string
	PrivateKeyFile string
	ClientCAFile   string
	// AdvertiseAddresses are where agents find the tunnel server, as host:port or host; the first is told to those who register
	// clusters. The lifetimes are of what the gateway makes itself; 0 means the defaults of pkg/pki.
	AdvertiseAddresses          []string
	CALifetime, ServingLifetime time.Duration
	// AgentLifetime is the longest life of agents' certificates that the gateway issues when it renews them; 0 means the default.
	AgentLifetime time.Duration
	// ServerCount is the number of gateway replicas that every agent connects to.
	ServerCount int

	// The external servers, and what the gateway and they know each other by.
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
		ServerCount:      1,
	}
}

// AddFlags adds the flags of the group.
func (o *TunnelOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Mode, "tunnel-mode", o.Mode,
		"How clusters with the endpoint type ClusterProxy are reached: 'embedded', agents connect to this process; 'external', they connect to the --konnectivity-server; 'off', not at all.")
	fs.IntVar(&o.ConnectionBuffer, "tunnel-connection-buffer", o.ConnectionBuffer,
		"Bytes that each tunnelled connection holds for a client that does not keep up; then that connection ends. Only exec, attach, cp and port-forward come near it.")
	fs.IPVar(&o.BindAddress, "tunnel-bind-address", o.BindAddress, "embedded: address on which agents are accepted.")
	fs.IntVar(&o.Port, "tunnel-port", o.Port, "embedded: port on which agents are accepted. 0: one that is free.")
	fs.StringVar(&o.CertFile, "tunnel-cert-file", o.CertFile, "embedded: serving certificate shown to agents, PEM. Reloaded when it changes. Without this and the two flags that belong to it, the gateway makes and renews all three itself, in Secrets of --secret-namespace.")
	fs.StringVar(&o.PrivateKeyFile, "tunnel-private-key-file", o.PrivateKeyFile, "embedded: key of --tunnel-cert-file, PEM. Reloaded when it changes.")
	fs.StringVar(&o.ClientCAFile, "tunnel-client-ca-file", o.ClientCAFile,
		"embedded: CA bundle of agent certificates, PEM. A certificate's common name is the cluster that its agent serves. Reloaded when it changes.")
	fs.StringArrayVar(&o.AdvertiseAddresses, "tunnel-advertise-address", o.AdvertiseAddresses,
		"embedded: where agents find this server, as host:port. May be given more than once, also as host alone: the serving certificate that the gateway makes is for all of them. The first is what agents of newly registered clusters are told.")
	fs.DurationVar(&o.CALifetime, "tunnel-ca-lifetime", o.CALifetime, "embedded: life of a CA that the gateway makes for the tunnel; replaced at 80 % of it. 0: 10 years.")
	fs.DurationVar(&o.ServingLifetime, "tunnel-cert-lifetime", o.ServingLifetime, "embedded: life of a serving certificate that the gateway makes for the tunnel; renewed at 80 % of it. 0: 90 days.")
	fs.DurationVar(&o.AgentLifetime, "tunnel-agent-cert-lifetime", o.AgentLifetime, "Longest life of the certificates that the gateway renews for agents; one that was issued for less when the cluster was registered is followed by one for as much. 0: 1 year.")
	fs.IntVar(&o.ServerCount, "tunnel-server-count", o.ServerCount, "embedded: number of gateway replicas that every agent connects to.")
	fs.StringArrayVar(&o.KonnectivityServers, "konnectivity-server", o.KonnectivityServers,
		"external: a konnectivity-server, as host:port or unix:///path. May be given more than once; the first that has an agent of the cluster is used.")
	fs.StringVar(&o.KonnectivityCAFile, "konnectivity-ca-file", o.KonnectivityCAFile, "external: CA of the konnectivity-servers' certificates, PEM.")
	fs.StringVar(&o.KonnectivityCertFile, "konnectivity-cert-file", o.KonnectivityCertFile, "external: client certificate shown to the konnectivity-servers, PEM.")
	fs.StringVar(&o.KonnectivityKeyFile, "konnectivity-key-file", o.KonnectivityKeyFile, "external: key of --konnectivity-cert-file, PEM.")
}

// Validate returns every fault.
func (o *TunnelOptions) Validate() []error {
	var errs []error
	if o.ConnectionBuffer < 64<<10 {
		errs = append(errs, fmt.Errorf("--tunnel-connection-buffer must be at least 65536, and is %d", o.ConnectionBuffer))
	}
	switch cluster.TunnelMode(o.Mode) {
	case cluster.TunnelOff:
	case cluster.TunnelEmbedded:
		errs = append(errs, o.validateEmbedded()...)
	case cluster.TunnelExternal:
		errs = append(errs, o.validateExternal()...)
	default:
		errs = append(errs, fmt.Errorf("--tunnel-mode must be embedded, external or off, and is %q", o.Mode))
	}
	return errs
}

func (o *TunnelOptions) validateEmbedded() []error {
	var errs []error
	if o.Port < 0 || o.Port > 65535 {
		errs = append(errs, fmt.Errorf("--tunnel-port must be between 0 and 65535, and is %d", o.Port))
	}
	if o.ServerCount < 1 {
		errs = append(errs, fmt.Errorf("--tunnel-server-count must be at least 1, and is %d", o.ServerCount))
	}
	if !o.selfMade() {
		errs = append(errs, requireFiles("--tunnel-mode=embedded with certificates of your own",
			fileFlag{"--tunnel-cert-file", o.CertFile}, fileFlag{"--tunnel-private-key-file", o.PrivateKeyFile},
			fileFlag{"--tunnel-client-ca-file", o.ClientCAFile})...)
	}
	for i, address := range o.AdvertiseAddresses {
		if host, port := splitAddress(address); host == "" || i == 0 && port == "" {
			errs = append(errs, fmt.Errorf("--tunnel-advertise-address %q: must be host:port; only further ones can be a host alone", address))
		}
	}
	errs = append(errs, validateLifetimes(lifetimeFlag{"--tunnel-ca-lifetime", o.CALifetime}, lifetimeFlag{"--tunnel-cert-lifetime", o.ServingLifetime},
		lifetimeFlag{"--tunnel-agent-cert-lifetime", o.AgentLifetime})...)
	if len(o.KonnectivityServers) > 0 {
		errs = append(errs, errors.New("--konnectivity-server is given, and --tunnel-mode is embedded: it is used with --tunnel-mode=external only"))
	}
	return errs
}

// selfMade is whether the gateway makes the certificates of the embedded server.
func (o *TunnelOptions) selfMade() bool {
	return o.CertFile == "" && o.PrivateKeyFile == "" && o.ClientCAFile == ""
}

// lifetimeFlag is a flag that says how long a certificate lives.
type lifetimeFlag struct {
	flag  string
	value time.Duration
}

func validateLifetimes(flags ...lifetimeFlag) []error {
	var errs []error
	for _, f := range flags {
		if f.value < 0 || f.value > 0 && f.value < 10*time.Second {
			errs = append(errs, fmt.Errorf("%s must be 0 or at least 10s, and is %s", f.flag, f.value))
		}
	}
	return errs
}

// splitAddress takes host:port and host alone, also an IPv6 address. The host is empty when it is neither.
func splitAddress(address string) (host, port string) {
	if net.ParseIP(address) != nil {
		return address, ""
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, ""
	} else if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", ""
	}
	if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(host)) > 0 {
		return "", ""
	}
	return host, port
}

func (o *TunnelOptions) validateExternal() []error {
	var errs []error
	if len(o.KonnectivityServers) == 0 {
		errs = append(errs, errors.New("--tunnel-mode=external needs at least one --konnectivity-server"))
	}
	tcp := false
	for _, server := range o.KonnectivityServers {
		if path, unix := strings.CutPrefix(server, "unix://"); unix {
			if !strings.HasPrefix(path, "/") {
				errs = append(errs, fmt.Errorf("--konnectivity-server %q: a Unix socket is written unix:///absolute/path", server))
			}
			continue
		}
		tcp = true
		if host, port, err := net.SplitHostPort(server); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("--konnectivity-server %q: must be host:port or unix:///path", server))
		}
	}
	if tcp {
		errs = append(errs, requireFiles("--konnectivity-server as host:port",
			fileFlag{"--konnectivity-ca-file", o.KonnectivityCAFile}, fileFlag{"--konnectivity-cert-file", o.KonnectivityCertFile},
			fileFlag{"--konnectivity-key-file", o.KonnectivityKeyFile})...)
	}
	return errs
}

// fileFlag is a flag that names a file.
type fileFlag struct{ flag, path string }

func requireFiles(by string, files ...fileFlag) []error {
	var errs []error
	for _, f := range files {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("%s needs %s", by, f.flag))
		} else if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.flag, err))
		}
	}
	return errs
}

// tunnels is what the options make: a way to dial through a tunnel, and something to run for it.
type tunnels struct {
	// dialer returns the dialer of a cluster on the tunnel route.
	dialer func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error)
	// run serves until ctx ends.
	run func(ctx context.Context) error
	// abandon gives back what has been taken, when run will not be called.
	abandon func()
	// address is where agents connect; nil unless the server is embedded.
	address net.Addr
	// certificates are those of the embedded server; nil when there is none.
	certificates *certificateSource
	// server is the embedded server; nil when there is none.
	server *tunnel.Server
	// agents tells of the agents that are connected to this process, and agentCertificate which of their certificates ends first; nil
	// unless the server is embedded.
	agents           health.AgentsInfo
	agentCertificate func(cluster string) *x509.Certificate
}

// keeper keeps the certificates that the gateway makes for the tunnel; nil when it does not.
func (t *tunnels) keeper() *pki.Keeper {
	if t.certificates == nil {
		return nil
	}
	return t.certificates.keeper
}

// hub is where certificates are that the gateway makes itself.
type hub struct {
	client    kubernetes.Interface
	namespace string
}

// enroller takes in clusters with an invitation.
func (h hub) enroller() *enrollment.Enroller {
	return enrollment.New(enrollment.Config{
		Secrets: h.client.CoreV1().Secrets(h.namespace), Namespace: h.namespace, Events: h.client.CoreV1().Events(events.Namespace),
		Logger: klog.Background().WithName("enrollment"),
	})
}

func (o *TunnelOptions) tunnels(ctx context.Context, h hub) (*tunnels, error) {
	switch cluster.TunnelMode(o.Mode) {
	case cluster.TunnelEmbedded:
		return o.embedded(h)
	case cluster.TunnelExternal:
		return o.external(ctx)
	default:
		return &tunnels{
			dialer: func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
				return nil, fmt.Errorf("cluster %q wants a tunnel, and the gateway runs with --tunnel-mode=off", c.Name)
			},
			run:     func(ctx context.Context) error { <-ctx.Done(); return nil },
			abandon: func() {},
		}, nil
	}
}

func (o *TunnelOptions) embedded(h hub) (*tunnels, error) {
	t := &tunnels{}
	var server *tunnel.Server
	reverify := func(opts x509.VerifyOptions) { server.Reverify(opts) }
	var certificates *certificateSource
	var err error
	if o.selfMade() {
		certificates = o.keeper(h, reverify)
	} else if certificates, err = o.files(reverify); err != nil {
		return nil, err
	}
	t.certificates = certificates

	lis, err := net.Listen("tcp", net.JoinHostPort(o.BindAddress.String(), strconv.Itoa(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("--tunnel-bind-address %s, --tunnel-port %d: %w", o.BindAddress, o.Port, err)
	}
	server = tunnel.New(tunnel.Config{
		ServerID: uuid.NewString(), ServerCount: o.ServerCount, TLS: certificates.tls, ReceiveBuffer: o.ConnectionBuffer,
		Enroller: h.enroller(), Logger: klog.Background().WithName("tunnel"),
	})
	t.server = server
	t.address, t.agents, t.agentCertificate = lis.Addr(), server, server.AgentCertificate
	t.abandon = func() { _ = lis.Close() } // nothing has been accepted
	t.dialer = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
		return server.Dialer(c.Name, c.Endpoint.Host, purpose), nil
	}
	t.run = func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return certificates.run(ctx) })
		group.Go(func() error { return server.Serve(ctx, lis) })
		return group.Wait()
	}
	return t, nil
}

// certificateSource is where the tunnel server has its certificates from.
type certificateSource struct {
	tls *tls.Config
	// run follows their changes until ctx ends.
	run func(ctx context.Context) error
	// keeper is nil when they are the user's.
	keeper *pki.Keeper
	// serving and ca are as they are now; nil while they have not been read.
	serving, ca func() *x509.Certificate
}

// keeper has them made by the gateway.
func (o *TunnelOptions) keeper(h hub, reverify func(x509.VerifyOptions)) *certificateSource {
	config := pki.KeeperConfig{
		Client: h.client, Namespace: h.namespace, CALifetime: o.CALifetime, ServingLifetime: o.ServingLifetime,
		// The Service of manifests/gateway, for agents in the hub itself.
		Hosts:  []string{"cluster-gateway-tunnel." + h.namespace + ".svc"},
		Logger: klog.Background().WithName("pki"),
	}
	published := ""
	for i, address := range o.AdvertiseAddresses {
		if i == 0 {
			published = address
		}
		host, _ := splitAddress(address)
		config.Hosts = append(config.Hosts, host)
	}
	k := pki.NewKeeper(config)
	k.OnPublish(pki.PublishTunnel(h.client, h.namespace, published))
	k.OnTrustChange(func(pool *x509.CertPool) { reverify(x509.VerifyOptions{Roots: pool}) })
	return &certificateSource{tls: k.TLS(), run: k.Follow, keeper: k, serving: k.Serving, ca: caOf(k)}
}

// files takes the user's.
func (o *TunnelOptions) files(reverify func(x509.VerifyOptions)) (*certificateSource, error) {
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles("tunnel-serving", o.CertFile, o.PrivateKeyFile)
	if err != nil {
		return nil, fmt.Errorf("--tunnel-cert-file, --tunnel-private-key-file: %w", err)
	}
	ca, err := dynamiccertificates.NewDynamicCAContentFromFile("tunnel-client-ca", o.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("--tunnel-client-ca-file: %w", err)
	}
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert}
	reload := dynamiccertificates.NewDynamicServingCertificateController(base, ca, serving, nil, nil)
	if err := reload.RunOnce(); err != nil {
		return nil, fmt.Errorf("the certificates of the tunnel server: %w", err)
	}
	config := base.Clone()
	config.GetConfigForClient = reload.GetConfigForClient
	ca.AddListener(reload)
	ca.AddListener(reverifier{ca: ca, reverify: reverify})
	serving.AddListener(reload)
	return &certificateSource{
		tls: config,
		run: func(ctx context.Context) error {
			go ca.Run(ctx, 1)
			go serving.Run(ctx, 1)
			reload.Run(1, ctx.Done())
			return nil
		},
		serving: func() *x509.Certificate { cert, _ := serving.CurrentCertKeyContent(); return firstCertificate(cert) },
		ca:      func() *x509.Certificate { return firstCertificate(ca.CurrentCABundleContent()) },
	}, nil
}

// reverifier ends the streams of agents that a changed CA bundle no longer covers.
type reverifier struct {
	ca       dynamiccertificates.CAContentProvider
	reverify func(x509.VerifyOptions)
}

var _ dynamiccertificates.Listener = reverifier{}

// Enqueue implements dynamiccertificates.Listener.
func (r reverifier) Enqueue() {
	if opts, ok := r.ca.VerifyOptions(); ok {
		r.reverify(opts)
	}
}

func (o *TunnelOptions) external(ctx context.Context) (*tunnels, error) {
	config := dialer.KonnectivityConfig{
		Servers: o.KonnectivityServers, PlainText: insecure.NewCredentials(), ReceiveBuffer: o.ConnectionBuffer,
	}
	if o.KonnectivityCertFile != "" {
		tlsConfig, err := o.konnectivityTLS()
		if err != nil {
			return nil, err
		}
		config.TLS = credentials.NewTLS(tlsConfig)
	}
	k, err := dialer.NewKonnectivity(ctx, config)
	if err != nil {
		return nil, err
	}
	return &tunnels{
		dialer: func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
			return k.Dialer(c.Name, c.Endpoint.Host), nil
		},
		run:     func(ctx context.Context) error { <-ctx.Done(); return k.Close() },
		abandon: func() { _ = k.Close() }, // nothing has been dialled
	}, nil
}

func (o *TunnelOptions) konnectivityTLS() (*tls.Config, error) {
	pem, err := os.ReadFile(o.KonnectivityCAFile)
	if err != nil {
		return nil, fmt.Errorf("--konnectivity-ca-file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--konnectivity-ca-file %s holds no certificate in PEM", o.KonnectivityCAFile)
	}
	if _, err := tls.LoadX509KeyPair(o.KonnectivityCertFile, o.KonnectivityKeyFile); err != nil {
		return nil, fmt.Errorf("--konnectivity-cert-file, --konnectivity-key-file: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots,
		// Read for each connection: these are few and long-lived, and so a renewed pair needs no restart.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.KonnectivityCertFile, o.KonnectivityKeyFile)
			return &pair, err
		},
	}, nil
}
