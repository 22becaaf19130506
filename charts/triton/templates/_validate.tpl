{{/*
Relations between values that the schema cannot express. The defines below write one entry `- sentence.`
for each fault; an indented line goes on with its sentence. All are told at once. Fails the render, or
gives nothing.
*/}}
{{- define "triton.validate" -}}
{{- $faults := print (include "triton.validate.models" .) (include "triton.validate.store" .)
    (include "triton.validate.rollout" .) (include "triton.validate.scaling" .)
    (include "triton.validate.routes" .) (include "triton.validate.access" .)
    (include "triton.validate.monitoring" .)
    (include "triton.validate.words" .) -}}
{{- with regexReplaceAll "\n  +" $faults " " | trim -}}
{{- fail (print "\n" .) -}}
{{- end -}}
{{- end -}}

{{/* Faults in the models. */}}
{{- define "triton.validate.models" -}}
{{- if not (include "triton.models" . | fromJson) }}
- models is empty: name at least one model.
{{- end }}
{{- $known := .Files.Get "files/engines.json" | fromJson }}
{{- $routes := dict }}
{{- range $name, $model := include "triton.models" . | fromJson }}
{{- $engine := $model.engine | default $known.default }}
{{- $needs := (get $known.engines $engine).repository }}
{{- if and $needs (not $model.repository) }}
- models.{{ $name }} has no repository: set models.{{ $name }}.repository, or an engine that needs none.
{{- end }}
{{- if and (not $needs) (or $model.repository $model.revision) }}
- models.{{ $name }} is {{ $engine }} and downloads nothing: remove its repository and revision.
{{- end }}
{{- $tasks := (get $known.engines $engine).tasks }}
{{- if and $model.task (not (hasKey $tasks $model.task)) }}
{{- $computed := keys $tasks | sortAlpha | join ", " }}
- models.{{ $name }}.task is {{ $model.task }}, and the engine {{ $engine }} computes {{ $computed }}.
{{- end }}
{{- $taken := list }}
{{- range $task, $parameters := $tasks }}
{{- if or (not $model.task) (eq $task $model.task) }}{{ $taken = concat $taken $parameters }}{{ end }}
{{- end }}
{{- $taker := printf "%s%s" $engine (empty $model.task | ternary "" (printf " for the task %s" $model.task)) }}
{{- range $parameter, $_ := $model.parameters }}
{{- if not (has $parameter $taken) }}
- models.{{ $name }}.parameters.{{ $parameter }} is no parameter of the engine {{ $taker }}: remove it.
{{- end }}
{{- end }}
{{- $route := include "triton.httpRoute.name" (list $ $name) }}
{{- with get $routes $route }}
- models.{{ . }} and models.{{ $name }} need the same object name {{ $route }}: rename one.
{{- end }}
{{- $_ := set $routes $route $name }}
{{- end }}
{{- end -}}

{{/* Faults in the model store. */}}
{{- define "triton.validate.store" -}}
{{- $store := .Values.modelStore }}
{{- $writable := or (has "ReadWriteOnce" $store.accessModes) (has "ReadWriteMany" $store.accessModes) }}
{{- if and .Values.modelSync.enabled (not $writable) }}
- modelStore.accessModes is ReadOnlyMany and model-sync must write: add ReadWriteMany, or set
  modelSync.enabled to false.
{{- end }}
{{- $most := include "triton.mostReplicas" . | int }}
{{- $surge := include "triton.hasSurge?" . }}
{{- if and (include "triton.modelStore.onOneNode?" .) (not $store.allPodsOnOneNode) (or (gt $most 1) $surge) }}
- modelStore.accessModes is ReadWriteOnce, which one node can mount, and more than one server pod may run
  ({{ $most }}{{ if $surge }} and the surge of a rollout{{ end }}): set modelStore.accessModes to
  [ReadWriteMany], or modelStore.allPodsOnOneNode to true if they share a node.
{{- end }}
{{- end -}}

