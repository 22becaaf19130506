{{/*
Relations between values that the schema cannot express. The defines below write one entry `- sentence.`
for each fault; an indented line goes on with its sentence. All are told at once. Fails the render, or
gives nothing.
*/}}
{{- define "locust.validate" -}}
{{- $faults := print (include "locust.validate.sources" .) (include "locust.validate.options" .)
    (include "locust.validate.capacity" .) (include "locust.validate.access" .)
    (include "locust.validate.words" .) -}}
{{- with regexReplaceAll "\n  +" $faults " " | trim -}}
{{- fail (print "\n" .) -}}
{{- end -}}
{{- end -}}

{{/* Faults in where data and schema come from. */}}
{{- define "locust.validate.sources" -}}
{{- range $name := list "data" "schema" }}
{{- $set := list }}
{{- range $key := list "file" "inline" "existingConfigMap" }}
{{- if get (get $.Values $name) $key }}{{ $set = append $set (print $name "." $key) }}{{ end }}
{{- end }}
{{- if gt (len $set) 1 }}
- {{ join " and " $set }} are set together: keep one.
{{- end }}
{{- end }}
{{- with .Values.data.inline }}
{{- $read := fromJson . }}
{{- if and (hasKey $read "Error") (not (hasPrefix "[" (trim .))) }}
- data.inline is no JSON ({{ $read.Error }}): correct it.
{{- end }}
{{- end }}
{{- end -}}

{{/* Faults in the options of the test. */}}
{{- define "locust.validate.options" -}}
{{- $own := dict "host" "target.url" "grpc-host" "target.grpc" "model" "target.model"
    "wait" "target.waitSeconds" "client" "run.client" "rate" "run.rate" "arrival" "run.arrival"
    "shape" "run.shape" "peak" "run.peak" "users" "run.users" "spawn-rate" "run.spawnRate"
    "run-time" "run.durationSeconds" "stop-timeout" "run.stopSeconds" "data" "data" "schema" "schema"
    "objectives" "objectives" "expect-workers" "workers.count" "out" "results" "csv" "results"
    "run-name" "run.name" "exporter-port" "metrics.port" "replicas-host" "target.podLabels" }}
{{- range $name, $_ := .Values.run.options }}
{{- with get $own $name }}
- run.options.{{ $name }} is set by the chart: set {{ . }} instead.
{{- end }}
{{- end }}
{{- $life := include "locust.life" . | int64 }}
{{- if and (gt $life (int64 .Values.jobs.deadlineSeconds)) (not .Values.capacity.enabled) }}
- jobs.deadlineSeconds ({{ int .Values.jobs.deadlineSeconds }}) ends the Jobs before the run can end
  ({{ $life }} s with waiting, stopping and lingering): raise it.
{{- end }}
{{- end -}}

{{/* Faults in a search for the capacity. */}}
{{- define "locust.validate.capacity" -}}
{{- if .Values.capacity.enabled }}
{{- $search := .Values.capacity }}
{{- if not .Values.objectives }}
- capacity.enabled searches within the objectives: set objectives.
{{- end }}
{{- $chosen := list }}
{{- if .Values.run.rate }}{{ $chosen = append $chosen "run.rate" }}{{ end }}
{{- if .Values.run.peak }}{{ $chosen = append $chosen "run.peak" }}{{ end }}
{{- if ne .Values.run.shape "constant" }}{{ $chosen = append $chosen "run.shape" }}{{ end }}
{{- range $name := list "think-time" "steps" }}
{{- if hasKey $.Values.run.options $name }}{{ $chosen = append $chosen (print "run.options." $name) }}{{ end }}
{{- end }}
{{- with $chosen }}
- capacity.enabled chooses the load itself: unset {{ join " and " . }}.
{{- end }}
{{- if and $search.forUsers $search.forRate }}
- capacity.forUsers and capacity.forRate are set together: keep one.
{{- end }}
{{- if gt (float64 $search.start) (float64 $search.highest) }}
- capacity.start is above capacity.highest: lower it.
{{- end }}
{{- if and (eq $search.by "users") (ne (float64 $search.start) (floor $search.start)) }}
- capacity.start must be a whole number of users.
{{- end }}
{{- if .Values.webUI.enabled }}
- capacity.enabled makes many runs, which have no page: unset webUI.enabled.
{{- end }}
{{- end }}
{{- end -}}

{{/* Words of other charts, which mean something that has another name here. */}}
{{- define "locust.validate.words" -}}
{{- range $path, $ours := .Files.Get "files/words.json" | fromJson }}
{{- $at := $.Values }}
{{- range splitList "." $path }}
{{- if kindIs "map" $at }}{{ $at = get $at . }}{{ else }}{{ $at = "" }}{{ end }}
{{- end }}
{{- if ne (toString $at) "" }}
- {{ $path }} has another name in this chart: set {{ $ours }} instead.
{{- end }}
{{- end }}
{{- end -}}

{{/* Faults in who may reach what. */}}
{{- define "locust.validate.access" -}}
{{- if and .Values.webUI.ingress.enabled (not .Values.webUI.enabled) }}
- webUI.ingress.enabled leads to no page: set webUI.enabled.
{{- end }}
{{- if and (eq .Values.metrics.scrape "podMonitor") (not .Values.metrics.enabled) }}
- metrics.scrape is podMonitor and nothing is served: set metrics.enabled.
{{- end }}
{{- end -}}
