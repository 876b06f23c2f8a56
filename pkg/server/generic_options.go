// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"strings"
	"time"

	"github.com/spf13/pflag"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/util/cert"
	cliflag "k8s.io/component-base/cli/flag"
)

// defaultPort is the port of the gateway's own HTTPS endpoint. The hub's aggregation layer and
// clients connect to it.
const defaultPort = 8443

// defaultStreamsPerConnection bounds the requests that a client has in flight over one HTTP/2
// connection. The hub has one connection to this process (kubernetes #60042), so this bounds
// everything that comes through it, watches included. k8s.io/apiserver recommends 1000 for an
// aggregated server that only serves its own objects.
const defaultStreamsPerConnection = 8000

// maxStreamsPerConnection is the highest --http2-max-streams-per-connection. k8s.io/apiserver
// (pkg/server/secure_serving.go) gives a connection a receive window of 256 KiB for each of its
// streams, computed in an int32. Above this value it overflows, and net/http falls back to 1 MiB
// for all streams together: four uploads that one cluster does not read would then stop every other
// upload from the hub.
const maxStreamsPerConnection = math.MaxInt32 / (256 << 10)

// maxGoawayChance is the highest --goaway-chance, as in kube-apiserver.
const maxGoawayChance = 0.02

// GenericOptions are the options of k8s.io/apiserver that apply to the gateway.
type GenericOptions struct {
	Serving        *genericoptions.SecureServingOptionsWithLoopback
	Authentication *genericoptions.DelegatingAuthenticationOptions
	Authorization  *genericoptions.DelegatingAuthorizationOptions
	Audit          *genericoptions.AuditOptions
	Features       *genericoptions.FeatureOptions
	Tracing        *genericoptions.TracingOptions

	// APIAudiences are the audiences of tokens that are accepted, in addition to those of the hub.
	APIAudiences []string
	// GoawayChance is the fraction of HTTP/2 requests that close their connection. ShutdownDelay is
	// how long the gateway serves on after it stops being ready. k8s.io/apiserver has flags for both
	// in ServerRunOptions, among many that do not apply here.
	GoawayChance  float64
	ShutdownDelay time.Duration
}

// NewGenericOptions returns the defaults.
func NewGenericOptions() *GenericOptions {
	serving := genericoptions.NewSecureServingOptions()
	serving.BindPort = defaultPort
	// Without the endpoint there is nothing to run. --secure-port=0 is refused, and the help says so.
	serving.Required = true
	serving.HTTP2MaxStreamsPerConnection = defaultStreamsPerConnection
	// Without --tls-cert-file the pair is in a Secret, and the gateway writes no file.
	serving.ServerCert.CertDirectory = ""
	features := genericoptions.NewFeatureOptions()
	// It requires the hub's FlowSchemas. The gateway has limits for each cluster instead.
	features.EnablePriorityAndFairness = false
	return &GenericOptions{
		Serving:        serving.WithLoopback(),
		Authentication: genericoptions.NewDelegatingAuthenticationOptions(),
		Authorization:  genericoptions.NewDelegatingAuthorizationOptions(),
		Audit:          genericoptions.NewAuditOptions(),
		Features:       features,
		Tracing:        genericoptions.NewTracingOptions(),
	}
}

