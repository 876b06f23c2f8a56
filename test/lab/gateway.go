// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	gatewayGroup    = "cluster.core.oam.dev"
	gatewayVersion  = "v1alpha1"
	agentOrg        = gatewayGroup + ":tunnel-agents"
	clusterBasePath = "/apis/" + gatewayGroup + "/" + gatewayVersion + "/clustergateways/"
)

// GatewayOptions describes a gateway.
type GatewayOptions struct {
	// Name is the name in errors and of the log file. Empty means "gateway".
	Name string
	// Hub is its hub cluster. Required, and not firewalled.
	Hub *Cluster
	// HubEndpoint is where the gateway reaches the hub. Empty means the hub's own endpoint.
	HubEndpoint string
	// Binary is the gateway; see [BuildGateway]. Required.
	Binary string
	// Konnectivity is the stock server to tunnel through. Nil means the gateway's own tunnel server,
	// which creates its own certificates.
	Konnectivity *KonnectivityServer
	// AgentsOf is the cluster whose agents reach the tunnel server at the address
	// that agent-bootstrap gives them. Nil means agents on the host.
	AgentsOf *Cluster
	// TunnelOff switches tunnels off.
	TunnelOff bool
	// Port is the port of its own endpoint. 0 means a free one.
	Port int
	// Verbosity is the gateway's log level.
	Verbosity int
	// ExtraArgs come last, so they override.
	ExtraArgs []string
	// ReadyPath is polled until it answers 200. Empty means /readyz.
	ReadyPath string
	// Env is added to the environment.
	Env []string
}

// Gateway is a gateway that runs as a process on the lab's host.
type Gateway struct {
	*Process
	hub        *Cluster
	lab        *Lab
	opts       GatewayOptions
	port       int
	tunnelPort int
	// caPEM verifies the serving certificate, and tunnelCA signs the agents'
	// certificates. The gateway makes both; these were valid at its last start.
	caPEM    []byte
	tunnelCA *CA
	dir      string
}

// gatewayVariable names a folder in which BuildGateways has built the gateway, so
// that the packages of one test run share one build.
const gatewayVariable = variablePrefix + "GATEWAY"

// Programs that BuildGateways builds: the gateway, and the one of BuildRenewingGateway.
const (
	gatewayProgram  = "gateway"
	renewingProgram = "renewing-gateway"
)

// gatewayFile returns the path of a program in a folder of BuildGateways.
func gatewayFile(dir, program string, race bool) string {
	if race {
		program += "-race"
	}
	return filepath.Join(dir, program)
}

// BuildGateways builds the gateways of this checkout into dir: that of
// [BuildGateway] without and with the race detector, and that of
// [BuildRenewingGateway] with the race detector. These functions then return
// these builds if $CLUSTER_GATEWAY_LAB_GATEWAY is dir.
func BuildGateways(ctx context.Context, dir string) error {
	for _, build := range []struct {
		program string
		race    bool
	}{{gatewayProgram, false}, {gatewayProgram, true}, {renewingProgram, true}} {
		if err := buildGateway(ctx, build.program, gatewayFile(dir, build.program, build.race), build.race); err != nil {
			return err
		}
	}
	return nil
}

// BuildGateway returns the path of the gateway of this checkout. It builds the
// gateway into dir unless $CLUSTER_GATEWAY_LAB_GATEWAY is a folder that
// contains it. race adds the race detector.
func BuildGateway(ctx context.Context, dir string, race bool) (string, error) {
	return findOrBuildGateway(ctx, gatewayProgram, dir, race)
}

// RenewTokensAfterVariable is the environment variable for the age at which a
// gateway of [BuildRenewingGateway] renews tokens.
const RenewTokensAfterVariable = "RENEW_TOKENS_AFTER"

// BuildRenewingGateway is like [BuildGateway], but for a gateway that renews
// tokens early.
func BuildRenewingGateway(ctx context.Context, dir string, race bool) (string, error) {
	return findOrBuildGateway(ctx, renewingProgram, dir, race)
}

func findOrBuildGateway(ctx context.Context, program, dir string, race bool) (string, error) {
	if built := os.Getenv(gatewayVariable); built != "" {
		path := gatewayFile(built, program, race)
		if !executable(path) {
			return "", fmt.Errorf("invalid $%s %q: the folder does not contain the program %s", gatewayVariable, built, filepath.Base(path))
		}
		return path, nil
	}
	path := gatewayFile(filepath.Join(dir, "bin"), program, race)
	return path, buildGateway(ctx, program, path, race)
}

