{{/* Who may reach the master, as YAML; empty when nobody may. A search has no workers. */}}
{{- define "locust.networkPolicy.ingress" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if not .Values.capacity.enabled }}
- from:
    - podSelector:
        matchLabels:
          {{- include "locust.selectorLabels" (list . "worker") | nindent 10 }}
  ports:
    - port: locust
      protocol: TCP
{{- end }}
{{- if and .Values.metrics.enabled $policy.monitoring }}
- from:
    {{- toYaml $policy.monitoring | nindent 4 }}
  ports:
    - port: metrics
      protocol: TCP
{{- end }}
{{- if and .Values.webUI.enabled $policy.gateway }}
- from:
    {{- toYaml $policy.gateway | nindent 4 }}
  ports:
    - port: web
      protocol: TCP
{{- end }}
{{- end -}}

{{/* Egress that master and workers share, as YAML: names and the server; empty without a peer. */}}
{{- define "locust.networkPolicy.egress" -}}
{{- $policy := .Values.networkPolicy -}}
{{- with $policy.dns }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
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
