{{/* Type of a Service and what belongs to it, as YAML. Argument: (list $ values-of-the-Service). */}}
{{- define "triton.service.exposure" -}}
{{- $service := (index . 0).Values.service -}}
{{- $type := (index . 1).type | default $service.type -}}
type: {{ $type }}
{{- with $service.trafficDistribution }}
trafficDistribution: {{ . }}
{{- end }}
{{- with $service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- if and $service.externalTrafficPolicy (ne $type "ClusterIP") }}
externalTrafficPolicy: {{ $service.externalTrafficPolicy }}
{{- end }}
{{- if eq $type "LoadBalancer" }}
{{- with $service.loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with $service.loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
