#!/bin/bash
# build.sh: installs the Debian packages that the cluster needs and builds its programs into $BIN from the Go module
# tools/, all at the versions that its go.mod names. Does nothing when they are there for the same sources and the same
# Go. From empty caches two quiet cores take about 16 minutes (1 of download); from full ones, 20 seconds.
# JOBS=n limits the compilers at work at one time.
set -o errexit -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
TOOLS=$SCRIPTS/tools

# nftables: kube-proxy and the portmap plugin. docker-registry: the registries. libseccomp-dev, gcc: to build runc.
missing=()
for p in iproute2 util-linux nftables docker-registry libseccomp-dev pkg-config gcc openssl curl procps; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  log "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Debian starts a package's services unless this file says no; the cluster starts its own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The cluster's shell has no way out: fetch now what make build and install.sh compile there.
(cd "$SCRIPTS/../.." && go list -deps ./node ./operator ./operator/cmd/kubectl-shoal &&
  cd hack/images && go list -deps .) >/dev/null

version=$(cd "$TOOLS" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
IFS=. read -r major minor _ <<<"${version#v}"
x=k8s.io/component-base/version
flags=(-trimpath -mod=readonly
  -ldflags "-s -w -X $x.gitVersion=$version -X $x.gitMajor=$major -X $x.gitMinor=$minor -X $x.gitTreeState=clean")

stamp=$({ go version; echo "${flags[@]}"; cd "$TOOLS"; cat go.mod go.sum; find . -name '*.go' -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$BIN/.stamp" 2>/dev/null)" = "$stamp" ]; then log "programs are up to date in $BIN"; exit 0; fi
rm -f "$BIN/.stamp"; mkdir -p "$BIN/cni"

cd "$TOOLS"
build() { nice -n 10 go build "${flags[@]}" ${JOBS:+-p "$JOBS"} "$@"; }
t0=$SECONDS
# No cgo but in runc (which needs it to enter namespaces): so the images' programs, and all else, are static.
CGO_ENABLED=0 build -tags "no_btrfs no_devmapper no_zfs" -o "$BIN/" \
  ./kt ./coredns ./mkimage ./images/pause ./images/probe \
  github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr} helm.sh/helm/v4/cmd/helm
CGO_ENABLED=0 build -o "$BIN/cni/" \
  github.com/containernetworking/plugins/plugins/{main/ptp,ipam/host-local,meta/portmap}
CGO_ENABLED=1 build -tags seccomp -o "$BIN/runc" github.com/opencontainers/runc
for p in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do ln -sf kt "$BIN/$p"; done
echo "$stamp" >"$BIN/.stamp"
log "built in $((SECONDS - t0)) s: $(du -sh "$BIN" | cut -f1) in $BIN"
