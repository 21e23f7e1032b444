{{/* The metrics port, and where files are in the pod. */}}
{{- define "onecount.port" -}}9464{{- end }}
{{- define "onecount.folder" -}}/etc/onecount{{- end }}

{{/* The roles that run, and in what they differ, as YAML: another one is one more entry here, and its values. `ports`: one that is
named like its role answers people, by ONECOUNT_<role>_HOST and _PORT; with `hosts` under names that it knows (_HOSTS): not the pod's
address, by which a probe would ask. `live` restarts a pod, `ready` is what an upgrade waits for. `graceS`: how long a stop may take.
StatefulSet: transactional ids and members of the group are named by the pod, so it keeps its name. Deployment: any pod will do,
and the new one comes before the old one goes.
A desk is ready once it has read everything, whether it publishes or stands by (/healthz). /ready is true of the one that
publishes only: an upgrade, which starts the new one beside it, would wait for ever. */}}
{{- define "onecount.roles" -}}
{{- $port := include "onecount.port" . -}}
counter:
  kind: StatefulSet
  args: [run, counter]
  ports: {metrics: {{ $port }}}
  live: {path: /live, port: metrics}
  ready: {path: /ready, port: metrics}
aggregator:
  kind: StatefulSet
  args: [run, aggregator]
  ports: {metrics: {{ $port }}}
  live: {path: /live, port: metrics}
  ready: {path: /ready, port: metrics}
{{- if .Values.matcher.enabled }}
matcher:
  kind: StatefulSet
  args: [run, matcher]
  ports: {metrics: {{ $port }}}
  live: {path: /live, port: metrics}
  ready: {path: /ready, port: metrics}
{{- end }}
{{- if .Values.desk.enabled }}
desk:
  kind: Deployment
  args: [desk]
  ports: {metrics: {{ $port }}, desk: 8421}
  hosts: true
  live: {path: /live, port: metrics}
  ready: {path: /healthz, port: desk, httpHeaders: [{name: Host, value: localhost}]}
{{- end }}
{{- if .Values.page.enabled }}
page:
  kind: Deployment
  args: [serve]
  ports: {page: 8420}
  hosts: true
  live: &answers {path: /live, port: page, httpHeaders: [{name: Host, value: localhost}]}
  ready: *answers
{{- end }}
{{- if .Values.gateway.enabled }}
gateway:
  kind: Deployment
  args: [gateway]
  ports: {metrics: {{ $port }}, gateway: 8430}
  live: {path: /live, port: gateway}
  ready: {path: /healthz, port: gateway}
  # 5 s until nobody sends here any more, then 20 s each for requests, their events and pixels
  graceS: 75
{{- end }}
{{- end }}

{{/* Room for -aggregator and for what Kubernetes adds to a StatefulSet's pods: labels have 63 characters. */}}
{{- define "onecount.name" -}}
{{- $name := ternary .Release.Name (printf "%s-onecount" .Release.Name) (contains "onecount" .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "onecount.serviceAccount" -}}
{{- .Values.serviceAccountName | default (include "onecount.name" .) }}
{{- end }}

{{- define "onecount.labels" -}}
{{ include "onecount.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "onecount.selector" -}}
app.kubernetes.io/name: onecount
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "onecount.image" -}}
{{- $image := .Values.image -}}
{{- $image.repository }}{{ with $image.digest }}@{{ . }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* A value as ONECOUNT_* takes it. Helm reads numbers as floats, and would write 67108864 as 6.7108864e+07. */}}
{{- define "onecount.text" -}}
{{- if kindIs "map" . }}{{ toJson . }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{/* A role's own settings over the shared ones. Takes (dict "root" $ "role" .Values.counter). */}}
{{- define "onecount.settings" -}}
{{- mustMergeOverwrite (dict) (deepCopy .root.Values.settings) (deepCopy .role.settings) | toJson }}
{{- end }}

{{/* $(...) is Kubernetes' own reference to another variable; doubled, it is text. */}}
{{- define "onecount.env" -}}
- {name: ONECOUNT_POLICY, value: {{ include "onecount.folder" . }}/policy/policy.yaml}
{{- if .config }}
- {name: ONECOUNT_GATEWAY_CONFIG, value: {{ include "onecount.folder" . }}/gateway/gateway.yaml}
{{- end }}
{{- if .role.secret | default .root.Values.secret }}
- {name: ONECOUNT_SECRETS_DIR, value: {{ include "onecount.folder" . }}/secrets}
{{- end }}
{{- range $name, $value := include "onecount.settings" . | fromJson }}
- name: ONECOUNT_{{ upper $name }}
  value: {{ include "onecount.text" $value | replace "$(" "$$(" | quote }}
{{- end }}
{{- end }}

