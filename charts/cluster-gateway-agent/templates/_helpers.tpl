{{/* The labels of all objects. */}}
{{- define "agent.labels" -}}
app.kubernetes.io/part-of: cluster-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The ClusterRole for which the access stands. */}}
{{- define "agent.accessRole" -}}
{{- if eq .Values.identity "impersonate" -}}
cluster-gateway-agent:impersonate
{{- else -}}
{{ ternary "cluster-admin" .Values.access (eq .Values.access "admin") }}
{{- end -}}
{{- end }}

{{/* With identity impersonate: the bindings for groups of callers, each with its groups and its role. */}}
{{- define "agent.groupBindings" -}}
{{- if eq .Values.identity "impersonate" }}
{{- with .Values.impersonation.adminGroups }}
- {name: "cluster-gateway-agent:admin-groups", role: cluster-admin, groups: {{ toJson . }}}
{{- end }}
{{- with .Values.impersonation.viewGroups }}
- {name: "cluster-gateway-agent:view-groups", role: view, groups: {{ toJson . }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty if there is an invitation. */}}
{{- define "agent.invited" -}}
{{- if or .Values.invitation.secretName .Values.invitation.data }}true{{ end -}}
{{- end }}

{{- define "agent.secretName" -}}
{{ .Values.invitation.secretName | default "konnectivity-agent-enrol" }}
{{- end }}

{{/* The Job of each invitation has a name of its own: it ends with the beginning of the fingerprint of
the invitation's certificate. The gateway expects this name. */}}
{{- define "agent.jobName" -}}
{{- $id := .Values.invitation.id -}}
{{- with .Values.invitation.data -}}
{{- $pem := index . "tls.crt" | b64dec | regexFind "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----" -}}
{{- if not $pem -}}{{ fail "invitation.data: tls.crt has no certificate" }}{{- end -}}
{{- $id = regexReplaceAll "-----[A-Z ]+-----|\\s" $pem "" | b64dec | sha256sum | trunc 8 -}}
{{- end -}}
konnectivity-agent-enrol-{{ $id }}
{{- end }}

{{- define "agent.check" -}}
{{- if ne .Release.Namespace "cluster-gateway-agent" }}
{{- fail (printf "the release must be in the namespace cluster-gateway-agent, and not in %s: the gateway looks for the agent there" .Release.Namespace) }}
{{- end }}
{{- if eq .Values.identity "impersonate" }}
{{- if not (has .Values.access (list "admin" "view")) }}
{{- fail "with identity impersonate, access must be admin or view: the roles of the cluster say what callers may do" }}
{{- end }}
{{- with .Values.impersonation }}
{{- if .groups }}
{{- range concat .adminGroups .viewGroups }}
{{- if not (has . $.Values.impersonation.groups) }}
{{- fail (printf "impersonation.groups must have the group %q, which gets rights" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- else }}
{{- range $name, $value := .Values.impersonation }}
{{- if $value }}
{{- fail (printf "impersonation.%s requires identity impersonate" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.invitation }}
{{- if and .secretName .data }}
{{- fail "invitation.secretName and invitation.data cannot be set together" }}
{{- end }}
{{- if and .secretName (not .id) }}
{{- fail "invitation.secretName requires invitation.id: the end of the name of the Job in the invitation's file" }}
{{- end }}
{{- if and .id (not .secretName) }}
{{- fail "invitation.id is for invitation.secretName" }}
{{- end }}
{{- if .data }}
{{- range list "tls.crt" "tls.key" "ca.crt" "host" "port" }}
{{- if not (hasKey $.Values.invitation.data .) }}
{{- fail (printf "invitation.data has no %s: it must be the field data of the Secret in the invitation's file" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
