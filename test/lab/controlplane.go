// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	serviceRange   = "10.96.0.0/16"
	serviceIP      = "10.96.0.1"
	frontProxyName = "front-proxy-client"
	apiServerGrace = 2 * time.Second
)

func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// startWorkers starts the components that need the API server.
func (c *Cluster) startWorkers(ctx context.Context) error {
	var starts []func(context.Context) error
	if !c.opts.NoControllerManager {
		starts = append(starts, c.startControllerManager)
	}
	if !c.opts.NoKwok {
		starts = append(starts, c.startKwok)
	}
	results := make(chan error)
	for _, start := range starts {
		go func() { results <- start(ctx) }()
	}
	var errs []error
	for range starts {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	client, peer := localURL("http", c.ports.etcd), localURL("http", c.ports.etcdPeer)
	_, err := c.startProcess(ctx, ProcessOptions{
		Name: "etcd",
		Path: c.lab.binaries.Etcd,
		Args: []string{
			"--data-dir=" + filepath.Join(c.dataDir(), "etcd"),
			"--listen-client-urls=" + client,
			"--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=default=" + peer,
			"--unsafe-no-fsync",
			"--log-level=warn",
		},
		ReadyURL: client + "/readyz",
	})
	return err
}

// StartAPIServer starts the API server again, on the same port, after
// [Cluster.StopAPIServer] or [Cluster.KillAPIServer], and returns when it is
// ready. extra are more arguments, until its next start.
func (c *Cluster) StartAPIServer(ctx context.Context, extra ...string) error {
	audit, err := c.auditArgs()
	if err != nil {
		return err
	}
	p, err := c.startProcess(ctx, ProcessOptions{
		Name:      "kube-apiserver",
		Path:      c.lab.binaries.KubeAPIServer,
		Args:      slices.Concat(c.apiServerArgs(), audit, extra),
		ReadyFunc: c.apiServerReady,
		// After the first signal it waits for watches, which need not end.
		repeatSignal: apiServerGrace,
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apiserver = p
	return nil
}

// SecondAPIServer is another API server of a cluster, with the same etcd and certificates.
type SecondAPIServer struct {
	*Process
	cluster *Cluster
	port    int
}

// StartSecondAPIServer starts another API server of this cluster and returns when it is ready.
func (c *Cluster) StartSecondAPIServer(ctx context.Context) (*SecondAPIServer, error) {
	port, err := c.lab.ports.free(c.ns)
	if err != nil {
		return nil, err
	}
	s := &SecondAPIServer{cluster: c, port: port}
	return s, s.start(ctx)
}

// Address returns its host and port.
func (s *SecondAPIServer) Address() string {
	return net.JoinHostPort(s.cluster.address, strconv.Itoa(s.port))
}

// Restart stops it gracefully and starts it again on the same port.
func (s *SecondAPIServer) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.start(ctx)
}

func (s *SecondAPIServer) start(ctx context.Context) error {
	config := s.cluster.RESTConfig()
	config.Host = "https://" + s.Address()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	s.Process, err = s.cluster.startProcess(ctx, ProcessOptions{
		Name: "kube-apiserver-2",
		Path: s.cluster.lab.binaries.KubeAPIServer,
		Args: append(s.cluster.apiServerArgs(), "--secure-port="+strconv.Itoa(s.port)),
		ReadyFunc: func(ctx context.Context) error {
			_, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			return err
		},
		repeatSignal: apiServerGrace,
	})
	return err
}

// StopAPIServer stops the API server gracefully.
func (c *Cluster) StopAPIServer() error { return c.APIServer().Stop() }

// KillAPIServer kills the API server.
func (c *Cluster) KillAPIServer() error { return c.APIServer().Kill() }

func (c *Cluster) apiServerReady(ctx context.Context) error {
	_, err := c.client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

func (c *Cluster) apiServerArgs() []string {
	p := c.pki
	bind := c.address
	if c.ns != nil {
		// On all addresses, so that only the firewall keeps others out.
		bind = "0.0.0.0"
	}
	args := []string{
		"--etcd-servers=" + localURL("http", c.ports.etcd),
		"--bind-address=" + bind,
		"--advertise-address=" + c.address,
		"--secure-port=" + strconv.Itoa(c.ports.apiserver),
		// The reconciler refuses to publish a loopback address.
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=" + serviceRange,
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--client-ca-file=" + p.caFile,
		"--tls-cert-file=" + p.servingCert,
		"--tls-private-key-file=" + p.servingKey,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + p.accountsCert,
		"--service-account-signing-key-file=" + p.accountsKey,
		"--kubelet-certificate-authority=" + p.caFile,
		"--kubelet-client-certificate=" + p.kubeletClientCert,
		"--kubelet-client-key=" + p.kubeletClientKey,
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + p.frontFile,
		"--requestheader-allowed-names=" + frontProxyName,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + p.proxyClientCert,
		"--proxy-client-key-file=" + p.proxyClientKey,
	}
	if c.opts.NoControllerManager {
		// It would wait for ServiceAccounts that are never created.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return append(append(args, c.lab.verbosityArgs()...), c.opts.ExtraAPIServerArgs...)
}

func (c *Cluster) startControllerManager(ctx context.Context) error {
	p := c.pki
	serving := c.pki.ca.Pool()
	controllers, err := c.startProcess(ctx, ProcessOptions{
		Name: "kube-controller-manager",
		Path: c.lab.binaries.KubeControllerManager,
		Args: append([]string{
			"--kubeconfig=" + c.kubeconfig,
			"--authentication-kubeconfig=" + c.kubeconfig,
			"--authorization-kubeconfig=" + c.kubeconfig,
			"--bind-address=" + loopback,
			"--secure-port=" + strconv.Itoa(c.ports.controllerManager),
			"--tls-cert-file=" + p.servingCert,
			"--tls-private-key-file=" + p.servingKey,
			"--leader-elect=false",
			"--service-account-private-key-file=" + p.accountsKey,
			"--root-ca-file=" + p.caFile,
			"--cluster-signing-cert-file=" + p.caCertForSigning,
			"--cluster-signing-key-file=" + p.caKeyForSigningFile,
			// A busy machine, or a kwok that a test has paused, must not lead to the eviction of Pods.
			"--node-monitor-grace-period=1h",
		}, c.lab.verbosityArgs()...),
		ReadyURL: localURL("https", c.ports.controllerManager) + "/healthz",
		ReadyTLS: &tls.Config{RootCAs: serving, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		return err
	}
	return controllers.waitReady(ctx, defaultReadyTimeout, func(ctx context.Context) error {
		return c.accountExists(ctx, metav1.NamespaceDefault)
	})
}

// accountExists reports whether a namespace has the ServiceAccount that every Pod in it needs.
func (c *Cluster) accountExists(ctx context.Context, namespace string) error {
	if c.opts.NoControllerManager {
		return nil
	}
	_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
	return err
}

func (l *Lab) verbosityArgs() []string {
	if l.verbosity == 0 {
		return nil
	}
	return []string{fmt.Sprintf("--v=%d", l.verbosity)}
}

func localURL(scheme string, port int) string {
	return scheme + "://" + net.JoinHostPort(loopback, strconv.Itoa(port))
}

func ignoreExists(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
