#!/bin/bash
# down.sh (make cluster-down): ends every process of the cluster and removes its namespaces, cgroups, routes and
# (unless KEEP=1) its files under $RUN.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
for d in "$RUN"/nodes/*/; do [ -d "$d" ] && { n=$(basename "$d"); "$SCRIPTS/node.sh" stop "${n#node}"; }; done
for n in coredns private-registry registry scheduler controller-manager apiserver etcd; do stop "$n"; done
for ns in /run/netns/"$PREFIX"-*; do [ -e "$ns" ] && ip netns del "$(basename "$ns")"; done
for h in /sys/fs/cgroup/*/"$PREFIX"; do [ -d "$h" ] && { find "$h" -depth -type d -exec rmdir {} + || log "left: $h"; }; done
for net in "${CLUSTER_NETS[@]}"; do ip route del unreachable "$net" 2>/dev/null || true; done
[ -n "${KEEP-}" ] || rm -rf "$RUN"
log "down"
