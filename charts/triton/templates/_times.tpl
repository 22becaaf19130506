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

{{/*
Longest wait of a request of a model for its slot, in whole seconds: max_queue_seconds, or the default of
the engine. 0 waits for ever. Argument: the model's entry.
*/}}
{{- define "triton.models.maxQueueSeconds" -}}
{{- $given := get (.parameters | default dict) "max_queue_seconds" -}}
{{- eq (toString $given) "" | ternary 50.0 (float64 $given) | ceil | int -}}
{{- end -}}

{{/* Seconds of the gateway for one response: waiting and the longest answer. Argument: (list $ model). */}}
{{- define "triton.httpRoute.timeoutSeconds" -}}
{{- $root := index . 0 -}}
{{- $queue := include "triton.models.maxQueueSeconds" (index . 1) | int -}}
{{- if not (kindIs "invalid" $root.Values.httpRoute.requestTimeoutSeconds) -}}
{{- int $root.Values.httpRoute.requestTimeoutSeconds -}}
{{- else if eq $queue 0 -}}
0
{{- else -}}
{{- add $queue (int $root.Values.shutdown.drainSeconds) -}}
{{- end -}}
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