{{/* Faults in how pods are replaced. */}}
{{- define "triton.validate.rollout" -}}
{{- $strategy := .Values.strategy }}
{{- $noneDown := has (toString $strategy.maxUnavailable) (list "0" "0%") }}
{{- if and (eq $strategy.type "RollingUpdate") (not (include "triton.hasSurge?" .)) $noneDown }}
- strategy.maxSurge and strategy.maxUnavailable are both 0, so no pod could ever be replaced: raise one.
{{- end }}
{{- $age := include "triton.grpcMaxConnectionAgeSeconds" . | int }}
{{- $preStop := int .Values.shutdown.preStopSeconds }}
{{- if and .Values.server.grpcMaxConnectionAgeSeconds .Values.grpc.enabled
    (semverCompare "<2.58.0" .Values.image.tritonVersion) (ge (mul 11 $age) (mul 10 $preStop)) }}
- server.grpcMaxConnectionAgeSeconds ({{ $age }}) and the tenth that gRPC adds are not below
  shutdown.preStopSeconds ({{ $preStop }}), and Triton {{ .Values.image.tritonVersion }} refuses the next
  call on every open connection when it ends: set it to null.
{{- end }}
{{- end -}}

{{/* Faults in scaling. */}}
{{- define "triton.validate.scaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- $custom := $scaling.custom }}
{{- if not (has $scaling.scaler (list "keda" "hpa")) }}
- autoscaling.scaler is {{ $scaling.scaler }}: set it to keda or hpa; both would fight over one Deployment.
{{- end }}
{{- if not (has $scaling.signal (list "inflight" "pending" "queueTime" "custom")) }}
- autoscaling.signal is {{ $scaling.signal }}: set it to inflight, pending, queueTime or custom.
{{- end }}
{{- if le (float64 $scaling.target) 0.0 }}
- autoscaling.target is {{ $scaling.target }}: set it above 0, to the signal that a pod should have.
{{- end }}
{{- if and $scaling.enabled (lt (int $scaling.minReplicas) 1) }}
- autoscaling.minReplicas is 0, and without a pod there is no signal that would start one again: set it to 1,
  or put KEDA's HTTP add-on in front and leave autoscaling off.
{{- end }}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
- autoscaling.minReplicas ({{ $scaling.minReplicas }}) is larger than autoscaling.maxReplicas
  ({{ $scaling.maxReplicas }}): swap them.
{{- end }}
{{- if and $scaling.enabled (eq $scaling.signal "custom") (not (and $custom.series $custom.query)) }}
- autoscaling.signal is custom: set autoscaling.custom.query, and autoscaling.custom.series for the adapter.
{{- end }}
{{- $holes := and (contains "<<.LabelMatchers>>" ($custom.query | default ""))
    (contains "<<.GroupBy>>" ($custom.query | default "")) }}
{{- if and (eq $scaling.signal "custom") $custom.query (not $holes) }}
- autoscaling.custom.query must hold <<.LabelMatchers>> and <<.GroupBy>>, or it counts the pods of other
  releases.
{{- end }}
{{- end -}}

{{/* Faults in routes and Services. */}}
{{- define "triton.validate.routes" -}}
{{- $route := .Values.httpRoute }}
{{- $timeout := $route.timeouts.request }}
{{- if and $route.enabled (not $route.parentRefs) }}
- httpRoute.enabled needs a gateway: set httpRoute.parentRefs.
{{- end }}
{{- $grpcRoute := .Values.grpcRoute }}
{{- if and $grpcRoute.enabled (not (or $grpcRoute.parentRefs $route.parentRefs)) }}
- grpcRoute.enabled needs a gateway: set grpcRoute.parentRefs.
{{- end }}
{{- $ways := dict "grpcRoute.enabled" $grpcRoute.enabled "ingress.grpc.enabled" .Values.ingress.grpc.enabled }}
{{- range $name, $on := $ways }}
{{- if and $on (not (has "infer" $.Values.publicCalls)) }}
- {{ $name }} opens inference over gRPC, and publicCalls has no infer: add it, or leave {{ $name }} off.
{{- end }}
{{- if and $on (not $.Values.grpc.enabled) }}
- {{ $name }} leads to no Service: set grpc.enabled.
{{- end }}
{{- end }}
{{- if and .Values.ingress.extraHosts (not .Values.ingress.host) }}
- ingress.extraHosts come on top of ingress.host, which is not set and takes every name: set it.
{{- end }}
{{- if and $route.enabled $timeout (ne $timeout "0s") }}
{{- range $name, $model := include "triton.models" . | fromJson }}
{{- $parameters := $model.parameters | default dict }}
{{- $wait := hasKey $parameters "max_queue_seconds" | ternary (get $parameters "max_queue_seconds") 50 | float64 }}
{{- if or (le $wait 0.0) (le (include "triton.milliseconds" $timeout | float64) (mulf $wait 1000)) }}
- httpRoute.timeouts.request ({{ $timeout }}) is not longer than the max_queue_seconds of models.
  {{- $name }} ({{ le $wait 0.0 | ternary "0, which waits for ever" (print $wait) }}), so the gateway would
  give up before the server answers: make it longer, or 0s for no limit.
{{- end }}
{{- end }}
{{- end }}
{{- $service := .Values.service }}
{{- $types := list ($service.http.type | default $service.type) }}
{{- if .Values.grpc.enabled }}{{ $types = append $types ($service.grpc.type | default $service.type) }}{{ end }}
{{- range $name := list "loadBalancerSourceRanges" "loadBalancerClass" }}
{{- if and (get $service $name) (not (has "LoadBalancer" $types)) }}
- service.{{ $name }} is set and no Service is a LoadBalancer, so it would do nothing: set service.type, or
  remove it.
{{- end }}
{{- end }}
{{- if and $service.externalTrafficPolicy (eq (join "" (uniq $types)) "ClusterIP") }}
- service.externalTrafficPolicy is set and every Service is a ClusterIP, so it would do nothing: set
  service.type, or remove it.
{{- end }}
{{- $policy := .Values.networkPolicy }}
{{- $outside := or .Values.ingress.enabled .Values.ingress.grpc.enabled $route.enabled $grpcRoute.enabled }}
{{- if and $policy.enabled (not $policy.gateway) $outside }}
- networkPolicy.gateway is empty, so nothing comes in by Ingress or HTTPRoute: name the namespace of the
  ingress controller or gateway there.
{{- end }}
{{- end -}}

{{/* Words of other charts, which mean something that has another name here. */}}
{{- define "triton.validate.words" -}}
{{- range $path, $ours := .Files.Get "files/words.json" | fromJson }}
{{- $at := $.Values }}
{{- range splitList "." $path }}
{{- if kindIs "map" $at }}{{ $at = get $at . }}{{ else }}{{ $at = "" }}{{ end }}
{{- end }}
{{- if ne (toString $at) "" }}
- {{ $path }} has another name in this chart: set {{ $ours }} instead.
{{- end }}
{{- end }}
{{- end -}}

{{/* Faults in monitoring. */}}
{{- define "triton.validate.monitoring" -}}
{{- if and .Values.tracing.endpoint .Values.networkPolicy.enabled (not .Values.tracing.to) }}
- tracing.endpoint is set and tracing.to is empty, so the network policy lets no trace out: name the pods or
  addresses of the collector there.
{{- end }}
{{- $alerts := regexFindAll "alert: \\w+" (.Files.Get "files/rules/alerts.yaml") -1 }}
{{- range .Values.metrics.rules.disabled }}
{{- if not (has (print "alert: " .) $alerts) }}
- metrics.rules.disabled names {{ . }}, and there is no such alert: name one of
  {{ join ", " $alerts | replace "alert: " "" }}.
{{- end }}
{{- end }}
{{- end -}}

{{/* Faults in secrets and in what may be called. */}}
{{- define "triton.validate.access" -}}
{{- $token := .Values.huggingface.token }}
{{- $categories := .Values.server.restrictedApis.categories }}
{{- if and $token.existingSecret $token.value }}
- huggingface.token.existingSecret and huggingface.token.value are both set: keep one.
{{- end }}
{{- if and .Values.openai.enabled (not .Values.grpc.enabled) }}
- openai.enabled needs grpc.enabled, because OpenAI's API asks Triton over gRPC: set both to true, or
  openai.enabled to false.
{{- end }}
{{- if eq (int .Values.openai.port) (int .Values.http.port) }}
- openai.port and http.port are equal: one Service needs two ports.
{{- end }}
{{- if has "health" $categories }}
- server.restrictedApis.categories holds health, which probes and gateways need open: remove it.
{{- end }}
{{- if and .Values.server.apiKey.existingSecret (has "inference" $categories) }}
- server.restrictedApis.categories holds inference, which server.apiKey closes already: remove it there.
{{- end }}
{{- end -}}
