// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Labels of the Secret of a cluster. The ClusterGateway has them too.
const (
	// LabelCredentialType marks a Secret as a cluster. Its value is the CredentialType.
	LabelCredentialType = GroupName + "/cluster-credential-type"
	// LabelEndpointType is the EndpointType. If it is missing, the type is EndpointTypeConst.
	LabelEndpointType = GroupName + "/cluster-endpoint-type"
)

// Annotations of the Secret of a cluster.
const (
	// AnnotationInsecureSkipTLSVerify, with the value "true", disables the verification of the
	// managed API server's certificate. There is no other way to disable it.
	AnnotationInsecureSkipTLSVerify = GroupName + "/insecure-skip-tls-verify"

	// AnnotationIdentity is who the cluster sees when the gateway passes on a request:
	// IdentityCredential, IdentityImpersonate or IdentityRules. If it is missing, it is
	// IdentityRules if the Secret or the gateway has rules, and IdentityCredential otherwise.
	AnnotationIdentity = GroupName + "/identity"
	// AnnotationImpersonation records the bounds of IdentityImpersonate with which agent-bootstrap
	// has registered the cluster, as JSON. The gateway does not read it.
	AnnotationImpersonation = GroupName + "/impersonation"
	// AnnotationProxyConfiguration contains the rules of the cluster for IdentityRules, in the
	// format of oam-dev/cluster-gateway.
	AnnotationProxyConfiguration = GroupName + "/cluster-gateway-proxy-configuration"

	// AnnotationHealthy is the outcome of the last probe or an operator's override, "true" or
	// "false".
	AnnotationHealthy = "status." + GroupName + "/healthy"
	// AnnotationHealthyReason is the reason for it, one word in CamelCase.
	AnnotationHealthyReason = "status." + GroupName + "/healthy-reason"
	// AnnotationVersion is the version of the managed API server, for example "v1.37.2".
	AnnotationVersion = "status." + GroupName + "/version"
	// AnnotationLastProbeTime is the time of the last probe that changed the state, in RFC 3339.
	AnnotationLastProbeTime = "status." + GroupName + "/last-probe-time"
	// AnnotationLatency is the response time of the API server in that probe, for example "12ms".
	AnnotationLatency = "status." + GroupName + "/latency"
	// AnnotationConditions contains the conditions that the last probe found, as a JSON list. An
	// override does not change it.
	AnnotationConditions = "status." + GroupName + "/conditions"
	// AnnotationOverride is the time at which an operator set AnnotationHealthy and
	// AnnotationHealthyReason, in RFC 3339. If it is missing, probes set them.
	AnnotationOverride = "status." + GroupName + "/override"
)

// Values of AnnotationIdentity.
const (
	// IdentityCredential means that the cluster sees the account of the gateway.
	IdentityCredential = "credential"
	// IdentityImpersonate means that the cluster sees the caller.
	IdentityImpersonate = "impersonate"
	// IdentityRules means that rules decide. A caller that no rule matches is impersonated.
	IdentityRules = "rules"
)

// Fields that a field selector can use.
const (
	FieldName           = "metadata.name"
	FieldEndpointType   = "spec.access.endpoint.type"
	FieldCredentialType = "spec.access.credential.type"
)
