// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// ServingOptions say what certificate the gateway's own HTTPS endpoint has when it is not given one (--tls-cert-file).
type ServingOptions struct {
	// Hosts are names and IP addresses that it is for, beside those of the Service of manifests/gateway.
	Hosts []string
	// CALifetime and Lifetime are those of what is made; 0 means the defaults of pkg/pki.
	CALifetime, Lifetime time.Duration
	// KeepAPIService is whether the APIService's caBundle is kept to what the certificate is verified with.
	KeepAPIService bool
}

// NewServingOptions returns the defaults.
func NewServingOptions() *ServingOptions { return &ServingOptions{KeepAPIService: true} }

// AddFlags adds the flags of the group.
func (o *ServingOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.Hosts, "serving-host", o.Hosts,
		"Name or IP address that clients reach the gateway's own HTTPS endpoint by, for the certificate that it makes when --tls-cert-file is not given. May be given more than once. Those of the Service cluster-gateway in --secret-namespace need not be.")
	fs.DurationVar(&o.CALifetime, "serving-ca-lifetime", o.CALifetime, "Life of the CA that the gateway makes for its own HTTPS endpoint; replaced at 80 % of it. 0: 10 years.")
	fs.DurationVar(&o.Lifetime, "serving-cert-lifetime", o.Lifetime, "Life of the certificate that the gateway makes for its own HTTPS endpoint; renewed at 80 % of it. 0: 90 days.")
	fs.BoolVar(&o.KeepAPIService, "serving-keep-apiservice", o.KeepAPIService,
		"Keep spec.caBundle of the gateway's APIService to what its certificate is verified with, when the gateway makes that itself.")
}

// Validate returns every fault.
func (o *ServingOptions) Validate() []error {
	var errs []error
	for _, host := range o.Hosts {
		if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(host)) > 0 && len(validation.IsWildcardDNS1123Subdomain(host)) > 0 {
			errs = append(errs, fmt.Errorf("--serving-host %q is no name and no IP address", host))
		}
	}
	return append(errs, validateLifetimes(lifetimeFlag{"--serving-ca-lifetime", o.CALifetime}, lifetimeFlag{"--serving-cert-lifetime", o.Lifetime})...)
}

// serviceName is the Service of manifests/gateway, by which the hub's aggregation layer verifies the gateway.
const serviceName = "cluster-gateway"

// selfMadeServing is whether the gateway makes the serving pair itself.
func (o *Options) selfMadeServing() bool {
	given := o.Serving.ServerCert
	return given.CertKey.CertFile == "" && given.CertKey.KeyFile == "" && given.CertDirectory == "" && given.GeneratedCert == nil
}

// servingContent hands what a Keeper has to the generic API server.
type servingContent struct {
	keeper    *pki.Keeper
	listeners listeners
}

var _ dynamiccertificates.CertKeyContentProvider = (*servingContent)(nil)

// newServingContent makes the pair and its Keeper. publish, if set, makes known what verifies the pair.
func (o *Options) newServingContent(h hub, publish func(ctx context.Context, bundle []byte) error) *servingContent {
	c := &servingContent{}
	service := serviceName + "." + h.namespace
	config := pki.KeeperConfig{
		Client: h.client, Namespace: h.namespace, CASecret: pki.GatewayCASecret, ServingSecret: pki.GatewayServingSecret,
		Hosts:      append([]string{service + ".svc", service + ".svc.cluster.local", service, "localhost", "127.0.0.1", "::1"}, o.OwnServing.Hosts...),
		CALifetime: o.OwnServing.CALifetime, ServingLifetime: o.OwnServing.Lifetime,
		Logger: klog.Background().WithName("pki"),
	}
	c.keeper = pki.NewKeeper(config)
	c.keeper.OnServingChange(c.listeners.tell)
	if publish != nil {
		c.keeper.OnPublish(publish)
	}
	return c
}

// Name implements dynamiccertificates.CertKeyContentProvider.
func (c *servingContent) Name() string { return "Secret " + pki.GatewayServingSecret }

// CurrentCertKeyContent implements dynamiccertificates.CertKeyContentProvider.
func (c *servingContent) CurrentCertKeyContent() (cert, key []byte) { return c.keeper.Pair() }

// AddListener implements dynamiccertificates.Notifier.
func (c *servingContent) AddListener(l dynamiccertificates.Listener) { c.listeners.add(l) }

// makeServing reads the serving pair, or makes it, if it is not given.
func (s *Server) makeServing(ctx context.Context) error {
	o := s.options
	if !o.selfMadeServing() {
		return nil
	}
	var publish func(ctx context.Context, bundle []byte) error
	if o.OwnServing.KeepAPIService {
		services, err := o.Hub.apiServices()
		if err != nil {
			return err
		}
		s.apiService = &apiServiceKeeper{services: services, namespace: o.Hub.SecretNamespace, logger: klog.Background().WithName("apiservice")}
		publish = s.apiService.publish
	}
	s.serving = o.newServingContent(hub{s.client, o.Hub.SecretNamespace}, publish)
	if s.apiService != nil {
		s.apiService.pair = s.serving.keeper
	}
	if err := s.serving.keeper.LoadOrCreate(ctx); err != nil {
		return fmt.Errorf("the serving certificate can be neither read nor made, and there is no --tls-cert-file: %w", err)
	}
	return nil
}
