{{/* The labels of all objects. */}}
{{- define "cluster-gateway.labels" -}}
app.kubernetes.io/part-of: cluster-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of Pods. A new version of the chart alone must not replace them, so it is not there. */}}
{{- define "cluster-gateway.podLabels" -}}
app.kubernetes.io/part-of: cluster-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels that select the Pods. They never change. */}}
{{- define "cluster-gateway.selector" -}}
app.kubernetes.io/name: cluster-gateway
{{- end }}

{{- define "cluster-gateway.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The port is the one of the Service or, on Nodes, its port there, unless the address has one. */}}
{{- define "cluster-gateway.tunnelAddress" -}}
{{- with .Values.tunnel -}}
{{- $port := .service.port -}}
{{- if eq .service.type "NodePort" -}}
{{- $port = .service.nodePort -}}
{{- end -}}
{{- if regexMatch "^(\\[[^]]+\\]|[^:]+):[0-9]+$" .advertiseAddress -}}
{{ .advertiseAddress }}
{{- else if and (contains ":" .advertiseAddress) (not (hasPrefix "[" .advertiseAddress)) -}}
[{{ .advertiseAddress }}]:{{ $port }}
{{- else -}}
{{ .advertiseAddress }}:{{ $port }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "cluster-gateway.serverCount" -}}
{{- if .Values.tunnel.serverCount -}}
{{ .Values.tunnel.serverCount }}
{{- else if and (not .Values.autoscaling.enabled) (le (int .Values.replicas) 1) -}}
1
{{- else -}}
2
{{- end -}}
{{- end }}
