{{/* Arguments of a request, as a YAML list: master and workers must be told the same. */}}
{{- define "locust.arguments.test" -}}
{{- $run := .Values.run -}}
- {{ printf "--host=%s" .Values.target.url | quote }}
- {{ printf "--grpc-host=%s" .Values.target.grpc | quote }}
- {{ printf "--model=%s" .Values.target.model | quote }}
- --wait={{ int .Values.target.waitSeconds }}
- --client={{ $run.client }}
{{- if not .Values.capacity.enabled }}
- --arrival={{ $run.arrival }}
- --shape={{ $run.shape }}
- --stop-timeout={{ int $run.stopSeconds }}
{{- end }}
{{- with .Values.data }}
{{- if or .inline .existingConfigMap }}
- --data=/etc/triton-load/data.json
{{- else if .file }}
- {{ printf "--data=%s" .file | quote }}
{{- end }}
{{- end }}
{{- with .Values.schema }}
{{- if or .inline .existingConfigMap }}
- --schema=/etc/triton-load/config.pbtxt
{{- else if .file }}
- {{ printf "--schema=%s" .file | quote }}
{{- end }}
{{- end }}
{{- with $run.rate }}
- --rate={{ include "locust.scalar" . }}
{{- end }}
{{- with $run.peak }}
- --peak={{ include "locust.scalar" . }}
{{- end }}
{{- range $name, $value := $run.options }}
{{- if not (kindIs "bool" $value) }}
- {{ printf "--%s=%s" $name (include "locust.scalar" $value) | quote }}
{{- else if $value }}
- --{{ $name }}
{{- end }}
{{- end }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Arguments of the pod that leads a run, about what it counts and shows, as a YAML list. */}}
{{- define "locust.arguments.watched" -}}
{{- if .Values.target.podLabels }}
- --replicas-host={{ include "locust.replicasName" . }}
{{- end }}
{{- if .Values.metrics.enabled }}
- --exporter-port={{ int .Values.metrics.port }}
{{- end }}
{{- end -}}

{{/* Seconds of the longest run that the values allow, with waiting, stopping and lingering. */}}
{{- define "locust.life" -}}
{{- add .Values.run.durationSeconds .Values.run.stopSeconds .Values.master.waitForWorkersSeconds
    .Values.target.waitSeconds (.Values.webUI.enabled | ternary .Values.webUI.lingerSeconds 0) -}}
{{- end -}}
