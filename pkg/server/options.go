// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
)

// Options are the flags of the gateway. Each group owns its flags, their validation and its part of
// the [Config].
type Options struct {
	Hub                *HubOptions
	Tunnel             *TunnelOptions
	Peers              *PeerOptions
	Proxy              *ProxyOptions
	Identity           *IdentityOptions
	Memory             *MemoryOptions
	Health             *HealthOptions
	ServingCertificate *ServingCertificateOptions
	Inventory          *InventoryOptions
	ClusterAPI         *ClusterAPIOptions
	Generic            *GenericOptions
	Logs               *logs.Options
}

// NewOptions returns the defaults.
func NewOptions() *Options {
	return &Options{
		Hub:                NewHubOptions(),
		Tunnel:             NewTunnelOptions(),
		Peers:              NewPeerOptions(),
		Proxy:              NewProxyOptions(),
		Identity:           NewIdentityOptions(),
		Memory:             NewMemoryOptions(),
		Health:             NewHealthOptions(),
		ServingCertificate: NewServingCertificateOptions(),
		Inventory:          NewInventoryOptions(),
		ClusterAPI:         NewClusterAPIOptions(),
		Generic:            NewGenericOptions(),
		Logs:               logs.NewOptions(),
	}
}

// Flags returns all flags in named sets. The sets of the gateway itself come first in the help
// text.
func (o *Options) Flags() (groups cliflag.NamedFlagSets) {
	o.Hub.AddFlags(groups.FlagSet("hub"))
	o.Tunnel.AddFlags(groups.FlagSet("tunnel"))
	o.Peers.AddFlags(groups.FlagSet("peers"))
	o.Proxy.AddFlags(groups.FlagSet("proxy"))
	o.Identity.AddFlags(groups.FlagSet("identity"))
	o.Memory.AddFlags(groups.FlagSet("memory"))
	o.Health.AddFlags(groups.FlagSet("health"))
	o.ServingCertificate.AddFlags(groups.FlagSet("serving"))
	o.Inventory.AddFlags(groups.FlagSet("cluster profiles"))
	o.ClusterAPI.AddFlags(groups.FlagSet("cluster API"))
	o.Generic.AddFlags(&groups)
	logsapi.AddFlags(o.Logs, groups.FlagSet("logs"))
	return groups
}

// AddFlags adds all flags to one set.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	groups := o.Flags()
	for _, set := range groups.FlagSets {
		fs.AddFlagSet(set)
	}
}

// Validate returns every fault, each with the name of its flag. Flags of the log are validated when
// they are applied.
func (o *Options) Validate() []error {
	var errs []error
	errs = append(errs, o.Hub.Validate()...)
	errs = append(errs, o.Tunnel.Validate()...)
	errs = append(errs, o.Peers.Validate(o.Tunnel.Mode)...)
	errs = append(errs, o.Proxy.Validate()...)
	errs = append(errs, o.Identity.Validate()...)
	errs = append(errs, o.Memory.Validate()...)
	errs = append(errs, o.Health.Validate()...)
	errs = append(errs, o.ServingCertificate.Validate()...)
	errs = append(errs, o.Inventory.Validate()...)
	errs = append(errs, o.ClusterAPI.Validate()...)
	errs = append(errs, o.Generic.Validate()...)
	return errs
}

// logFlags are the flags that set the fields of k8s.io/component-base's LoggingConfiguration. Its
// errors name the fields.
var logFlags = map[string]string{
	"format":         "--logging-format",
	"flushFrequency": "--log-flush-frequency",
	"verbosity":      "--v",
	"vmodule":        "--vmodule",
}

// validateLogs returns an error that names the flags with invalid values.
func (o *Options) validateLogs() error {
	var errs []error
	for _, fault := range logsapi.Validate(o.Logs, nil, nil) {
		if flag, ok := logFlags[fault.Field]; ok {
			fault.Field = flag
		}
		errs = append(errs, fault)
	}
	return errors.Join(errs...)
}

// maxVerbosity is the highest log level that the gateway allows. From 8 on, client-go logs the
// bodies of its requests and responses (k8s.io/client-go/rest/request.go, logBody), and those of
// this process are Secrets and TokenReviews.
const maxVerbosity = 7

// clampVerbosity lowers log levels to maxVerbosity. It reports whether it changed one.
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