// AddFlags adds the flags of the group to several sets.
func (o *GenericOptions) AddFlags(groups *cliflag.NamedFlagSets) {
	serving := groups.FlagSet("serving")
	o.Serving.AddFlags(serving)
	setUsage(serving, "tls-cert-file", "File with the serving certificate of the gateway's own HTTPS endpoint, in PEM, followed by the CA certificates of its chain. Requires --tls-private-key-file. If neither is set, the gateway creates the certificate, renews it, and keeps it in a Secret of --secret-namespace.")
	setUsage(serving, "tls-private-key-file", "File with the private key of --tls-cert-file, in PEM.")
	setUsage(serving, "cert-dir", "Directory with a certificate and its key (apiserver.crt, apiserver.key), which are created there if they do not exist. It is not needed: the gateway keeps the certificate that it creates in a Secret. Ignored if --tls-cert-file is set.")
	serving.Float64Var(&o.GoawayChance, "goaway-chance", o.GoawayChance,
		"Fraction of HTTP/2 requests to the gateway's own endpoint after which the gateway closes the connection (GOAWAY). Requests in flight are not affected, and the client connects again, perhaps to another replica behind the load balancer. Applies to the connections of the hub's aggregation layer, too. Keep 0 if there is only one replica or no load balancer. Must be between 0 and 0.02; 0.001 is a good start.")
	serving.DurationVar(&o.ShutdownDelay, "shutdown-delay-duration", o.ShutdownDelay,
		"How long the gateway continues to serve after it receives SIGTERM. During this time /readyz fails, so that load balancers send no more requests, while /livez succeeds and requests are served as usual. Graceful termination starts after this delay.")
	authentication := groups.FlagSet("authentication")
	o.Authentication.AddFlags(authentication)
	setUsage(authentication, "authentication-kubeconfig", "Kubeconfig file for the hub, whose account may create tokenreviews.authentication.k8s.io. Default: --kubeconfig, or the ServiceAccount of the Pod.")
	authentication.StringSliceVar(&o.APIAudiences, "api-audiences", o.APIAudiences,
		"Audiences of tokens for the gateway's own endpoint, such as cluster-gateway. A token with one of them (kubectl create token --audience) is accepted there, and the hub itself does not accept it. Tokens that the hub accepts for itself are always accepted.")
	o.Authorization.AddFlags(groups.FlagSet("authorization"))
	setUsage(groups.FlagSet("authorization"), "authorization-kubeconfig", "Kubeconfig file for the hub, whose account may create subjectaccessreviews.authorization.k8s.io. Default: --kubeconfig, or the ServiceAccount of the Pod.")
	o.Audit.AddFlags(groups.FlagSet("audit"))
	o.addFeatureFlags(groups.FlagSet("features"))
	o.Tracing.AddFlags(groups.FlagSet("features"))
	setUsage(groups.FlagSet("features"), "tracing-config-file", "File with a TracingConfiguration (apiserver.config.k8s.io/v1): the address of an OpenTelemetry collector (gRPC, without TLS), and how many of a million requests are recorded. If it is empty, the gateway records no traces.")
}

// setUsage gives a flag of k8s.io/apiserver a text that is true of the gateway. It panics if there
// is no such flag any more.
func setUsage(fs *pflag.FlagSet, flag, usage string) { fs.Lookup(flag).Usage = usage }

// addFeatureFlags omits the flag of a feature that the gateway does not have.
func (o *GenericOptions) addFeatureFlags(fs *pflag.FlagSet) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.Features.AddFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		if f.Name != "enable-priority-and-fairness" {
			fs.AddFlag(f)
		}
	})
}

