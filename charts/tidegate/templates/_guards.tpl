{{/* What the schema cannot say: values that contradict each other are refused with a sentence. */}}
{{- define "tidegate.guards" -}}
{{- include "tidegate.guardNames" . -}}
{{- include "tidegate.guardCredentials" . -}}
{{- include "tidegate.guardRedis" . -}}
{{- range $component := splitList "," (include "tidegate.components" .) -}}
{{- include "tidegate.guardComponent" (dict "root" $ "component" $component "values" (get $.Values $component)) -}}
{{- end -}}
{{- include "tidegate.guardEntry" . -}}
{{- end -}}

{{/* A name that Kubernetes refuses is found here, not half-way through an installation. */}}
{{- define "tidegate.guardNames" -}}
{{- range $name, $value := dict "fullnameOverride" .Values.fullnameOverride "nameOverride" .Values.nameOverride -}}
{{- if and $value (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $value)) -}}
{{- fail (printf "%s is %q: names of objects have small letters, digits and '-', and begin with a letter." $name $value) -}}
{{- end -}}
{{- end -}}
{{- include "tidegate.guardLabels" (dict "name" "commonLabels" "labels" .Values.commonLabels) -}}
{{- end -}}

{{/* Takes labels and the name of their value. */}}
{{- define "tidegate.guardLabels" -}}
{{- range $key, $_ := .labels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $key) (eq $key "helm.sh/chart") -}}
{{- fail (printf "%s has %s, which the chart sets and selectors read: use another label." $.name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What is merged into a pod beside what the chart has there. Takes component and its values. */}}
{{- define "tidegate.guardExtras" -}}
{{- include "tidegate.guardLabels" (dict "name" (printf "%s.podLabels" .component) "labels" .values.podLabels) -}}
{{- include "tidegate.guardLabels" (dict "name" (printf "%s.service.labels" .component) "labels" .values.service.labels) -}}
{{- range .values.extraEnv -}}
{{- if and (hasKey . "value") (not (kindIs "string" .value)) -}}
{{- fail (printf "%s.extraEnv: the value of %s is no text, and Kubernetes takes only texts: put it in quotes." $.component .name) -}}
{{- end -}}
{{- end -}}
{{- range .values.extraVolumes -}}
{{- if has .name (list "authorities" "config" "credentials" "redis" "redis-ca" "redis-client" "tls") -}}
{{- fail (printf "%s.extraVolumes has %s, a volume of the chart: use another name." $.component .name) -}}
{{- end -}}
{{- end -}}
{{- range concat .values.extraContainers (default list .values.podSpec.initContainers) -}}
{{- if eq .name $.component -}}
{{- fail (printf "%s.extraContainers and podSpec.initContainers: %s is the name of the chart's container." $.component .name) -}}
{{- end -}}
{{- end -}}
{{- if and .values.service.nodePort (eq .values.service.type "ClusterIP") -}}
{{- fail (printf "%s.service.nodePort is for the types NodePort and LoadBalancer; the type is ClusterIP." .component) -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.guardCredentials" -}}
{{- $credentials := .Values.credentials -}}
{{- $auth := default dict .Values.gateway.config.auth -}}
{{- $given := or (include "tidegate.credentialsSecret" .) $auth.api_keys $auth.jwt .Values.gateway.config.apps -}}
{{- if not $given -}}
{{- fail "There are no credentials, so nobody could publish: set credentials.existingSecret to the name of a Secret with an API key in its entry api-key, or credentials.apiKey for a trial." -}}
{{- end -}}
{{- if and $credentials.existingSecret (or $credentials.apiKey $credentials.jwtSecret) -}}
{{- fail "credentials.existingSecret and credentials.apiKey or credentials.jwtSecret are both set: give the Secret, or the values for a trial." -}}
{{- end -}}
{{- if and $credentials.existingSecret (not $credentials.apiKeyEntry) (not $credentials.jwtSecretEntry) (not $credentials.appsEntry) -}}
{{- fail "credentials.existingSecret is set, but none of credentials.apiKeyEntry, jwtSecretEntry and appsEntry says which of its entries to use." -}}
{{- end -}}
{{- if and $credentials.appsEntry (not $credentials.existingSecret) -}}
{{- fail "credentials.appsEntry names an entry of credentials.existingSecret, which is empty." -}}
{{- end -}}
{{- if and $credentials.apiKey (not $credentials.apiKeyEntry) -}}
{{- fail "credentials.apiKey is set and credentials.apiKeyEntry is empty: the key would not be used." -}}
{{- end -}}
{{- if and $credentials.apiKey (lt (len $credentials.apiKey) 16) -}}
{{- fail "credentials.apiKey is shorter than 16 characters, and gateways refuse such a key." -}}
{{- end -}}
{{- if and $credentials.jwtSecret (lt (len $credentials.jwtSecret) 32) -}}
{{- fail "credentials.jwtSecret is shorter than 32 bytes, and gateways refuse such a secret." -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.guardRedis" -}}
{{- $redis := .Values.redis -}}
{{- if and $redis.url $redis.urlEntry -}}
{{- fail "redis.url and redis.urlEntry are both set: the URL is in the values, or in the Secret." -}}
{{- end -}}
{{- if and $redis.bundled.enabled (or $redis.url $redis.existingSecret) -}}
{{- fail "redis.bundled.enabled is set together with redis.url or redis.existingSecret: use the bundled Redis, or another one." -}}
{{- end -}}
{{- if and $redis.bundled.enabled (not (include "tidegate.credentialsSecret" .)) -}}
{{- fail "redis.bundled.enabled needs credentials.existingSecret, which has its password, or credentials.apiKey, of which one is made." -}}
{{- end -}}
{{- if and (or $redis.urlEntry $redis.passwordEntry $redis.sentinelPasswordEntry) (not $redis.existingSecret) -}}
{{- fail "redis.urlEntry, redis.passwordEntry and redis.sentinelPasswordEntry name entries of redis.existingSecret, which is empty." -}}
{{- end -}}
{{- if and $redis.existingSecret (not $redis.urlEntry) (not $redis.passwordEntry) (not $redis.sentinelPasswordEntry) -}}
{{- fail "redis.existingSecret is set, but none of redis.urlEntry, redis.passwordEntry and redis.sentinelPasswordEntry says which of its entries to use." -}}
{{- end -}}
{{- if and $redis.passwordEntry (or $redis.urlEntry (not $redis.url)) -}}
{{- fail "redis.passwordEntry is the password for redis.url, which is empty." -}}
{{- end -}}
{{- if and $redis.sentinelPasswordEntry $redis.url (not (regexMatch "^rediss?-sentinel://" $redis.url)) -}}
{{- fail "redis.sentinelPasswordEntry is for a URL of Sentinels (redis-sentinel://), and redis.url is another." -}}
{{- end -}}
{{- if regexMatch "://[^/]*:[^/]*@" $redis.url -}}
{{- fail "redis.url holds a password, which would be readable in a ConfigMap: put the URL or the password into redis.existingSecret." -}}
{{- end -}}
{{- $scaled := or .Values.gateway.autoscaling.hpa.enabled .Values.gateway.autoscaling.keda.enabled -}}
{{- if and (or $scaled (gt (int .Values.gateway.replicas) 1)) (not (include "tidegate.hasRedis" .)) -}}
{{- fail "More than one gateway needs Redis, or a publish on one would not reach the clients of another: set redis.url or redis.existingSecret, redis.bundled.enabled for a trial, or gateway.replicas to 1." -}}
{{- end -}}
{{- if .Values.router.enabled -}}
{{- $members := include "tidegate.members" . -}}
{{- if and (eq $members "registry") (not (include "tidegate.hasRedis" .)) -}}
{{- fail "router.members is registry, which is kept in Redis, and there is no Redis: set redis.url or redis.existingSecret, or router.members to dns." -}}
{{- end -}}
{{- if not (regexMatch "^(registry|dns|dns:.+|static:.+|rediss?(-sentinel|-cluster)?://.+)$" $members) -}}
{{- fail (printf "router.members is %q: use registry, dns, dns:NAME:PORT, static:HOST:PORT,HOST:PORT or the URL of a Redis." $members) -}}
{{- end -}}
{{- if and (hasPrefix "static:" $members) $scaled -}}
{{- fail "router.members is a fixed list, and gateway.autoscaling changes the number of gateways: use registry or dns." -}}
{{- end -}}
{{- $prefix := (default dict .Values.router.config.redis).prefix -}}
{{- if and $prefix (eq $members "registry") (ne $prefix (default "tidegate" (default dict .Values.gateway.config.redis).prefix)) -}}
{{- fail "router.config.redis.prefix differs from gateway.config.redis.prefix: the router would look for the gateways of another deployment." -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes root, component and its values. */}}
{{- define "tidegate.guardComponent" -}}
{{- $values := .values -}}
{{- include "tidegate.guardExtras" . -}}
{{- $scaling := $values.autoscaling -}}
{{- $grace := int64 (include "tidegate.grace" $values) -}}
{{- $graceMin := int64 (include "tidegate.graceMin" $values) -}}
{{- if lt $grace $graceMin -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d, and the drain (settle, period and close_wait of %s.config.drain, and 10 s) takes %d: clients would be cut off. Raise the one or lower the other." .component $grace .component $graceMin) -}}
{{- end -}}
{{- if and $scaling.hpa.enabled $scaling.keda.enabled -}}
{{- fail (printf "%s.autoscaling.hpa and %s.autoscaling.keda are both enabled, and each would undo what the other does: enable one." .component .component) -}}
{{- end -}}
{{- if or $scaling.hpa.enabled $scaling.keda.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d and maxReplicas is %d: the least is above the most." .component (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (not $scaling.cpuPercent) (not $scaling.connections) -}}
{{- fail (printf "%s.autoscaling.cpuPercent and connections are both 0: there is nothing to scale by." .component) -}}
{{- end -}}
{{- if and $scaling.cpuPercent (not (dig "requests" "cpu" "" $values.resources)) -}}
{{- fail (printf "%s.autoscaling.cpuPercent is in percent of %s.resources.requests.cpu, which is not set." .component .component) -}}
{{- end -}}
{{- end -}}
{{- if and $scaling.keda.enabled $scaling.connections (not $scaling.keda.prometheusAddress) -}}
{{- fail (printf "%s.autoscaling.keda needs prometheusAddress to know the connections; or set connections to 0 to scale by CPU alone." .component) -}}
{{- end -}}
{{- if and (ne $values.service.type "LoadBalancer") (or $values.service.loadBalancerClass $values.service.loadBalancerSourceRanges) -}}
{{- fail (printf "%s.service.loadBalancerClass and loadBalancerSourceRanges are for the type LoadBalancer; the type is %s." .component $values.service.type) -}}
{{- end -}}
{{- if and (eq $values.service.type "ClusterIP") $values.service.externalTrafficPolicy -}}
{{- fail (printf "%s.service.externalTrafficPolicy is for the types NodePort and LoadBalancer; the type is ClusterIP." .component) -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.guardEntry" -}}
{{- if and .Values.router.enabled .Values.gateway.tls.existingSecret -}}
{{- fail "gateway.tls.existingSecret is set together with router.enabled, and the router speaks plain TCP to gateways: end TLS at the router with router.tls.existingSecret." -}}
{{- end -}}
{{- $sends := default false (default dict .Values.router.config.upstream).proxy_protocol -}}
{{- if and .Values.router.enabled (ne $sends (default false .Values.gateway.config.proxy_protocol)) -}}
{{- fail "gateway.config.proxy_protocol and router.config.upstream.proxy_protocol differ, and gateways would refuse every router: set both or neither." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled is set without ingress.hosts: name at least one host." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled is set without httpRoute.parentRefs: name the Gateway that takes the route." -}}
{{- end -}}
{{- if and .Values.monitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.internalFrom) -}}
{{- fail "monitor.enabled is set, and networkPolicy keeps Prometheus from the internal ports: name it in networkPolicy.internalFrom, or set networkPolicy.enabled to false." -}}
{{- end -}}
{{- $egress := .Values.networkPolicy.egress -}}
{{- $elsewhere := and (include "tidegate.hasRedis" .) (not .Values.redis.bundled.enabled) -}}
{{- if and .Values.networkPolicy.enabled $egress.enabled $elsewhere (not $egress.rules) -}}
{{- fail "networkPolicy.egress.enabled is set without networkPolicy.egress.rules: no gateway could reach Redis. Add a rule for it." -}}
{{- end -}}
{{- end -}}
