// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// DataKeys returns all keys that the data of a Secret can have.
func DataKeys() []string {
	return []string{
		v1alpha1.SecretKeyEndpoint, v1alpha1.SecretKeyCA, v1alpha1.SecretKeyCAAlias, v1alpha1.SecretKeyServerName, v1alpha1.SecretKeyProxyURL,
		v1alpha1.SecretKeyCert, v1alpha1.SecretKeyPrivateKey, v1alpha1.SecretKeyToken, v1alpha1.SecretKeyExec,
		v1alpha1.SecretKeyMaintenanceToken,
	}
}

// Maximum lengths of the values. A Secret contains at most 1 MiB. A longer value cannot be what the
// key is for, and is rejected before it is parsed.
const (
	maxURL        = 2 << 10
	maxServerName = 253
	maxToken      = 64 << 10
	maxExec       = 64 << 10
	maxKey        = 64 << 10
	maxCert       = 128 << 10
	maxCA         = 512 << 10
)

// ParseOptions are the settings of the gateway that Parse depends on. The zero value means embedded
// tunnels and no credential plugins.
type ParseOptions struct {
	// TunnelMode is the mode in which the gateway serves tunnels.
	TunnelMode TunnelMode
	// ExecPlugins are the credential plugins that Secrets can select by name. If it is nil, there
	// are none.
	ExecPlugins *execplugin.Plugins
	// ExecCredentialDir is the directory of the programs that Secrets can select by path. If it is
	// empty, there are none. ExecCredentialEnv are the names of the environment variables of the
	// gateway that these programs get.
	ExecCredentialDir string
	ExecCredentialEnv []string
	// DefaultIdentity is who a cluster sees whose Secret does not say. Empty means
	// identity.ModeCredential.
	DefaultIdentity identity.Mode
	// IdentityWebhooks are the URLs of webhooks that the rules in Secrets may name.
	IdentityWebhooks []string
}

// IsCluster reports whether the Secret is that of a cluster: whether it has the label with the
// credential type.
func IsCluster(secret *corev1.Secret) bool {
	if secret == nil {
		return false
	}
	_, ok := secret.Labels[v1alpha1.LabelCredentialType]
	return ok
}

// Parse parses a Secret. It never returns nil. If the Secret is invalid, Err of the Cluster returns
// the faults. The Cluster has no reference to the Secret.
func Parse(secret *corev1.Secret, opts ParseOptions) *Cluster {
	if secret == nil {
		secret = &corev1.Secret{}
	}
	p := &parser{secret: secret, opts: opts, cluster: &Cluster{
		Name:            secret.Name,
		Namespace:       secret.Namespace,
		UID:             secret.UID,
		ResourceVersion: secret.ResourceVersion,
		Labels:          maps.Clone(secret.Labels),
		ManagedBy:       secret.Labels[labelManagedBy],
		Access:          secret.Annotations[v1alpha1.AnnotationAccess],
		Rotation:        ParseRotationRequest(secret.Annotations),
		FollowsCA:       secret.Annotations[v1alpha1.AnnotationCASource] == v1alpha1.CASourceCluster,
	}}
	p.health()
	p.route()
	p.insecure()
	p.agentCertificates()
	p.identity()
	p.endpoint()
	p.serverName()
	p.caBundle()
	p.proxyURL()
	p.credential()
	p.maintenance()

	p.cluster.err = joinFaults(p.cluster.faults)
	p.cluster.fingerprint = p.fingerprint()
	return p.cluster
}

// parser parses one Secret into one Cluster. Each of its methods parses a few keys. Parsing
// continues after a fault, so that all faults are reported at once.
type parser struct {
	secret  *corev1.Secret
	opts    ParseOptions
	cluster *Cluster

	// serverNameDefault is the name to verify if the Secret does not contain one.
	serverNameDefault string
}

// fault records a fault of a key. The message must not contain the value of a secret key. Other
// values must be formatted with quote.
func (p *parser) fault(key, format string, args ...any) {
	p.cluster.faults = append(p.cluster.faults, &InvalidSecretError{
		Secret:  types.NamespacedName{Namespace: p.secret.Namespace, Name: p.secret.Name},
		Key:     key,
		Problem: fmt.Sprintf(format, args...),
	})
}

