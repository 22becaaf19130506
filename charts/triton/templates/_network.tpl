{{/* Name of the HTTPRoute of one model. Argument: (list $ "model"). */}}
{{- define "triton.httpRoute.name" -}}
{{- $full := include "triton.fullname" (index . 0) -}}
{{- printf "%s-%s" $full (index . 1 | replace "." "-" | replace "_" "-") | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Egress rule for name look-ups, as YAML; empty without a peer, because that would mean everyone. */}}
{{- define "triton.networkPolicy.dns" -}}
{{- with .Values.networkPolicy.dns -}}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}
{{- end -}}

{{/* Egress rule for downloads, as YAML; empty without a peer. */}}
{{- define "triton.networkPolicy.hub" -}}
{{- with .Values.networkPolicy.hub.to }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range include "triton.networkPolicy.hubPorts" $ | fromJsonArray }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- end -}}

{{/*
TCP ports of the Hub as a JSON list: those of the values, of the endpoint, and of the proxies that
model-sync is told in its environment.
*/}}
{{- define "triton.networkPolicy.hubPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.hub.ports }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- range $name, $value := .Values.modelSync.extraEnv -}}
{{- if and (has (upper $name) (list "HTTP_PROXY" "HTTPS_PROXY" "ALL_PROXY")) (kindIs "string" $value) -}}
{{- with regexFind ":[0-9]+/?$" $value }}{{ $ports = append $ports (int (trimAll ":/" .)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with .Values.huggingface.endpoint -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- if not $port }}{{ $port = eq $url.scheme "http" | ternary "80" "443" }}{{ end -}}
{{- $ports = append $ports (int $port) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* Address of the HTTP Service inside the cluster. */}}
{{- define "triton.url" -}}
{{- printf "http://%s.%s.svc:%d" (include "triton.fullname" .) .Release.Namespace (int .Values.http.port) -}}
{{- end -}}

{{/* Type of a Service and what belongs to it, as YAML. Argument: (list $ values-of-the-Service). */}}
{{- define "triton.service.exposure" -}}
{{- $service := (index . 0).Values.service -}}
{{- $type := (index . 1).type | default $service.type -}}
type: {{ $type }}
{{- if and $service.externalTrafficPolicy (ne $type "ClusterIP") }}
externalTrafficPolicy: {{ $service.externalTrafficPolicy }}
{{- end }}
{{- if eq $type "LoadBalancer" }}
{{- with $service.loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with $service.loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
