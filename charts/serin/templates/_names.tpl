{{/* Prefix of every object's name: the release, with "serin" in it. */}}
{{- define "serin.prefix" -}}
{{- if contains "serin" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-serin{{ end }}
{{- end }}

{{- define "serin.operator" -}}
{{ include "serin.prefix" . }}-operator
{{- end }}

{{/* What a Deployment selects by; never changes. */}}
{{- define "serin.selector" -}}
app.kubernetes.io/name: serin-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "serin.labels" -}}
{{ include "serin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: serin
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The reference of an image. Takes a dict: image (registry, repository, tag, digest), fallback (the same), version.
A repository with a slash may do without a registry.
*/}}
{{- define "serin.image" -}}
{{- $registry := .image.registry | default .fallback.registry -}}
{{- $tag := .image.tag | default .fallback.tag | default .version -}}
{{- if and (not $registry) (not (contains "/" .image.repository)) -}}
{{- required "image.registry: expected where Serin's images are, for example what `make push REGISTRY=...` was given; got nothing" $registry -}}
{{- end -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end }}

{{- define "serin.routerImage" -}}
{{ include "serin.image" (dict "image" .Values.image "fallback" .Values.image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "serin.runtimeImage" -}}
{{ include "serin.image" (dict "image" .Values.runtimeImage "fallback" .Values.image "version" .Chart.AppVersion) }}
{{- end }}
