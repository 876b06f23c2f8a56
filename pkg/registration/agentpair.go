// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// AgentPair is the certificate and key of an agent, and the CAs that it verifies the gateway with,
// in PEM.
type AgentPair struct{ Certificate, Key, CA []byte }

// AgentPairOf reads the pair from an agent's Secret.
func AgentPairOf(secret *corev1.Secret) AgentPair {
	return AgentPair{
		Certificate: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey], CA: secret.Data[corev1.ServiceAccountRootCAKey],
	}
}

// Data returns the data of an agent's Secret.
func (p AgentPair) Data() map[string][]byte {
	return map[string][]byte{corev1.TLSCertKey: p.Certificate, corev1.TLSPrivateKeyKey: p.Key, corev1.ServiceAccountRootCAKey: p.CA}
}

// Hash differs between pairs, and reveals nothing about the key.
func (p AgentPair) Hash() string {
	hash := sha256.New()
	for _, part := range [][]byte{p.Certificate, p.CA} {
		fmt.Fprintf(hash, "%d:", len(part))
		_, _ = hash.Write(part) // a hash does not fail
	}
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

// Format keeps the key out of everything that is printed.
func (p AgentPair) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "AgentPair(%s)", p.Hash()) }
