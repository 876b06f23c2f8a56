// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"math"
	"net"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// Options are everything that the gateway can be told on its command line.
type Options struct {
	Hub    *HubOptions
	Tunnel *TunnelOptions
	Proxy  *ProxyOptions
	Health *HealthOptions
	// OwnServing is for when Serving has no certificate.
	OwnServing *ServingOptions
	// Rotation is for tests.
	Rotation *RotationOptions

	// The generic API server's own.
	Serving        *genericoptions.SecureServingOptionsWithLoopback
	Authentication *genericoptions.DelegatingAuthenticationOptions
	Authorization  *genericoptions.DelegatingAuthorizationOptions
	Audit          *genericoptions.AuditOptions
	Features       *genericoptions.FeatureOptions
	Tracing        *genericoptions.TracingOptions
	Logs           *logs.Options
}

// defaultPort is the port of the gateway's own HTTPS endpoint, reached by the hub's aggregation layer and by clients.
const defaultPort = 8443

// maxStreamsPerConnection bounds the requests that a client has in flight over one HTTP/2 connection. The hub has one
// connection to this process (kubernetes #60042), so this bounds everything that comes through it, watches included;
// k8s.io/apiserver recommends 1000 for an aggregated server that serves its own objects only.
const maxStreamsPerConnection = 8000

// limitStreamsPerConnection is the most that may be asked for. k8s.io/apiserver (pkg/server/secure_serving.go) gives a connection a
// receive window of 256 KiB for each of its streams, reckoned in an int32. Beyond, it wraps, and net/http falls back to 1 MiB for
// all streams together: four uploads that one cluster does not take would then hold up every other upload from the hub.
const limitStreamsPerConnection = math.MaxInt32 / (256 << 10)

// NewOptions returns the defaults.
func NewOptions() *Options {
	serving := genericoptions.NewSecureServingOptions()
	serving.BindPort = defaultPort
	// There is nothing to run without it: so --secure-port=0 is refused, and the help says so.
	serving.Required = true
	serving.HTTP2MaxStreamsPerConnection = maxStreamsPerConnection
	// Without --tls-cert-file the pair is in a Secret, and nothing is written to disk.
	serving.ServerCert.CertDirectory = ""
	features := genericoptions.NewFeatureOptions()
	// It would need the hub's FlowSchemas; what needs bounding here is bounded per cluster.
	features.EnablePriorityAndFairness = false
	return &Options{
		Hub:            NewHubOptions(),
		Tunnel:         NewTunnelOptions(),
		Proxy:          NewProxyOptions(),
		Health:         NewHealthOptions(),
		OwnServing:     NewServingOptions(),
		Rotation:       NewRotationOptions(),
		Serving:        serving.WithLoopback(),
		Authentication: genericoptions.NewDelegatingAuthenticationOptions(),
		Authorization:  genericoptions.NewDelegatingAuthorizationOptions(),
		Audit:          genericoptions.NewAuditOptions(),
		Features:       features,
		Tracing:        genericoptions.NewTracingOptions(),
		Logs:           logs.NewOptions(),
	}
}

// Flags returns all flags in groups, the gateway's own first, for a help text that can be read.
func (o *Options) Flags() (groups cliflag.NamedFlagSets) {
	o.Hub.AddFlags(groups.FlagSet("hub"))
	o.Tunnel.AddFlags(groups.FlagSet("tunnel"))
	o.Proxy.AddFlags(groups.FlagSet("proxy"))
	o.Health.AddFlags(groups.FlagSet("health"))
	o.OwnServing.AddFlags(groups.FlagSet("serving"))
	o.Serving.AddFlags(groups.FlagSet("serving"))
	o.Authentication.AddFlags(groups.FlagSet("authentication"))
	o.Authorization.AddFlags(groups.FlagSet("authorization"))
	o.Audit.AddFlags(groups.FlagSet("audit"))
	o.addFeatureFlags(groups.FlagSet("features"))
	o.Tracing.AddFlags(groups.FlagSet("features"))
	o.Rotation.AddFlags(groups.FlagSet("features"))
	logsapi.AddFlags(o.Logs, groups.FlagSet("logs"))
	return groups
}

// maxVerbosity is the highest log level that is let through. From 8 on client-go logs the bodies of its requests and responses
// (k8s.io/client-go/rest/request.go, logBody), and those of this process are Secrets and TokenReviews.
const maxVerbosity = 7

// clampVerbosity enforces maxVerbosity, and reports whether it had to.
func (o *Options) clampVerbosity() (clamped bool) {
	if o.Logs.Verbosity > maxVerbosity {
		o.Logs.Verbosity, clamped = maxVerbosity, true
	}
	for i := range o.Logs.VModule {
		if v := &o.Logs.VModule[i].Verbosity; *v > maxVerbosity {
			*v, clamped = maxVerbosity, true
		}
	}
	return clamped
}

// addFeatureFlags leaves out the flag of a feature that cannot be switched on here.
func (o *Options) addFeatureFlags(fs *pflag.FlagSet) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.Features.AddFlags(all)
	all.VisitAll(func(f *pflag.Flag) {
		if f.Name != "enable-priority-and-fairness" {
			fs.AddFlag(f)
		}
	})
}

// Validate returns all faults together, each naming its flag.
func (o *Options) Validate() error {
	var errs []error
	errs = append(errs, o.Hub.Validate()...)
	errs = append(errs, o.Tunnel.Validate()...)
	errs = append(errs, o.Proxy.Validate()...)
	errs = append(errs, o.Health.Validate()...)
	errs = append(errs, o.OwnServing.Validate()...)
	errs = append(errs, o.Serving.Validate()...)
	errs = append(errs, o.validateFiles()...)
	if n := o.Serving.HTTP2MaxStreamsPerConnection; n > limitStreamsPerConnection {
		errs = append(errs, fmt.Errorf("--http2-max-streams-per-connection must be at most %d, and is %d", limitStreamsPerConnection, n))
	}
	errs = append(errs, o.Authentication.Validate()...)
	errs = append(errs, o.Authorization.Validate()...)
	errs = append(errs, o.Audit.Validate()...)
	errs = append(errs, o.Features.Validate()...)
	errs = append(errs, o.Tracing.Validate()...)
	return utilerrors.NewAggregate(errs)
}

// complete fills in what depends on other options.
func (o *Options) complete() error {
	if o.Authentication.RemoteKubeConfigFile == "" {
		o.Authentication.RemoteKubeConfigFile = o.Hub.Kubeconfig
	}
	if o.Authorization.RemoteKubeConfigFile == "" {
		o.Authorization.RemoteKubeConfigFile = o.Hub.Kubeconfig
	}
	if o.selfMadeServing() {
		return nil
	}
	return o.Serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)})
}