func buildGateway(ctx context.Context, program, path string, race bool) error {
	pkg := "./cmd/gateway"
	if program == renewingProgram {
		pkg = "./test/lab/cmd/renewing-gateway"
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the gateway: %w\n%s", err, out)
	}
	return nil
}

// StartGateway starts a gateway with the ServiceAccount and the RBAC of
// manifests/gateway, and waits until it is ready.
func (l *Lab) StartGateway(ctx context.Context, o GatewayOptions) (*Gateway, error) {
	if o.Name == "" {
		o.Name = "gateway"
	}
	g := &Gateway{lab: l, hub: o.Hub, opts: o, dir: filepath.Join(l.dir, o.Name)}
	if err := g.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", o.Name, err)
	}
	return g, g.Start(ctx)
}

// Start restarts the gateway after Stop or Kill, on the same ports.
func (g *Gateway) Start(ctx context.Context) error {
	var err error
	g.Process, err = g.lab.StartProcess(ctx, ProcessOptions{
		Name:      g.opts.Name,
		Path:      g.opts.Binary,
		Args:      append(g.args(), g.opts.ExtraArgs...),
		Env:       g.opts.Env,
		ReadyFunc: g.ready,
	})
	if err != nil || g.opts.TunnelOff || g.opts.Konnectivity != nil {
		return err
	}
	if err := g.awaitTunnel(ctx); err != nil {
		return fmt.Errorf("wait for what %s publishes about its tunnel: %w", g.opts.Name, err)
	}
	return nil
}

