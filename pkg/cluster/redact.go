// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// public contains the fields that are printed when a Cluster is formatted or marshaled.
type public struct {
	Name            string                  `json:"name"`
	ResourceVersion string                  `json:"resourceVersion,omitempty"`
	Route           Route                   `json:"route,omitempty"`
	Endpoint        string                  `json:"endpoint,omitempty"`
	ServerName      string                  `json:"serverName,omitempty"`
	Insecure        bool                    `json:"insecure,omitempty"`
	ProxyURL        string                  `json:"proxyURL,omitempty"`
	Credential      v1alpha1.CredentialType `json:"credential,omitempty"`
	Fingerprint     string                  `json:"fingerprint,omitempty"`
	Invalid         string                  `json:"invalid,omitempty"`
}

func (c Cluster) public() public {
	p := public{
		Name:            c.Name,
		ResourceVersion: c.ResourceVersion,
		Route:           c.Route,
		ServerName:      c.ServerName,
		Insecure:        c.Insecure,
		ProxyURL:        redactURL(c.ProxyURL),
		Credential:      c.Credential.Type,
		Fingerprint:     c.fingerprint.String(),
		Invalid:         c.Message(),
	}
	if c.Endpoint != nil {
		p.Endpoint = c.Endpoint.String()
	}
	return p
}

// The following methods have value receivers, so that a copy of a Cluster is as safe to print as a
// pointer to it.

// String returns the public fields.
func (c Cluster) String() string {
	text, err := json.Marshal(c.public())
	if err != nil { // a struct of strings always marshals
		return "Cluster(" + c.Name + ")"
	}
	return "Cluster" + string(text)
}

// GoString returns the public fields.
func (c Cluster) GoString() string { return c.String() }

// Format prints the public fields, whatever the verb.
func (c Cluster) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalJSON returns the public fields.
func (c Cluster) MarshalJSON() ([]byte, error) {
	return json.Marshal(c.public())
}

// MarshalLog returns the public fields for klog.
func (c Cluster) MarshalLog() any {
	return c.public()
}

// String returns the type.
func (c Credential) String() string { return "Credential(" + string(c.Type) + ")" }

// GoString returns the type.
func (c Credential) GoString() string { return c.String() }

// Format prints the type, whatever the verb.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalJSON returns the type.
func (c Credential) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]v1alpha1.CredentialType{"type": c.Type})
}

// MarshalLog returns the type for klog.
func (c Credential) MarshalLog() any { return c.String() }

// redactURL replaces user and password.
func redactURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	shown := *u
	if shown.User != nil {
		shown.User = url.User("REDACTED")
	}
	return shown.String()
}
