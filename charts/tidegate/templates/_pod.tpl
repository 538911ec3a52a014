{{/* What the pods of gateways and routers share. */}}

{{/* The template of a pod. Takes root, component, its values, ports (public, internal), tag and further environment. */}}
{{- define "tidegate.pod" -}}
{{- $root := .root -}}
{{- $values := .values -}}
metadata:
  labels:
    {{- include "tidegate.selectorLabels" . | nindent 4 }}
    {{- with mustMerge (deepCopy $values.podLabels) $root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include (printf "tidegate.%sConfig" .component) $root | sha256sum }}
    {{- if and (eq .component "gateway") (not $root.Values.credentials.existingSecret) }}
    checksum/credentials: {{ printf "%s %s" $root.Values.credentials.apiKey $root.Values.credentials.jwtSecret | sha256sum }}
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tidegate.serviceAccountName" $root }}
  automountServiceAccountToken: {{ $values.automountServiceAccountToken }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "tidegate.grace" $values }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "tidegate.image" (dict "root" $root "image" $values.image "tag" $root.Chart.AppVersion) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args:
        - {{ .component }}
        - --config
        - /etc/tidegate/config/{{ .component }}.toml
        {{- range $values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      {{- with $values.containerSpec }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ .public }}
        - name: internal
          containerPort: {{ .internal }}
      {{- with concat .environment (include "tidegate.redisEnvironment" . | fromYamlArray) (include "tidegate.authoritiesEnvironment" $root | fromYamlArray) $values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      startupProbe:
        {{- include "tidegate.probe" (dict "path" "/livez" "probe" $values.probes.startup) | nindent 8 }}
      livenessProbe:
        {{- include "tidegate.probe" (dict "path" "/livez" "probe" $values.probes.liveness) | nindent 8 }}
      readinessProbe:
        {{- include "tidegate.probe" (dict "path" "/readyz" "probe" $values.probes.readiness) | nindent 8 }}
      {{- with $values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- range include "tidegate.files" . | fromYamlArray }}
        - name: {{ .name }}
          mountPath: /etc/tidegate/{{ .name }}
          readOnly: true
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.podSpec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  volumes:
    {{- include "tidegate.files" . | nindent 4 }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      labelSelector:
        matchLabels:
          {{- include "tidegate.selectorLabels" $ | nindent 10 }}
      matchLabelKeys: [{{ ternary "pod-template-hash" "controller-revision-hash" (eq $.component "router") }}]
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end -}}

{{/* The number of pods. An autoscaler's is not written, but for what is there in the cluster: Kubernetes takes a number
that an upgrade takes away for 1, and all other pods would drain before the autoscaler could say otherwise. */}}
{{- define "tidegate.replicas" -}}
{{- $values := .context.values -}}
{{- if or $values.autoscaling.hpa.enabled $values.autoscaling.keda.enabled -}}
{{- $name := printf "%s-%s" (include "tidegate.fullname" .context.root) .context.component -}}
{{- $live := lookup "apps/v1" .kind .context.root.Release.Namespace $name -}}
{{- with $live.spec }}{{ .replicas }}{{ end -}}
{{- else -}}
{{ $values.replicas }}
{{- end -}}
{{- end -}}

{{/* Takes a path of the internal port and the numbers of a probe. */}}
{{- define "tidegate.probe" -}}
httpGet:
  path: {{ .path }}
  port: internal
{{ toYaml .probe }}
{{- end -}}

{{/* Volumes with configuration and secrets; each is mounted below /etc/tidegate under its name. */}}
{{- define "tidegate.files" -}}
{{- $root := .root -}}
- name: config
  configMap:
    name: {{ include "tidegate.fullname" $root }}-{{ .component }}
{{- if eq .component "gateway" }}
{{- with include "tidegate.credentialsSecret" $root }}
- name: credentials
  secret:
    secretName: {{ . }}
    defaultMode: 288 # 0440
    items:
      {{- with include "tidegate.apiKeyEntry" $root }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
      {{- with include "tidegate.jwtSecretEntry" $root }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
      {{- with $root.Values.credentials.appsEntry }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- end }}
{{- if or (eq .component "gateway") (eq (include "tidegate.members" $root) "registry") }}
{{- if $root.Values.redis.bundled.enabled }}
- name: redis
  secret:
    secretName: {{ include "tidegate.credentialsSecret" $root }}
    defaultMode: 288 # 0440
    items:
      - key: {{ $root.Values.redis.bundled.passwordEntry }}
        path: {{ $root.Values.redis.bundled.passwordEntry }}
{{- end }}
{{- with compact (list $root.Values.redis.passwordEntry $root.Values.redis.sentinelPasswordEntry) }}
- name: redis
  secret:
    secretName: {{ $root.Values.redis.existingSecret }}
    defaultMode: 288 # 0440
    items:
      {{- range . }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- if $root.Values.redis.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ $root.Values.redis.caSecret }}
    defaultMode: 288 # 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- with $root.Values.redis.clientSecret }}
- name: redis-client
  secret:
    secretName: {{ . }}
    defaultMode: 288 # 0440
{{- end }}
{{- end }}
{{- with $root.Values.authorities.configMap }}
- name: authorities
  configMap:
    name: {{ . }}
    items:
      - key: {{ $root.Values.authorities.entry }}
        # Of a folder of authorities only files with such names are read.
        path: "00000000.0"
{{- end }}
{{- with .values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 288 # 0440
{{- end }}
{{- end -}}

{{/* The URL of Redis where it is in a Secret, as a list of variables. */}}
{{- define "tidegate.redisEnvironment" -}}
{{- $reads := or (eq .component "gateway") (eq (include "tidegate.members" .root) "registry") -}}
{{- if and $reads .root.Values.redis.urlEntry }}
- name: {{ ternary "TIDEGATE__BACKPLANE" "TIDEGATE__MEMBERS" (eq .component "gateway") }}
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.redis.existingSecret }}
      key: {{ .root.Values.redis.urlEntry }}
{{- else }}
[]
{{- end }}
{{- end -}}

{{/* The image's authorities, and the folder with those of the user, as a list of variables. */}}
{{- define "tidegate.authoritiesEnvironment" -}}
{{- if .Values.authorities.configMap }}
- name: SSL_CERT_FILE
  value: /etc/ssl/certs/ca-certificates.crt
- name: SSL_CERT_DIR
  value: /etc/tidegate/authorities
{{- else }}
[]
{{- end }}
{{- end -}}
