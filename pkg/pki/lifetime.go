// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/x509"
	"math/big"
	"strings"
	"time"
)

// Default lifetimes.
const (
	// DefaultCALifetime is long: users who distribute the CA by hand have to do so again when it
	// changes.
	DefaultCALifetime = 10 * 365 * 24 * time.Hour
	// DefaultServingLifetime is short: the gateway renews the certificate itself.
	DefaultServingLifetime = 90 * 24 * time.Hour
	// DefaultAgentLifetime is long enough for agents whose certificates are renewed by hand.
	DefaultAgentLifetime = 365 * 24 * time.Hour
)

// backdating is how far in the past new certificates become valid, for peers whose clocks are
// behind.
const backdating = time.Hour

// earlierBackdating is that of certificates without issuedPrefix, which earlier versions of the
// gateway have issued.
const earlierBackdating = 5 * time.Minute

// issuedPrefix precedes the time of issue in a certificate, as an organizational unit of its
// subject. NotBefore is no substitute: versions of the gateway with different backdating issue and
// check certificates side by side, and a certificate must not seem to be younger than it is.
const issuedPrefix = "issued:"

// RenewAt returns when to renew a certificate: between 75 % and 80 % of its lifetime. The exact
// time depends on the serial number, so that certificates that were issued together are not renewed
// together.
func RenewAt(cert *x509.Certificate) time.Time {
	jitter := new(big.Int).Mod(cert.SerialNumber, big.NewInt(1000)).Int64()
	return RenewBetween(IssuedAt(cert), cert.NotAfter, float64(jitter)/1000)
}

// Lifetime returns the lifetime that a certificate of this package was issued with.
func Lifetime(cert *x509.Certificate) time.Duration { return cert.NotAfter.Sub(IssuedAt(cert)) }

// IssuedAt returns when a certificate of this package was issued, to the second. It became valid
// earlier, by backdating.
func IssuedAt(cert *x509.Certificate) time.Time {
	for _, unit := range cert.Subject.OrganizationalUnit {
		text, found := strings.CutPrefix(unit, issuedPrefix)
		if issued, err := time.Parse(time.RFC3339, text); found && err == nil {
			return issued
		}
	}
	if issued := cert.NotBefore.Add(earlierBackdating); issued.Before(cert.NotAfter) {
		return issued
	}
	return cert.NotBefore
}

// setTimes makes a template valid from backdating before now, for lifetime after now.
func setTimes(template *x509.Certificate, now time.Time, lifetime time.Duration) {
	template.NotBefore, template.NotAfter = now.Add(-backdating), now.Add(lifetime)
	template.Subject.OrganizationalUnit = []string{issuedPrefix + now.UTC().Format(time.RFC3339)}
}

// RenewBetween is RenewAt for credentials that are not certificates. The jitter must be between 0
// and 1.
func RenewBetween(begin, end time.Time, jitter float64) time.Time {
	return begin.Add(time.Duration(float64(end.Sub(begin)) * (0.8 - 0.05*jitter)))
}
