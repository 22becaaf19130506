{{/* Name of the metric that the adapter makes of the signal; its unit is in the name. */}}
{{- define "triton.signal.name" -}}
{{- $names := dict "inflight" "triton_requests_inflight" "pending" "triton_requests_pending"
    "queueTime" "triton_queue_time_seconds" "custom" "triton_custom_signal" -}}
{{- get $names .Values.autoscaling.signal -}}
{{- end -}}

{{/* A series that exists for each pod that has the signal, by which the adapter finds them. */}}
{{- define "triton.signal.series" -}}
{{- $series := dict "inflight" "triton_hf_requests_running" "pending" "nv_inference_pending_request_count"
    "queueTime" "triton_hf_requests_running" "custom" .Values.autoscaling.custom.series -}}
{{- get $series .Values.autoscaling.signal -}}
{{- end -}}

{{/*
PromQL of the signal, one series for each pod. Argument: (list $ matchers grouping): label matchers
and labels to group by, which the adapter and KEDA fill in their own way, so both scale on the same.
*/}}
{{- define "triton.signal.query" -}}
{{- $scaling := (index . 0).Values.autoscaling -}}
{{- $matchers := printf "%s,model=~%q" (index . 1) $scaling.models -}}
{{- $in := printf "{%s}" $matchers -}}
{{- $by := printf "sum by (%s)" (index . 2) -}}
{{- $inflight := print $by " (triton_hf_requests_running" $in ") + " $by " (triton_hf_requests_waiting" $in ")" -}}
{{- if eq $scaling.signal "inflight" -}}
{{- $inflight -}}
{{- else if eq $scaling.signal "pending" -}}
{{- print $by " (nv_inference_pending_request_count" $in ")" -}}
{{- else if eq $scaling.signal "queueTime" -}}
{{- $rate := printf "%s[%ds]" $in (int $scaling.windowSeconds) -}}
{{- /* Weighted by requests: a sum of waits over a sum of requests. `> 0` drops the series where none
       was admitted, which holds the number of pods, unless the engine is idle: then the wait is 0. */ -}}
{{- print $by " (rate(triton_hf_queue_seconds_sum" $rate ")) / ("
    $by " (rate(triton_hf_queue_seconds_count" $rate ")) > 0) or (" $inflight " == 0)" -}}
{{- else -}}
{{- $scaling.custom.query | default "" | trim | replace "\n" " "
    | replace "<<.LabelMatchers>>" (index . 1)
    | replace "<<.GroupBy>>" (index . 2) -}}
{{- end -}}
{{- end -}}

{{/*
PromQL for KEDA: the signal summed over the pods, which the HPA divides by the target. A pod without a
signal counts as in a Pods metric of the HPA: as one at its target, but never as a reason for more pods.
Such are pods that cannot be scraped for the whole window (one that just ended is none), and pods
that are scraped and say nothing.
*/}}
{{- define "triton.signal.sum" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $matchers := include "triton.signal.matchers" . -}}
{{- $signal := printf "(%s)" (include "triton.signal.query" (list . $matchers "namespace,pod")) -}}
{{- $highest := "max by (namespace,pod) (" -}}
{{- $pods := print "(" $highest "up{" $matchers "}) == 1 or "
    $highest "max_over_time(up{" $matchers "}[" (int $scaling.windowSeconds) "s])) == 0)" -}}
{{- $target := printf "%v * count" $scaling.target -}}
{{- print "sum(" $signal ") + clamp(" $target "(" $signal " or " $pods ") - sum(" $signal "), 0, scalar("
    $target "(" $pods " unless " $signal ") or vector(0)))" -}}
{{- end -}}

{{/*
Matchers for prometheus-adapter. <<.LabelMatchers>> would name every pod of the release, and with
hundreds of them the query outgrows what proxies take; the adapter picks its pods from the answer.
*/}}
{{- define "triton.signal.adapterMatchers" -}}
{{- if eq .Values.autoscaling.signal "custom" -}}
<<.LabelMatchers>>
{{- else -}}
namespace="<<index .LabelValuesByName "namespace">>"
{{- end -}}
{{- end -}}

{{/* Matchers of the pods of this release; the two parts behind the name are a ReplicaSet's and a pod's. */}}
{{- define "triton.signal.matchers" -}}
{{- printf "namespace=%q,pod=~%q" .Release.Namespace
    (printf "%s-[0-9a-z]+-[0-9a-z]{5}" (include "triton.fullname" .)) -}}
{{- end -}}
