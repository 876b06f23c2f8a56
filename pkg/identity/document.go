// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

// The format of oam-dev/cluster-gateway, in which rules are written. Its fields are pointers where
// an empty value differs from a missing one.
type document struct {
	APIVersion string         `json:"apiVersion,omitempty"`
	Kind       string         `json:"kind,omitempty"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	Spec       struct {
		ClientIdentityExchanger struct {
			Rules []documentRule `json:"rules,omitempty"`
		} `json:"clientIdentityExchanger,omitempty"`
	} `json:"spec,omitempty"`
}

const (
	documentKind  = "ClusterGatewayProxyConfiguration"
	documentGroup = "cluster.core.oam.dev"
)

type documentRule struct {
	Name   string          `json:"name,omitempty"`
	Type   exchanger       `json:"type"`
	Source *documentSource `json:"source"`
	Target *documentTarget `json:"target,omitempty"`
	URL    *string         `json:"url,omitempty"`
}

// exchanger is what a rule does.
type exchanger string

const (
	// exchangerPrivileged lets the caller act as the account of the gateway.
	exchangerPrivileged exchanger = "PrivilegedIdentityExchanger"
	// exchangerStatic names the user that the cluster sees.
	exchangerStatic exchanger = "StaticMappingIdentityExchanger"
	// exchangerExternal asks a webhook.
	exchangerExternal exchanger = "ExternalIdentityExchanger"
)

type documentSource struct {
	User    *string `json:"user,omitempty"`
	Group   *string `json:"group,omitempty"`
	UID     *string `json:"uid,omitempty"`
	Cluster *string `json:"cluster,omitempty"`

	UserPattern    *string `json:"userPattern,omitempty"`
	GroupPattern   *string `json:"groupPattern,omitempty"`
	ClusterPattern *string `json:"clusterPattern,omitempty"`
}

type documentTarget struct {
	User   string   `json:"user,omitempty"`
	Groups []string `json:"groups,omitempty"`
	UID    string   `json:"uid,omitempty"`
}
