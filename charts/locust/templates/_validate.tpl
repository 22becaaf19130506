{{/*
Relations between values that the schema cannot express. Every fault is collected, and all are told
at once. Fails the render, or gives nothing.
*/}}
{{- define "locust.validate" -}}
{{- $faults := concat
    (include "locust.validate.sources" . | fromJsonArray)
    (include "locust.validate.options" . | fromJsonArray)
    (include "locust.validate.access" . | fromJsonArray) -}}
{{- if $faults -}}
{{- fail (printf "\n- %s" (join "\n- " $faults)) -}}
{{- end -}}
{{- end -}}

{{/* Faults in where data and schema come from, as a JSON list. */}}
{{- define "locust.validate.sources" -}}
{{- $faults := list -}}
{{- range $name := list "data" "schema" -}}
{{- $set := list -}}
{{- range $key := list "file" "inline" "existingConfigMap" -}}
{{- if get (get $.Values $name) $key }}{{ $set = append $set (print $name "." $key) }}{{ end -}}
{{- end -}}
{{- if gt (len $set) 1 -}}
{{- $faults = append $faults (print (join " and " $set) " are set together: keep one.") -}}
{{- end -}}
{{- end -}}
{{- with .Values.data.inline -}}
{{- if hasKey (fromJson .) "Error" -}}
{{- if not (hasPrefix "[" (trim .)) -}}
{{- $faults = append $faults (print "data.inline is no JSON (" (get (fromJson .) "Error") "): correct it.") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in the options of the test, as a JSON list. */}}
{{- define "locust.validate.options" -}}
{{- $faults := list -}}
{{- $own := dict "host" "target.url" "grpc-host" "target.grpc" "model" "target.model"
    "wait" "target.waitSeconds"
    "client" "run.client" "rate" "run.rate" "arrival" "run.arrival" "shape" "run.shape"
    "peak" "run.peak" "users" "run.users" "spawn-rate" "run.spawnRate" "run-time" "run.durationSeconds"
    "stop-timeout" "run.stopSeconds" "data" "data" "schema" "schema" "objectives" "objectives"
    "expect-workers" "workers.count" "out" "results" "csv" "results"
    "run-name" "run.name" "exporter-port" "metrics.port" "replicas-host" "target.podLabels" -}}
{{- range $name, $_ := .Values.run.options -}}
{{- with get $own $name -}}
{{- $faults = append $faults (print "run.options." $name " is set by the chart: set " . " instead.") -}}
{{- end -}}
{{- end -}}
{{- $life := add (int .Values.run.durationSeconds) (int .Values.run.stopSeconds)
    (int .Values.master.waitForWorkersSeconds) -}}
{{- if gt $life (int .Values.jobs.deadlineSeconds) -}}
{{- $faults = append $faults (print "jobs.deadlineSeconds (" (int .Values.jobs.deadlineSeconds)
    ") ends the Jobs before the run can end (" $life " s with waiting and stopping): raise it.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in who may reach what, as a JSON list. */}}
{{- define "locust.validate.access" -}}
{{- $faults := list -}}
{{- if and .Values.webUI.ingress.enabled (not .Values.webUI.enabled) -}}
{{- $faults = append $faults "webUI.ingress.enabled leads to no page: set webUI.enabled." -}}
{{- end -}}
{{- if and (eq .Values.metrics.scrape "podMonitor") (not .Values.metrics.enabled) -}}
{{- $faults = append $faults (print "metrics.scrape is podMonitor and nothing is served: "
    "set metrics.enabled.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}
