#!/bin/bash
# e2e.sh (make e2e): brings up a real Kubernetes cluster on this machine, installs Shoal on it, and runs the end-to-end
# suite. Needs root, Debian and Go; for a machine with Docker and kind there is kind.sh. Programs and builds are
# cached, so the first run takes a quarter of an hour longer than the next.
#
#   e2e.sh                       everything
#   e2e.sh -test.run 'TestShoal/(helm_install|all_agents|a_policy)'    some steps; all but the first two and the
#                                upgrade need those that install
#   KEEP=1 e2e.sh                leaves the cluster up: make cluster-shell, make cluster-down
#
# It needs 6 GiB of free disk below this repository and below $WORKDIR (MIN_DISK_GIB says otherwise): images in two
# versions, on three nodes, in two registries; the Go compiler's files; and what nodes keep free for themselves.
#
# Writes the JUnit report bin/e2e/junit.xml.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/cluster/lib.sh
. hack/cluster/lib.sh
started=$SECONDS
step() { log "== $* (at $((SECONDS - started)) s)"; }

export ARCHITECTURES=${ARCHITECTURES:-$(go env GOARCH)}
VERSION=e2e-$(date +%s)
export VERSION
mkdir -p bin/e2e "$WORKDIR"

# enough_disk FOLDER: says what is free there, and ends here where that is too little, for half an hour later it would
# look like a fault of the cache.
enough_disk() {
  local free need=${MIN_DISK_GIB:-6}
  free=$(df --output=avail --block-size=1M "$1" | tail -n 1)
  log "disk at $1: $free MiB free, $((need * 1024)) MiB needed"
  [ "$free" -ge $((need * 1024)) ] || die "too little free disk at $1: make room, or set WORKDIR to a folder on a larger disk"
}
enough_disk "$PWD"
enough_disk "$WORKDIR"

step "programs of the cluster"
hack/cluster/build.sh
step "images of Shoal"
hack/images.sh
step "chart and images to upgrade from"
hack/previous.sh
PREVIOUS_VERSION=$(cat bin/e2e/previous/version)
step "the suite"
go test -c -o bin/e2e/e2e.test ./test/e2e
go build -o bin/kubectl-shoal ./operator/cmd/kubectl-shoal
(cd hack/tools/huggingface && CGO_ENABLED=0 go build -o ../../../bin/e2e/gohf ./gohf)
go build -modfile=hack/tools/e2e/go.mod -o bin/e2e/gotestsum gotest.tools/gotestsum

step "cluster"
finish() {
  local status=$?
  hack/cluster/down.sh
  exit $status
}
[ -n "${KEEP-}" ] || trap finish EXIT
[ ! -e "$RUN" ] || hack/cluster/down.sh     # what an earlier run was told to keep
hack/cluster/up.sh
for name in shoal-node shoal-operator; do
  for images in bin/images bin/e2e/previous/images; do
    hack/cluster/shell.sh bin/shoal-images push --insecure --layout "$images/$name" "$REGISTRY/shoal/$name"
  done
done

step "end-to-end tests"
export SHOAL_E2E_RIG=$PWD/hack/cluster/rig.sh
export SHOAL_E2E_CHART=$PWD/charts/shoal
export SHOAL_E2E_REGISTRY=$REGISTRY
export SHOAL_E2E_PRIVATE_REGISTRY=$PRIVATE_REGISTRY
export SHOAL_E2E_PROBE=$BIN/probe
export SHOAL_E2E_HUB_CLIENT=$PWD/bin/e2e/gohf
export SHOAL_E2E_PLUGIN=$PWD/bin/kubectl-shoal
export SHOAL_E2E_TAG=$VERSION
export SHOAL_E2E_PREVIOUS_CHART=$PWD/bin/e2e/previous/shoal.tgz
export SHOAL_E2E_PREVIOUS_TAG=$PREVIOUS_VERSION
bin/e2e/gotestsum --format standard-verbose --junitfile bin/e2e/junit.xml --raw-command -- \
  hack/cluster/shell.sh go tool test2json -t -p e2e bin/e2e/e2e.test -test.v=test2json -test.timeout=40m "$@"
step "done"
