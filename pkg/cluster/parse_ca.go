// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/cabundle"
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
			p.fault(v1alpha1.SecretKeyCA, "is missing; a tunnel needs the CA bundle of the cluster's API server, in PEM (or the annotation %s: \"true\")",
				v1alpha1.AnnotationInsecureSkipTLSVerify)
		}
		return
	}
	data := p.secret.Data[key]
	if len(data) > maxCA {
		p.fault(key, "is %d bytes long; at most %d are allowed", len(data), maxCA)
		return
	}
	certs, skipped := cabundle.Parse(data)
	switch {
	case len(certs) == 0 && skipped.Count() == 0:
		p.fault(key, "is not in PEM format; it must contain a block that begins with -----BEGIN CERTIFICATE-----")
		return
	case len(certs) == 0:
		p.fault(key, "contains no certificate that can be used: %s", skipped)
		return
	case skipped.Count() > 0:
		p.cluster.warnings = append(p.cluster.warnings, fmt.Sprintf("%s: %s", key, skipped))
	}
	p.cluster.roots = x509.NewCertPool()
	for _, cert := range certs {
		p.cluster.roots.AddCert(cert)
	}
	p.cluster.CAData = encodeCertificates(certs)
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
