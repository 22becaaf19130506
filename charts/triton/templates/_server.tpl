{{/* Whether an autoscaler sets the number of server pods. */}}
{{- define "triton.isAutoscaled?" -}}
{{- if .Values.autoscaling.enabled }}true{{ end -}}
{{- end -}}

{{/* The most server pods that may run at a time, without a rollout's surge. */}}
{{- define "triton.mostReplicas" -}}
{{- if include "triton.isAutoscaled?" . -}}
{{- int .Values.autoscaling.maxReplicas -}}
{{- else -}}
{{- int .Values.replicas -}}
{{- end -}}
{{- end -}}

{{/* Whether a rollout may add pods to the wanted number. */}}
{{- define "triton.hasSurge?" -}}
{{- $none := has (toString .Values.strategy.maxSurge) (list "0" "0%") -}}
{{- if and (eq .Values.strategy.type "RollingUpdate") (not $none) }}true{{ end -}}
{{- end -}}

{{/* A Kubernetes quantity of bytes as whole MiB, rounded up. Argument: the quantity. */}}
{{- define "triton.mebibytes" -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12
    "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := include "triton.scalar" . -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $number := trimSuffix $unit $text | float64 -}}
{{- divf (mulf $number (index $units $unit)) 1048576 | ceil | int64 -}}
{{- end -}}

{{/*
Resources of the server: /dev/shm is memory of the container, so its size is added to memory request
and limit; GPUs are added to both as well.
*/}}
{{- define "triton.server.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- $shared := include "triton.mebibytes" .Values.sharedMemory | int64 -}}
{{- range $kind := list "requests" "limits" -}}
{{- $part := get $resources $kind | default dict -}}
{{- with $part.memory -}}
{{- $_ := set $part "memory" (printf "%dMi" (add (include "triton.mebibytes" .) $shared)) -}}
{{- end -}}
{{- if gt (int $.Values.gpu.count) 0 -}}
{{- $_ := set $part $.Values.gpu.resourceName (int $.Values.gpu.count | toString) -}}
{{- end -}}
{{- $_ := set $resources $kind $part -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Node selector of the servers, as YAML; empty without one. */}}
{{- define "triton.server.nodeSelector" -}}
{{- $selector := .Values.nodeSelector -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $selector = merge (dict) .Values.nodeSelector .Values.gpu.nodeSelector -}}
{{- end -}}
{{- with $selector }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Tolerations of the servers, as YAML; empty without any. */}}
{{- define "triton.server.tolerations" -}}
{{- $tolerations := .Values.tolerations -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $tolerations = concat .Values.gpu.tolerations $tolerations -}}
{{- end -}}
{{- with $tolerations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The keys that Triton wants and clients send, as YAML of environment variables. */}}
{{- define "triton.keys" -}}
{{- $server := .Values.server -}}
{{- if and $server.restrictedApis.enabled $server.restrictedApis.categories }}
TRITON_ADMIN_KEY:
  valueFrom:
    secretKeyRef:
      name: {{ include "triton.adminSecretName" . }}
      key: {{ $server.restrictedApis.key }}
{{- end }}
{{- with $server.apiKey.existingSecret }}
TRITON_API_KEY:
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $server.apiKey.key }}
{{- end }}
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
