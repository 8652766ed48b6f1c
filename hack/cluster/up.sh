#!/bin/bash
# up.sh (make cluster-up): brings the cluster up from the programs in $BIN (see build.sh) and waits until all its nodes
# are Ready. Run again, it starts what is missing. NODES=n sets the number of nodes (default 3). Needs root.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
. "$SCRIPTS/pki.sh"

check_machine() {
  [ "$(id -u)" = 0 ] || die "needs root"
  # Nodes get a cgroup in each v1 hierarchy (with or without a cgroup2 at …/unified). On a machine with only cgroup2
  # they would need another layout: their own processes in a leaf of their own.
  [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ] || die "this machine has only cgroup2: use hack/kind.sh"
  [ -e "$BIN/.stamp" ] || die "$BIN has no complete set of programs: run $SCRIPTS/build.sh"
}

# A hub namespace with a bridge, a namespace for each node, and routes to each node's pods.
make_network() {
  local net ns i j
  # From the machine's own namespace none of these addresses is reachable; say so at once, else a test that forgets to
  # enter the hub would send its packets for them out by the machine's default route.
  for net in "${CLUSTER_NETS[@]}"; do ip route replace unreachable "$net"; done
  add_namespace "$HUB"
  in_ns "$HUB" ip link show br0 &>/dev/null || in_ns "$HUB" ip link add br0 type bridge
  in_ns "$HUB" ip addr replace "$HUB_IP/24" dev br0
  in_ns "$HUB" ip link set br0 up
  in_ns "$HUB" sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0
  for ((i = 1; i <= NODES; i++)); do
    ns=$PREFIX-$(node_name "$i")
    add_namespace "$ns"
    if ! in_ns "$ns" ip link show eth0 &>/dev/null; then
      in_ns "$HUB" ip link add "veth$i" type veth peer name eth0 netns "$ns"
    fi
    in_ns "$HUB" ip link set "veth$i" master br0 up
    in_ns "$ns" ip addr replace "$(node_ip "$i")/24" dev eth0
    in_ns "$ns" ip link set eth0 up
    in_ns "$ns" ip route replace default via "$HUB_IP"      # the hub has no default route of its own
    in_ns "$ns" sysctl -qw net.ipv4.ip_forward=1
    in_ns "$HUB" ip route replace "$POD_NET.$i.0/24" via "$(node_ip "$i")"
    for ((j = 1; j <= NODES; j++)); do
      [ "$i" = "$j" ] || in_ns "$ns" ip route replace "$POD_NET.$j.0/24" via "$(node_ip "$j")"
    done
  done
}
add_namespace() { [ -e "/run/netns/$1" ] || ip netns add "$1"; in_ns "$1" ip link set lo up; }

# Counts what the registries send to nodes (rig.sh egress).
count_egress() {
  in_ns "$HUB" nft -f - <<RULES
table inet rig {
  counter registry-egress {}
  chain output {
    type filter hook output priority 0
    oifname br0 tcp sport { ${REGISTRY#*:}, ${PRIVATE_REGISTRY#*:} } counter name "registry-egress"
  }
}
RULES
}

start_control_plane() {
  daemon etcd "$HUB" "$BIN/etcd" --name=etcd --data-dir="$RUN/etcd" --log-level=warn --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=etcd=http://127.0.0.1:2380
  start_apiserver
  wait_for 120 "the API server" kubectl get --raw /readyz
  # node-monitor-grace-period: see nodeLeaseDurationSeconds in node-init.sh
  daemon controller-manager "$HUB" "$BIN/kube-controller-manager" --kubeconfig="$PKI/controller-manager.kubeconfig" \
    --bind-address=127.0.0.1 --leader-elect=false --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
    --use-service-account-credentials=true --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --profiling=false --node-monitor-grace-period=20s --node-monitor-period=2s
  daemon scheduler "$HUB" "$BIN/kube-scheduler" --kubeconfig="$PKI/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false --profiling=false
}

# kube-proxy's and DNS's rights, and the DNS server in the hub behind the usual service.
start_dns() {
  kubectl apply -f - >/dev/null <<MANIFESTS
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cluster-dns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cluster-dns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-dns}
subjects: [{kind: User, name: cluster-dns}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: $DNS_SVC_IP
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-hub, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: ["$HUB_IP"], conditions: {ready: true}}]
MANIFESTS
  cat >"$RUN/Corefile" <<COREFILE
.:53 {
  bind $HUB_IP
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $PKI/dns.kubeconfig d
  }
  cache 5
}
COREFILE
  daemon coredns "$HUB" "$BIN/coredns" -conf "$RUN/Corefile"
}

# A node that was off may be listed as Ready from before, so ask its kubelet too.
nodes_ready() {
  local i
  for ((i = 1; i <= NODES; i++)); do in_ns "$PREFIX-$(node_name "$i")" curl -sf -m 2 http://127.0.0.1:10248/healthz || return 1; done
  [ "$(kubectl get nodes --no-headers | awk '$2 == "Ready"' | wc -l)" -ge "$NODES" ]
}

check_machine
t0=$SECONDS
mkdir -p "$RUN" "$LOGS"
[ -e "$RUN/pause.tar" ] || "$BIN/mkimage" -bin "$BIN/pause" -ref "$PAUSE_IMAGE" -o "$RUN/pause.tar"
make_pki
make_network
start_control_plane
log "API server ready after $((SECONDS - t0)) s"
for ((i = 1; i <= NODES; i++)); do "$SCRIPTS/node.sh" start "$i"; done
start_registry
start_private_registry
in_ns "$HUB" nft list table inet rig &>/dev/null || count_egress
start_dns
wait_for 180 "$NODES Ready nodes" nodes_ready
wait_for 60 "the default service account" kubectl get serviceaccount default
log "$NODES nodes Ready after $((SECONDS - t0)) s"
