// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// RequestCertificate makes a key, and asks the gateway of a hub for a certificate for it. A
// lifetime of 0 means the gateway's default. The pair trusts the CAs that the gateway returns.
// Errors are those of the client.
func RequestCertificate(ctx context.Context, hub rest.Interface, name string, usage v1alpha1.AgentCertificateUsage, lifetime time.Duration) (AgentPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return AgentPair{}, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return AgentPair{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return AgentPair{}, err
	}
	request := &v1alpha1.AgentCertificate{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.AgentCertificateKind},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.AgentCertificateSpec{Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), Usage: usage},
	}
	if lifetime > 0 {
		request.Spec.ExpirationSeconds = ptr.To(max(1, int64(lifetime/time.Second)))
	}
	body, err := json.Marshal(request)
	if err != nil {
		return AgentPair{}, err
	}
	text, err := hub.Post().AbsPath(v1alpha1.BasePath+name, v1alpha1.AgentCertificateSubresource).
		SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").Body(body).DoRaw(ctx)
	if err != nil {
		return AgentPair{}, err
	}
	var answer v1alpha1.AgentCertificate
	if err := json.Unmarshal(text, &answer); err != nil {
		return AgentPair{}, fmt.Errorf("the gateway's answer to a certificate signing request cannot be read: %w", err)
	}
	return AgentPair{
		Certificate: answer.Status.Certificate, CA: answer.Status.CABundle,
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}
