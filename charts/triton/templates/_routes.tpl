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
