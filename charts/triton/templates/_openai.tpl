{{/* The container of OpenAI's API, beside Triton and from the same image, as YAML of a list entry. */}}
{{- define "triton.openai.container" -}}
- name: openai
  {{- include "triton.container.common" (list . "") | nindent 2 }}
  args:
    - openai
    - --triton=localhost:8001
    - --port=9000
    - --drain-seconds={{ int .Values.shutdown.drainSeconds }}
    {{- with .Values.server.restrictedApis }}
    {{- if and .enabled .categories }}
    - --triton-header={{ .header }}=TRITON_ADMIN_KEY
    {{- end }}
    {{- end }}
    {{- with .Values.server.apiKey }}
    {{- if .existingSecret }}
    - --triton-header={{ .header }}=TRITON_API_KEY
    {{- end }}
    {{- end }}
  env:
    {{- include "triton.openai.env" . | trim | nindent 4 }}
  ports:
    - name: openai
      containerPort: 9000
  terminationMessagePolicy: FallbackToLogsOnError
  startupProbe:
    httpGet:
      path: /health/live
      port: openai
    periodSeconds: 2
    failureThreshold: 60
    timeoutSeconds: {{ int .Values.probes.timeoutSeconds }}
  readinessProbe:
    httpGet:
      path: /health/live
      port: openai
    periodSeconds: {{ int .Values.probes.readiness.periodSeconds }}
    failureThreshold: {{ int .Values.probes.readiness.failureThreshold }}
    timeoutSeconds: {{ int .Values.probes.timeoutSeconds }}
  livenessProbe:
    httpGet:
      path: /health/live
      port: openai
    periodSeconds: {{ int .Values.probes.liveness.periodSeconds }}
    failureThreshold: {{ int .Values.probes.liveness.failureThreshold }}
    timeoutSeconds: {{ int .Values.probes.timeoutSeconds }}
  {{- with int .Values.shutdown.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ . }}
  {{- end }}
  resources:
    {{- toYaml .Values.openai.resources | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{/* Environment of OpenAI's API as YAML: the keys that Triton wants, and that clients send. */}}
{{- define "triton.openai.env" -}}
{{- $env := dict "HOME" "/tmp" -}}
{{- $apis := .Values.server.restrictedApis -}}
{{- if and $apis.enabled $apis.categories -}}
{{- $ref := dict "name" (include "triton.adminSecretName" .) "key" $apis.key -}}
{{- $_ := set $env "TRITON_ADMIN_KEY" (dict "valueFrom" (dict "secretKeyRef" $ref)) -}}
{{- end -}}
{{- with include "triton.apiKeyRef" . -}}
{{- $_ := set $env "TRITON_API_KEY" (fromYaml .) -}}
{{- end -}}
{{- include "triton.env" $env -}}
{{- end -}}
