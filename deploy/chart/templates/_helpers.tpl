{{- define "presence.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "presence.labels" -}}
app.kubernetes.io/name: openim-presence
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{/* Called with (list . "receiver"). */}}
{{- define "presence.selector" -}}
app.kubernetes.io/name: openim-presence
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* What the pods of receivers and workers have in common. Called with (list . "receiver"). */}}
{{- define "presence.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
# Variables such as PRESENCE_PORT=tcp://..., which Kubernetes makes for Services, are not wanted.
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10006
  runAsGroup: 10006
  fsGroup: 10006
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "presence.selector" . | nindent 8 }}
{{- end -}}

{{/* What the containers have in common. */}}
{{- define "presence.container" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
envFrom:
  - configMapRef: {name: {{ include "presence.name" . }}}
  {{- with .Values.existingSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end -}}

{{/* A change of the settings replaces the pods. */}}
{{- define "presence.annotations" -}}
checksum/settings: {{ toJson .Values.settings | sha256sum }}
{{- end -}}
