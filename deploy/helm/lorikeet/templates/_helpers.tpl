{{- define "lorikeet.name" -}}
{{- if eq .Release.Name "lorikeet" }}lorikeet{{ else }}{{ printf "%s-lorikeet" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "lorikeet.selector" -}}
app.kubernetes.io/name: lorikeet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lorikeet.labels" -}}
{{ include "lorikeet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "lorikeet.keysSecret" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "lorikeet.name" .)) }}
{{- end }}

{{- define "lorikeet.claim" -}}
{{ .Values.storage.existingClaim | default (include "lorikeet.name" .) }}
{{- end }}

{{/* serve.yaml: the values, and what the pod decides. */}}
{{- define "lorikeet.config" -}}
{{- $ours := dict "port" 8000 "keys_file" "/etc/lorikeet/keys/keys.json" "log_format" "json" }}
{{- if not .Values.ray.enabled }}
{{- $_ := set $ours "metrics_port" 9464 }}
{{- $_ := set $ours "metrics_host" "0.0.0.0" }}
{{- end }}
{{- if or .Values.ray.enabled .Values.autoscaling.enabled (gt (int .Values.replicas) 1) }}
{{- /* Their SQLite database must lie on a local disk: pods on several machines cannot share it. */}}
{{- $_ := set $ours "jobs" (dict "enabled" false) }}
{{- end }}
{{- if eq .Values.storage.kind "remote" }}
{{- $_ := set $ours "remote_store" .Values.storage.remoteStore }}
{{- end }}
{{- merge $ours .Values.config | toYaml }}
{{- end }}

{{/* Where the state folder is. */}}
{{- define "lorikeet.volumes" -}}
- name: config
  configMap: {name: {{ include "lorikeet.name" . }}}
- name: keys
  secret: {secretName: {{ include "lorikeet.keysSecret" . }}, defaultMode: 0440}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
- name: state
  {{- if eq .Values.storage.kind "remote" }}
  emptyDir: {sizeLimit: {{ .Values.storage.size }}}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ include "lorikeet.claim" . }}}
  {{- end }}
{{- end }}

{{/* What each of our containers has. */}}
{{- define "lorikeet.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - {name: LORIKEET_HOME, value: /app/var}
  - {name: HOME, value: /tmp}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
volumeMounts:
  - {name: config, mountPath: /etc/lorikeet/serve.yaml, subPath: serve.yaml, readOnly: true}
  - {name: keys, mountPath: /etc/lorikeet/keys, readOnly: true}
  - {name: state, mountPath: /app/var}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
{{- end }}

{{/* What the pods of the Deployment and of Ray share. */}}
{{- define "lorikeet.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
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

{{/* The container that prepares the base. */}}
{{- define "lorikeet.prepare" -}}
- name: prepare
  command: [lorikeet, base, prepare, {{ .Values.base.source | quote }}, --name, {{ .Values.config.base | quote }}, --quantization, {{ .Values.base.quantization | quote }}]
  resources: {{- toYaml .Values.resources | nindent 4 }}
  {{- include "lorikeet.container" . | nindent 2 }}
{{- end }}
