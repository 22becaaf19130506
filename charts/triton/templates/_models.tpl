{{/* The models as JSON, as `triton-hf sync --spec` reads them; parameters are text, as in config.pbtxt. */}}
{{- define "triton.models.spec" -}}
{{- $models := dict -}}
{{- range $name, $model := .Values.models -}}
{{- $spec := dict "engine" ($model.engine | default "transformers") -}}
{{- with $model.repository }}{{ $_ := set $spec "repository" . }}{{ end -}}
{{- with $model.revision }}{{ $_ := set $spec "revision" . }}{{ end -}}
{{- $_ := set $spec "parameters" (dict) -}}
{{- range $key, $value := $model.parameters -}}
{{- $_ := set $spec.parameters $key (include "triton.scalar" $value) -}}
{{- end -}}
{{- $_ := set $models $name $spec -}}
{{- end -}}
{{- dict "models" $models | toJson -}}
{{- end -}}

{{/* A number, boolean or text as text. Helm reads numbers as floats, and 16777216 must not become 1.6e+07. */}}
{{- define "triton.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
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

{{/*
The paths of one model that may be called from outside, as a JSON list. Argument: (list $ name).
Exact paths, because regular expressions differ between controllers and a prefix would open /config.
*/}}
{{- define "triton.models.paths" -}}
{{- $paths := list -}}
{{- $calls := list "" "/ready" -}}
{{- range (index . 0).Values.publicCalls }}{{ $calls = append $calls (print "/" .) }}{{ end -}}
{{- range $model := list (index . 1) (printf "%s_stream" (index . 1)) -}}
{{- range $version := list "" "/versions/1" -}}
{{- range $calls -}}
{{- $paths = append $paths (printf "/v2/models/%s%s%s" $model $version .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $paths | toJson -}}
{{- end -}}

{{/* Whether the store can be used on one node only: ReadWriteOnce and nothing wider. */}}
{{- define "triton.modelStore.onOneNode?" -}}
{{- $modes := .Values.modelStore.accessModes -}}
{{- if not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes)) }}true{{ end -}}
{{- end -}}

{{/*
Name of the model-sync Job. A Job cannot be changed, so a changed one gets a name of its own; that of
an upgrade has always the same, so that each upgrade removes what an earlier one left.
*/}}
{{- define "triton.modelSync.name" -}}
{{- $hash := include "triton.modelSync.spec" . | sha256sum | trunc 8 -}}
{{- printf "%s-sync-%s" (include "triton.fullname" .)
    (eq (include "triton.modelSync.isHook?" .) "true" | ternary "upgrade" $hash) -}}
{{- end -}}

{{/*
Whether this render's model-sync runs as a hook. Only in an upgrade: a first install has no claim
before its objects are made, and `helm template` (Argo CD, Flux) always counts as an install.
*/}}
{{- define "triton.modelSync.isHook?" -}}
{{- if and .Release.IsUpgrade .Values.modelSync.beforeUpgrade }}true{{ end -}}
{{- end -}}

{{/* Secret that the Job mounts; in a hook a copy, because the release's own is not updated yet. */}}
{{- define "triton.modelSync.tokenSecretName" -}}
{{- $name := include "triton.tokenSecretName" . -}}
{{- if and .Values.huggingface.token.value (include "triton.modelSync.isHook?" .) -}}
{{- printf "%s-upgrade" $name -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* Annotations of a copy of an object that the Job of an upgrade needs before the release's own changes. */}}
{{- define "triton.modelSync.copyAnnotations" -}}
helm.sh/hook: pre-upgrade,pre-rollback
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{/*
Affinity of the Job on a store for one node, as YAML: it is where the servers are, or it would wait for
ever. Servers follow an upgrade, and there may be none now, or none that has a node: the scheduler lets a
pod pass that nobody matches but the pod itself. Where they shall run is then a wish, because an
upgrade may also move them.
*/}}
{{- define "triton.modelSync.affinity" -}}
{{- $hook := include "triton.modelSync.isHook?" . -}}
{{- $nodes := include "triton.server.nodeSelector" . | fromYaml -}}
{{- if and $hook $nodes -}}
nodeAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference:
        matchExpressions:
          {{- range $label, $value := $nodes }}
          - key: {{ $label }}
            operator: In
            values: [{{ $value | quote }}]
          {{- end }}
{{ end -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- omit (include "triton.selectorLabels" (list . "server") | fromYaml)
              "app.kubernetes.io/component" | toYaml | nindent 10 }}
        matchExpressions:
          - key: app.kubernetes.io/component
            operator: In
            values: {{ eq $hook "true" | ternary "[server, model-sync]" "[server]" }}
{{- end -}}
