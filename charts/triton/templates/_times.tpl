{{/*
Seconds between the deletion of a server pod and its kill:
preStop (endpoints disappear) + drain (Triton's exit timeout) + 10 (unload, exit).
*/}}
{{- define "triton.gracePeriodSeconds" -}}
{{- add (int .Values.shutdown.preStopSeconds) (int .Values.shutdown.drainSeconds) 10 -}}
{{- end -}}

{{/*
Seconds after which a gRPC connection is renewed: half of preStop, so that every client has found another
pod before this one ends. The other half is for the proxies, which must have dropped the endpoint, and
for gRPC, which makes the age up to a tenth longer.
*/}}
{{- define "triton.grpcMaxConnectionAgeSeconds" -}}
{{- if .Values.server.grpcMaxConnectionAgeSeconds -}}
{{- int .Values.server.grpcMaxConnectionAgeSeconds -}}
{{- else -}}
{{- max 1 (div (int .Values.shutdown.preStopSeconds) 2) -}}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration of the Gateway API, such as 500ms, 15s, 1m, 1h. Argument: the text. */}}
{{- define "triton.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (trimSuffix $unit . | int64) (index (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* Seconds until a rollout without progress counts as failed: download, load, a minute for the image. */}}
{{- define "triton.progressDeadlineSeconds" -}}
{{- $load := int .Values.probes.startup.budgetSeconds -}}
{{- add (int .Values.modelSync.timeoutSeconds) $load (int .Values.minReadySeconds) 60 -}}
{{- end -}}

{{/* Failures of the startup probe that make up the budget, rounded up. */}}
{{- define "triton.startupFailureThreshold" -}}
{{- $probe := .Values.probes.startup -}}
{{- divf (float64 $probe.budgetSeconds) (float64 $probe.periodSeconds) | ceil | int -}}
{{- end -}}
