{{/* Full name of the release's objects, at most 45 characters so that every suffix fits in 63. */}}
{{- define "triton.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- if gt (len $full) 45 -}}
{{- /* Cut names of two releases must not become one. */ -}}
{{- $full = printf "%s-%s" (trunc 36 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* Selector of one component. Argument: (list $ "component"). Never version, chart or user labels. */}}
{{- define "triton.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Values.nameOverride | default $root.Chart.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of the objects of one component. Argument: (list $ "component"). */}}
{{- define "triton.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "triton.selectorLabels" . }}
app.kubernetes.io/version: {{ include "triton.versionLabel" $root | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: triton-on-kubernetes
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Labels of the pods of one component, without the versions of chart and image: a new chart that changes
nothing in a pod must not restart it. Argument: (list $ "component").
*/}}
{{- define "triton.podLabels" -}}
{{ include "triton.selectorLabels" . }}
app.kubernetes.io/part-of: triton-on-kubernetes
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Version of the image as a label takes it: without a digest, at most 63 characters, no sign at its ends. */}}
{{- define "triton.versionLabel" -}}
{{- $version := .Values.image.tag | default .Chart.AppVersion -}}
{{- regexReplaceAll "@.*$" $version "" | replace "+" "_" | trunc 63 | trimAll "-_." -}}
{{- end -}}

{{/* Image reference: a digest wins over the tag. */}}
{{- define "triton.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* Name of the service account of all pods. */}}
{{- define "triton.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "triton.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Name of the claim that holds the model store. */}}
{{- define "triton.claimName" -}}
{{- .Values.modelStore.existingClaim | default (printf "%s-models" (include "triton.fullname" .)) -}}
{{- end -}}

{{/* Name of the Secret with the Hugging Face token; empty without a token. */}}
{{- define "triton.tokenSecretName" -}}
{{- if .Values.huggingface.token.existingSecret -}}
{{- .Values.huggingface.token.existingSecret -}}
{{- else if .Values.huggingface.token.value -}}
{{- printf "%s-huggingface" (include "triton.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* Name of the Secret with the value of the restricted APIs' header. */}}
{{- define "triton.adminSecretName" -}}
{{- .Values.server.restrictedApis.existingSecret | default (printf "%s-admin" (include "triton.fullname" .)) -}}
{{- end -}}

{{/* Annotations of an object, with their key; nothing without any. Argument: (list $ own...), later ones win. */}}
{{- define "triton.annotations" -}}
{{- $annotations := deepCopy (index . 0).Values.commonAnnotations -}}
{{- range rest . }}{{ $annotations = merge (dict) . $annotations }}{{ end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
