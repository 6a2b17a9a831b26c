{{/* The selectors, which can't be changed once a Deployment is there. */}}
{{- define "flow-run-worker.selector" -}}
app.kubernetes.io/name: flow-run-worker
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "flow-run-worker.labels" -}}
app.kubernetes.io/name: flow-run-worker
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "flow-run-worker.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* A URL's secret and key: the given ones, or the usual ones. */}}
{{- define "flow-run-worker.secretKey" -}}
{{- $given := index . 2 | default dict -}}
name: {{ $given.name | default (index . 0) }}
key: {{ $given.key | default (index . 1) }}
{{- end }}

{{- define "flow-run-worker.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary .Release.Name "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* Where a pod may run. */}}
{{- define "flow-run-worker.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* As little as a pod can have. */}}
{{- define "flow-run-worker.podRights" -}}
automountServiceAccountToken: false
# A Service with an unlucky name would add variables that look like settings (WORKER_…).
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{- define "flow-run-worker.containerRights" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}
