{{/*
Words of tritonserver's command line, as YAML. Flags newer than the oldest supported Triton are left
out by image.tritonVersion (with the version that brought each), because an unknown flag stops it.
*/}}
{{- define "triton.server.args" -}}
{{- $server := .Values.server -}}
{{- $version := .Values.image.tritonVersion -}}
- tritonserver
- --model-repository=/models/repository/{{ include "triton.models.generation" . }}
- --model-control-mode=none
- --exit-on-error=true
- --strict-readiness=true
- --exit-timeout-secs={{ int .Values.shutdown.drainSeconds }}
- --http-port=8000
- --allow-grpc={{ .Values.grpc.enabled }}
{{- if .Values.grpc.enabled }}
- --grpc-port=8001
- --grpc-max-connection-age={{ mul (include "triton.grpcMaxConnectionAgeSeconds" . | int) 1000 }}
{{- if semverCompare ">=2.56.0" $version }}
- --grpc-max-response-pool-size={{ int $server.grpcMaxResponsePoolSize }}
{{- end }}
{{- if semverCompare ">=2.57.0" $version }}
- --grpc-infer-thread-count={{ int $server.grpcInferThreadCount }}
{{- end }}
{{- end }}
{{- if semverCompare ">=2.59.0" $version }}
- --http-max-input-size={{ int64 $server.maxInputBytes }}
{{- end }}
{{- if semverCompare ">=2.69.0" $version }}
- --allow-client-shm=false
{{- end }}
- --allow-sagemaker=false
- --allow-vertex-ai=false
- --allow-metrics=true
- --metrics-port=8002
- --metrics-interval-ms={{ int .Values.metrics.intervalMilliseconds }}
- --metrics-config=summary_latencies=true
- --allow-gpu-metrics={{ gt (int .Values.gpu.count) 0 }}
- --log-verbose={{ int $server.log.verbose }}
- --log-format={{ $server.log.format }}
{{- if and $server.restrictedApis.enabled $server.restrictedApis.categories }}
{{- $categories := join "," $server.restrictedApis.categories }}
{{- $closed := printf "%s:%s=$(TRITON_ADMIN_KEY)" $categories $server.restrictedApis.header }}
- --http-restricted-api={{ $closed }}
{{- if .Values.grpc.enabled }}
- --grpc-restricted-protocol={{ $closed }}
{{- end }}
{{- end }}
{{- if $server.apiKey.existingSecret }}
{{- $closed := printf "inference:%s=$(TRITON_API_KEY)" $server.apiKey.header }}
- --http-restricted-api={{ $closed }}
{{- if .Values.grpc.enabled }}
- --grpc-restricted-protocol={{ $closed }}
{{- end }}
{{- end }}
{{- with $server.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Environment of the server as YAML: the chart's own, overridden by extraEnv. */}}
{{- define "triton.server.env" -}}
{{- $env := dict -}}
{{- $_ := set $env "HF_HUB_OFFLINE" "1" -}}
{{- $_ := set $env "HF_HOME" "/tmp/huggingface" -}}
{{- $_ := set $env "HOME" "/tmp" -}}
{{- $_ := set $env "TRITON_HF_STORE" "/models" -}}
{{- $_ := set $env "TRITON_HF_UNREADY_SECONDS" (int .Values.probes.readiness.silentSeconds | toString) -}}
{{- $_ := set $env "TRITON_HF_STALE_SECONDS" (int .Values.probes.liveness.staleSeconds | toString) -}}
{{- $_ := set $env "TRITON_HF_RUNTIME_DIR" "/tmp/triton_hf" -}}
{{- $apis := .Values.server.restrictedApis -}}
{{- if and $apis.enabled $apis.categories -}}
{{- $ref := dict "name" (include "triton.adminSecretName" .) "key" $apis.key -}}
{{- $_ := set $env "TRITON_ADMIN_KEY" (dict "valueFrom" (dict "secretKeyRef" $ref)) -}}
{{- end -}}
{{- with include "triton.apiKeyRef" . -}}
{{- $_ := set $env "TRITON_API_KEY" (fromYaml .) -}}
{{- end -}}
{{- include "triton.env" (merge (dict) .Values.extraEnv $env) -}}
{{- end -}}

{{/* Spread constraints with the chart's own selector added to each, as YAML. */}}
{{- define "triton.server.topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "triton.selectorLabels" (list . "server") | fromYaml) -}}
{{- $constraints := list -}}
{{- range .Values.topologySpreadConstraints -}}
{{- $constraints = append $constraints (merge (dict "labelSelector" $selector) .) -}}
{{- end -}}
{{- with $constraints }}{{ toYaml . }}{{ end -}}
{{- end -}}
