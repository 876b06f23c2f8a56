// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cabundle parses bundles of CA certificates.
package cabundle

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Parse returns the certificates of a bundle in PEM. Like [x509.CertPool.AppendCertsFromPEM], which
// kubectl and client-go use, it skips PEM blocks that it cannot use, such as a certificate with a
// negative serial number. Text between the blocks is allowed.
func Parse(bundle []byte) (certs []*x509.Certificate, skipped Skipped) {
	for n, text := range split(bundle) {
		block, _ := pem.Decode(text)
		switch {
		case block == nil:
			skipped.add(n, "it is truncated or malformed")
		case block.Type != "CERTIFICATE":
			skipped.add(n, fmt.Sprintf("its type is %q, not CERTIFICATE", untrusted.Limit(block.Type, maxType)))
		case len(block.Headers) != 0:
			skipped.add(n, "it has PEM headers")
		default:
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				skipped.add(n, untrusted.Limit(err.Error(), maxError))
				continue
			}
			certs = append(certs, cert)
		}
	}
	skipped.total = len(certs) + skipped.count
	return certs, skipped
}

// Begin is the start of a PEM block. The decoder of encoding/pem skips a malformed block, and also
// one that does not start at the beginning of a line.
const Begin = "-----BEGIN "

// split splits a bundle into its PEM blocks. Each one includes the text that follows it.
func split(bundle []byte) [][]byte {
	var blocks [][]byte
	start := -1
	for at := 0; ; {
		i := bytes.Index(bundle[at:], []byte(Begin))
		if i < 0 {
			break
		}
		i += at
		if i == 0 || bundle[i-1] == '\n' {
			if start >= 0 {
				blocks = append(blocks, bundle[start:i])
			}
			start = i
		}
		at = i + len(Begin)
	}
	if start >= 0 {
		blocks = append(blocks, bundle[start:])
	}
	return blocks
}

// Limits of what Skipped describes.
const (
	maxDescribed = 3
	maxError     = 100
	maxType      = 32
)

// Skipped describes the PEM blocks of a bundle that were skipped. The zero value means none.
type Skipped struct {
	total, count int
	described    []string
}

func (s *Skipped) add(index int, reason string) {
	s.count++
	if s.count <= maxDescribed {
		s.described = append(s.described, fmt.Sprintf("block %d: %s", index+1, reason))
	}
}

// Count returns the number of PEM blocks that were skipped.
func (s Skipped) Count() int { return s.count }

// String describes the blocks and why they were skipped. The description is one line of bounded
// length. It is empty if no blocks were skipped.
func (s Skipped) String() string {
	if s.count == 0 {
		return ""
	}
	text := fmt.Sprintf("%d of %d PEM blocks cannot be used (%s", s.count, s.total, strings.Join(s.described, "; "))
	if more := s.count - len(s.described); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text + ")"
}
