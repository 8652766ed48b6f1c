#!/bin/bash
# shell.sh (make cluster-shell): a shell inside the cluster's network, with KUBECONFIG set and kubectl and helm in PATH.
# shell.sh CMD ARGS...: runs just that command there.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
[ -e "/run/netns/$HUB" ] || die "the cluster is not up: make cluster-up"
export KUBECONFIG=$PKI/admin.kubeconfig PATH=$BIN:$PATH
# Helm's own state stays with the cluster, not in the caller's home.
export HELM_CACHE_HOME=$RUN/helm HELM_CONFIG_HOME=$RUN/helm HELM_DATA_HOME=$RUN/helm
[ $# -gt 0 ] || set -- "${SHELL:-/bin/bash}"
in_ns "$HUB" "$@"