{{- define "onecount.volumeMounts" -}}
- {name: policy, mountPath: {{ include "onecount.folder" . }}/policy, readOnly: true}
{{- if .config }}
- {name: config, mountPath: {{ include "onecount.folder" . }}/gateway, readOnly: true}
{{- end }}
{{- if .role.secret | default .root.Values.secret }}
- {name: secrets, mountPath: {{ include "onecount.folder" . }}/secrets, readOnly: true}
{{- end }}
{{- if .role.certificates | default .root.Values.certificates }}
- {name: certificates, mountPath: {{ include "onecount.folder" . }}/certificates, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* 0440 with the pod's fsGroup: for onecount's group, for nobody else. */}}
{{- define "onecount.volumes" -}}
- name: policy
  configMap: {name: {{ .policy }}}
{{- with .config }}
- name: config
  configMap: {name: {{ . }}}
{{- end }}
{{- with .role.secret | default .root.Values.secret }}
- name: secrets
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .role.certificates | default .root.Values.certificates }}
- name: certificates
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{/* What every pod of the chart has. */}}
{{- define "onecount.pod" -}}
automountServiceAccountToken: false
# Kubernetes would set ONECOUNT_..._PORT for every service whose name begins with onecount.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
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

{{- define "onecount.container" -}}
image: {{ include "onecount.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The ports of "host:port,host:port", `default` where one names none, as a JSON list. */}}
{{- define "onecount.ports" -}}
{{- $ports := list -}}
{{- range splitList "," .hosts }}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default $.default | int) }}
{{- end }}
{{- range .more }}
{{- $ports = append $ports (int .) }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* What a schema cannot say, since it compares no two values. */}}
{{- define "onecount.refuse" -}}
{{- $partitions := int .Values.settings.partitions }}
{{- range $role, $run := include "onecount.roles" . | fromYaml }}
{{- $replicas := int (index $.Values $role).replicas }}
{{- if and (eq $run.kind "StatefulSet") (gt $replicas $partitions) }}
{{- fail (printf "%s.replicas is %d, but settings.partitions is %d: a worker without a partition is never ready and has no work" $role $replicas $partitions) }}
{{- end }}
{{- $settings := include "onecount.settings" (dict "root" $ "role" (index $.Values $role)) | fromJson }}
{{- if ge (int (default 5000 $settings.transaction_timeout_ms)) (int (default 7000 $settings.session_timeout_ms)) }}
{{- fail (printf "%s: transaction_timeout_ms must be below session_timeout_ms" $role) }}
{{- end }}
{{- end }}
{{- if and .Values.matcher.enabled (not (hasKey (fromYaml .Values.policy) "click_ids")) }}
{{- fail "matcher.enabled: the policy has no `click_ids`, so there is nothing to match: add them (docs/counting.md), or leave the matcher out" }}
{{- end }}
{{- if and .Values.desk.enabled (not (hasKey (fromYaml .Values.policy) "journeys")) }}
{{- fail "desk.enabled: the policy has no `journeys`, and leads come from journeys: add them (docs/counting.md), or leave the desk out" }}
{{- end }}
{{- $gateway := .Values.gateway }}
{{- if and $gateway.enabled (not $gateway.config) }}
{{- fail "gateway.enabled: gateway.config is not given, the text of the file that says whom it takes events from: --set-file gateway.config=gateway.yaml" }}
{{- end }}
{{- if and $gateway.enabled (not (or $gateway.secret .Values.secret)) }}
{{- fail "gateway.enabled: gateway.secret is not given, the name of a Secret with the key onecount_gateway_secret: 32 characters or more" }}
{{- end }}
{{- if and $gateway.enabled $gateway.autoscaling.enabled }}
{{- if gt (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas) }}
{{- fail (printf "gateway.autoscaling.minReplicas is %d, which is more than the most, %d" (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas)) }}
{{- end }}
{{- if not (dig "requests" "cpu" "" $gateway.resources) }}
{{- fail "gateway.autoscaling.cpuUtilization is a share of gateway.resources.requests.cpu, which is not given" }}
{{- end }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- $most := int .Values.autoscaling.maxReplicas | default $partitions }}
{{- if gt $most $partitions }}
{{- fail (printf "autoscaling.maxReplicas is %d, but settings.partitions is %d: a worker without a partition is never ready and has no work" $most $partitions) }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) $most }}
{{- fail (printf "autoscaling.minReplicas is %d, which is more than the most, %d" (int .Values.autoscaling.minReplicas) $most) }}
{{- end }}
{{- if and .Values.autoscaling.cpuUtilization (not (dig "requests" "cpu" "" .Values.counter.resources)) }}
{{- fail "autoscaling.cpuUtilization is a share of counter.resources.requests.cpu, which is not given" }}
{{- end }}
{{- end }}
{{- end }}
