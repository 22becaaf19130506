{{/* Security context of all pods or containers, as YAML; OpenShift chooses ids itself. Argument: (list $ context). */}}
{{- define "locust.securityContext" -}}
{{- $context := index . 1 -}}
{{- if (index . 0).Values.openshift.enabled -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" "supplementalGroups" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Text of a value of any type, without the exponent that Go gives to large numbers. */}}
{{- define "locust.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/*
Environment as a YAML list, from lists of {name, ...} and maps of name -> text or {valueFrom}. A name that
comes again replaces the earlier one, so that no name comes twice.
*/}}
{{- define "locust.env" -}}
{{- $env := dict -}}
{{- range . -}}
{{- if kindIs "map" . -}}
{{- $env = merge (dict) . $env -}}
{{- else -}}
{{- range . }}{{ $_ := set $env .name (hasKey . "valueFrom" | ternary (pick . "valueFrom") .value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $env }}
- name: {{ $name | quote }}
{{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
{{- else }}
  value: {{ include "locust.scalar" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where the pods may run: the affinity of the values, else away from GPU nodes. */}}
{{- define "locust.affinity" -}}
{{- if .Values.affinity -}}
{{- toYaml .Values.affinity -}}
{{- else if .Values.gpuNodes.avoid -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - key: {{ .Values.gpuNodes.label }}
            operator: NotIn
            values: ["true"]
{{- end -}}
{{- end -}}

{{/* What both Jobs share: nothing is tried again, because a second try would hide the first. */}}
{{- define "locust.job" -}}
backoffLimit: 0
activeDeadlineSeconds: {{ int .Values.jobs.deadlineSeconds }}
{{ include "locust.job.kept" . -}}
{{- end -}}

{{/*
The same for workers. Where none of them finds a node, nobody tells their Job that the test is over: it
ends by itself once no test can go on, 10 minutes after the longest one that its values allow.
*/}}
{{- define "locust.job.workers" -}}
backoffLimit: 0
activeDeadlineSeconds: {{ min (int .Values.jobs.deadlineSeconds) (add (include "locust.life" .) 600) }}
{{ include "locust.job.kept" . -}}
{{- end -}}

{{/* How long a finished Job is kept. */}}
{{- define "locust.job.kept" -}}
{{- if not (or .Values.jobs.keepFinished (kindIs "invalid" .Values.jobs.ttlSecondsAfterFinished)) }}
ttlSecondsAfterFinished: {{ int .Values.jobs.ttlSecondsAfterFinished }}
{{- end }}
{{- end -}}

{{/* What all pods share: identity, rights, place. */}}
{{- define "locust.pod" -}}
restartPolicy: Never
serviceAccountName: {{ include "locust.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- include "locust.securityContext" (list $ .) | nindent 2 }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraInitContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "locust.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What all containers share: image, rights, how their end is told. */}}
{{- define "locust.container" -}}
image: {{ include "locust.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- include "locust.securityContext" (list $ .) | nindent 2 }}
{{- end }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* Mounts of all containers. */}}
{{- define "locust.mounts" -}}
- name: input
  mountPath: /etc/triton-load
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Volumes of all pods. */}}
{{- define "locust.volumes" -}}
- name: input
  projected:
    sources:
      - configMap:
          name: {{ include "locust.runName" . }}
      {{- with .Values.data.existingConfigMap }}
      - configMap:
          name: {{ . }}
          items:
            - key: data.json
              path: data.json
      {{- end }}
      {{- with .Values.schema.existingConfigMap }}
      - configMap:
          name: {{ . }}
          items:
            - key: config.pbtxt
              path: config.pbtxt
      {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
