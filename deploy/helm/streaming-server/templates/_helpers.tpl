{{- define "speech.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "speech.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* What servers and workers have in common. */ -}}
{{- define "speech.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
{{- with .Values.existingSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
volumeMounts:
  - name: data
    mountPath: /data
  {{- if .Values.modelClaim }}
  - name: model
    mountPath: /app/checkpoints
    readOnly: true
  {{- end }}
{{- end }}

{{- define "speech.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
# Longer than SHUTDOWN_TIMEOUT_S.
terminationGracePeriodSeconds: 40
volumes:
  - name: data
    {{- if .Values.dataClaim }}
    persistentVolumeClaim:
      claimName: {{ .Values.dataClaim }}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- with .Values.modelClaim }}
  - name: model
    persistentVolumeClaim:
      claimName: {{ . }}
  {{- end }}
{{- end }}

{{- /* The settings of the values. */ -}}
{{- define "speech.env" -}}
{{- range $variable, $value := .Values.server.env }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* Several processes need the same database and the same files; with a folder of its own each would lose tasks. */ -}}
{{- define "speech.check" -}}
{{- $env := .Values.server.env }}
{{- if or (gt (int (include "speech.maxServers" .)) 1) .Values.worker.replicas }}
{{- if not (or .Values.dataClaim (hasKey $env "FILES_URL")) }}
{{- fail "several servers or workers share files: set dataClaim (ReadWriteMany), or server.env.FILES_URL" }}
{{- end }}
{{- if not (or .Values.existingSecret (hasKey $env "DATABASE_URL")) }}
{{- fail "several servers or workers share a database: set existingSecret with DATABASE_URL, or server.env.DATABASE_URL" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The number of servers, or the largest one with autoscaling. */ -}}
{{- define "speech.maxServers" -}}
{{ if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}{{ else }}{{ .Values.server.replicas }}{{ end }}
{{- end }}
