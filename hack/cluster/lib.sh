# shellcheck shell=bash
# Settings and helpers of the other scripts.
#
# Everything the cluster writes lies under $WORKDIR. While it is up the machine also has the network namespaces
# $PREFIX-*, the cgroups /sys/fs/cgroup/*/$PREFIX, three "unreachable" routes and the processes named in $RUN/pids.
# down.sh removes them all.

SCRIPTS=${SCRIPTS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
WORKDIR=${WORKDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/shoal/cluster}
BIN=$WORKDIR/bin            # what build.sh makes
RUN=$WORKDIR/run            # what up.sh makes and down.sh removes
PKI=$RUN/pki
LOGS=$RUN/log
NODES=${NODES:-3}           # how many worker nodes

# Names and addresses. The hub is a network namespace that holds the bridge, the control plane, the registries and the
# DNS server. It has no default route and no link to the machine's own namespace, so nothing in the cluster can send
# a packet off this machine, and the machine's own addresses, firewall and default route are left as they are.
PREFIX=${PREFIX:-shoal}
HUB=$PREFIX-hub
HUB_IP=10.77.0.1
NODE_NET=10.77.0            # node i has $NODE_NET.$((10+i))
POD_NET=10.78               # node i's pods have $POD_NET.$i.0/24
SVC_CIDR=10.96.0.0/16
API_SVC_IP=10.96.0.1        # the service "kubernetes": first address of SVC_CIDR
DNS_SVC_IP=10.96.0.10
CLUSTER_NETS=("$NODE_NET.0/24" "$POD_NET.0.0/16" "$SVC_CIDR")
REGISTRY=$HUB_IP:5000           # where images are pushed to and pulled from
PRIVATE_REGISTRY=$HUB_IP:5001   # the same, for those who know the password
PRIVATE_USER=user PRIVATE_PASSWORD=secret
PAUSE_IMAGE=cluster.test/pause:1

node_name() { echo "node$1"; }
node_ip()   { echo "$NODE_NET.$((10 + $1))"; }
node_dir()  { echo "$RUN/nodes/$(node_name "$1")"; }

log() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { log "error: $*"; exit 1; }

# in_ns NETNS CMD...: run in a network namespace. Not "ip netns exec": that one mounts a new /sys over the old one,
# which hides /sys/fs/cgroup.
in_ns() { local ns=$1; shift; nsenter --net="/run/netns/$ns" -- "$@"; }

kubectl() { in_ns "$HUB" "$BIN/kubectl" --kubeconfig "$PKI/admin.kubeconfig" "$@"; }

# A pid file holds "PID STARTTIME". The start time (clock ticks since boot, field 22 of /proc/PID/stat) guards against
# ending another process that got the same number later. A zombie (one that waits to be reaped, here by the machine's
# slow pid 1) has ended.
proc_start() { awk '{ sub(/^.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2>/dev/null; }
pid_save()   { mkdir -p "$RUN/pids"; echo "$2 $(proc_start "$2")" >"$RUN/pids/$1"; }
pid_of() {     # prints the pid of NAME when it still runs
  local pid start
  read -r pid start 2>/dev/null <"$RUN/pids/$1" || return 1
  [ -n "$start" ] && [ "$(proc_start "$pid")" = "$start" ] && echo "$pid"
}

# daemon NAME NETNS CMD...: start in the background, once, in a session of its own; output goes to $LOGS/NAME.log.
daemon() {
  local name=$1 ns=$2; shift 2
  pid_of "$name" >/dev/null && return 0
  mkdir -p "$LOGS"
  setsid nsenter --net="/run/netns/$ns" -- "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  pid_save "$name" $!       # setsid and nsenter both exec, so the number stays that of CMD
  disown $! 2>/dev/null || true
}

# stop NAME: at once, for all that it could save is thrown away or (KEEP=1) is safe in the page cache.
stop() {
  local pid
  if pid=$(pid_of "$1"); then
    kill -KILL "$pid" 2>/dev/null
    while pid_of "$1" >/dev/null; do sleep 0.05; done
  fi
  rm -f "$RUN/pids/$1"
}

# wait_for SECONDS WHAT CMD...: until CMD succeeds.
wait_for() {
  local secs=$1 what=$2 end; shift 2
  end=$((SECONDS + secs))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "gave up after ${secs}s waiting for $what (logs: $LOGS)"
    sleep 0.3
  done
}

# --- services of the hub that a test may switch off (service.sh) ---

start_apiserver() {
  daemon apiserver "$HUB" "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=0.0.0.0 --advertise-address="$HUB_IP" --secure-port=6443 \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-cluster-ip-range="$SVC_CIDR" --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
    --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" --kubelet-client-key="$PKI/apiserver-kubelet.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
    --enable-aggregator-routing=true --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key" --profiling=false
}

# The registries are Debian's "distribution"; REGISTRY_… variables override its file's settings.
start_registry() {
  mkdir -p "$RUN/registry"
  daemon registry "$HUB" env REGISTRY_HTTP_ADDR="$REGISTRY" REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="$RUN/registry" \
    docker-registry serve "$SCRIPTS/registry.yml"
}

start_private_registry() {
  mkdir -p "$RUN/private-registry"
  daemon private-registry "$HUB" env REGISTRY_HTTP_ADDR="$PRIVATE_REGISTRY" REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="$RUN/private-registry" \
    REGISTRY_AUTH=htpasswd REGISTRY_AUTH_HTPASSWD_REALM=private REGISTRY_AUTH_HTPASSWD_PATH="$SCRIPTS/private-registry.htpasswd" \
    docker-registry serve "$SCRIPTS/registry.yml"
}
