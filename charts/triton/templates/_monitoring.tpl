{{/*
How a monitor scrapes one pod. `release` becomes a label of every series, so that dashboards and rules
can tell two releases in a namespace apart.
*/}}
{{- define "triton.metrics.endpoint" -}}
interval: {{ int .Values.metrics.scrape.intervalSeconds }}s
relabelings:
  - action: replace
    sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_instance]
    targetLabel: release
{{- end -}}

{{/*
A rule file narrowed to this release. The files match every release, so that promtool can test them as
they are; here each of their open matchers becomes the one of this release. Argument: (list $ text).
*/}}
{{- define "triton.metrics.scoped" -}}
{{- $root := index . 0 -}}
{{- $full := include "triton.fullname" $root -}}
{{- $in := printf "namespace=%q," $root.Release.Namespace -}}
{{- index . 1
    | replace `release=~".+"` (printf "%srelease=%q" $in $root.Release.Name)
    | replace `deployment=~".+"` (printf "%sdeployment=%q" $in $full)
    | replace `horizontalpodautoscaler=~".+"` (printf "%shorizontalpodautoscaler=%q" $in $full)
    | replace `persistentvolumeclaim=~".+"`
        (printf "%spersistentvolumeclaim=%q" $in (include "triton.claimName" $root))
    | replace `job_name=~".+-sync-.+"` (printf "%sjob_name=~%q" $in (printf "%s-sync-.+" $full)) -}}
{{- end -}}
