// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// AgentCertificates issues certificates for the tunnel.
type AgentCertificates interface {
	// Sign issues a certificate for a key. A lifetime of 0 means the default. It returns the
	// certificate with its chain, and the CAs that verify the tunnel server, both in PEM. It returns
	// ErrNoAuthority until the CA is known.
	Sign(cluster string, usage v1alpha1.AgentCertificateUsage, key any, lifetime time.Duration) (chain, bundle []byte, err error)
}

// ErrNoAuthority means that the tunnel's CA is not known yet.
var ErrNoAuthority = errors.New("the tunnel's CA has not been read from the hub yet")

// AgentCertificateREST is the subresource agentcertificate. A POST of a certificate signing request
// returns a certificate for the agents of the cluster, which need not be registered yet. So those
// who register clusters need no access to the key of the tunnel's CA.
type AgentCertificateREST struct{ certificates AgentCertificates }

var (
	_ rest.Storage      = (*AgentCertificateREST)(nil)
	_ rest.NamedCreater = (*AgentCertificateREST)(nil)
)

// NewAgentCertificateREST returns the subresource.
func NewAgentCertificateREST(c AgentCertificates) *AgentCertificateREST {
	return &AgentCertificateREST{certificates: c}
}

// New returns an empty AgentCertificate.
func (r *AgentCertificateREST) New() runtime.Object { return &v1alpha1.AgentCertificate{} }

// Destroy does nothing.
func (r *AgentCertificateREST) Destroy() {}

// maxExpirationSeconds is the longest time that a time.Duration can hold.
const maxExpirationSeconds = int64(math.MaxInt64 / time.Second)

// Create issues a certificate.
func (r *AgentCertificateREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	request, ok := obj.(*v1alpha1.AgentCertificate)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected an %s, not a %T", v1alpha1.AgentCertificateKind, obj))
	}
	if request.Name != "" && request.Name != name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) is not the name in the URL (%s)", request.Name, name))
	}
	key, faults := checkRequest(name, &request.Spec)
	if len(faults) > 0 {
		return nil, apierrors.NewInvalid(v1alpha1.Kind(v1alpha1.AgentCertificateKind), name, faults)
	}
	if validate != nil {
		if err := validate(ctx, request.DeepCopy()); err != nil {
			return nil, err
		}
	}
	var lifetime time.Duration
	if seconds := request.Spec.ExpirationSeconds; seconds != nil {
		lifetime = time.Duration(*seconds) * time.Second
	}
	chain, bundle, err := r.certificates.Sign(name, request.Spec.Usage, key, lifetime)
	switch {
	case errors.Is(err, ErrNoAuthority):
		return nil, apierrors.NewServiceUnavailable(err.Error() + "; try again")
	case err != nil:
		return nil, apierrors.NewInternalError(err)
	}
	answer := request.DeepCopy()
	answer.Name = name
	answer.Status = v1alpha1.AgentCertificateStatus{Certificate: chain, CABundle: bundle}
	return answer, nil
}

// checkRequest returns the key of a request, and what is wrong with it. It sets defaults.
func checkRequest(name string, spec *v1alpha1.AgentCertificateSpec) (key any, faults field.ErrorList) {
	path := field.NewPath("spec")
	for _, fault := range v1alpha1.ValidateClusterName(name) {
		faults = append(faults, field.Invalid(field.NewPath("metadata", "name"), name, fault))
	}
	switch spec.Usage {
	case "":
		spec.Usage = v1alpha1.AgentCertificateForAgent
	case v1alpha1.AgentCertificateForAgent, v1alpha1.AgentCertificateForInvitation:
	default:
		faults = append(faults, field.NotSupported(path.Child("usage"), spec.Usage,
			[]v1alpha1.AgentCertificateUsage{v1alpha1.AgentCertificateForAgent, v1alpha1.AgentCertificateForInvitation}))
	}
	if seconds := spec.ExpirationSeconds; seconds != nil && (*seconds <= 0 || *seconds > maxExpirationSeconds) {
		faults = append(faults, field.Invalid(path.Child("expirationSeconds"), *seconds, fmt.Sprintf("must be between 1 and %d", maxExpirationSeconds)))
	}
	key, err := requestedKey(name, spec.Request)
	if err != nil {
		faults = append(faults, field.Invalid(path.Child("request"), "(PEM)", err.Error()))
	}
	return key, faults
}

// minRSABits and maxRSABits are the sizes of RSA keys that are accepted. Larger keys cost the
// gateway time with each connection.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// requestedKey returns the key of a certificate signing request. Its owner has signed the request
// with it.
func requestedKey(name string, text []byte) (any, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("must be one certificate signing request in PEM (CERTIFICATE REQUEST)")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("must be a certificate signing request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("must be signed with its own key: %w", err)
	}
	if cn := request.Subject.CommonName; cn != "" && cn != name {
		return nil, fmt.Errorf("is for the common name %q, and the certificate would be for %q", cn, name)
	}
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return key, nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("has an RSA key of %d bits; it must have between %d and %d", bits, minRSABits, maxRSABits)
		}
		return key, nil
	default:
		return nil, errors.New("must have a key of ECDSA, Ed25519 or RSA")
	}
}
