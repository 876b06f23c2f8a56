// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ServingCertificateOptions are about the certificate that the gateway creates for its own HTTPS
// endpoint if --tls-cert-file is not set. [ServingCertificateConfig] is their config.
type ServingCertificateOptions struct {
	// Hosts are names and IP addresses that the certificate is for, in addition to those of the
	// Service in manifests/gateway.
	Hosts []string
	// CALifetime and Lifetime are for what the gateway creates. 0 means the defaults of pkg/pki.
	CALifetime, Lifetime time.Duration
	// KeepAPIService is whether the gateway writes the CA into the APIService.
	KeepAPIService bool
}

// NewServingCertificateOptions returns the defaults.
func NewServingCertificateOptions() *ServingCertificateOptions {
	return &ServingCertificateOptions{KeepAPIService: true}
}

// AddFlags adds the flags of the group.
func (o *ServingCertificateOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.Hosts, "serving-host", o.Hosts,
		"Name or IP address of the gateway's own HTTPS endpoint. Can be repeated. The certificate that the gateway creates if --tls-cert-file is not set is valid for it. The names of the Service cluster-gateway in --secret-namespace are always included.")
	fs.DurationVar(&o.CALifetime, "serving-ca-lifetime", o.CALifetime,
		"Lifetime of the CA that the gateway creates for its own HTTPS endpoint. The gateway replaces it after 80 % of this time. Default (0): 10 years.")
	fs.DurationVar(&o.Lifetime, "serving-cert-lifetime", o.Lifetime,
		"Lifetime of the certificate that the gateway creates for its own HTTPS endpoint. The gateway renews it after 80 % of this time. Default (0): 90 days.")
	fs.BoolVar(&o.KeepAPIService, "serving-keep-apiservice", o.KeepAPIService,
		"Keep spec.caBundle of the gateway's APIService up to date with the CA that the gateway creates.")
}

// Validate returns every fault.
func (o *ServingCertificateOptions) Validate() []error {
	var errs []error
	for _, host := range o.Hosts {
		if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(host)) > 0 && len(validation.IsWildcardDNS1123Subdomain(host)) > 0 {
			errs = append(errs, invalid("serving-host", host, "must be a DNS name or an IP address"))
		}
	}
	return append(errs, validateLifetimes(lifetimeFlag{"serving-ca-lifetime", o.CALifetime}, lifetimeFlag{"serving-cert-lifetime", o.Lifetime})...)
}

// ServingCertificateConfig is about the certificate that the gateway creates for its own HTTPS
// endpoint.
type ServingCertificateConfig struct {
	// Hosts are names and IP addresses that the certificate is for, in addition to those of the
	// Service in manifests/gateway.
	Hosts []string
	// CALifetime and Lifetime are for what the gateway creates. 0 means the defaults of pkg/pki.
	CALifetime, Lifetime time.Duration
	// KeepAPIService is whether the gateway writes the CA into the APIService.
	KeepAPIService bool
}

func (o *ServingCertificateOptions) config() *ServingCertificateConfig {
	return &ServingCertificateConfig{Hosts: o.Hosts, CALifetime: o.CALifetime, Lifetime: o.Lifetime, KeepAPIService: o.KeepAPIService}
}
