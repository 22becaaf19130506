{{/*
Relations between values that the schema cannot express. Every fault is collected, and all are told
at once. Fails the render, or gives nothing.
*/}}
{{- define "locust.validate" -}}
{{- $faults := concat
    (include "locust.validate.sources" . | fromJsonArray)
    (include "locust.validate.options" . | fromJsonArray)
    (include "locust.validate.capacity" . | fromJsonArray)
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
    (int .Values.master.waitForWorkersSeconds) (int .Values.target.waitSeconds) -}}
{{- if .Values.webUI.enabled -}}
{{- $life = add $life (int .Values.webUI.lingerSeconds) -}}
{{- end -}}
{{- if and (gt $life (int .Values.jobs.deadlineSeconds)) (not .Values.capacity.enabled) -}}
{{- $faults = append $faults (print "jobs.deadlineSeconds (" (int .Values.jobs.deadlineSeconds)
    ") ends the Jobs before the run can end (" $life " s with waiting, stopping and lingering): raise it.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in a search for the capacity, as a JSON list. */}}
{{- define "locust.validate.capacity" -}}
{{- $faults := list -}}
{{- if .Values.capacity.enabled -}}
{{- $search := .Values.capacity -}}
{{- if not .Values.objectives -}}
{{- $faults = append $faults "capacity.enabled searches within the objectives: set objectives." -}}
{{- end -}}
{{- $chosen := list -}}
{{- if .Values.run.rate }}{{ $chosen = append $chosen "run.rate" }}{{ end -}}
{{- if .Values.run.peak }}{{ $chosen = append $chosen "run.peak" }}{{ end -}}
{{- if ne .Values.run.shape "constant" }}{{ $chosen = append $chosen "run.shape" }}{{ end -}}
{{- range $name := list "think-time" "steps" }}
{{- if hasKey $.Values.run.options $name }}{{ $chosen = append $chosen (print "run.options." $name) }}{{ end -}}
{{- end -}}
{{- if $chosen -}}
{{- $faults = append $faults (print "capacity.enabled chooses the load itself: unset "
    (join " and " $chosen) ".") -}}
{{- end -}}
{{- if and $search.forUsers $search.forRate -}}
{{- $faults = append $faults "capacity.forUsers and capacity.forRate are set together: keep one." -}}
{{- end -}}
{{- if gt (float64 $search.start) (float64 $search.highest) -}}
{{- $faults = append $faults "capacity.start is above capacity.highest: lower it." -}}
{{- end -}}
{{- if and (eq $search.by "users") (ne (float64 $search.start) (floor $search.start)) -}}
{{- $faults = append $faults "capacity.start must be a whole number of users." -}}
{{- end -}}
{{- if .Values.webUI.enabled -}}
{{- $faults = append $faults "capacity.enabled makes many runs, which have no page: unset webUI.enabled." -}}
{{- end -}}
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
