#!/bin/bash
# node.sh start|stop I:   switches node I on or off (off as by its power button: every process of it gets KILL; its
#                         disk stays).
# node.sh pid I:          prints the machine's number of its pid 1.
# node.sh exec I CMD...:  runs CMD on it, in all its namespaces.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 2 ] || die "usage: node.sh start|stop|pid|exec I [CMD...]"
action=$1 i=$2 name=$(node_name "$2")
shift 2

init_pid() { local p; p=$(pid_of "$name") && pgrep -P "$p" | head -1; }

start_node() {
  pid_of "$name" >/dev/null && return
  mkdir -p "$(node_dir "$i")"
  # The network namespace outlives a power-off, so empty its firewall as a boot would: a stale host port would point
  # at a pod's old address.
  in_ns "$PREFIX-$name" nft flush ruleset
  daemon "$name" "$PREFIX-$name" env NODES="$NODES" WORKDIR="$WORKDIR" PREFIX="$PREFIX" "$SCRIPTS/node-enter.sh" "$i"
}

stop_node() {
  local pid
  if pid=$(pid_of "$name"); then
    kill -KILL "$pid"
    # pid 1 and all below it follow; wait until the kernel has ended them, for their cgroups can be removed then
    for _ in $(seq 100); do
      [ -z "$(processes)" ] && break
      sleep 0.1
    done
  fi
  rm -f "$RUN/pids/$name"
  # the cgroups it leaves, deepest first
  find /sys/fs/cgroup/*/"$PREFIX/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
}
processes() { find "/sys/fs/cgroup/pids/$PREFIX/$name" -name cgroup.procs -exec cat {} + 2>/dev/null; }

case $action in
  start) start_node ;;
  stop) stop_node ;;
  pid) init_pid ;;
  exec)
    exec nsenter -t "$(init_pid)" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
      env PATH=/opt/cluster/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" ;;
  *) die "node.sh: $action is none of start, stop, pid, exec" ;;
esac
