{{/* Egress that master and workers share, as YAML: names and the server; empty without a peer. */}}
{{- define "locust.networkPolicy.egress" -}}
{{- $policy := .Values.networkPolicy -}}
{{- with $policy.dns }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $policy.dnsPorts }}
    - port: {{ int . }}
      protocol: UDP
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- with $policy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- with $policy.target }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $policy.targetPorts }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- end -}}
