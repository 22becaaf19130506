{{/* What all pods of the release share: identity and rights. */}}
{{- define "triton.pod.common" -}}
serviceAccountName: {{ include "triton.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- if not (kindIs "invalid" .Values.hostUsers) }}
hostUsers: {{ .Values.hostUsers }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What all containers of the release share: image and rights. Argument: (list $ image), "" for the own. */}}
{{- define "triton.container.common" -}}
{{- $root := index . 0 -}}
image: {{ index . 1 | default (include "triton.image" $root) | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- with $root.Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment from a map of name -> text or {valueFrom}. A map, so that no name comes twice. */}}
{{- define "triton.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
{{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
{{- else }}
  value: {{ include "triton.scalar" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A number, boolean or text as text. Helm reads numbers as floats, and 16777216 must not become 1.6e+07. */}}
{{- define "triton.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}
