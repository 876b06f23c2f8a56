// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// BastionKubeconfig writes an administrator's kubeconfig that works on the lab's host even for a
// firewalled cluster, and returns its path. It uses a bastion, as administrators do: an HTTP proxy
// in the lab's own process, which dials from inside.
func (c *Cluster) BastionKubeconfig() (string, error) {
	if c.ns == nil {
		return c.kubeconfig, nil
	}
	address, err := c.targets.startBastion(c)
	if err != nil {
		return "", fmt.Errorf("start the bastion of cluster %s: %w", c.opts.Name, err)
	}
	name := c.opts.Name
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.Endpoint(), CertificateAuthorityData: c.CAPEM(), ProxyURL: "http://" + address}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.AdminCertPEM(), ClientKeyData: c.AdminKeyPEM()}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	path := filepath.Join(c.dir, "bastion.kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}

// startBastion starts the bastion once.
func (t *targets) startBastion(c *Cluster) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bastion != nil {
		return t.bastion.Addr().String(), nil
	}
	if t.conns == nil {
		return "", net.ErrClosed
	}
	listener, err := c.lab.ports.listen(nil)
	if err != nil {
		return "", err
	}
	t.bastion = listener
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.connectInside(c, w, r) })}
	t.wg.Go(func() { _ = server.Serve(listener) }) // always an error, because the listener was closed
	return listener.Addr().String(), nil
}

// connectInside answers a CONNECT.
func (t *targets) connectInside(c *Cluster, w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	}
	inside, err := c.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	if !t.add(inside) {
		inside.Close()
		return
	}
	defer t.remove(inside)
	outside, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if !t.add(outside) {
		outside.Close()
		return
	}
	defer t.remove(outside)
	if _, err := io.WriteString(outside, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	// When one direction ends, the other ends too, so that neither outlives the cluster.
	var ways sync.WaitGroup
	ways.Go(func() { _, _ = io.Copy(inside, buffered); inside.Close() })
	ways.Go(func() { _, _ = io.Copy(outside, inside); outside.Close() })
	ways.Wait()
}
