// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// ClusterOptions describes a cluster.
type ClusterOptions struct {
	// Name is a DNS label, unique in the lab. Required.
	Name string
	// Firewalled blocks connections into the cluster. It requires root. Without root, the lab reports
	// that, and the cluster is an ordinary one.
	Firewalled bool
	// NoControllerManager leaves out kube-controller-manager. The cluster then starts faster, but has
	// no default ServiceAccounts and no garbage collection.
	NoControllerManager bool
	// NoKwok leaves out kwok. The cluster then has no Node.
	NoKwok bool
	// AuditUsers are the users whose requests the API server records, for [Cluster.AuditEvents]. Empty
	// means nobody.
	AuditUsers []string
	// ExtraAPIServerArgs are added to kube-apiserver's arguments.
	ExtraAPIServerArgs []string
}

// Cluster is a Kubernetes cluster. It is safe for concurrent use.
type Cluster struct {
	lab  *Lab
	opts ClusterOptions
	dir  string

	// ns is nil for a cluster on the host.
	ns *namespace
	// unfirewalled is the reason why a cluster with Firewalled has no firewall.
	unfirewalled error

	address string // of the API server, without port
	ports   clusterPorts
	pki     *clusterPKI
	targets *targets

	kubeconfig string
	rest       *rest.Config
	client     *kubernetes.Clientset

	mu        sync.Mutex
	apiserver *Process

	stopOnce sync.Once
	stopErr  error
}

// httpsPort is the port of the API server in a cluster whose network namespace has all ports free.
const httpsPort = 443

type clusterPorts struct{ etcd, etcdPeer, apiserver, controllerManager, kubelet int }

// StartCluster starts a cluster and returns when it can be used: the API server is ready, the
// controllers run, and the Node is ready. ctx bounds only the start. The cluster runs until it is
// stopped or the lab is closed.
func (l *Lab) StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	ctx, done, err := l.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("start cluster %q: %w", o.Name, err)
	}
	defer done()
	c, err := l.newCluster(o)
	if err != nil {
		return nil, fmt.Errorf("start cluster %q: %w", o.Name, err)
	}
	if err := c.start(ctx); err != nil {
		return nil, l.noteFailure(fmt.Errorf("start cluster %q: %w", o.Name, errors.Join(err, c.Stop())))
	}
	return c, nil
}

func (l *Lab) newCluster(o ClusterOptions) (*Cluster, error) {
	if problems := validation.IsDNS1123Label(o.Name); len(problems) > 0 {
		return nil, fmt.Errorf("its name is invalid: %v", problems)
	}
	c := &Cluster{lab: l, opts: o, dir: filepath.Join(l.dir, o.Name), address: loopback}
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Name == logDirName || slices.ContainsFunc(l.clusters, func(other *Cluster) bool { return other.opts.Name == o.Name }) {
		return nil, errors.New("its name is taken")
	}
	l.clusters = append(l.clusters, c)
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	for _, dir := range []string{c.LogDir(), c.dataDir(), c.pkiDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	c.raiseFirewall()
	for _, step := range []func() error{c.choosePorts, c.issue, c.writeKubeconfig, c.connect, c.startTargets} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	return c.startWorkers(ctx)
}

// raiseFirewall creates the namespace of a firewalled cluster.
func (c *Cluster) raiseFirewall() {
	if !c.opts.Firewalled {
		return
	}
	ns, err := newNamespace(os.TempDir())
	if err != nil {
		c.unfirewalled = err
		fmt.Fprintf(c.lab.out, "lab: cluster %s: firewall skipped: %v\n", c.opts.Name, err)
		return
	}
	c.ns, c.address = ns, ns.inside.String()
}

func (c *Cluster) choosePorts() error {
	choose := []*int{&c.ports.etcd, &c.ports.etcdPeer, &c.ports.controllerManager, &c.ports.kubelet}
	if c.ns != nil {
		// As in any real cluster: an agent reaches kubernetes.default.svc:443.
		c.ports.apiserver = httpsPort
	} else {
		choose = append(choose, &c.ports.apiserver)
	}
	for _, port := range choose {
		var err error
		if *port, err = c.lab.ports.free(c.ns); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops the cluster and everything else that was started in it, and waits until all of it has
// ended. It can be called more than once, and concurrently.
func (c *Cluster) Stop() error {
	c.stopOnce.Do(func() { c.stopErr = c.stop() })
	return c.stopErr
}

func (c *Cluster) stop() error {
	mine := slices.DeleteFunc(c.lab.Processes(), func(p *Process) bool { return p.cluster != c })
	errs := []error{stopAll(mine)}
	if c.targets != nil {
		errs = append(errs, c.targets.close())
	}
	if c.ns != nil {
		errs = append(errs, c.ns.close())
	}
	return errors.Join(errs...)
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.opts.Name }

// Endpoint returns the URL of the API server.
func (c *Cluster) Endpoint() string {
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(c.address, strconv.Itoa(c.ports.apiserver))}).String()
}

// Address returns the IP address of the API server. [Cluster.Port] returns its port.
func (c *Cluster) Address() string { return c.address }

// Port returns the port of the API server: 443 in a firewalled cluster.
func (c *Cluster) Port() int { return c.ports.apiserver }

// Firewalled reports whether connections into the cluster are blocked.
func (c *Cluster) Firewalled() bool { return c.ns != nil }

// DropOutbound drops connections from inside a firewalled cluster to a TCP port without an answer,
// as a firewall does, while the cluster runs.
func (c *Cluster) DropOutbound(port int) error {
	if c.ns == nil {
		return fmt.Errorf("cluster %s has no firewall", c.opts.Name)
	}
	return c.ns.drop(port)
}

// FirewallSkipped returns why a cluster with [ClusterOptions.Firewalled] has no firewall. It
// returns nil for any other cluster.
func (c *Cluster) FirewallSkipped() error { return c.unfirewalled }

// CAPEM returns the CA of the cluster, which issues its serving certificates and its client
// certificates.
func (c *Cluster) CAPEM() []byte { return c.pki.ca.CertPEM() }

// AdminCertPEM returns the certificate of a cluster administrator.
func (c *Cluster) AdminCertPEM() []byte { return c.pki.admin.CertPEM }

// AdminKeyPEM returns the private key to [Cluster.AdminCertPEM].
func (c *Cluster) AdminKeyPEM() []byte { return c.pki.admin.KeyPEM }

// Kubeconfig returns the path of the administrator's kubeconfig. For a firewalled cluster, it works
// only inside: see [Cluster.Command].
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// LogDir returns the folder with the logs of everything that runs in the cluster.
func (c *Cluster) LogDir() string { return filepath.Join(c.dir, logDirName) }

func (c *Cluster) dataDir() string { return filepath.Join(c.dir, dataDirName) }

func (c *Cluster) pkiDir() string { return filepath.Join(c.dir, "pki") }

// APIServer returns the process of the API server: the last one started.
func (c *Cluster) APIServer() *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.apiserver
}

// DialContext opens a connection from where the cluster runs, behind its firewall if it has one.
// The address must then be numeric.
func (c *Cluster) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if c.ns != nil {
		return c.ns.dial(ctx, network, address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, address)
}

func (c *Cluster) spawner() *spawner {
	if c.ns != nil {
		return c.ns.spawner
	}
	return c.lab.spawner
}

// startProcess starts a component of the cluster.
func (c *Cluster) startProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	o.Cluster = c
	o.disposable = true
	return c.lab.StartProcess(ctx, o)
}
