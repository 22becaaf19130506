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
