#!/usr/bin/env bash
# clients.sh (make clients): pulls through real agents with real clients, and takes a blob from one with kubo. Needs root,
# Debian's packages below and Go; the other clients are built from Go modules at the versions that hack/tools names, and
# containerd at that of hack/cluster/tools, into CLIENTS (default ~/.cache/shoal/clients). From empty caches that takes two
# quiet cores about ten minutes.
#
#   clients.sh                      everything
#   clients.sh -run TestKubo -v     some of it; see go help testflag
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
clients=${CLIENTS:-$HOME/.cache/shoal/clients}
export CGO_ENABLED=0

missing=()
for p in containerd docker-registry fuse3 iproute2 nftables podman skopeo; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} = 0 ] || { echo "clients.sh: missing: apt-get install --no-install-recommends ${missing[*]}" >&2; exit 1; }

# build MODULE PACKAGE...: builds programs of a module of hack/tools.
build() {
  local module=$1
  shift
  nice go -C "hack/tools/$module" build -trimpath -tags "no_btrfs no_devmapper no_zfs" -ldflags "-s -w" -o "$clients/" "$@"
}
mkdir -p "$clients"
build clients github.com/google/go-containerregistry/cmd/crane oras.land/oras/cmd/oras
build containerd ./stargz
# Of the cluster's module, so that what one of the two has compiled the other has not to.
build ../cluster/tools github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr
build huggingface ./gohf
build ollama ./ollamaget
build kubo github.com/ipfs/kubo/cmd/ipfs
go build -trimpath -o "$clients/shoal-node" ./node
if ! command -v npm >/dev/null; then
  echo "clients.sh: no npm: @huggingface/hub is not tried" >&2
elif [ ! -d "$clients/npm/node_modules/@huggingface/hub" ]; then
  npm install --silent --no-audit --no-fund --prefix "$clients/npm" @huggingface/hub@2.17.5
fi

SHOAL_CLIENTS=$clients go test -count=1 -timeout 20m -v "$@" ./test/clients
