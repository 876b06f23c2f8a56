// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// minConnectionBuffer is the smallest --tunnel-connection-buffer.
const minConnectionBuffer = 64 << 10

// Validate returns every fault.
func (o *TunnelOptions) Validate() []error {
	var errs []error
	if o.ConnectionBuffer < minConnectionBuffer {
		errs = append(errs, invalid("tunnel-connection-buffer", o.ConnectionBuffer, "must be at least 65536"))
	}
	switch cluster.TunnelMode(o.Mode) {
	case cluster.TunnelOff:
	case cluster.TunnelEmbedded:
		errs = append(errs, o.validateEmbedded()...)
	case cluster.TunnelExternal:
		errs = append(errs, o.validateExternal()...)
	default:
		errs = append(errs, invalid("tunnel-mode", o.Mode, "must be embedded, external or off"))
	}
	return errs
}

func (o *TunnelOptions) validateEmbedded() []error {
	var errs []error
	if o.Port < 0 || o.Port > 65535 {
		errs = append(errs, invalid("tunnel-port", o.Port, "must be between 0 and 65535"))
	}
	if o.ServerCount < 0 {
		errs = append(errs, invalid("tunnel-server-count", o.ServerCount, "must not be negative"))
	}
	if o.minVersion() == 0 {
		errs = append(errs, invalid("tunnel-tls-min-version", o.MinTLSVersion, "must be VersionTLS12 or VersionTLS13"))
	}
	if o.MaxAgents < 1 {
		errs = append(errs, invalid("tunnel-max-agents", o.MaxAgents, "must be at least 1"))
	}
	if !o.createsCertificates() {
		errs = append(errs, requireFiles("if one of --tunnel-cert-file, --tunnel-private-key-file and --tunnel-client-ca-file is set",
			fileFlag{"tunnel-cert-file", o.CertFile}, fileFlag{"tunnel-private-key-file", o.PrivateKeyFile},
			fileFlag{"tunnel-client-ca-file", o.ClientCAFile})...)
	}
	for i, address := range o.AdvertiseAddresses {
		if host, port := splitAddress(address); host == "" || i == 0 && port == "" {
			errs = append(errs, invalid("tunnel-advertise-address", address, "must be host:port; all but the first can be a host alone"))
		}
	}
	errs = append(errs, validateLifetimes(lifetimeFlag{"tunnel-ca-lifetime", o.CALifetime}, lifetimeFlag{"tunnel-cert-lifetime", o.ServingLifetime},
		lifetimeFlag{"tunnel-agent-cert-lifetime", o.AgentLifetime})...)
	for _, server := range o.KonnectivityServers {
		errs = append(errs, invalid("konnectivity-server", server, "must not be set unless --tunnel-mode is external"))
	}
	return errs
}

func (o *TunnelOptions) validateExternal() []error {
	var errs []error
	if len(o.KonnectivityServers) == 0 {
		errs = append(errs, invalid("konnectivity-server", "", "must be set at least once with --tunnel-mode=external"))
	}
	tcp := false
	for _, server := range o.KonnectivityServers {
		if path, unix := strings.CutPrefix(server, "unix://"); unix {
			if !strings.HasPrefix(path, "/") {
				errs = append(errs, invalid("konnectivity-server", server, "must be unix:///path, with an absolute path"))
			}
			continue
		}
		tcp = true
		if host, port, err := net.SplitHostPort(server); err != nil || host == "" || port == "" {
			errs = append(errs, invalid("konnectivity-server", server, "must be host:port or unix:///path"))
		}
	}
	if tcp {
		errs = append(errs, requireFiles("with a --konnectivity-server as host:port",
			fileFlag{"konnectivity-ca-file", o.KonnectivityCAFile}, fileFlag{"konnectivity-cert-file", o.KonnectivityCertFile},
			fileFlag{"konnectivity-key-file", o.KonnectivityKeyFile})...)
	}
	return errs
}

// lifetimeFlag is a flag for the lifetime of a certificate.
type lifetimeFlag struct {
	name  string
	value time.Duration
}

func validateLifetimes(flags ...lifetimeFlag) []error {
	var errs []error
	for _, f := range flags {
		if f.value < 0 || f.value > 0 && f.value < 10*time.Second {
			errs = append(errs, invalid(f.name, f.value, "must be 0 or at least 10s"))
		}
	}
	return errs
}

// splitAddress splits host:port. The port is empty if address is a host alone, also an IPv6
// address. The host is empty if address is neither.
func splitAddress(address string) (host, port string) {
	if net.ParseIP(address) != nil {
		return address, ""
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, ""
	} else if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", ""
	}
	if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(host)) > 0 {
		return "", ""
	}
	return host, port
}

// fileFlag is a flag for the name of a file.
type fileFlag struct{ name, path string }

// minVersion returns the oldest version of TLS, or 0 if the option is invalid.
func (o *TunnelOptions) minVersion() uint16 {
	return map[string]uint16{"VersionTLS12": tls.VersionTLS12, "VersionTLS13": tls.VersionTLS13}[o.MinTLSVersion]
}

// requireFiles checks that each file is set and exists. when says why they are required.
func requireFiles(when string, files ...fileFlag) []error {
	var errs []error
	for _, f := range files {
		if f.path == "" {
			errs = append(errs, invalid(f.name, f.path, "must be set "+when))
		} else if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, invalidError(f.name, f.path, err))
		}
	}
	return errs
}
