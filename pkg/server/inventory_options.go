// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/pem"
	"errors"
	"net/url"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/internal/cabundle"
	"github.com/oam-dev/cluster-gateway/pkg/inventory"
)

// InventoryOptions say where the gateway publishes its clusters as ClusterProfiles.
// [InventoryConfig] is their config.
type InventoryOptions struct {
	// Namespace is the namespace of the profiles. Empty means that there are none.
	Namespace string
	// Selector selects clusters by the labels of their Secrets.
	Selector string
	// Manager is the name of the gateway as a cluster manager.
	Manager string
	// Server is the URL at which consumers reach the gateway, and CAFile verifies it. Empty means the
	// Service of the gateway's own endpoint, and the CA that the gateway creates for it.
	Server, CAFile string
}

// NewInventoryOptions returns the defaults.
func NewInventoryOptions() *InventoryOptions {
	return &InventoryOptions{Manager: inventory.DefaultManager}
}

// AddFlags adds the flags of the group.
func (o *InventoryOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Namespace, "cluster-profiles-namespace", o.Namespace,
		"Namespace in the hub in which the gateway keeps a ClusterProfile (multicluster.x-k8s.io) for each cluster. The profiles contain no credential. If it is empty, the gateway writes no profiles.")
	fs.StringVar(&o.Selector, "cluster-profiles-selector", o.Selector,
		"Label selector, for example env=prod: only clusters whose Secrets have these labels get a ClusterProfile. If it is empty, all clusters get one.")
	fs.StringVar(&o.Manager, "cluster-profiles-manager", o.Manager,
		"Name of the gateway in spec.clusterManager of the ClusterProfiles. The name of a profile's manager cannot be changed: the gateway leaves profiles with its previous name to you.")
	fs.StringVar(&o.Server, "cluster-profiles-server", o.Server,
		"URL at which consumers of ClusterProfiles reach the gateway, for example https://kubernetes.default.svc for the hub's API server. The host must be in the server's certificate. Default: https://cluster-gateway.NAMESPACE.svc:8443, the gateway's own endpoint.")
	fs.StringVar(&o.CAFile, "cluster-profiles-ca-file", o.CAFile,
		"File with the CA certificates that verify --cluster-profiles-server, in PEM. The gateway reads it again when it changes. If it is not set, the profiles contain the CA that the gateway creates for its own endpoint, or none if --tls-cert-file is set.")
}

// Validate returns every fault.
func (o *InventoryOptions) Validate() []error {
	var errs []error
	if o.Namespace == "" {
		for _, f := range []struct{ flag, value string }{
			{"cluster-profiles-selector", o.Selector}, {"cluster-profiles-server", o.Server}, {"cluster-profiles-ca-file", o.CAFile},
		} {
			if f.value != "" {
				errs = append(errs, invalid(f.flag, f.value, "must not be set without --cluster-profiles-namespace"))
			}
		}
		return errs
	}
	if faults := validation.IsDNS1123Label(o.Namespace); len(faults) > 0 {
		errs = append(errs, invalid("cluster-profiles-namespace", o.Namespace, "must be a namespace: "+faults[0]))
	}
	if _, err := labels.Parse(o.Selector); err != nil {
		errs = append(errs, invalidError("cluster-profiles-selector", o.Selector, err))
	}
	if faults := validation.IsValidLabelValue(o.Manager); len(faults) > 0 || o.Manager == "" {
		errs = append(errs, invalid("cluster-profiles-manager", o.Manager, "must be the value of a label, and not empty"))
	}
	if o.Server != "" {
		u, err := url.Parse(o.Server)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			errs = append(errs, invalid("cluster-profiles-server", o.Server, "must be an https URL without a user and a query"))
		}
	}
	if o.CAFile != "" {
		if _, err := o.readCA(); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// readCA returns the certificates in CAFile and nothing else that may be in it, such as a key.
func (o *InventoryOptions) readCA() ([]byte, error) {
	const flag = "cluster-profiles-ca-file"
	content, err := readFile(flag, o.CAFile)
	if err != nil {
		return nil, err
	}
	certs, _ := cabundle.Parse(content)
	if len(certs) == 0 {
		return nil, invalidError(flag, o.CAFile, errors.New("the file has no usable CA certificate"))
	}
	var bundle bytes.Buffer
	for _, cert := range certs {
		if err := pem.Encode(&bundle, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return nil, err
		}
	}
	return bundle.Bytes(), nil
}

// InventoryConfig is how the gateway publishes its clusters.
type InventoryConfig struct {
	// Namespace is the namespace of the profiles.
	Namespace string
	// Selector selects clusters by the labels of their Secrets.
	Selector labels.Selector
	// Manager is the name of the gateway as a cluster manager.
	Manager string
	// Server is the URL at which consumers reach the gateway.
	Server string
	// ReadCA returns the CA that verifies the server. nil means the CA that the gateway creates for
	// its own endpoint.
	ReadCA func() ([]byte, error)
}

// config returns nil if the gateway does not publish its clusters. The options are valid.
func (o *InventoryOptions) config(secretNamespace string) *InventoryConfig {
	if o.Namespace == "" {
		return nil
	}
	c := &InventoryConfig{Namespace: o.Namespace, Manager: o.Manager, Server: strings.TrimSuffix(o.Server, "/"), Selector: labels.Everything()}
	if selector, err := labels.Parse(o.Selector); err == nil {
		c.Selector = selector
	}
	if c.Server == "" {
		c.Server = "https://" + serviceName + "." + secretNamespace + ".svc:8443"
	}
	if o.CAFile != "" {
		copied := *o
		c.ReadCA = copied.readCA
	}
	return c
}

// newProfiles returns what keeps the ClusterProfiles up to date.
func (s *Server) newProfiles(c *InventoryConfig) *inventory.Publisher {
	return inventory.NewPublisher(inventory.Config{
		Client: s.config.Hub.Dynamic, Namespace: c.Namespace, Manager: c.Manager, Selector: c.Selector, Clusters: s.clusters,
		Access: func() (inventory.Access, error) {
			access := inventory.Access{Server: c.Server}
			var err error
			switch {
			case c.ReadCA != nil:
				access.CAData, err = c.ReadCA()
			case s.certificate != nil:
				access.CAData = s.certificate.keeper.Bundle()
			}
			return access, err
		},
		Logger: klog.Background().WithName("inventory"),
	})
}
