// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/util/cert"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// IdentityOptions say how callers are carried to clusters that see them. [IdentityConfig] is their
// config.
type IdentityOptions struct {
	// HubName is part of the names under which clusters see the ServiceAccounts of the hub.
	HubName string
	// Extras are the keys of the extra values that are carried.
	Extras []string
	// RulesFile are the rules for all clusters. Empty means that there are none.
	RulesFile string
	// WebhookURLs are the webhooks that rules in Secrets may name.
	WebhookURLs []string
	// WebhookCAFile verifies webhooks. Empty means the CAs of the operating system. WebhookCertFile
	// and WebhookKeyFile are the certificate that the gateway presents to them. Empty means none.
	WebhookCAFile, WebhookCertFile, WebhookKeyFile string
	// WebhookTimeout limits a question to a webhook. WebhookTTL is how long its answer is used.
	WebhookTimeout, WebhookTTL time.Duration
}

// NewIdentityOptions returns the defaults.
func NewIdentityOptions() *IdentityOptions {
	return &IdentityOptions{
		HubName:        identity.DefaultHubName,
		WebhookTimeout: identity.DefaultWebhookTimeout,
		WebhookTTL:     identity.DefaultWebhookTTL,
	}
}

// AddFlags adds the flags of the group.
func (o *IdentityOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.HubName, "hub-name", o.HubName,
		"Name of this hub in the names of users. A cluster with the identity mode impersonate or rules sees a ServiceAccount of the hub as the user hub:HUB_NAME:NAMESPACE:SERVICEACCOUNT. If several hubs reach one cluster, each needs a name of its own.")
	fs.StringArrayVar(&o.Extras, "identity-extra", o.Extras,
		"Key of an extra value of callers (such as example.com/team) that clusters see. Can be repeated. Other extra values are only in the audit log. Keys of kubernetes.io and k8s.io are not allowed.")
	fs.StringVar(&o.RulesFile, "cluster-gateway-proxy-config", o.RulesFile,
		"YAML file with identity rules, in the format of oam-dev/cluster-gateway (ClusterGatewayProxyConfiguration). It applies to each cluster whose Secret does not set an identity mode. A caller that matches a rule gets the identity in the rule, and other callers keep their own. The gateway reads the file again when it changes. While the file is invalid, requests to these clusters are refused.")
	fs.StringArrayVar(&o.WebhookURLs, "identity-webhook-url", o.WebhookURLs,
		"URL (https) of a webhook that rules in the Secrets of clusters may name (ExternalIdentityExchanger). Can be repeated. The file of --cluster-gateway-proxy-config can name any.")
	fs.StringVar(&o.WebhookCAFile, "identity-webhook-ca-file", o.WebhookCAFile,
		"File with the CAs that verify webhooks. If it is not set, the gateway uses the CAs of its operating system.")
	fs.StringVar(&o.WebhookCertFile, "identity-webhook-cert-file", o.WebhookCertFile,
		"File with the certificate that the gateway presents to webhooks.")
	fs.StringVar(&o.WebhookKeyFile, "identity-webhook-key-file", o.WebhookKeyFile,
		"File with the key of --identity-webhook-cert-file.")
	fs.DurationVar(&o.WebhookTimeout, "identity-webhook-timeout", o.WebhookTimeout,
		"Maximum duration of a request to a webhook. If there is no answer in time, the request is refused.")
	fs.DurationVar(&o.WebhookTTL, "identity-webhook-cache-ttl", o.WebhookTTL,
		"How long the answer of a webhook is used for the same caller, cluster and rule. 0 means that the gateway asks for each request.")
}

