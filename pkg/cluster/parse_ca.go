// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// caBundle parses the CAs that verify the API server.
func (p *parser) caBundle() {
	key := v1alpha1.SecretKeyCA
	if len(bytes.TrimSpace(p.secret.Data[v1alpha1.SecretKeyCA])) == 0 && p.given(v1alpha1.SecretKeyCAAlias) {
		key = v1alpha1.SecretKeyCAAlias
	}
	if !p.given(key) {
		// With a tunnel, an attacker between the gateway and the cluster is part of the threat
		// model. The CAs of the operating system do not prove which server is at the other end.
		if p.cluster.Route == RouteTunnel && !p.cluster.Insecure {
			p.fault(v1alpha1.SecretKeyCA, "is missing; a tunnel needs the CA bundle of the cluster's API server, in PEM")
		}
		return
	}
	certs, ok := p.certificates(key, maxCA)
	if !ok {
		return
	}
	p.cluster.roots = x509.NewCertPool()
	for _, cert := range certs {
		p.cluster.roots.AddCert(cert)
	}
	p.cluster.CAData = encodeCertificates(certs)
}

// pemBegin is the start of every PEM block. The decoder skips malformed blocks. Counting the starts
// reveals that.
var pemBegin = []byte("-----BEGIN ")

// certificates parses a list of certificates. Text between the blocks is allowed, as in the bundles
// of operating systems. Other types of blocks and truncated blocks are faults.
func (p *parser) certificates(key string, limit int) ([]*x509.Certificate, bool) {
	data := p.secret.Data[key]
	if len(data) > limit {
		p.fault(key, "is %d bytes long; at most %d are allowed", len(data), limit)
		return nil, false
	}
	want := bytes.Count(data, pemBegin)
	if want == 0 {
		p.fault(key, "holds no PEM block; it must hold at least one CERTIFICATE block")
		return nil, false
	}
	var certs []*x509.Certificate
	for n := 1; ; n++ {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			if n-1 != want {
				p.fault(key, "PEM block %d of %d is truncated or malformed", n, want)
				return nil, false
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			if key == v1alpha1.SecretKeyCert {
				continue // a key or parameters in the same file, which are never served
			}
			p.fault(key, "PEM block %d is not a CERTIFICATE; only certificates belong here", n)
			return nil, false
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			p.fault(key, "the certificate in PEM block %d cannot be parsed: %s", n, quote(err.Error()))
			return nil, false
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		p.fault(key, "holds no CERTIFICATE block")
		return nil, false
	}
	return certs, true
}

// encodeCertificates encodes the certificates only, so that other content of the key in the Secret
// is never served.
func encodeCertificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}
