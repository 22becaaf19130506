{{/* Security context of all pods or containers, as YAML; OpenShift chooses ids itself. Argument: (list $ context). */}}
{{- define "triton.securityContext" -}}
{{- $context := index . 1 -}}
{{- if (index . 0).Values.openshift.enabled -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" "supplementalGroups" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

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
  {{- include "triton.securityContext" (list $ .) | nindent 2 }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
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
  {{- include "triton.securityContext" (list $root .) | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Environment as a YAML list, from lists of {name, ...} and maps of name -> text or {valueFrom}. A name that
comes again replaces the earlier one, so that no name comes twice.
*/}}
{{- define "triton.env" -}}
{{- $env := dict -}}
{{- range . -}}
{{- if kindIs "map" . -}}
{{- $env = merge (dict) . $env -}}
{{- else -}}
{{- range . }}{{ $_ := set $env .name (hasKey . "valueFrom" | ternary (pick . "valueFrom") .value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $env }}
- name: {{ $name | quote }}
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
