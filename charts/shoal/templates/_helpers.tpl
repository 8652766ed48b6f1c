{{/* The prefix of all names. Room is left for suffixes such as "-operator-metrics". */}}
{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The namespace of all that has one. */}}
{{- define "shoal.namespace" -}}{{ default .Release.Namespace .Values.namespaceOverride }}{{- end -}}

{{/* Names of the two programs' objects, their service accounts among them. */}}
{{- define "shoal.agent" -}}{{ include "shoal.fullname" . }}-agent{{- end -}}
{{- define "shoal.operator" -}}{{ include "shoal.fullname" . }}-operator{{- end -}}

{{/*
Labels of every object: (list . "agent"), or (list . "") for what belongs to no component; a third says what the values
have for this object alone. Each label comes once: the values say what it is, but for those by which pods are selected.
*/}}
{{- define "shoal.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_"))
  "app.kubernetes.io/version" (toString $root.Chart.AppVersion)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/part-of" "shoal" -}}
{{- $own := dict -}}
{{- if gt (len .) 2 }}{{ $own = default dict (index . 2) }}{{ end -}}
{{- toYaml (mergeOverwrite $labels (default dict $root.Values.commonLabels) $own (include "shoal.selector" . | fromYaml)) -}}
{{- end -}}

{{/* Labels by which pods are selected. They can't change once a DaemonSet or Deployment exists. */}}
{{- define "shoal.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* An image reference: (list . "shoal-node" .Values.agent.image). */}}
{{- define "shoal.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 2 -}}
{{- default (printf "%s/%s" (trimSuffix "/" $root.Values.images.registry) (index . 1)) $image.repository -}}
{{- with $image.digest }}@{{ . }}
{{- else }}:{{ coalesce $image.tag $root.Values.images.tag $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/*
Where each runtime keeps things, as JSON: kind (what `shoal-node mirror --runtime` calls it), mirror (folder of its mirror
configuration), config (containerd's configuration file), root (containerd's root folder) and socket. For k3s and RKE2 it
is containerd's folder rather than registries.yaml, which they read only when they start.
*/}}
{{- define "shoal.runtime" -}}
{{- $flavours := dict
  "containerd" (dict "kind" "containerd" "mirror" "/etc/containerd/certs.d" "config" "/etc/containerd/config.toml" "root" "/var/lib/containerd" "socket" "/run/containerd/containerd.sock")
  "k3s" (dict "kind" "containerd" "mirror" "/var/lib/rancher/k3s/agent/etc/containerd/certs.d" "config" "/var/lib/rancher/k3s/agent/etc/containerd/config.toml" "root" "/var/lib/rancher/k3s/agent/containerd" "socket" "/run/k3s/containerd/containerd.sock")
  "rke2" (dict "kind" "containerd" "mirror" "/var/lib/rancher/rke2/agent/etc/containerd/certs.d" "config" "/var/lib/rancher/rke2/agent/etc/containerd/config.toml" "root" "/var/lib/rancher/rke2/agent/containerd" "socket" "/run/k3s/containerd/containerd.sock")
  "microk8s" (dict "kind" "microk8s" "mirror" "/var/snap/microk8s/current/args/certs.d" "config" "/var/snap/microk8s/current/args/containerd.toml" "root" "/var/snap/microk8s/common/var/lib/containerd" "socket" "/var/snap/microk8s/common/run/containerd.sock")
  "talos" (dict "kind" "talos" "mirror" "/etc/cri/conf.d/hosts" "config" "/etc/cri/containerd.toml" "root" "/var/lib/containerd" "socket" "/run/containerd/containerd.sock")
  "crio" (dict "kind" "cri-o" "mirror" "/etc/containers/registries.conf.d" "config" "" "root" "none" "socket" "/run/crio/crio.sock")
-}}
{{- $runtime := get $flavours .Values.runtime.flavour -}}
{{- with .Values.runtime.mirrorPath }}{{ $_ := set $runtime "mirror" . }}{{ end -}}
{{- with .Values.runtime.rootPath }}{{ $_ := set $runtime "root" . }}{{ end -}}
{{- with .Values.runtime.socket }}{{ $_ := set $runtime "socket" . }}{{ end -}}
{{- toJson $runtime -}}
{{- end -}}

{{/*
The loopback address on which a node's runtime reaches its agent. It is IPv4's on every node, for IPv6's is written in brackets,
and containerd 1.6 drops a whole hosts.toml, and podman refuses every pull, when a host in it has brackets.
*/}}
{{- define "shoal.loopback" -}}127.0.0.1{{- end -}}

{{/*
GOMEMLIMIT, nine tenths of a memory limit, in bytes: the rest is for what the Go runtime does not count. Prints nothing
where there is no limit.
*/}}
{{- define "shoal.gomemlimit" -}}
{{- with dig "limits" "memory" "" . -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- if not (hasKey $units $unit) -}}
{{- fail (printf "resources.limits.memory %q: write it with one of the units k, M, G, T, Ki, Mi, Gi, Ti, such as 512Mi" $text) -}}
{{- end -}}
{{- printf "%.0fB" (mulf (float64 $number) (get $units $unit) 0.9) -}}
{{- end -}}
{{- end -}}

{{/*
Arguments of `shoal-node mirror`: (list . "install"). The node's folders are below /host at the paths they have on the
node, so that messages name paths an administrator finds there.
*/}}
{{- define "shoal.mirrorArgs" }}
{{- $root := index . 0 }}
{{- $runtime := include "shoal.runtime" $root | fromJson }}
- mirror
- {{ index . 1 }}
- --runtime={{ $runtime.kind }}
- --endpoint=http://{{ include "shoal.loopback" $root }}:{{ $root.Values.agent.ports.registry }}
- --root=/host
- --path={{ $runtime.mirror }}
{{- with $runtime.config }}
- --runtime-config={{ . }}
{{- end }}
- --state-dir=/var/lib/shoal/mirror
{{- with $root.Values.runtime.version }}
- --runtime-version={{ . }}
{{- end }}
{{- range $root.Values.mirror.registries }}
- --registry={{ . }}
{{- end }}
{{- end }}

{{/*
Folder of the configuration that is read and not written: containerd's own, which says whether config_path is set, or that
of registries.conf, whose settings for a registry are kept when it gets a mirror.
*/}}
{{- define "shoal.runtimeConfigFolder" -}}
{{- $runtime := include "shoal.runtime" . | fromJson -}}
{{- dir (default $runtime.mirror $runtime.config) -}}
{{- end }}

{{/* Volume mounts of whoever runs `shoal-node mirror`, or only reads what it wrote: (list . true). */}}
{{- define "shoal.mirrorMounts" }}
{{- $root := index . 0 }}
{{- $runtime := include "shoal.runtime" $root | fromJson }}
{{- $writes := and (not (index . 1)) $root.Values.mirror.fixConfigPath }}
- {name: runtime-config, mountPath: /host{{ include "shoal.runtimeConfigFolder" $root }}{{ if not $writes }}, readOnly: true{{ end }}}
- {name: mirror, mountPath: /host{{ $runtime.mirror }}{{ if index . 1 }}, readOnly: true{{ end }}}
{{- range $i, $path := include "shoal.certsPaths" $root | fromJsonArray }}
- {name: certs-{{ $i }}, mountPath: /host{{ $path }}, readOnly: true}
{{- end }}
{{- end }}

{{/* The further folders of config_path, as JSON: without those that are mounted as what they are besides, and each once. */}}
{{- define "shoal.certsPaths" -}}
{{- $paths := list -}}
{{- if eq .Values.runtime.flavour "containerd" -}}
{{- $runtime := include "shoal.runtime" . | fromJson -}}
{{- range .Values.runtime.certsPaths -}}
{{- if not (has (clean .) (list (clean $runtime.mirror) (include "shoal.runtimeConfigFolder" $))) }}{{ $paths = append $paths (clean .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $paths) -}}
{{- end }}

{{/* A probe of an agent: (list . "healthz"). */}}
{{- define "shoal.agentProbe" }}
{{- $root := index . 0 }}
httpGet:
  path: /{{ index . 1 }}
  port: admin
  {{- if not $root.Values.agent.exposeAdmin }}
  host: {{ include "shoal.loopback" $root }}
  {{- end }}
{{- end }}

{{/* The times of a probe: (list .Values.agent.probes.liveness (dict "periodSeconds" 10)). What the values say goes before. */}}
{{- define "shoal.probeTimes" }}
{{- toYaml (merge (deepCopy (default dict (index . 0))) (index . 1)) }}
{{- end }}

{{/* What a container gives up, with what the values say: (list . .Values.agent.securityContext). */}}
{{- define "shoal.securityContext" }}
{{- toYaml (mergeOverwrite (include "shoal.containerSecurityContext" (index . 0) | fromYaml) (deepCopy (index . 1))) }}
{{- end }}

{{/* What every container of Shoal gives up. Who deviates says why where it does. */}}
{{- define "shoal.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
