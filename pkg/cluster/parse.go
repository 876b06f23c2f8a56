// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// DataKeys are all keys of a Secret's data that have a meaning.
func DataKeys() []string {
	return []string{v1alpha1.SecretKeyEndpoint, v1alpha1.SecretKeyCA, v1alpha1.SecretKeyCAAlias, v1alpha1.SecretKeyServerName, v1alpha1.SecretKeyProxyURL, v1alpha1.SecretKeyCert, v1alpha1.SecretKeyPrivateKey, v1alpha1.SecretKeyToken, v1alpha1.SecretKeyExec}
}

// Upper bounds of what a key may hold. A Secret holds at most 1 MiB altogether; what is longer than these is not what the key
// is for, and is refused before anything tries to make sense of it.
const (
	maxURL        = 2 << 10
	maxServerName = 253
	maxToken      = 64 << 10
	maxExec       = 64 << 10
	maxKey        = 64 << 10
	maxCert       = 128 << 10
	maxCA         = 512 << 10
)

// ParseOptions are the gateway's settings that decide what a Secret means. The zero value is embedded tunnels and no
// credential plugins.
type ParseOptions struct {
	// TunnelMode says how tunnels are served.
	TunnelMode TunnelMode
	// ExecCredentialDir is where credential plugins must lie. Empty: there are none.
	ExecCredentialDir string
}

// IsCluster is whether the Secret is a cluster at all: whether it has the label of the credential's type.
func IsCluster(secret *corev1.Secret) bool {
	if secret == nil {
		return false
	}
	_, ok := secret.Labels[v1alpha1.LabelCredentialType]
	return ok
}

// Parse reads a Secret. It never returns nil and keeps no reference to the Secret: what is wrong with it is told by Err.
func Parse(secret *corev1.Secret, opts ParseOptions) *Cluster {
	if secret == nil {
		secret = &corev1.Secret{}
	}
	p := &parser{secret: secret, opts: opts, cluster: &Cluster{
		Name:            secret.Name,
		Namespace:       secret.Namespace,
		UID:             secret.UID,
		ResourceVersion: secret.ResourceVersion,
		ManagedBy:       secret.Labels[labelManagedBy],
	}}
	p.health()
	p.route()
	p.insecure()
	p.endpoint()
	p.serverName()
	p.trust()
	p.proxyURL()
	p.credential()

	p.cluster.err = joinFaults(p.cluster.faults)
	p.cluster.fingerprint = p.fingerprint()
	return p.cluster
}

// parser reads one Secret into one Cluster. Each of its steps reads a few keys and goes on after a fault, so that all of them
// are reported at once.
type parser struct {
	secret  *corev1.Secret
	opts    ParseOptions
	cluster *Cluster

	// serverNameDefault is the name to verify when the Secret names none.
	serverNameDefault string
}

// fault records what is wrong with a key. The message must not hold the value of a secret key, and values of others only
// through quote.
func (p *parser) fault(key, format string, args ...any) {
	p.cluster.faults = append(p.cluster.faults, &InvalidSecretError{
		Secret:  types.NamespacedName{Namespace: p.secret.Namespace, Name: p.secret.Name},
		Key:     key,
		Problem: fmt.Sprintf(format, args...),
	})
}

// text reads a key that holds one line. White space around it is not part of it: Secrets made from files end with a newline.
func (p *parser) text(key string, limit int) (value string, ok bool) {
	value = strings.TrimSpace(string(p.secret.Data[key]))
	if value == "" {
		return "", false
	}
	if len(value) > limit {
		p.fault(key, "is %d bytes long; at most %d are allowed", len(value), limit)
		return "", false
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, isControl) {
		p.fault(key, "is not one line of text")
		return "", false
	}
	return value, true
}

// isControl is true for what has no place in one line of text.
func isControl(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' }

// given is whether the key holds anything.
func (p *parser) given(key string) bool {
	return strings.TrimSpace(string(p.secret.Data[key])) != ""
}

// quote makes a value that is not secret fit for a message.
func quote(value string) string {
	const limit = 64
	if len(value) > limit {
		return strconv.Quote(value[:limit]) + "…"
	}
	return strconv.Quote(value)
}

// labelManagedBy names the tool that made the Secret.
const labelManagedBy = "app.kubernetes.io/managed-by"

// health reads the stored state. It is not part of what the Secret must have right, nor of the fingerprint.
func (p *parser) health() {
	p.cluster.Health = ParseHealth(p.secret.Annotations)
	guard := newGuard(p.secret)
	for i := range p.cluster.Health.Conditions {
		if c := &p.cluster.Health.Conditions[i]; !guard.admits(c.Message) {
			c.Message = ""
		}
	}
}

// route reads how the cluster is reached.
func (p *parser) route() {
	label, ok := p.secret.Labels[v1alpha1.LabelEndpointType]
	switch v1alpha1.EndpointType(label) {
	case v1alpha1.EndpointTypeConst:
		p.cluster.Route = RouteDirect
	case v1alpha1.EndpointTypeClusterProxy:
		p.cluster.Route = RouteTunnel
		if p.opts.TunnelMode == TunnelOff {
			p.fault("label "+v1alpha1.LabelEndpointType, "is %s, but this gateway serves no tunnels (--tunnel-mode=off)", label)
		}
	default:
		if !ok {
			p.cluster.Route = RouteDirect
			return
		}
		p.fault("label "+v1alpha1.LabelEndpointType, "is %s; it must be %s (direct) or %s (tunnel)",
			quote(label), v1alpha1.EndpointTypeConst, v1alpha1.EndpointTypeClusterProxy)
	}
}

// insecure reads whether verification is switched off. Only the exact word does it: a typing error must not.
func (p *parser) insecure() {
	value, ok := p.secret.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify]
	switch {
	case !ok || value == "" || value == "false":
	case value == "true":
		p.cluster.Insecure = true
	default:
		p.fault("annotation "+v1alpha1.AnnotationInsecureSkipTLSVerify, "is %s; it must be \"true\" or \"false\"", quote(value))
	}
}
