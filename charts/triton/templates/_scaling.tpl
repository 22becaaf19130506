{{/*
The signals: their metric in the adapter, whose name holds its unit, and a series that every pod with the
signal has, by which the adapter finds the pods.
*/}}
{{- define "triton.signals" -}}
inflight: {metric: triton_requests_inflight, series: triton_hf_requests_running}
pending: {metric: triton_requests_pending, series: nv_inference_pending_request_count}
queueTime: {metric: triton_queue_time_seconds, series: triton_hf_requests_running}
custom: {metric: triton_custom_signal, series: {{ .Values.autoscaling.custom.series | quote }}}
{{- end -}}

{{/* A file of files/signals in one line, without its comments, over the chosen window. Argument: (list $ name). */}}
{{- define "triton.promql" -}}
{{- $root := index . 0 -}}
{{- $text := regexReplaceAll "#[^\n]*\n" ($root.Files.Get (printf "files/signals/%s.promql" (index . 1))) "" -}}
{{- regexReplaceAll "\\s+" (trim $text) " "
    | replace "[2m]" (printf "[%ds]" (int $root.Values.autoscaling.windowSeconds)) -}}
{{- end -}}

{{/*
PromQL of the signal, one series for each pod. Argument: (list $ matchers grouping): label matchers
and labels to group by, which the adapter and KEDA fill in their own way, so both scale on the same.
*/}}
{{- define "triton.signal.query" -}}
{{- $scaling := (index . 0).Values.autoscaling -}}
{{- if eq $scaling.signal "custom" -}}
{{- $scaling.custom.query | default "" | trim | replace "\n" " "
    | replace "<<.LabelMatchers>>" (index . 1) | replace "<<.GroupBy>>" (index . 2) -}}
{{- else -}}
{{- include "triton.promql" (list (index . 0) $scaling.signal)
    | replace "namespace,pod" (index . 2)
    | replace `pod=~".+",model=~".+"` (printf "%s,model=~%q" (index . 1) $scaling.models) -}}
{{- end -}}
{{- end -}}

{{/* PromQL for KEDA; its matchers say which pods are the release's: behind its name, a ReplicaSet's and a pod's. */}}
{{- define "triton.signal.sum" -}}
{{- $matchers := printf "namespace=%q,pod=~%q" .Release.Namespace
    (printf "%s-[0-9a-z]+-[0-9a-z]{5}" (include "triton.fullname" .)) -}}
{{- include "triton.promql" (list . "sum")
    | replace "PODS" (include "triton.promql" (list . "pods") | replace `pod=~".+"` $matchers | printf "(%s)")
    | replace "TARGET" (print .Values.autoscaling.target)
    | replace "SIGNAL" (include "triton.signal.query" (list . $matchers "namespace,pod") | printf "(%s)") -}}
{{- end -}}
