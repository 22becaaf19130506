{{/* Full name of the release's objects, at most 30 characters so that run and suffix fit in 63. */}}
{{- define "locust.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- if gt (len $full) 30 -}}
{{- /* Cut names of two releases must not become one. */ -}}
{{- $full = printf "%s-%s" (trunc 21 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/*
Name of this run: Jobs cannot be changed, and a run must never meet the pods of the last one, so every
revision has objects of its own. At most 21 characters.
*/}}
{{- define "locust.run" -}}
{{- printf "%s-%d" (.Values.run.name | default "run") (int .Release.Revision) -}}
{{- end -}}

{{/* Full name of the objects of this run. */}}
{{- define "locust.runName" -}}
{{- printf "%s-%s" (include "locust.fullname" .) (include "locust.run" .) -}}
{{- end -}}

{{/* Selector of one component of this run. Argument: (list $ "component"). */}}
{{- define "locust.selectorLabels" -}}
{{- $root := index . 0 -}}
{{- /* Servers admit load tests by this name; Chart.Name would be the alias in a parent chart. */}}
app.kubernetes.io/name: locust
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
triton-load/run: {{ include "locust.run" $root }}
{{- end -}}

{{/* Labels of the objects of one component. Argument: (list $ "component"). */}}
{{- define "locust.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "locust.podLabels" . }}
app.kubernetes.io/version: {{ include "locust.versionLabel" $root | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}

{{/* Labels of the pods of one component. Argument: (list $ "component"). */}}
{{- define "locust.podLabels" -}}
{{ include "locust.selectorLabels" . }}
app.kubernetes.io/part-of: triton-on-kubernetes
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Version of the image as a label takes it: without a digest, at most 63 characters, no sign at its ends. */}}
{{- define "locust.versionLabel" -}}
{{- $version := .Values.image.tag | default .Chart.AppVersion -}}
{{- regexReplaceAll "@.*$" $version "" | replace "+" "_" | trunc 63 | trimAll "-_." -}}
{{- end -}}

{{/* Image reference: a digest wins over the tag. */}}
{{- define "locust.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* Name of the service account of all pods. */}}
{{- define "locust.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "locust.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Name of the claim that holds the reports of all runs. */}}
{{- define "locust.claimName" -}}
{{- .Values.results.existingClaim | default (printf "%s-results" (include "locust.fullname" .)) -}}
{{- end -}}

{{/* Name of the Service whose addresses are the server's ready pods. */}}
{{- define "locust.replicasName" -}}
{{- printf "%s-servers" (include "locust.runName" .) -}}
{{- end -}}

{{/* Annotations of an object, with their key; nothing without any. Argument: (list $ own...), later ones win. */}}
{{- define "locust.annotations" -}}
{{- $annotations := deepCopy (index . 0).Values.commonAnnotations -}}
{{- range rest . }}{{ $annotations = merge (dict) . $annotations }}{{ end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
