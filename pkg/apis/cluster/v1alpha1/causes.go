// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusReasonBadGateway is the reason of a 502, for which metav1 has none.
const StatusReasonBadGateway metav1.StatusReason = "BadGateway"

// Types of the cause in the details of a Status that the gateway itself answers (details.causes[].type): the stage at which a request
// to the proxy subresource ended.
const (
	// CauseInvalidSecret: the Secret cannot be used.
	CauseInvalidSecret metav1.CauseType = "InvalidSecret"
	// CauseTunnel: there is no tunnel to the cluster, or it broke.
	CauseTunnel metav1.CauseType = "Tunnel"
	// CauseAgent: the agent cannot connect to the API server.
	CauseAgent metav1.CauseType = "Agent"
	// CauseEndpoint: the gateway cannot connect to the API server.
	CauseEndpoint metav1.CauseType = "Endpoint"
	// CauseTLS: the API server's certificate is not what the Secret says.
	CauseTLS metav1.CauseType = "TLS"
	// CauseCredential: there is no credential, or the cluster rejected it.
	CauseCredential metav1.CauseType = "Credential"
	// CauseRequest: the request was not sent.
	CauseRequest metav1.CauseType = "Request"
	// CauseResponse: the request was sent, and its answer is missing or broken.
	CauseResponse metav1.CauseType = "Response"
)
