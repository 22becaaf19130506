{{/* Egress rule for name look-ups, as YAML; empty without a peer, because that would mean everyone. */}}
{{- define "triton.networkPolicy.dns" -}}
{{- with .Values.networkPolicy.dns -}}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $.Values.networkPolicy.dnsPorts }}
    - port: {{ int . }}
      protocol: UDP
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end -}}
{{- end -}}

{{/*
TCP ports of the Hub as a JSON list: those of the values, of the endpoint, and of the proxies that
model-sync is told in its environment.
*/}}
{{- define "triton.networkPolicy.hubPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.hub.ports }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- range include "triton.env" (list .Values.modelSync.extraEnv) | fromYamlArray -}}
{{- if has (upper .name) (list "HTTP_PROXY" "HTTPS_PROXY" "ALL_PROXY") -}}
{{- with regexFind ":[0-9]+/?$" (.value | default "") }}{{ $ports = append $ports (int (trimAll ":/" .)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with .Values.huggingface.endpoint -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- if not $port }}{{ $port = eq $url.scheme "http" | ternary "80" "443" }}{{ end -}}
{{- $ports = append $ports (int $port) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}
