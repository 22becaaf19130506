{{/* The models that are not switched off, by name, as JSON. */}}
{{- define "triton.models" -}}
{{- $models := dict -}}
{{- range $name, $model := .Values.models -}}
{{- if dig "enabled" true $model }}{{ $_ := set $models $name $model }}{{ end -}}
{{- end -}}
{{- $models | toJson -}}
{{- end -}}

{{/* The models as JSON, as `triton-hf sync --spec` reads them; parameters are text, as in config.pbtxt. */}}
{{- define "triton.models.spec" -}}
{{- $models := dict -}}
{{- $known := .Files.Get "files/engines.json" | fromJson -}}
{{- range $name, $model := include "triton.models" . | fromJson -}}
{{- $spec := dict "engine" ($model.engine | default $known.default) -}}
{{- with $model.repository }}{{ $_ := set $spec "repository" . }}{{ end -}}
{{- with $model.task }}{{ $_ := set $spec "task" . }}{{ end -}}
{{- with $model.revision }}{{ $_ := set $spec "revision" . }}{{ end -}}
{{- $_ := set $spec "parameters" (dict) -}}
{{- range $key, $value := $model.parameters -}}
{{- $text := kindIs "map" $value | ternary (toJson $value) (include "triton.scalar" $value) -}}
{{- $_ := set $spec.parameters $key $text -}}
{{- end -}}
{{- $_ := set $models $name $spec -}}
{{- end -}}
{{- dict "models" $models | toJson -}}
{{- end -}}

{{/*
Generation of the model repository: changes with the models and with the image that writes it. Each
release has its own, so that none removes what another serves from a shared claim.
*/}}
{{- define "triton.models.generation" -}}
{{- printf "%s %s %s%s" (include "triton.models.spec" .) (include "triton.image" .)
    (include "triton.models.owner" .) (.Values.modelSync.image | default "") | sha256sum | trunc 12 -}}
{{- end -}}

{{/* Whose generations these are, in a store that several releases may share. */}}
{{- define "triton.models.owner" -}}
{{- printf "%s/%s" .Release.Namespace (include "triton.fullname" .) -}}
{{- end -}}

{{/* Whether the store can be used on one node only: ReadWriteOnce and nothing wider. */}}
{{- define "triton.modelStore.onOneNode?" -}}
{{- $modes := .Values.modelStore.accessModes -}}
{{- if not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes)) }}true{{ end -}}
{{- end -}}
