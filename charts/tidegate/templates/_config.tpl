{{/* The configuration files: what the user wrote, what the chart knows, and TOML. */}}

{{/* The file of a gateway. */}}
{{- define "tidegate.gatewayConfig" -}}
{{- $any := ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") -}}
{{- $own := dict "listen" (printf "%s:8000" $any) "internal" (printf "%s:9000" $any) -}}
{{- with include "tidegate.redisUrl" . }}{{ $_ := set $own "backplane" . }}{{ end -}}
{{- with .Values.credentials.appsEntry }}{{ $_ := set $own "apps_file" (printf "/etc/tidegate/credentials/%s" .) }}{{ end -}}
{{- if .Values.gateway.tls.existingSecret }}{{ $_ := set $own "tls" (dict "directory" "/etc/tidegate/tls") }}{{ end -}}
{{- with include "tidegate.redisFiles" . | fromYaml }}{{ $_ := set $own "redis" . }}{{ end -}}
{{- $config := mustMergeOverwrite (deepCopy .Values.gateway.config) $own -}}
{{- $auth := default dict $config.auth -}}
{{- with include "tidegate.apiKeyEntry" . -}}
{{- $key := dict "name" "application" "key_file" (printf "/etc/tidegate/credentials/%s" .) "scopes" $.Values.credentials.apiKeyScopes -}}
{{- $_ := set $auth "api_keys" (prepend (default list $auth.api_keys) $key) -}}
{{- end -}}
{{- with include "tidegate.jwtSecretEntry" . -}}
{{- $key := dict "algorithm" "HS256" "secret_file" (printf "/etc/tidegate/credentials/%s" .) -}}
{{- $_ := set $auth "jwt" (prepend (default list $auth.jwt) $key) -}}
{{- end -}}
{{- if $auth }}{{ $_ := set $config "auth" $auth }}{{ end -}}
{{- include "tidegate.toml" $config -}}
{{- end -}}

{{/* The file of a router. */}}
{{- define "tidegate.routerConfig" -}}
{{- $any := ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") -}}
{{- $own := dict "listen" (printf "%s:8080" $any) "internal" (printf "%s:9080" $any) -}}
{{- $members := include "tidegate.members" . -}}
{{- $config := deepCopy .Values.router.config -}}
{{- if eq $members "registry" -}}
{{- with include "tidegate.redisUrl" . }}{{ $_ := set $own "members" . }}{{ end -}}
{{- with include "tidegate.redisFiles" . | fromYaml }}{{ $_ := set $own "redis" . }}{{ end -}}
{{- with (default dict .Values.gateway.config.redis).prefix }}{{ $_ := set $own "redis" (mustMerge (default dict $own.redis) (dict "prefix" .)) }}{{ end -}}
{{- else if eq $members "dns" -}}
{{- $_ := set $own "members" (printf "dns:_http._tcp.%s-gateway-headless.%s.svc.%s" (include "tidegate.fullname" .) .Release.Namespace .Values.clusterDomain) -}}
{{- /* The internal port says that a gateway drains; the public one does not. */ -}}
{{- $_ := set $config "health" (mustMerge (default dict $config.health) (dict "port" 9000 "path" "/readyz")) -}}
{{- else -}}
{{- $_ := set $own "members" $members -}}
{{- end -}}
{{- if .Values.router.tls.existingSecret }}{{ $_ := set $own "tls" (dict "directory" "/etc/tidegate/tls") }}{{ end -}}
{{- include "tidegate.toml" (mustMergeOverwrite $config $own) -}}
{{- end -}}

{{/* 'registry', 'dns', or what `--members` takes. */}}
{{- define "tidegate.members" -}}
{{- default (ternary "registry" "dns" (eq (include "tidegate.hasRedis" .) "true")) .Values.router.members -}}
{{- end -}}

{{/* Files with secrets for Redis. */}}
{{- define "tidegate.redisFiles" -}}
{{- with ternary .Values.redis.bundled.passwordEntry .Values.redis.passwordEntry .Values.redis.bundled.enabled }}
password_file: /etc/tidegate/redis/{{ . }}
{{- end }}
{{- with .Values.redis.sentinelPasswordEntry }}
sentinel_password_file: /etc/tidegate/redis/{{ . }}
{{- end }}
{{- if .Values.redis.caSecret }}
ca_file: /etc/tidegate/redis-ca/ca.crt
{{- end }}
{{- if .Values.redis.clientSecret }}
cert_file: /etc/tidegate/redis-client/tls.crt
key_file: /etc/tidegate/redis-client/tls.key
{{- end }}
{{- end -}}

{{/* A document of TOML. */}}
{{- define "tidegate.toml" -}}
{{ include "tidegate.tomlTable" (dict "path" "" "table" .) | trim }}
{{- end -}}

{{/* Takes a table and its path. Plain values come first: after a header, they would belong to that table. */}}
{{- define "tidegate.tomlTable" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if eq (include "tidegate.tomlKind" $value) "plain" }}
{{ include "tidegate.tomlKey" $key }} = {{ include "tidegate.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- $name := printf "%s%s" (ternary "" (printf "%s." $path) (empty $path)) (include "tidegate.tomlKey" $key) -}}
{{- $kind := include "tidegate.tomlKind" $value -}}
{{- if eq $kind "table" }}

[{{ $name }}]
{{- include "tidegate.tomlTable" (dict "path" $name "table" $value) -}}
{{- else if eq $kind "tables" -}}
{{- range $value }}

[[{{ $name }}]]
{{- include "tidegate.tomlTable" (dict "path" $name "table" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* 'plain', 'table', 'tables', or 'none' for null: the user took a default of the chart away. */}}
{{- define "tidegate.tomlKind" -}}
{{- if kindIs "invalid" . -}}none
{{- else if kindIs "map" . -}}table
{{- else if and (kindIs "slice" .) . -}}{{ ternary "tables" "plain" (kindIs "map" (first .)) }}
{{- else -}}plain
{{- end -}}
{{- end -}}

{{- define "tidegate.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toRawJson . }}{{- end -}}
{{- end -}}

{{/* Texts are written as JSON, which is TOML. Helm reads whole numbers as floats. */}}
{{- define "tidegate.tomlValue" -}}
{{- if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "tidegate.tomlValue" $value }}{{ end }}]
{{- else if kindIs "string" . -}}{{ toRawJson . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration such as 1m30s. */}}
{{- define "tidegate.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- $sum = add $sum (mul (int64 $number) (get $units (trimPrefix $number .))) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* Seconds that a process may need from SIGTERM to its end, and 10 more. Takes the values of a component. */}}
{{- define "tidegate.graceMin" -}}
{{- $milliseconds := 0 -}}
{{- range list .config.drain.settle .config.drain.period .config.drain.close_wait -}}
{{- $milliseconds = add $milliseconds (include "tidegate.milliseconds" .) -}}
{{- end -}}
{{- add 10 (div (add $milliseconds 999) 1000) -}}
{{- end -}}

{{- define "tidegate.grace" -}}
{{- if kindIs "invalid" .terminationGracePeriodSeconds -}}
{{ include "tidegate.graceMin" . }}
{{- else -}}
{{ int64 .terminationGracePeriodSeconds }}
{{- end -}}
{{- end -}}
