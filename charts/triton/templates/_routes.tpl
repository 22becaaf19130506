{{/*
The paths of one model that may be called from outside, as a JSON list. Argument: (list $ name).
Exact paths, because regular expressions differ between controllers and a prefix would open /config.
*/}}
{{- define "triton.models.paths" -}}
{{- $paths := list -}}
{{- $calls := list "" "/ready" -}}
{{- range (index . 0).Values.publicCalls }}{{ $calls = append $calls (print "/" .) }}{{ end -}}
{{- range $model := list (index . 1) (printf "%s_stream" (index . 1)) -}}
{{- range $version := list "" "/versions/1" -}}
{{- range $calls -}}
{{- $paths = append $paths (printf "/v2/models/%s%s%s" $model $version .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $paths | toJson -}}
{{- end -}}

{{/* Name of the HTTPRoute of one model. Argument: (list $ "model"). */}}
{{- define "triton.httpRoute.name" -}}
{{- $full := include "triton.fullname" (index . 0) -}}
{{- printf "%s-%s" $full (index . 1 | replace "." "-" | replace "_" "-") | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Milliseconds of a duration of the Gateway API, such as 500ms, 15s, 1m, 1h. Argument: the text. */}}
{{- define "triton.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (trimSuffix $unit . | int64) (index (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* The gRPC methods that may be called from outside, as a JSON list. They name no model, so they open all. */}}
{{- define "triton.grpc.methods" -}}
{{- list "ServerLive" "ServerReady" "ModelReady" "ModelMetadata" "ModelInfer" "ModelStreamInfer" | toJson -}}
{{- end -}}

{{/* Host names of the Ingresses, as a JSON list; one empty name for every host. */}}
{{- define "triton.ingress.hosts" -}}
{{- prepend .Values.ingress.extraHosts (.Values.ingress.host | default "") | toJson -}}
{{- end -}}

{{/* Class and certificates of the Ingresses, as YAML. */}}
{{- define "triton.ingress.common" -}}
{{- $ingress := .Values.ingress -}}
{{- with $ingress.className }}
ingressClassName: {{ . }}
{{- end }}
{{- if or $ingress.tlsSecret $ingress.extraTls }}
tls:
  {{- with $ingress.tlsSecret }}
  - secretName: {{ . }}
    {{- with $ingress.host }}
    hosts:
      - {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $ingress.extraTls }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
