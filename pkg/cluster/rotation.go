// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// RotationRequest asks the gateway to replace credentials of a cluster now. agent-bootstrap rotate
// writes it to the cluster's Secret. The zero value asks for nothing.
type RotationRequest struct {
	// ID differs between requests. A request is carried out once.
	ID string `json:"id"`
	// Certificate is whether the certificate of an agent that runs as Pods is replaced as well.
	Certificate bool `json:"certificate,omitempty"`
	// Revoke is whether the earlier certificates of the agents are refused once there is a new one.
	Revoke bool `json:"revoke,omitempty"`
	// TokenLifetime and CertificateLifetime are those of the new credentials. 0 means the lifetimes
	// of the previous ones.
	TokenLifetime       metav1.Duration `json:"tokenLifetime,omitzero"`
	CertificateLifetime metav1.Duration `json:"certificateLifetime,omitzero"`

	tokensDone, certificateDone, noAgent bool

	failure string
}

// WantsTokens reports whether the tokens have not been replaced yet.
func (r RotationRequest) WantsTokens() bool { return r.ID != "" && !r.tokensDone }

// WantsCertificate reports whether the certificate of the agent has not been replaced yet.
func (r RotationRequest) WantsCertificate() bool {
	return r.ID != "" && r.Certificate && !r.certificateDone
}

// FoundNoAgent reports whether the certificate was not replaced, because no agent runs as Pods.
func (r RotationRequest) FoundNoAgent() bool { return r.ID != "" && r.noAgent }

// Failure returns why the first attempt failed, or "".
func (r RotationRequest) Failure() string { return r.failure }

// RotatedNothing follows the ID in v1alpha1.AnnotationRotatedCertificate if no agent runs as Pods.
const RotatedNothing = " no-agent"

// maxRotationRequest bounds the annotation.
const maxRotationRequest = 1 << 10

// ParseRotationRequest reads the request in the annotations of a cluster's Secret. A request that
// cannot be read asks for nothing.
func ParseRotationRequest(annotations map[string]string) RotationRequest {
	var r RotationRequest
	text := annotations[v1alpha1.AnnotationRotationRequest]
	if text == "" || len(text) > maxRotationRequest || json.Unmarshal([]byte(text), &r) != nil ||
		r.TokenLifetime.Duration < 0 || r.CertificateLifetime.Duration < 0 || r.CertificateLifetime.Duration > maxLifetime {
		return RotationRequest{}
	}
	r.tokensDone = annotations[v1alpha1.AnnotationRotatedTokens] == r.ID
	r.failure, _ = strings.CutPrefix(annotations[v1alpha1.AnnotationRotationFailure], r.ID+" ")
	if r.failure == annotations[v1alpha1.AnnotationRotationFailure] {
		r.failure = "" // that of another request
	}
	done := annotations[v1alpha1.AnnotationRotatedCertificate]
	r.certificateDone, r.noAgent = done == r.ID || done == r.ID+RotatedNothing, done == r.ID+RotatedNothing
	return r
}

// maxLifetime is more than any certificate should be valid for.
const maxLifetime = 100 * 365 * 24 * time.Hour
