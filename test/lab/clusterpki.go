// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net"
	"path/filepath"
)

// clusterPKI contains the CAs and certificates of a cluster's components.
type clusterPKI struct {
	ca    *CA // clients and servers
	front *CA // of the aggregation layer's own client certificate
	admin *KeyPair

	caFile, frontFile                     string
	servingCert, servingKey               string
	kubeletCert, kubeletKey               string
	kubeletClientCert, kubeletClientKey   string
	proxyClientCert, proxyClientKey       string
	accountsCert, accountsKey             string
	adminCert, adminKey                   string
	caCertForSigning, caKeyForSigningFile string
}

// issue creates the cluster's certificates and writes them to its folder.
func (c *Cluster) issue() (err error) {
	p := &clusterPKI{}
	if p.ca, err = NewCA("lab cluster " + c.opts.Name); err != nil {
		return err
	}
	if p.front, err = NewCA("lab front proxy of cluster " + c.opts.Name); err != nil {
		return err
	}
	if p.admin, err = p.ca.Issue(CertOptions{CN: "lab-admin", Orgs: []string{"system:masters"}}); err != nil {
		return err
	}
	dir := c.pkiDir()
	if p.adminCert, p.adminKey, err = p.admin.WriteFiles(dir, "admin"); err != nil {
		return err
	}
	whole := KeyPair{CertPEM: p.ca.CertPEM(), KeyPEM: p.ca.KeyPEM()}
	if p.caCertForSigning, p.caKeyForSigningFile, err = whole.WriteFiles(dir, "ca"); err != nil {
		return err
	}
	p.caFile = p.caCertForSigning
	p.frontFile = filepath.Join(dir, "front-proxy-ca.crt")
	if err = p.front.WriteFile(p.frontFile); err != nil {
		return err
	}
	for _, leaf := range []struct {
		ca        *CA
		name      string
		opts      CertOptions
		cert, key *string
	}{
		{p.ca, "apiserver", c.servingNames(), &p.servingCert, &p.servingKey},
		{p.ca, "kubelet", CertOptions{CN: NodeName, IPs: []net.IP{net.ParseIP(loopback)}}, &p.kubeletCert, &p.kubeletKey},
		{p.ca, "kubelet-client", CertOptions{CN: "kube-apiserver", Orgs: []string{"system:masters"}}, &p.kubeletClientCert, &p.kubeletClientKey},
		{p.front, "proxy-client", CertOptions{CN: frontProxyName}, &p.proxyClientCert, &p.proxyClientKey},
		{p.ca, "service-accounts", CertOptions{CN: "service-accounts"}, &p.accountsCert, &p.accountsKey},
	} {
		pair, err := leaf.ca.Issue(leaf.opts)
		if err != nil {
			return err
		}
		if *leaf.cert, *leaf.key, err = pair.WriteFiles(dir, leaf.name); err != nil {
			return err
		}
	}
	c.pki = p
	return nil
}

// servingNames are the names and addresses of the API server: for Pods, for agents, from outside,
// and the cluster's name, which an external Konnectivity server uses for routing.
func (c *Cluster) servingNames() CertOptions {
	return CertOptions{
		CN: "kube-apiserver",
		DNSNames: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
			"localhost", c.opts.Name,
		},
		IPs: []net.IP{net.ParseIP(loopback), net.ParseIP(c.address), net.ParseIP(serviceIP)},
	}
}

// ClientCertificate returns a certificate and key of the user cn in the groups
// orgs, signed by the cluster's CA.
func (c *Cluster) ClientCertificate(cn string, orgs ...string) (certPEM, keyPEM []byte, err error) {
	pair, err := c.pki.ca.Issue(CertOptions{CN: cn, Orgs: orgs})
	if err != nil {
		return nil, nil, err
	}
	return pair.CertPEM, pair.KeyPEM, nil
}

// CA returns the cluster's certificate authority, for certificates that [Cluster.ClientCertificate]
// does not support.
func (c *Cluster) CA() *CA { return c.pki.ca }
