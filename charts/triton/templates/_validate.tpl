{{/*
Relations between values that the schema cannot express. Every fault is collected, and all are told
at once. Fails the render, or gives nothing.
*/}}
{{- define "triton.validate" -}}
{{- $faults := concat
    (include "triton.validate.models" . | fromJsonArray)
    (include "triton.validate.store" . | fromJsonArray)
    (include "triton.validate.scaling" . | fromJsonArray)
    (include "triton.validate.access" . | fromJsonArray) -}}
{{- if $faults -}}
{{- fail (printf "\n- %s" (join "\n- " $faults)) -}}
{{- end -}}
{{- end -}}

{{/* Faults in the models, as a JSON list. */}}
{{- define "triton.validate.models" -}}
{{- $faults := list -}}
{{- if not .Values.models -}}
{{- $faults = append $faults "models is empty: name at least one model." -}}
{{- end -}}
{{- $routes := dict -}}
{{- range $name, $model := .Values.models -}}
{{- $simulated := eq ($model.engine | default "transformers") "simulated" -}}
{{- if and (not $simulated) (not $model.repository) -}}
{{- $faults = append $faults (print "models." $name " has no repository: set models." $name
    ".repository, or its engine to simulated.") -}}
{{- end -}}
{{- if and $simulated (or $model.repository $model.revision) -}}
{{- $faults = append $faults (print "models." $name " is simulated and downloads nothing: "
    "remove its repository and revision.") -}}
{{- end -}}
{{- $route := include "triton.httpRoute.name" (list $ $name) -}}
{{- with get $routes $route -}}
{{- $faults = append $faults (print "models." . " and models." $name " need the same object name "
    $route ": rename one.") -}}
{{- end -}}
{{- $_ := set $routes $route $name -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in the model store, as a JSON list. */}}
{{- define "triton.validate.store" -}}
{{- $faults := list -}}
{{- $store := .Values.modelStore -}}
{{- if and .Values.modelSync.enabled (not (or (has "ReadWriteOnce" $store.accessModes)
    (has "ReadWriteMany" $store.accessModes))) -}}
{{- $faults = append $faults (print "modelStore.accessModes is ReadOnlyMany and model-sync must "
    "write: add ReadWriteMany, or set modelSync.enabled to false.") -}}
{{- end -}}
{{- $most := include "triton.mostReplicas" . | int -}}
{{- $several := or (gt $most 1) (include "triton.hasSurge?" .) -}}
{{- if and (include "triton.modelStore.onOneNode?" .) (not $store.allPodsOnOneNode) $several -}}
{{- $faults = append $faults (print "modelStore.accessModes is ReadWriteOnce, which one node can "
    "mount, and more than one server pod may run (" $most
    (eq (include "triton.hasSurge?" .) "true" | ternary " and the surge of a rollout" "")
    "): set modelStore.accessModes to [ReadWriteMany], or modelStore.allPodsOnOneNode to true if "
    "they share a node.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}

{{/* Faults in scaling and rollout, as a JSON list. */}}
{{- define "triton.validate.scaling" -}}
{{- $faults := list -}}
{{- $strategy := .Values.strategy -}}
{{- $noneDown := has (toString $strategy.maxUnavailable) (list "0" "0%") -}}
{{- if and (eq $strategy.type "RollingUpdate") (not (include "triton.hasSurge?" .)) $noneDown -}}
{{- $faults = append $faults (print "strategy.maxSurge and strategy.maxUnavailable are both 0, so "
    "no pod could ever be replaced: raise one.") -}}
{{- end -}}
{{- $scaling := .Values.autoscaling -}}
{{- if not (has $scaling.scaler (list "keda" "hpa")) -}}
{{- $faults = append $faults (print "autoscaling.scaler is " $scaling.scaler ": set it to keda or hpa; "
    "both would fight over one Deployment.") -}}
{{- end -}}
{{- if not (has $scaling.signal (list "inflight" "pending" "queueTime" "custom")) -}}
{{- $faults = append $faults (print "autoscaling.signal is " $scaling.signal ": set it to inflight, "
    "pending, queueTime or custom.") -}}
{{- end -}}
{{- if le (float64 $scaling.target) 0.0 -}}
{{- $faults = append $faults (print "autoscaling.target is " $scaling.target ": set it above 0, to the "
    "signal that a pod should have.") -}}
{{- end -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $faults = append $faults (print "autoscaling.minReplicas (" $scaling.minReplicas ") is larger "
    "than autoscaling.maxReplicas (" $scaling.maxReplicas "): swap them.") -}}
{{- end -}}
{{- $custom := $scaling.custom -}}
{{- if and $scaling.enabled (eq $scaling.signal "custom") (not (and $custom.series $custom.query)) -}}
{{- $faults = append $faults (print "autoscaling.signal is custom: set autoscaling.custom.query, and "
    "autoscaling.custom.series for the adapter.") -}}
{{- end -}}
{{- if and (eq $scaling.signal "custom") $custom.query (not (and
    (contains "<<.LabelMatchers>>" $custom.query) (contains "<<.GroupBy>>" $custom.query))) -}}
{{- $faults = append $faults (print "autoscaling.custom.query must hold <<.LabelMatchers>> and "
    "<<.GroupBy>>, or it counts the pods of other releases.") -}}
{{- end -}}
{{- $age := include "triton.grpcMaxConnectionAgeSeconds" . | int -}}
{{- $preStop := int .Values.shutdown.preStopSeconds -}}
{{- if and .Values.server.grpcMaxConnectionAgeSeconds .Values.grpc.enabled
    (semverCompare "<2.58.0" .Values.image.tritonVersion) (ge (mul 11 $age) (mul 10 $preStop)) -}}
{{- $faults = append $faults (print "server.grpcMaxConnectionAgeSeconds (" $age ") and the tenth that "
    "gRPC adds are not below shutdown.preStopSeconds (" $preStop "), and Triton "
    .Values.image.tritonVersion " refuses the next call on every open connection when it ends: set it "
    "to null.") -}}
{{- end -}}
{{- $faults | toJson -}}
{{- end -}}