// ready polls the gateway, and verifies it with the CA that the gateway has written to the hub.
func (g *Gateway) ready(ctx context.Context) error {
	secret, err := g.hub.client.CoreV1().Secrets(defaultServiceNamespace).Get(ctx, "cluster-gateway-serving", metav1.GetOptions{})
	if err != nil {
		return err
	}
	g.caPEM = secret.Data[corev1.ServiceAccountRootCAKey]
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(g.caPEM) {
		return errors.New("the Secret cluster-gateway-serving has no CA")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	return get(ctx, &http.Client{Transport: transport}, g.Endpoint()+cmp.Or(g.opts.ReadyPath, "/readyz"))
}

// awaitTunnel waits until the hub has everything that registering a cluster
// requires, and reads the tunnel's CA.
func (g *Gateway) awaitTunnel(ctx context.Context) error {
	const name = "cluster-gateway-tunnel"
	return g.waitReady(ctx, defaultReadyTimeout, func(ctx context.Context) error {
		if _, err := g.hub.client.CoreV1().ConfigMaps(defaultServiceNamespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		secret, err := g.hub.client.CoreV1().Secrets(defaultServiceNamespace).Get(ctx, name+"-ca", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if g.tunnelCA, err = ParseCA(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]); err != nil {
			return err
		}
		return replaceFile(g.file("tunnel-ca.crt"), secret.Data[corev1.ServiceAccountRootCAKey], 0o644)
	})
}

func (g *Gateway) prepare(ctx context.Context) (err error) {
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return err
	}
	if g.port = g.opts.Port; g.port == 0 {
		if g.port, err = g.lab.FreePort(); err != nil {
			return err
		}
	}
	if g.tunnelPort, err = g.lab.FreePort(); err != nil {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	// The rest of the base is for a gateway in a Pod.
	manifests := filepath.Join(root, "manifests", "gateway")
	apply := g.hub.Kubectl(ctx, "apply", "--validate=strict",
		"-f", filepath.Join(manifests, "namespace.yaml"), "-f", filepath.Join(manifests, "rbac.yaml"))
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("apply manifests/gateway: %w\n%s", err, out)
	}
	token, err := g.hub.ServiceAccountToken(ctx, defaultServiceNamespace, "cluster-gateway", "")
	if err != nil {
		return err
	}
	return WriteKubeconfig(g.file("hub.kubeconfig"), cmp.Or(g.opts.HubEndpoint, g.hub.Endpoint()), g.hub.CAPEM(), &clientcmdapi.AuthInfo{Token: token})
}

func (g *Gateway) file(name string) string { return filepath.Join(g.dir, name) }

func (g *Gateway) args() []string {
	args := []string{
		"--kubeconfig=" + g.file("hub.kubeconfig"),
		"--bind-address=" + loopback,
		"--secure-port=" + strconv.Itoa(g.port),
		"--v=" + strconv.Itoa(g.opts.Verbosity),
	}
	switch {
	case g.opts.TunnelOff:
		return append(args, "--tunnel-mode=off")
	case g.opts.Konnectivity != nil:
		args = append(args, "--tunnel-mode=external", "--konnectivity-server="+g.opts.Konnectivity.Address())
		if g.opts.Konnectivity.CAFile() != "" {
			args = append(args, "--konnectivity-ca-file="+g.opts.Konnectivity.CAFile(),
				"--konnectivity-cert-file="+g.opts.Konnectivity.ClientCertFile(), "--konnectivity-key-file="+g.opts.Konnectivity.ClientKeyFile())
		}
		return args
	default:
		args = append(args, "--tunnel-port="+strconv.Itoa(g.tunnelPort),
			"--tunnel-advertise-address="+net.JoinHostPort(g.advertised(), strconv.Itoa(g.tunnelPort)), "--tunnel-advertise-address=localhost")
		for _, ip := range g.lab.hostAddrs() {
			args = append(args, "--tunnel-advertise-address="+ip.String())
		}
		return args
	}
}

// advertised returns the host that agents must dial.
func (g *Gateway) advertised() string {
	if g.opts.AgentsOf == nil {
		return loopback
	}
	return g.lab.HostAddr(g.opts.AgentsOf)
}

// Endpoint returns the gateway's own HTTPS endpoint.
func (g *Gateway) Endpoint() string { return localURL("https", g.port) }

// CAPEM returns the CA that verified the gateway's own endpoint when the gateway
// was last started.
func (g *Gateway) CAPEM() []byte { return g.caPEM }

// TunnelPort returns the port that agents connect to.
func (g *Gateway) TunnelPort() int { return g.tunnelPort }

// TunnelCA returns the CA that signs the certificates of agents and of the tunnel
// server: the one that the gateway had when it was last started. With an external
// Konnectivity server, or without tunnels, it is nil.
func (g *Gateway) TunnelCA() *CA { return g.tunnelCA }

// RegisterAPIService registers the gateway with its hub, as manifests/gateway does: without a CA,
// which the gateway writes.
func (g *Gateway) RegisterAPIService(ctx context.Context) error {
	return g.lab.RegisterAPIService(ctx, g.hub, APIServiceOptions{
		Group: gatewayGroup, Version: gatewayVersion, Port: g.port,
	})
}

// AgentOptions returns the options of an agent of c that connects to the gateway's own tunnel
// server, with a certificate for the cluster name.
func (g *Gateway) AgentOptions(name string, c *Cluster) (AgentOptions, error) {
	pair, err := g.tunnelCA.Issue(CertOptions{CN: name, Orgs: []string{agentOrg}})
	if err != nil {
		return AgentOptions{}, err
	}
	o := AgentOptions{Name: "agent-" + name, Cluster: c, ServerPort: g.tunnelPort, CAFile: g.file("tunnel-ca.crt")}
	o.CertFile, o.KeyFile, err = pair.WriteFiles(g.dir, "agent-"+name)
	return o, err
}

// StartAgent starts an agent of c and waits until it is connected.
func (g *Gateway) StartAgent(ctx context.Context, name string, c *Cluster) (*Agent, error) {
	o, err := g.AgentOptions(name, c)
	if err != nil {
		return nil, err
	}
	a, err := g.lab.StartAgent(ctx, o)
	if err != nil {
		return nil, err
	}
	return a, a.WaitReady(ctx)
}

// Via is one of the two endpoints of a gateway for clients.
type Via string

// The endpoints.
const (
	ViaHub         Via = "hub"          // the hub's aggregation layer
	ViaOwnEndpoint Via = "own-endpoint" // the gateway itself
)

// ClusterKubeconfig writes a kubeconfig with which the hub's administrator reaches a cluster
// through the gateway, and returns its path.
func (g *Gateway) ClusterKubeconfig(cluster string, via Via) (string, error) {
	path := g.file(fmt.Sprintf("%s-%s.kubeconfig", cluster, via))
	server, ca := g.endpoint(via)
	return path, WriteKubeconfig(path, server+clusterBasePath+cluster+"/proxy", ca,
		&clientcmdapi.AuthInfo{ClientCertificateData: g.hub.AdminCertPEM(), ClientKeyData: g.hub.AdminKeyPEM()})
}

// ClusterRESTConfig is like ClusterKubeconfig, without a rate limit.
func (g *Gateway) ClusterRESTConfig(cluster string, via Via) *rest.Config {
	config := g.RESTConfig(via)
	config.Host += clusterBasePath + cluster + "/proxy"
	return config
}

// RESTConfig reaches the gateway's own API at one of its endpoints, as the hub's
// administrator.
func (g *Gateway) RESTConfig(via Via) *rest.Config {
	server, ca := g.endpoint(via)
	return &rest.Config{
		Host: server, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca, CertData: g.hub.AdminCertPEM(), KeyData: g.hub.AdminKeyPEM()},
	}
}

