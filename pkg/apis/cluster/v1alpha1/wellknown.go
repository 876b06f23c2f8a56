// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Labels of a Secret that is a cluster. They are kept on the ClusterGateway that is served for it.
const (
	// LabelCredentialType makes a Secret a cluster, and says which credential it holds: a CredentialType.
	LabelCredentialType = GroupName + "/cluster-credential-type"
	// LabelEndpointType says how the cluster is reached: an EndpointType. Without it, EndpointTypeConst.
	LabelEndpointType = GroupName + "/cluster-endpoint-type"
)

// Annotations of a Secret that is a cluster.
const (
	// AnnotationInsecureSkipTLSVerify, with the value "true", switches off the verification of the managed API server's
	// certificate. There is no other way to do so.
	AnnotationInsecureSkipTLSVerify = GroupName + "/insecure-skip-tls-verify"

	// AnnotationHealthy is "true" or "false": the outcome of the last probe, or an operator's override.
	AnnotationHealthy = "status." + GroupName + "/healthy"
	// AnnotationHealthyReason is one word in CamelCase that says why.
	AnnotationHealthyReason = "status." + GroupName + "/healthy-reason"
	// AnnotationVersion is the managed API server's version, as in "v1.37.2".
	AnnotationVersion = "status." + GroupName + "/version"
	// AnnotationLastProbeTime is when AnnotationHealthy was found out, in RFC 3339.
	AnnotationLastProbeTime = "status." + GroupName + "/last-probe-time"
	// AnnotationLatency is how long the probe took, as in "12ms".
	AnnotationLatency = "status." + GroupName + "/latency"
	// AnnotationConditions is what the last probe found, as a JSON list of conditions. It is not changed by an override.
	AnnotationConditions = "status." + GroupName + "/conditions"
	// AnnotationOverride is when an operator set AnnotationHealthy and AnnotationHealthyReason, in RFC 3339. Without it, probes set
	// them.
	AnnotationOverride = "status." + GroupName + "/override"
)

// Field labels that a field selector may name.
const (
	FieldName           = "metadata.name"
	FieldEndpointType   = "spec.access.endpoint.type"
	FieldCredentialType = "spec.access.credential.type"
)
