// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// fingerprint hashes everything that a transport depends on. For a valid Secret, it hashes the
// parsed values, so that a change of white space does not change the hash. For an invalid Secret,
// it hashes the raw values, so that each attempt to correct it changes the hash.
func (p *parser) fingerprint() (sum Fingerprint) {
	c := p.cluster
	h := fields{sha256.New()}
	h.text(c.Name)
	h.text(string(c.UID))
	h.text(string(c.Route))
	h.text(string(c.Credential.Type))
	h.flag(c.Insecure)
	h.flag(c.err == nil)
	if c.err == nil {
		p.hashValid(h)
	} else {
		h.text(c.Message())
		for _, key := range DataKeys() {
			h.bytes(p.secret.Data[key])
		}
	}
	h.Sum(sum[:0])
	return sum
}

func (p *parser) hashValid(h fields) {
	c := p.cluster
	h.text(c.Endpoint.String())
	h.text(c.ServerName)
	h.bytes(c.CAData)
	if c.ProxyURL != nil {
		h.text(c.ProxyURL.String())
	}
	// A request is sent as the account of the gateway or as somebody else. So no request may be sent
	// by the rule of one version over a transport with the credential of another one.
	h.bytes(c.Identity.Key())
	s := c.Credential.secrets()
	h.text(s.token)
	h.bytes(s.certPEM) // only one key belongs to it
	if s.plugin != nil {
		// The definition of the plugin counts too, not only what the Secret contains.
		h.bytes(s.plugin.Key())
	}
}

// fields hashes values with their lengths, so that two different lists of values never result in
// the same hash.
type fields struct{ hash.Hash }

func (f fields) bytes(b []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	_, _ = f.Write(n[:])
	_, _ = f.Write(b)
}

func (f fields) text(s string) { f.bytes([]byte(s)) }

func (f fields) flag(on bool) {
	if on {
		f.bytes([]byte{1})
	} else {
		f.bytes([]byte{0})
	}
}
