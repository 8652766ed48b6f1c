#!/bin/bash
# node-enter.sh I: becomes node I. up.sh starts it in the node's network namespace. It enters the node's cgroups, then
# turns into "unshare", whose child is the node's pid 1 (node-init.sh). When unshare is killed its child gets KILL, and
# with pid 1 every process of the node ends: that is how a node is switched off.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
i=$1
# One cgroup per node in each hierarchy that is mounted: with a cgroup namespace made below, it is the node's "/".
for h in /sys/fs/cgroup/*/; do
  [ -e "$h/cgroup.procs" ] || continue
  for d in "$h$PREFIX" "$h$PREFIX/$(node_name "$i")"; do
    mkdir -p "$d"
    if [ -e "$d/cpuset.cpus" ]; then         # a v1 cpuset starts empty and takes no process until it is filled
      cat "$(dirname "$d")/cpuset.cpus" >"$d/cpuset.cpus"
      cat "$(dirname "$d")/cpuset.mems" >"$d/cpuset.mems"
    fi
  done
  echo $$ >"$d/cgroup.procs"
done
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=KILL --propagation private \
  /bin/bash "$SCRIPTS/node-init.sh" "$i"