// Validate returns every fault.
func (o *IdentityOptions) Validate() []error {
	var errs []error
	if faults := validation.IsDNS1123Subdomain(o.HubName); len(faults) > 0 {
		errs = append(errs, invalid("hub-name", o.HubName, "must be a DNS name: "+faults[0]))
	}
	for _, key := range o.Extras {
		switch {
		case key == "" || strings.ToLower(key) != key || strings.TrimSpace(key) != key:
			errs = append(errs, invalid("identity-extra", key, "must be a key in lower case"))
		case identity.IsReservedExtra(key):
			errs = append(errs, invalid("identity-extra", key, "must not be a key of kubernetes.io or k8s.io: these are reserved"))
		}
	}
	if o.RulesFile != "" {
		if _, err := identity.ReadFile(o.RulesFile); err != nil {
			errs = append(errs, invalidError("cluster-gateway-proxy-config", o.RulesFile, err))
		}
	}
	for _, text := range o.WebhookURLs {
		if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Hostname() == "" {
			errs = append(errs, invalid("identity-webhook-url", text, "must be an https URL"))
		}
	}
	if o.WebhookTimeout <= 0 || o.WebhookTimeout > maxWebhookTimeout {
		errs = append(errs, invalid("identity-webhook-timeout", o.WebhookTimeout, fmt.Sprintf("must be greater than 0, and at most %s", maxWebhookTimeout)))
	}
	if o.WebhookTTL < 0 || o.WebhookTTL > maxWebhookTTL {
		errs = append(errs, invalid("identity-webhook-cache-ttl", o.WebhookTTL, fmt.Sprintf("must be between 0 and %s", maxWebhookTTL)))
	}
	_, faults := o.webhookTLS()
	return append(errs, faults...)
}

// Limits of what a caller may wait for a webhook, and of how long its answer can be old.
const (
	maxWebhookTimeout = time.Minute
	maxWebhookTTL     = time.Hour
)

// webhookTLS reads the files.
func (o *IdentityOptions) webhookTLS() (*tls.Config, []error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var errs []error
	if o.WebhookCAFile != "" {
		text, err := readFile("identity-webhook-ca-file", o.WebhookCAFile)
		if err != nil {
			errs = append(errs, err)
		} else if certs, err := cert.ParseCertsPEM(text); err != nil {
			errs = append(errs, invalid("identity-webhook-ca-file", o.WebhookCAFile, "must contain a CA certificate in PEM: "+err.Error()))
		} else {
			config.RootCAs = x509.NewCertPool()
			for _, c := range certs {
				config.RootCAs.AddCert(c)
			}
		}
	}
	switch {
	case o.WebhookCertFile == "" && o.WebhookKeyFile == "":
	case o.WebhookCertFile == "":
		errs = append(errs, invalid("identity-webhook-cert-file", "", "must be set with --identity-webhook-key-file"))
	case o.WebhookKeyFile == "":
		errs = append(errs, invalid("identity-webhook-key-file", "", "must be set with --identity-webhook-cert-file"))
	default:
		pair, err := tls.LoadX509KeyPair(o.WebhookCertFile, o.WebhookKeyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("invalid --identity-webhook-cert-file %q or --identity-webhook-key-file %q: %w", o.WebhookCertFile, o.WebhookKeyFile, err))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, errs
}

// IdentityConfig is how callers are carried to clusters that see them.
type IdentityConfig struct {
	// Resolver has the hub's name and the extra values. New sets its rules and webhooks.
	Resolver identity.Config
	// RulesFile are the rules for all clusters. Empty means that there are none.
	RulesFile string
	Webhook   identity.WebhookConfig
}

// config returns the values of valid options, and sets what the parser of Secrets needs.
func (o *IdentityOptions) config(parse *cluster.ParseOptions) (IdentityConfig, error) {
	tlsConfig, errs := o.webhookTLS()
	if len(errs) > 0 {
		return IdentityConfig{}, errs[0]
	}
	parse.IdentityWebhooks = o.WebhookURLs
	if o.RulesFile != "" {
		parse.DefaultIdentity = identity.ModeRules
	}
	ttl := o.WebhookTTL
	if ttl == 0 {
		ttl = -1 // for the package, 0 means the default
	}
	return IdentityConfig{
		Resolver: identity.Config{HubName: o.HubName, Extras: o.Extras}, RulesFile: o.RulesFile,
		Webhook: identity.WebhookConfig{TLS: tlsConfig, Timeout: o.WebhookTimeout, TTL: ttl},
	}, nil
}
