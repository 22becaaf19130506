{{/* Faults in secrets and routes, as a JSON list. */}}
{{- define "triton.validate.access" -}}
{{- $faults := list -}}
{{- if and .Values.huggingface.token.existingSecret .Values.huggingface.token.value -}}
{{- $faults = append $faults (print "huggingface.token.existingSecret and huggingface.token.value "
    "are both set: keep one.") -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- $faults = append $faults "httpRoute.enabled needs a gateway: set httpRoute.parentRefs." -}}
{{- end -}}
{{- if and .Values.openai.enabled (not .Values.grpc.enabled) -}}
{{- $faults = append $faults (print "openai.enabled needs grpc.enabled, because OpenAI's API asks Triton "
    "over gRPC: set both to true, or openai.enabled to false.") -}}
{{- end -}}
{{- $timeout := .Values.httpRoute.timeouts.request -}}
{{- if and .Values.httpRoute.enabled $timeout (ne $timeout "0s") -}}
{{- range $name, $model := .Values.models -}}
{{- $parameters := $model.parameters | default dict -}}
{{- $wait := hasKey $parameters "max_queue_seconds" | ternary (get $parameters "max_queue_seconds") 50 | float64 -}}
{{- if or (le $wait 0.0) (le (include "triton.milliseconds" $timeout | float64) (mulf $wait 1000)) -}}
{{- $faults = append $faults (print "httpRoute.timeouts.request (" $timeout ") is not longer than the "
    "max_queue_seconds of models." $name " (" (le $wait 0.0 | ternary "0, which waits for ever" (print $wait))
    "), so the gateway would give up before the server answers: make it longer, or 0s for no limit.") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (int .Values.openai.port) (int .Values.http.port) -}}
{{- $faults = append $faults "openai.port and http.port are equal: one Service needs two ports." -}}
{{- end -}}
{{- $service := .Values.service -}}
{{- $types := list ($service.http.type | default $service.type) -}}
{{- if .Values.grpc.enabled }}{{ $types = append $types ($service.grpc.type | default $service.type) }}{{ end -}}
{{- range $name := list "loadBalancerSourceRanges" "loadBalancerClass" -}}
{{- if and (get $service $name) (not (has "LoadBalancer" $types)) -}}
{{- $faults = append $faults (print "service." $name " is set and no Service is a LoadBalancer, so it would "
    "do nothing: set service.type, or remove it.") -}}
{{- end -}}
{{- end -}}
{{- if and $service.externalTrafficPolicy (eq (join "" (uniq $types)) "ClusterIP") -}}
{{- $faults = append $faults (print "service.externalTrafficPolicy is set and every Service is a ClusterIP, "
    "so it would do nothing: set service.type, or remove it.") -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled (not $policy.gateway) (or .Values.ingress.enabled .Values.httpRoute.enabled) -}}
{{- $faults = append $faults (print "networkPolicy.gateway is empty, so nothing comes in by Ingress or "
    "HTTPRoute: name the namespace of the ingress controller or gateway there.") -}}
{{- end -}}
{{- if has "health" .Values.server.restrictedApis.categories -}}
{{- $faults = append $faults (print "server.restrictedApis.categories holds health, which probes "
    "and gateways need open: remove it.") -}}
{{- end -}}
{{- if and .Values.server.apiKey.existingSecret (has "inference" .Values.server.restrictedApis.categories) -}}
{{- $faults = append $faults (print "server.restrictedApis.categories holds inference, which "
    "server.apiKey closes already: remove it there.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}
