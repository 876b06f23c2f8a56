// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusReasonBadGateway is the reason of a 502. metav1 does not define one.
const StatusReasonBadGateway metav1.StatusReason = "BadGateway"

// Types of the cause (details.causes[].type) in a Status that comes from the gateway and not from
// the managed cluster. The type is the stage at which a request to the proxy subresource failed.
const (
	// CauseInvalidSecret: the Secret is invalid.
	CauseInvalidSecret metav1.CauseType = "InvalidSecret"
	// CauseTunnel: there is no tunnel to the cluster, or the tunnel failed.
	CauseTunnel metav1.CauseType = "Tunnel"
	// CauseAgent: the agent cannot connect to the API server.
	CauseAgent metav1.CauseType = "Agent"
	// CauseEndpoint: the gateway cannot connect to the API server.
	CauseEndpoint metav1.CauseType = "Endpoint"
	// CauseTLS: the TLS handshake with the API server failed.
	CauseTLS metav1.CauseType = "TLS"
	// CauseCredential: there is no credential, or the cluster rejected it.
	CauseCredential metav1.CauseType = "Credential"
	// CauseIdentity: the identity of the caller is not carried to the cluster.
	CauseIdentity metav1.CauseType = "Identity"
	// CauseRequest: the request was not sent to the API server.
	CauseRequest metav1.CauseType = "Request"
	// CauseResponse: the request was sent, but the response is missing or incomplete.
	CauseResponse metav1.CauseType = "Response"
)