// text returns the value of a key that contains one line, without the white space around it:
// Secrets that are created from files end with a newline.
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
		p.fault(key, "must be one line of text")
		return "", false
	}
	return value, true
}

// isControl reports whether a line of text must not contain the character.
func isControl(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' }

// given reports whether the key has a value.
func (p *parser) given(key string) bool {
	return strings.TrimSpace(string(p.secret.Data[key])) != ""
}

// quote quotes a value for a message, and truncates it. The value must not be secret.
func quote(value string) string {
	const limit = 64
	if len(value) > limit {
		return strconv.Quote(value[:limit]) + "…"
	}
	return strconv.Quote(value)
}

// labelManagedBy is the label with the name of the tool that created the Secret.
const labelManagedBy = "app.kubernetes.io/managed-by"

// health reads the stored state. An invalid state does not make the Secret invalid. The fingerprint
// does not depend on it.
func (p *parser) health() {
	p.cluster.Health = ParseHealth(p.secret.Annotations)
	guard := newGuard(p.secret)
	for i := range p.cluster.Health.Conditions {
		if c := &p.cluster.Health.Conditions[i]; !guard.admits(c.Message) {
			c.Message = ""
		}
	}
}

// route parses the label with the endpoint type.
func (p *parser) route() {
	label, ok := p.secret.Labels[v1alpha1.LabelEndpointType]
	switch v1alpha1.EndpointType(label) {
	case v1alpha1.EndpointTypeConst:
		p.cluster.Route = RouteDirect
	case v1alpha1.EndpointTypeClusterProxy:
		p.cluster.Route = RouteTunnel
		if p.opts.TunnelMode == TunnelOff {
			p.fault("label "+v1alpha1.LabelEndpointType, "is %s, but tunnels are disabled in this gateway (--tunnel-mode=off)", label)
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

// insecure parses the annotation that disables verification. Only the exact value "true" does: a
// typing error must not.
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

// agentCertificates parses which certificates of agents are accepted. If that cannot be read, none
// is.
func (p *parser) agentCertificates() {
	value, ok := p.secret.Annotations[v1alpha1.AnnotationAgentCertificatesSince]
	if !ok || value == "" {
		return
	}
	since, err := time.Parse(time.RFC3339, value)
	if err != nil {
		p.fault("annotation "+v1alpha1.AnnotationAgentCertificatesSince, "is %s; it must be a time such as \"2026-01-31T12:00:00Z\"", quote(value))
		since = time.Unix(math.MaxInt32, 0) // no certificate is issued after it
	}
	p.cluster.AgentCertificatesSince = since
}

const identityKey = "annotation " + v1alpha1.AnnotationIdentity

const proxyConfigurationKey = "annotation " + v1alpha1.AnnotationProxyConfiguration

// identity parses who the cluster sees. Nothing here may end in a policy that gives callers more
// than the Secret says: a value that is not understood is a fault.
func (p *parser) identity() {
	text := p.secret.Annotations[v1alpha1.AnnotationProxyConfiguration]
	hasRules := strings.TrimSpace(text) != ""
	value, given := p.secret.Annotations[v1alpha1.AnnotationIdentity]
	mode := identity.Mode(value)
	switch {
	case !given && hasRules:
		mode = identity.ModeRules
	case !given:
		mode = p.opts.DefaultIdentity
		if mode == "" {
			mode = identity.ModeCredential
		}
	case mode != identity.ModeCredential && mode != identity.ModeImpersonate && mode != identity.ModeRules:
		p.fault(identityKey, "is %s; it must be %q, %q or %q", quote(value), identity.ModeCredential, identity.ModeImpersonate, identity.ModeRules)
		return
	case mode != identity.ModeRules && hasRules:
		p.fault(identityKey, "is %q, but the annotation %s has rules: remove one of them", value, v1alpha1.AnnotationProxyConfiguration)
		return
	}
	policy := identity.Policy{Mode: mode}
	if hasRules {
		rules, err := identity.ParseRules([]byte(text), identity.RuleOptions{Cluster: p.secret.Name, URLs: p.opts.IdentityWebhooks})
		if err != nil {
			p.fault(proxyConfigurationKey, "%s", untrusted.Text(err.Error()))
			return
		}
		policy.Rules = rules
	}
	p.cluster.Identity = policy
}
