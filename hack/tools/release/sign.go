// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// readSigner reads a private key: PKCS #8, SEC 1 or PKCS #1, in PEM, as openssl writes them.
func readSigner(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, fmt.Errorf("signing key %s: it has no private key in PEM", path)
		}
		var key any
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			err = errors.New("it is encrypted: decrypt it first, for example with openssl pkey")
		default: // EC PARAMETERS, for example
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", path, err)
		}
		switch key := key.(type) {
		case *ecdsa.PrivateKey:
			return key, nil
		case *rsa.PrivateKey:
			return key, nil
		case ed25519.PrivateKey:
			return key, nil
		}
		return nil, fmt.Errorf("signing key %s: must be ECDSA, Ed25519 or RSA", path)
	}
}

// sign returns a detached signature that openssl can verify. It is the same each time: ECDSA takes
// its random number from the key and the text (RFC 6979) if there is no source of random numbers.
func sign(key crypto.Signer, text []byte) ([]byte, error) {
	if key, ok := key.(ed25519.PrivateKey); ok {
		return key.Sign(nil, text, crypto.Hash(0))
	}
	digest := sha256.Sum256(text)
	return key.Sign(nil, digest[:], crypto.SHA256)
}

var errSignature = errors.New("the signature is not valid: the checksums were changed, or this is another key")

func verifySignature(path string, text, signature []byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return fmt.Errorf("public key %s: it has no public key in PEM", path)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("public key %s: %w", path, err)
	}
	digest := sha256.Sum256(text)
	valid := false
	switch key := parsed.(type) {
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, digest[:], signature)
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	case ed25519.PublicKey:
		valid = ed25519.Verify(key, text, signature)
	default:
		return fmt.Errorf("public key %s: must be ECDSA, Ed25519 or RSA", path)
	}
	if !valid {
		return errSignature
	}
	return nil
}
