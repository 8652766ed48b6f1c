#!/bin/bash
# node-init.sh I: pid 1 of node I. Gives the node a root file system of its own (a copy-on-write view of the machine's:
# so /etc/containerd, /run/containerd/containerd.sock, /var/lib/kubelet, … are the node's own at their usual paths, and
# a hostPath volume can't touch the machine's files), then starts containerd, kubelet and kube-proxy, and starts each
# again when it ends, as systemd would.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
i=$1 name=$(node_name "$1") ip=$(node_ip "$1") nd=$(node_dir "$1")

# --- root file system ---
mkdir -p "$nd"/{root,upper,work,run,kubelet,containerd,fake}
rm -rf "$nd"/run/*                     # /run is empty after a boot
mount -t overlay overlay -o "lowerdir=/,upperdir=$nd/upper,workdir=$nd/work" "$nd/root"
# Of an agent that the machine itself has run all nodes would have the identity. After a reboot it is the node's own.
[ -e "$nd/upper/var/lib/shoal" ] || rm -rf "$nd/root/var/lib/shoal"
root=$nd/root
mkdir -p "$root"/{opt/cluster/{bin,pki},var/lib/{kubelet,containerd},var/log/{pods,containers},etc/{containerd,cni/net.d,kubernetes},opt/cni/bin}
mount --bind "$nd/run" "$root/run"
mount --bind "$nd/kubelet" "$root/var/lib/kubelet"          # not on the overlay: overlayfs takes no upper dir there
mount --bind "$nd/containerd" "$root/var/lib/containerd"
mount --bind "$BIN" "$root/opt/cluster/bin"
mount --bind "$BIN/cni" "$root/opt/cni/bin"
mount --bind "$PKI" "$root/opt/cluster/pki"
cp "$RUN/pause.tar" "$root/opt/cluster/pause.tar"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"       # a new one, since sysfs shows the network devices of its mounter's namespace
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
for h in /sys/fs/cgroup/*/; do         # the same hierarchies again, seen from the node's cgroup namespace
  [ -e "$h/cgroup.procs" ] || continue
  c=$(basename "$h"); mkdir -p "$root/sys/fs/cgroup/$c"
  case $c in
    unified) mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/$c" ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/$c" ;;
    *)       mount -t cgroup -o "$c" cgroup "$root/sys/fs/cgroup/$c" ;;
  esac
done
# The kubelet sets six sysctls of the whole machine. Show it files that have its values already, so it writes nothing.
while read -r key value; do
  f=$nd/fake/${key//\//_}; echo "$value" >"$f"; mount --bind "$f" "$root/proc/sys/$key"
done <<'EOF'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF
mkdir -p "$root/.old"
cd "$root" && pivot_root . .old && cd /
umount -l /.old && rmdir /.old
mount --make-rshared /
hostname "$name"
echo "$name" >/etc/hostname
printf '127.0.0.1 localhost\n%s %s\n' "$ip" "$name" >/etc/hosts
rm -f /etc/resolv.conf; echo "nameserver $HUB_IP" >/etc/resolv.conf

# --- configuration ---
export PATH=/opt/cluster/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cat >/etc/containerd/config.toml <<EOF
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# Not wanted here: drivers that would probe the machine.
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  discard_unpacked_layers = false
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "$PAUSE_IMAGE"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  # This machine's root lacks CAP_SYS_RESOURCE, without which no process may lower its OOM score: don't ask for it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    use_internal_loopback = true
EOF
# ptp, not bridge: the node routes each pod's packets itself, so service NAT works with no bridge-nf settings.
cat >/etc/cni/net.d/10-cluster.conflist <<EOF
{"cniVersion": "1.0.0", "name": "cluster", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "$POD_NET.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}, "snat": true}
]}
EOF
cat >/etc/kubernetes/kubelet.yaml <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false                       # this machine mounts the v1 hierarchies
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /opt/cluster/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /opt/cluster/pki/$name.crt
tlsPrivateKeyFile: /opt/cluster/pki/$name.key
clusterDNS: [$DNS_SVC_IP]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
failSwapOn: false
# The disk is the machine's: neither evict pods nor collect images because of what others keep on it.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
# So that a lost node is NotReady after 20 s, not 50 (with kube-controller-manager's --node-monitor-grace-period).
nodeLeaseDurationSeconds: 12
# A test should not wait for the usual slow steps between a container's restarts.
crashLoopBackOff: {maxContainerRestartPeriod: 10s}
EOF
cat >/etc/kubernetes/kube-proxy.yaml <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /opt/cluster/pki/proxy.kubeconfig}
clusterCIDR: $POD_NET.0.0/16
hostnameOverride: $name
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}   # all machine-wide: leave them
EOF
# Registry mirrors: every registry host that a test uses is served by the hub's registry. Made once, as a machine's
# installation does: what somebody changes stays changed after a reboot.
if [ ! -e /etc/installed ]; then
  rm -rf /etc/containerd/certs.d            # the machine's own, where it has containerd
  mkdir -p /etc/containerd/certs.d/_default
  cat >/etc/containerd/certs.d/_default/hosts.toml <<EOF
[host."http://$REGISTRY"]
  capabilities = ["pull", "resolve"]
EOF
  touch /etc/installed
fi

# --- services ---
# service NAME CMD...: keeps CMD running. "touch /run/services/NAME.off" and ending it leaves it off.
mkdir -p /run/services /var/log/services
service() {
  local name=$1; shift
  while :; do
    if [ ! -e "/run/services/$name.off" ]; then
      "$@" >>"/var/log/services/$name.log" 2>&1 &
      echo $! >"/run/services/$name.pid"
      wait $! || true
    fi
    sleep 0.5
  done
}
service containerd containerd -c /etc/containerd/config.toml &
for ((n = 0; n < 300; n++)); do [ -S /run/containerd/containerd.sock ] && ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr -n k8s.io images ls -q | grep -qx $PAUSE_IMAGE || ctr -n k8s.io images import /opt/cluster/pause.tar >>/var/log/services/containerd.log 2>&1
service kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig="/opt/cluster/pki/$name.kubeconfig" \
  --node-ip="$ip" --hostname-override="$name" --v=2 &
service kube-proxy kube-proxy --config=/etc/kubernetes/kube-proxy.yaml --v=1 &
wait
