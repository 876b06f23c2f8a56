// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// tunnelCertificates gets certificates for the tunnel from the gateway. If the gateway does not
// issue any, because it is of an earlier version or the user provides the CA, they are issued here,
// with the CA on the hub.
type tunnelCertificates struct {
	hub       *clusterClient
	namespace string
	// bundle has the CAs that verify agents, in PEM.
	bundle []byte
	// authority is the CA on the hub. It is nil if the gateway issues certificates.
	authority *pki.Authority
}

// newTunnelCertificates finds out who issues certificates. published is the bundle that the gateway
// has published, or nil. requireGateway must have been called.
func newTunnelCertificates(ctx context.Context, hub *clusterClient, namespace string, published []byte) (*tunnelCertificates, error) {
	t := &tunnelCertificates{hub: hub, namespace: namespace, bundle: published}
	if hub.issuesCertificates && len(published) > 0 {
		return t, nil
	}
	return t, t.load(ctx)
}

// load reads the CA on the hub.
func (t *tunnelCertificates) load(ctx context.Context) error {
	authority, err := pki.Load(ctx, t.hub.kube.CoreV1().Secrets(t.namespace))
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the tunnel's CA is not on the hub: there is no Secret %s/%s. The gateway creates it if it runs without --tunnel-cert-file; put a CA of your own there as tls.crt, tls.key and ca.crt. %s",
			t.namespace, pki.CASecret, externalNote)
	}
	if err != nil {
		return t.hub.explain(err)
	}
	t.authority, t.bundle = authority, authority.Bundle()
	return nil
}

// rights returns the rights on the hub that it takes to get a certificate.
func (t *tunnelCertificates) rights(name string) []registration.Right {
	if t == nil || t.authority != nil {
		return nil
	}
	return []registration.Right{{
		Verb: "create", Group: v1alpha1.GroupName, Resource: v1alpha1.ResourceName, Subresource: v1alpha1.AgentCertificateSubresource, Name: name,
	}}
}

// forAgent returns a new certificate for the agents of a cluster. A lifetime of 0 means the
// default.
func (t *tunnelCertificates) forAgent(ctx context.Context, name string, lifetime time.Duration, now time.Time) (registration.AgentPair, *x509.Certificate, error) {
	if t.authority == nil {
		pair, err := t.request(ctx, name, v1alpha1.AgentCertificateForAgent, lifetime)
		if err != nil {
			return registration.AgentPair{}, nil, err
		}
		if t.authority == nil {
			issued, err := pair.Verify(pair.CA, name, now)
			if err != nil {
				err = fmt.Errorf("the certificate that the gateway has issued for the agent cannot be used: %w", err)
			}
			return pair, issued, err
		}
	}
	return registration.IssueAgentPair(t.authority, name, lifetime, now)
}

// forInvitation returns a new certificate for an invitation.
func (t *tunnelCertificates) forInvitation(ctx context.Context, name string, lifetime time.Duration) (registration.AgentPair, error) {
	if t.authority == nil {
		pair, err := t.request(ctx, name, v1alpha1.AgentCertificateForInvitation, lifetime)
		if err != nil || t.authority == nil {
			return pair, err
		}
	}
	certificate, key, err := t.authority.IssueInvitation(name, lifetime)
	if err != nil {
		return registration.AgentPair{}, fmt.Errorf("issue the certificate of the invitation: %w", err)
	}
	return registration.AgentPair{Certificate: certificate, Key: key, CA: t.bundle}, nil
}

// request asks the gateway for a certificate. If the replica that answers is of an earlier version,
// as during an update, it reads the CA instead.
func (t *tunnelCertificates) request(ctx context.Context, name string, usage v1alpha1.AgentCertificateUsage, lifetime time.Duration) (registration.AgentPair, error) {
	pair, err := registration.RequestCertificate(ctx, t.hub.kube.CoreV1().RESTClient(), name, usage, lifetime)
	var status apierrors.APIStatus
	switch {
	case err == nil:
		t.bundle = pair.CA
		return pair, nil
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		return registration.AgentPair{}, t.load(ctx)
	case errors.As(err, &status):
		return registration.AgentPair{}, fmt.Errorf("get a certificate for the tunnel from the gateway: %w", t.hub.explain(err))
	default:
		return registration.AgentPair{}, t.hub.explain(err)
	}
}
