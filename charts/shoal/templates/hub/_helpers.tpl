{{/* The hub front's Service, and where pods of any namespace reach it. */}}
{{- define "shoal.hub" -}}{{ include "shoal.fullname" . }}-hub{{- end -}}
{{- define "shoal.hubScheme" -}}{{ ternary "https" "http" (not (empty .Values.hub.tlsSecret)) }}{{- end -}}
{{- define "shoal.hubPort" -}}{{ .Values.hub.service.port | default (ternary 443 80 (not (empty .Values.hub.tlsSecret))) | int }}{{- end -}}
{{- define "shoal.hubEndpoint" -}}
{{- $scheme := include "shoal.hubScheme" . -}}{{- $port := include "shoal.hubPort" . -}}
{{ $scheme }}://{{ include "shoal.hub" . }}.{{ include "shoal.namespace" . }}.svc{{ if ne $port (ternary "443" "80" (eq $scheme "https")) }}:{{ $port }}{{ end }}
{{- end -}}

{{/* What of the agent's configuration the hub front needs. It listens where the DaemonSet says: on the node's address. */}}
{{- define "shoal.hubConfig" -}}
{{- if and (not .Values.hub.allowFrom) (not (dig "hub" "allowFrom" "" .Values.agent.config)) -}}
{{- fail "hub.allowFrom is empty, so that no pod could use the hub front: name the address ranges of pods, and those of nodes, such as [10.42.0.0/16, 192.168.7.0/24]" -}}
{{- end -}}
{{- $config := dict "enabled" true "endpoint" .Values.hub.endpoint "allowFrom" .Values.hub.allowFrom -}}
{{- if .Values.hub.tlsSecret -}}
{{- $_ := set $config "certFile" "/etc/shoal-hub/tls.crt" -}}{{- $_ := set $config "keyFile" "/etc/shoal-hub/tls.key" -}}
{{- end -}}
{{- $config | toJson -}}
{{- end -}}

{{/* To which agent the Service leads: to the pod's own node's, and where it is away to another's, if Kubernetes can. */}}
{{- define "shoal.hubTraffic" -}}
{{- default (ternary "PreferSameNode" "Local" (semverCompare ">=1.35-0" .Capabilities.KubeVersion.Version)) .Values.hub.service.traffic -}}
{{- end -}}

{{/* The version of the API in which pods are given HF_ENDPOINT; "" where they are not. */}}
{{- define "shoal.hubInjection" -}}
{{- $has := .Capabilities.APIVersions -}}
{{- if eq .Values.hub.injection "Always" -}}
v1
{{- else if eq .Values.hub.injection "Never" -}}
{{- else if $has.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
v1
{{- else if $has.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" -}}
v1beta1
{{- end -}}
{{- end -}}

{{- define "shoal.hubNotes" -}}
Models: clients of {{ .Values.hub.endpoint }} in pods reach the node's agent at {{ include "shoal.hubEndpoint" . }}.
{{- if include "shoal.hubInjection" . }}
Pods of a namespace are given that address as HF_ENDPOINT, from their next start on, with

  kubectl label namespace NAMESPACE shoal.dev/hub=enabled
{{- else }}
This installation gives it to no pod (hub.injection; {{ if eq .Values.hub.injection "Never" }}it is Never{{ else }}the cluster has no MutatingAdmissionPolicy, which Kubernetes 1.36 brought{{ end }}). Each container needs the line

  env: [{name: HF_ENDPOINT, value: {{ include "shoal.hubEndpoint" . | quote }}}]
{{- end }}
{{- end -}}
