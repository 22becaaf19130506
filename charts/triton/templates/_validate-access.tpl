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
{{- $limit := .Values.httpRoute.requestTimeoutSeconds | int -}}
{{- if and .Values.httpRoute.enabled (gt $limit 0) -}}
{{- $drain := int .Values.shutdown.drainSeconds -}}
{{- range $name, $model := .Values.models -}}
{{- $queue := include "triton.models.maxQueueSeconds" $model | int -}}
{{- if lt $limit (add $queue $drain | int) -}}
{{- $faults = append $faults (print "httpRoute.requestTimeoutSeconds (" $limit ") cuts answers of models."
    $name ", which may wait " $queue " s (max_queue_seconds) and take " $drain " s (shutdown.drainSeconds): "
    "set it to " (add $queue $drain) " or more, or to null.") -}}
{{- end -}}
{{- end -}}
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
