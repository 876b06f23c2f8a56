// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// The time since which the certificates of a cluster's agents are accepted
// (v1alpha1.AnnotationAgentCertificatesSince) separates registrations from each other: the agent of
// an earlier registration of the same name has an older certificate. It is a time and not the ID of
// a registration so that certificates count that other versions of the gateway issue, which know of
// no ID.

// ErrRevoked is the reason for a certificate that was issued before the time since which
// certificates of the cluster's agents are accepted.
var ErrRevoked = errors.New("it is revoked, or from an earlier registration")

// CheckAgentCertificate returns an error if cert is too old to be accepted from the cluster's
// agents. A since of zero accepts every certificate.
func CheckAgentCertificate(cert *x509.Certificate, since time.Time) error {
	issued := pki.IssuedAt(cert)
	if since.IsZero() || !issued.Before(since.Truncate(time.Second)) {
		return nil
	}
	return fmt.Errorf("%w: it was issued at %s, and the cluster's Secret accepts certificates of agents since %s (annotation %s)",
		ErrRevoked, formatSince(issued), formatSince(since), v1alpha1.AnnotationAgentCertificatesSince)
}

// AgentCertificatesSince returns the time in a cluster's Secret. It is zero if the Secret is nil or
// has none, and also if it cannot be read.
func AgentCertificatesSince(secret *corev1.Secret) time.Time {
	if secret == nil {
		return time.Time{}
	}
	since, err := time.Parse(time.RFC3339, secret.Annotations[v1alpha1.AnnotationAgentCertificatesSince])
	if err != nil {
		return time.Time{}
	}
	return since
}

func formatSince(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// sinceAttempts bounds how often a Secret is read again that changes meanwhile.
const sinceAttempts = 10

// AcceptAgentCertificate makes sure that a cluster's Secret accepts cert, which was just issued. It
// changes the Secret only if the clock of the issuer is behind the one of whoever wrote the time.
// uid is that of the Secret, or empty for any. A Secret that is gone is no error.
func AcceptAgentCertificate(ctx context.Context, secrets corev1client.SecretInterface, name string, uid types.UID, cert *x509.Certificate) error {
	for range sinceAttempts {
		secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && uid != "" && secret.UID != uid {
			return nil
		}
		if err != nil {
			return err
		}
		if CheckAgentCertificate(cert, AgentCertificatesSince(secret)) == nil {
			return nil
		}
		if err := patchSince(ctx, secrets, secret, pki.IssuedAt(cert)); !apierrors.IsConflict(err) {
			return err
		}
	}
	return fmt.Errorf("the Secret %s on the hub keeps changing: run the same command again", name)
}

// RevokeAgentCertificates makes a cluster's Secret refuse every certificate of agents that was
// issued before cert. The streams of agents with such certificates end at once.
func RevokeAgentCertificates(ctx context.Context, secrets corev1client.SecretInterface, name string, uid types.UID, cert *x509.Certificate) error {
	return patchSince(ctx, secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid}}, pki.IssuedAt(cert))
}

// AwaitNextSecond waits until the current second is over. Call it before issuing the certificate
// whose predecessors are to be revoked: times in certificates are in seconds.
func AwaitNextSecond(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Second))):
		return nil
	}
}

// patchSince writes the time. It fails with a conflict if the Secret has another UID or, if it is
// given, another resource version.
func patchSince(ctx context.Context, secrets corev1client.SecretInterface, secret *corev1.Secret, since time.Time) error {
	patch, err := MergePatch(secret, map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{v1alpha1.AnnotationAgentCertificatesSince: formatSince(since)}},
	})
	if err != nil {
		return err
	}
	_, err = secrets.Patch(ctx, secret.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
	return err
}
