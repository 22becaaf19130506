{{/*
Spec of the model-sync Job, which alone has the token and a writable mount. Its models travel in an
annotation of its own pod, so that a hook needs no other object that does not exist yet.
*/}}
{{- define "triton.modelSync.spec" -}}
{{- $sync := .Values.modelSync -}}
{{- $token := include "triton.modelSync.tokenSecretName" . -}}
{{- $follow := and (include "triton.modelStore.onOneNode?" .) (gt (include "triton.mostReplicas" . | int) 0) -}}
backoffLimit: {{ int $sync.backoffLimit }}
activeDeadlineSeconds: {{ int $sync.timeoutSeconds }}
{{- if not (kindIs "invalid" $sync.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ int $sync.ttlSecondsAfterFinished }}
{{- end }}
{{- /* Wrong specification, no access, no such repository: trying again cannot help. */}}
podFailurePolicy:
  rules:
    - action: FailJob
      onExitCodes:
        containerName: model-sync
        operator: In
        values: [2, 3, 4]
template:
  metadata:
    labels:
      {{- include "triton.podLabels" (list . "model-sync") | nindent 6 }}
      {{- with $sync.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    annotations:
      triton-hf/models: {{ include "triton.models.spec" . | quote }}
      triton-hf/attempt: {{ int $sync.attempt | quote }}
      {{- with $sync.podAnnotations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    {{- include "triton.pod.common" . | nindent 4 }}
    restartPolicy: Never
    {{- with $sync.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- $tolerations := $sync.tolerations }}
    {{- with $sync.priorityClassName }}
    priorityClassName: {{ . }}
    {{- end }}
    {{- $affinity := $sync.affinity }}
    {{- if $follow }}
    {{- $tolerations = concat $tolerations (include "triton.server.tolerations" . | fromYamlArray) }}
    {{- $affinity = include "triton.modelSync.affinity" . | fromYaml | merge (dict) $sync.affinity }}
    {{- end }}
    {{- with $affinity }}
    affinity:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: model-sync
        {{- include "triton.container.common" (list . $sync.image) | nindent 8 }}
        args:
          - sync
          - --spec=/etc/triton-hf/models.json
          - --store=/models
          - --generation={{ include "triton.models.generation" . }}
          - --owner={{ include "triton.models.owner" . }}
          - --keep={{ int $sync.keepGenerations }}
        env:
          {{- include "triton.modelSync.env" . | trim | nindent 10 }}
        terminationMessagePolicy: FallbackToLogsOnError
        resources:
          {{- toYaml $sync.resources | nindent 10 }}
        volumeMounts:
          - name: models
            mountPath: /models
          - name: spec
            mountPath: /etc/triton-hf
            readOnly: true
          - name: tmp
            mountPath: /tmp
          {{- if $token }}
          - name: token
            mountPath: /var/run/secrets/huggingface
            readOnly: true
          {{- end }}
          {{- with $sync.extraVolumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: models
        persistentVolumeClaim:
          claimName: {{ include "triton.claimName" . }}
      - name: spec
        downwardAPI:
          items:
            - path: models.json
              fieldRef:
                fieldPath: metadata.annotations['triton-hf/models']
      - name: tmp
        emptyDir:
          sizeLimit: {{ .Values.temporaryStorage }}
      {{- if $token }}
      - name: token
        secret:
          secretName: {{ $token }}
          defaultMode: 288
          items:
            - key: {{ .Values.huggingface.token.key }}
              path: token
      {{- end }}
      {{- with $sync.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{/* Environment of the model-sync Job as YAML: the chart's own, overridden by modelSync.extraEnv. */}}
{{- define "triton.modelSync.env" -}}
{{- $env := dict "HOME" "/tmp" "HF_HOME" "/tmp/huggingface" -}}
{{- with .Values.huggingface.endpoint }}{{ $_ := set $env "HF_ENDPOINT" . }}{{ end -}}
{{- if include "triton.modelSync.tokenSecretName" . -}}
{{- $_ := set $env "HF_TOKEN_PATH" "/var/run/secrets/huggingface/token" -}}
{{- end -}}
{{- include "triton.env" (merge (dict) .Values.modelSync.extraEnv $env) -}}
{{- end -}}