// Validate returns every fault.
func (o *GenericOptions) Validate() []error {
	var errs []error
	errs = append(errs, o.Serving.Validate()...)
	errs = append(errs, o.validateFiles()...)
	if n := o.Serving.HTTP2MaxStreamsPerConnection; n > maxStreamsPerConnection {
		errs = append(errs, invalid("http2-max-streams-per-connection", n, fmt.Sprintf("must be at most %d", maxStreamsPerConnection)))
	}
	if !(o.GoawayChance >= 0 && o.GoawayChance <= maxGoawayChance) { // also not a number
		errs = append(errs, invalid("goaway-chance", o.GoawayChance, fmt.Sprintf("must be between 0 and %v", maxGoawayChance)))
	}
	if o.ShutdownDelay < 0 {
		errs = append(errs, invalid("shutdown-delay-duration", o.ShutdownDelay, "must not be negative"))
	}
	for _, audience := range o.APIAudiences {
		if strings.TrimSpace(audience) != audience || audience == "" {
			errs = append(errs, invalid("api-audiences", audience, "must not be empty, and have no white space around it"))
		}
	}
	errs = append(errs, o.Authentication.Validate()...)
	errs = append(errs, o.Authorization.Validate()...)
	errs = append(errs, o.Audit.Validate()...)
	errs = append(errs, o.Features.Validate()...)
	if _, err := o.tracingConfiguration(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// validateFiles reads the files of the options. k8s.io/apiserver reads them late, after it has
// asked the hub, and its errors do not name the flag.
func (o *GenericOptions) validateFiles() []error {
	var errs []error
	switch pair := o.Serving.ServerCert.CertKey; {
	case pair.CertFile == "" && pair.KeyFile == "":
	case pair.CertFile == "":
		errs = append(errs, invalid("tls-cert-file", "", "must be set with --tls-private-key-file"))
	case pair.KeyFile == "":
		errs = append(errs, invalid("tls-private-key-file", "", "must be set with --tls-cert-file"))
	default:
		if _, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile); err != nil {
			errs = append(errs, fmt.Errorf("invalid --tls-cert-file %q or --tls-private-key-file %q: %w", pair.CertFile, pair.KeyFile, err))
		}
	}
	for _, f := range []fileFlag{
		{"client-ca-file", o.Authentication.ClientCert.ClientCA},
		{"requestheader-client-ca-file", o.Authentication.RequestHeader.ClientCAFile},
	} {
		if f.path == "" {
			continue
		}
		content, err := readFile(f.name, f.path)
		if err != nil {
			errs = append(errs, err)
		} else if _, err := cert.ParseCertsPEM(content); err != nil {
			errs = append(errs, invalid(f.name, f.path, "must contain a CA certificate in PEM: "+err.Error()))
		}
	}
	return errs
}

// clone returns options that can be completed and applied without a change to o. k8s.io/apiserver
// writes into some of them.
func (o *GenericOptions) clone() *GenericOptions {
	c := *o
	serving, authentication, authorization := *o.Serving.SecureServingOptions, *o.Authentication, *o.Authorization
	c.Serving, c.Authentication, c.Authorization = serving.WithLoopback(), &authentication, &authorization
	return &c
}

// complete sets what follows from the hub's kubeconfig.
func (o *GenericOptions) complete(kubeconfig string) {
	if o.Authentication.RemoteKubeConfigFile == "" {
		o.Authentication.RemoteKubeConfigFile = kubeconfig
	}
	if o.Authorization.RemoteKubeConfigFile == "" {
		o.Authorization.RemoteKubeConfigFile = kubeconfig
	}
}

// hasServingCertificate reports whether the flags name the certificate of the gateway's own
// endpoint.
func (o *GenericOptions) hasServingCertificate() bool {
	c := o.Serving.ServerCert
	return c.CertKey.CertFile != "" || c.CertKey.KeyFile != "" || c.CertDirectory != "" || c.GeneratedCert != nil
}

// listen applies the options of the endpoint, and listens. Its error names the flags.
func (o *GenericOptions) listen(config *genericapiserver.Config) error {
	if o.hasServingCertificate() {
		if err := o.Serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
			return err
		}
	}
	port := o.Serving.BindPort // set to 0 if listening fails
	err := o.Serving.ApplyToConfig(config)
	if err != nil && o.Serving.Listener == nil {
		return fmt.Errorf("cannot listen on --bind-address %s, --secure-port %d: %w", o.Serving.BindAddress, port, err)
	}
	config.GoawayChance, config.ShutdownDelayDuration = o.GoawayChance, o.ShutdownDelay
	return err
}

// close releases the listener.
func (o *GenericOptions) close() {
	if lis := o.Serving.Listener; lis != nil {
		_ = lis.Close() // no request has been accepted
	}
}
