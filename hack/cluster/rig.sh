#!/bin/bash
# rig.sh: what a test may do to the cluster from outside of it. hack/kind.sh answers the same commands.
#   nodes                                     prints the nodes' names, a line each
#   node stop|start NAME                      a node's power button
#   node exec NAME CMD...                     a command on a node
#   node limit NAME RATE|none                 bounds what the node receives (tc's units: 100mbit)
#   service stop|start apiserver|registry|private-registry
#   egress                                    prints the bytes that the registries have sent to nodes so far
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"

node() {
  local action=$1 i=${2#node}
  shift 2
  if [ "$action" = limit ]; then
    limit "veth$i" "$1"
  else
    "$SCRIPTS/node.sh" "$action" "$i" "$@"
  fi
}

limit() {
  in_ns "$HUB" tc qdisc del dev "$1" root 2>/dev/null || true
  [ "$2" = none ] || in_ns "$HUB" tc qdisc add dev "$1" root tbf rate "$2" burst 256kb latency 50ms
}

service() {
  case $1 in
    stop) stop "$2" ;;
    start) "start_${2//-/_}" ;;
    *) die "service: $1 is neither stop nor start" ;;
  esac
}

case ${1-} in
  nodes) for ((i = 1; i <= NODES; i++)); do node_name "$i"; done ;;
  node | service) "$@" ;;
  egress) in_ns "$HUB" nft -j list counter inet rig registry-egress | grep -oE '"bytes": *[0-9]+' | grep -oE '[0-9]+' ;;
  *) die "rig.sh: ${1-nothing} is none of nodes, node, service, egress" ;;
esac
