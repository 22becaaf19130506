{{/*
Relations between values that the schema cannot express. Every fault is collected, and all are told
at once. Fails the render, or gives nothing.
*/}}
{{- define "triton.validate" -}}
{{- $faults := concat
    (include "triton.validate.models" . | fromJsonArray)
    (include "triton.validate.scaling" . | fromJsonArray)
    (include "triton.validate.access" . | fromJsonArray) -}}
{{- if $faults -}}
{{- fail (printf "\n- %s" (join "\n- " $faults)) -}}
{{- end -}}
{{- end -}}

{{/* Faults in models and model store, as a JSON list. */}}
{{- define "triton.validate.models" -}}
{{- $faults := list -}}
{{- if not .Values.models -}}
{{- $faults = append $faults "models is empty: name at least one model." -}}
{{- end -}}
{{- $routes := dict -}}
{{- range $name, $model := .Values.models -}}
{{- $simulated := eq ($model.engine | default "transformers") "simulated" -}}
{{- if and (not $simulated) (not $model.repository) -}}
{{- $faults = append $faults (printf "models.%s has no repository: set models.%s.repository, or engine to simulated." $name $name) -}}
{{- end -}}
{{- if and $simulated (or $model.repository $model.revision) -}}
{{- $faults = append $faults (printf "models.%s is simulated and downloads nothing: remove its repository and revision." $name) -}}
{{- end -}}
{{- $route := include "triton.httpRoute.name" (list $ $name) -}}
{{- with get $routes $route -}}
{{- $faults = append $faults (printf "models.%s and models.%s need the same object name %s: rename one." . $name $route) -}}
{{- end -}}
{{- $_ := set $routes $route $name -}}
{{- end -}}
{{- if and .Values.modelSync.enabled (eq (toJson .Values.modelStore.accessModes) `["ReadOnlyMany"]`) -}}
{{- $faults = append $faults "modelStore.accessModes is ReadOnlyMany and model-sync must write: add ReadWriteMany, or set modelSync.enabled to false." -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in scaling and rollout, as a JSON list. */}}
{{- define "triton.validate.scaling" -}}
{{- $faults := list -}}
{{- $most := include "triton.mostReplicas" . | int -}}
{{- $rolling := eq .Values.strategy.type "RollingUpdate" -}}
{{- $surge := and $rolling (not (has (toString .Values.strategy.maxSurge) (list "0" "0%"))) -}}
{{- $unavailable := not (has (toString .Values.strategy.maxUnavailable) (list "0" "0%")) -}}
{{- if and (include "triton.modelStore.onOneNode?" .) (not .Values.modelStore.allPodsOnOneNode) (or (gt $most 1) $surge) -}}
{{- $many := $surge | ternary (printf "%d server pods and a rollout's surge" $most) (printf "%d server pods" $most) -}}
{{- $faults = append $faults (printf "modelStore.accessModes is ReadWriteOnce, which one node can mount, and %s may run: set modelStore.accessModes to [ReadWriteMany], or modelStore.allPodsOnOneNode to true if they share a node." $many) -}}
{{- end -}}
{{- if and $rolling (not $surge) (not $unavailable) -}}
{{- $faults = append $faults "strategy.maxSurge and strategy.maxUnavailable are both 0, so no pod could ever be replaced: raise one." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults (printf "autoscaling.minReplicas (%d) is larger than autoscaling.maxReplicas (%d): swap them." (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in secrets and routes, as a JSON list. */}}
{{- define "triton.validate.access" -}}
{{- $faults := list -}}
{{- if and .Values.huggingface.token.existingSecret .Values.huggingface.token.value -}}
{{- $faults = append $faults "huggingface.token.existingSecret and huggingface.token.value are both set: keep one." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- $faults = append $faults "httpRoute.enabled needs a gateway: set httpRoute.parentRefs." -}}
{{- end -}}
{{- if has "health" .Values.server.restrictedApis.categories -}}
{{- $faults = append $faults "server.restrictedApis.categories holds health, which probes and gateways need open: remove it." -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}
