{{/* Arguments of the test as a JSON list: master and workers must be told the same. */}}
{{- define "locust.arguments.test" -}}
{{- $run := .Values.run -}}
{{- $words := list
    (printf "--host=%s" .Values.target.url)
    (printf "--grpc-host=%s" .Values.target.grpc)
    (printf "--model=%s" .Values.target.model)
    (printf "--wait=%d" (int .Values.target.waitSeconds))
    (printf "--client=%s" $run.client) -}}
{{- if not .Values.capacity.enabled -}}
{{- $words = concat $words (list
    (printf "--arrival=%s" $run.arrival)
    (printf "--shape=%s" $run.shape)
    (printf "--stop-timeout=%d" (int $run.stopSeconds))) -}}
{{- end -}}
{{- with include "locust.dataFile" . }}{{ $words = append $words (printf "--data=%s" .) }}{{ end -}}
{{- with include "locust.schemaFile" . }}{{ $words = append $words (printf "--schema=%s" .) }}{{ end -}}
{{- with $run.rate }}{{ $words = append $words (printf "--rate=%s" (include "locust.scalar" .)) }}{{ end -}}
{{- with $run.peak }}{{ $words = append $words (printf "--peak=%s" (include "locust.scalar" .)) }}{{ end -}}
{{- range $name, $value := $run.options -}}
{{- if kindIs "bool" $value -}}
{{- if $value }}{{ $words = append $words (printf "--%s" $name) }}{{ end -}}
{{- else -}}
{{- $words = append $words (printf "--%s=%s" $name (include "locust.scalar" $value)) -}}
{{- end -}}
{{- end -}}
{{- concat $words .Values.extraArgs | toJson -}}
{{- end -}}

{{/* Arguments of the master as a JSON list. */}}
{{- define "locust.arguments.master" -}}
{{- $run := .Values.run -}}
{{- $words := list
    "--master"
    (printf "--expect-workers=%d" (int .Values.workers.count))
    (printf "--expect-workers-max-wait=%d" (int .Values.master.waitForWorkersSeconds))
    (printf "--users=%d" (int $run.users))
    (printf "--spawn-rate=%s" (include "locust.scalar" $run.spawnRate))
    (printf "--run-time=%ds" (int $run.durationSeconds))
    "--objectives=/etc/triton-load/objectives.yaml"
    "--out=/results/$(POD_NAME)"
    (printf "--run-name=%s" (include "locust.runName" .))
    "--csv=/results/$(POD_NAME)/locust"
    "--csv-full-history"
    "--json-file=/results/$(POD_NAME)/locust_stats"
    "--only-summary" -}}
{{- if .Values.webUI.enabled -}}
{{- $words = concat $words (list "--autostart" (printf "--autoquit=%d" (int .Values.webUI.lingerSeconds))) -}}
{{- else -}}
{{- $words = append $words "--headless" -}}
{{- end -}}
{{- $words = concat $words (include "locust.arguments.watched" . | fromJsonArray) -}}
{{- concat $words (include "locust.arguments.test" . | fromJsonArray) | toJson -}}
{{- end -}}

{{/*
Arguments of a search as a JSON list: its own, then those of each of its runs. The loads of a search
are its own, so a run is told nothing of users, rates and lengths.
*/}}
{{- define "locust.arguments.capacity" -}}
{{- $search := .Values.capacity -}}
{{- $words := list
    "--out=/results/$(POD_NAME)"
    (printf "--by=%s" $search.by)
    (printf "--start=%s" (include "locust.scalar" $search.start))
    (printf "--highest=%s" (include "locust.scalar" $search.highest))
    (printf "--precision=%s" (include "locust.scalar" $search.precision))
    (printf "--step-time=%d" (int $search.stepSeconds))
    (printf "--warm-up=%d" (int $search.warmUpSeconds))
    (printf "--stop-timeout=%d" (int .Values.run.stopSeconds))
    (printf "--processes=%d" (int $search.processes))
    (printf "--replicas=%d" (int $search.replicas))
    (printf "--headroom=%s" (include "locust.scalar" $search.headroom))
    (printf "--think-time=%s" (include "locust.scalar" $search.thinkSeconds))
    (printf "--run-name=%s" (include "locust.runName" .)) -}}
{{- with $search.forUsers }}{{ $words = append $words (printf "--for-users=%d" (int .)) }}{{ end -}}
{{- with $search.forRate }}{{ $words = append $words (printf "--for-rate=%s" (include "locust.scalar" .)) }}{{ end -}}
{{- $words = concat $words (list "--" "--objectives=/etc/triton-load/objectives.yaml") -}}
{{- $words = concat $words (include "locust.arguments.watched" . | fromJsonArray) -}}
{{- concat $words (include "locust.arguments.test" . | fromJsonArray) | toJson -}}
{{- end -}}

{{/* Arguments of who leads a run, about what it counts and shows, as a JSON list. */}}
{{- define "locust.arguments.watched" -}}
{{- $words := list -}}
{{- if .Values.target.podLabels -}}
{{- $words = append $words (printf "--replicas-host=%s" (include "locust.replicasName" .)) -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $words = append $words (printf "--exporter-port=%d" (int .Values.metrics.port)) -}}
{{- end -}}
{{- $words | toJson -}}
{{- end -}}

{{/* Arguments of a worker as a JSON list. Its exit status tells of itself only, never of the server. */}}
{{- define "locust.arguments.worker" -}}
{{- $words := list
    "--worker"
    (printf "--master-host=%s" (include "locust.runName" .))
    "--exit-code-on-error=0" -}}
{{- concat $words (include "locust.arguments.test" . | fromJsonArray) | toJson -}}
{{- end -}}

{{/* Path of the data file in the pods; empty for the image's example. */}}
{{- define "locust.dataFile" -}}
{{- if or .Values.data.inline .Values.data.existingConfigMap -}}
/etc/triton-load/data.json
{{- else -}}
{{- .Values.data.file | default "" -}}
{{- end -}}
{{- end -}}

{{/* Path of the model's config.pbtxt in the pods; empty for what the server says. */}}
{{- define "locust.schemaFile" -}}
{{- if or .Values.schema.inline .Values.schema.existingConfigMap -}}
/etc/triton-load/config.pbtxt
{{- else -}}
{{- .Values.schema.file | default "" -}}
{{- end -}}
{{- end -}}
