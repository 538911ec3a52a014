{{/* Names, labels and images. */}}

{{/* Forty characters leave room for '-gateway-headless' in names of Services, and for the hash that Kubernetes adds to
the name of a StatefulSet in a label of at most 63. */}}
{{- define "tidegate.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What the release runs of ours, with commas between. */}}
{{- define "tidegate.components" -}}
gateway{{ if .Values.router.enabled }},router{{ end }}
{{- end -}}

{{/* Where clients come in. */}}
{{- define "tidegate.entry" -}}
{{ ternary "router" "gateway" .Values.router.enabled }}
{{- end -}}

{{/* Takes root and component. Nothing here may change with a release of the chart: it is in selectors and pods. */}}
{{- define "tidegate.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes root and component. */}}
{{- define "tidegate.labels" -}}
{{ include "tidegate.selectorLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes root, component and the name's suffix. */}}
{{- define "tidegate.metadata" -}}
name: {{ include "tidegate.fullname" .root }}-{{ default .component .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "tidegate.labels" . | nindent 2 }}
{{- end -}}

{{/* Takes root, an image and the tag that it has without one of its own. What stands before the first slash is a registry
if it has a dot or a port, or is localhost. */}}
{{- define "tidegate.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ default .tag .image.tag }}
{{- end -}}
{{- end -}}

{{- define "tidegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "tidegate.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "tidegate.credentialsSecret" -}}
{{- if .Values.credentials.existingSecret -}}
{{ .Values.credentials.existingSecret }}
{{- else if or .Values.credentials.apiKey .Values.credentials.jwtSecret -}}
{{ include "tidegate.fullname" . }}-credentials
{{- end -}}
{{- end -}}

{{/* The entry of the Secret with the API key, or nothing where there is no key. */}}
{{- define "tidegate.apiKeyEntry" -}}
{{- if or .Values.credentials.existingSecret .Values.credentials.apiKey -}}
{{ .Values.credentials.apiKeyEntry }}
{{- end -}}
{{- end -}}

{{/* The entry of the Secret with the secret of tokens, or nothing. */}}
{{- define "tidegate.jwtSecretEntry" -}}
{{- if .Values.credentials.existingSecret -}}
{{ .Values.credentials.jwtSecretEntry }}
{{- else if .Values.credentials.jwtSecret -}}
{{ default "jwt-secret" .Values.credentials.jwtSecretEntry }}
{{- end -}}
{{- end -}}

{{/* The URL of Redis, or nothing: there is none, or it is in a Secret. */}}
{{- define "tidegate.redisUrl" -}}
{{- if .Values.redis.bundled.enabled -}}
redis://{{ include "tidegate.fullname" . }}-redis:6379
{{- else -}}
{{ .Values.redis.url }}
{{- end -}}
{{- end -}}

{{/* 'true' where there is Redis. */}}
{{- define "tidegate.hasRedis" -}}
{{- if or (include "tidegate.redisUrl" .) .Values.redis.urlEntry -}}true{{- end -}}
{{- end -}}

{{/* The component whose public port takes plain HTTP, the one of clients first; or nothing. */}}
{{- define "tidegate.plain" -}}
{{- $values := .Values -}}
{{- if and $values.router.enabled (not $values.router.tls.existingSecret) (not $values.router.config.proxy_protocol) -}}
router
{{- else if and (not $values.gateway.tls.existingSecret) (not $values.gateway.config.proxy_protocol) -}}
gateway
{{- end -}}
{{- end -}}

{{/* 'true' where the release has a test: it publishes with the API key, over plain HTTP. */}}
{{- define "tidegate.hasTest" -}}
{{- $scopes := .Values.credentials.apiKeyScopes -}}
{{- if and .Values.helmTest.enabled (include "tidegate.apiKeyEntry" .) (include "tidegate.plain" .) (has "publish" $scopes) (has "read" $scopes) -}}true{{- end -}}
{{- end -}}