func (g *Gateway) endpoint(via Via) (server string, ca []byte) {
	if via == ViaHub {
		return g.hub.Endpoint(), g.hub.CAPEM()
	}
	return g.Endpoint(), g.CAPEM()
}

// Metrics returns the response of the gateway's /metrics.
func (g *Gateway) Metrics(ctx context.Context) ([]byte, error) {
	client, err := rest.UnversionedRESTClientFor(withCodec(g.RESTConfig(ViaOwnEndpoint)))
	if err != nil {
		return nil, err
	}
	return client.Get().AbsPath("/metrics").DoRaw(ctx)
}

// Metric sums the samples of a metric of the gateway: see [SumMetric].
func (g *Gateway) Metric(ctx context.Context, name string, labels ...string) (float64, error) {
	text, err := g.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	return SumMetric(text, name, labels...)
}

// SumMetric sums the samples of a metric in a response of /metrics whose labels
// include all of the given ones, each written as name="value".
func SumMetric(text []byte, name string, labels ...string) (float64, error) {
	sample := regexp.MustCompile(`^` + regexp.QuoteMeta(name) + `(\{.*\})? (\S+)$`)
	sum := 0.0
lines:
	for line := range bytes.Lines(text) {
		m := sample.FindSubmatch(bytes.TrimSpace(line))
		if m == nil {
			continue
		}
		for _, label := range labels {
			if !bytes.Contains(m[1], []byte(label)) {
				continue lines
			}
		}
		value, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum += value
	}
	return sum, nil
}

// SecretOptions describes the Secret that registers a cluster with a gateway.
type SecretOptions struct {
	// Name is the name of the cluster.
	Name string
	// Tunnel chooses the endpoint type ClusterProxy.
	Tunnel bool
	// Data contains the keys: endpoint, ca.crt, token and so on.
	Data map[string][]byte
	// CredentialType is the value of the label. Empty means ServiceAccountToken.
	CredentialType string
	Annotations    map[string]string
}

// RegisterCluster registers c with the hub by a Secret in the form that the gateway
// reads, with the token of a ServiceAccount that is cluster-admin on c.
func (g *Gateway) RegisterCluster(ctx context.Context, name string, c *Cluster, tunnel bool) error {
	token, err := c.ServiceAccountToken(ctx, defaultServiceNamespace, "cluster-gateway", "cluster-admin")
	if err != nil {
		return err
	}
	o := SecretOptions{Name: name, Tunnel: tunnel, Data: map[string][]byte{"ca.crt": c.CAPEM(), "token": []byte(token), "endpoint": []byte(c.Endpoint())}}
	if tunnel && g.opts.Konnectivity != nil {
		// The stock server selects the agent by the host.
		o.Data["endpoint"] = []byte("https://" + net.JoinHostPort(c.Name(), strconv.Itoa(c.Port())))
	}
	return g.hub.ApplySecret(ctx, o)
}

// WriteKubeconfig writes a kubeconfig with one context.
func WriteKubeconfig(path, server string, ca []byte, user *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos["user"] = user
	config.Contexts["context"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "user"}
	config.CurrentContext = "context"
	// kubectl may be reading the file that an earlier call wrote: there is always a whole one.
	next, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_ = next.Close() // it is empty
	if err := clientcmd.WriteToFile(*config, next.Name()); err != nil {
		return err
	}
	return os.Rename(next.Name(), path)
}
