#!/bin/bash
# kind.sh: the end-to-end suite on kind, for Linux machines with Docker, kind (0.27 or later), kubectl, helm and Go.
#
# The project's CI has no Docker, so this script has been read against the documentation of kind and Docker, and run with
# stand-ins for both, but not with them.
#
#   kind.sh            makes the cluster "shoal-e2e", runs the suite, deletes the cluster (KEEP=1 leaves it)
#   kind.sh up|down    just the cluster
#   kind.sh nodes|node|service|egress …    what hack/cluster/rig.sh does on the other rig; the suite calls these
set -o errexit -o nounset -o pipefail
self=$(realpath "$0")
cd "$(dirname "$0")/.."
NAME=shoal-e2e
CONTROL=$NAME-control-plane
REGISTRIES=(registry private-registry)
export KUBECONFIG=$PWD/bin/e2e/kind.kubeconfig KIND_EXPERIMENTAL_DOCKER_NETWORK=$NAME

address() { docker inspect -f "{{(index .NetworkSettings.Networks \"$NAME\").IPAddress}}:5000" "$NAME-$1"; }

up() {
  mkdir -p bin/e2e
  # Registries keep their addresses while they are off and on again. Docker fixes addresses only in a network whose subnet
  # was named, so name the one that it would choose.
  local subnet i=250 r node
  docker network create $NAME >/dev/null
  subnet=$(docker network inspect $NAME -f '{{(index .IPAM.Config 0).Subnet}}')
  docker network rm $NAME >/dev/null
  docker network create --subnet "$subnet" $NAME >/dev/null
  for r in "${REGISTRIES[@]}"; do
    local auth=()
    [ "$r" = registry ] || auth=(-e REGISTRY_AUTH=htpasswd -e REGISTRY_AUTH_HTPASSWD_REALM=private -e REGISTRY_AUTH_HTPASSWD_PATH=/htpasswd
      -v "$PWD/hack/cluster/private-registry.htpasswd:/htpasswd:ro")
    docker run -d --name "$NAME-$r" --network $NAME --ip "${subnet%.*}.$((i++))" "${auth[@]}" registry:2 >/dev/null
  done
  # Image volumes are behind a gate in older versions of Kubernetes.
  kind create cluster --name $NAME --wait 3m --config - <<CONFIG
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]
featureGates: {ImageVolume: true}
CONFIG
  for node in $(nodes); do
    docker exec "$node" sh -c "mkdir -p /etc/containerd/certs.d/_default &&
      printf '[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n' '$(address registry)' >/etc/containerd/certs.d/_default/hosts.toml"
  done
}

down() {
  kind delete cluster --name $NAME
  docker rm -f "${REGISTRIES[@]/#/$NAME-}" >/dev/null
  docker network rm $NAME >/dev/null
}

nodes() { kind get nodes --name $NAME | grep -v control-plane | sort; }

node() {
  local action=$1 node=$2
  shift 2
  case $action in
    stop) docker kill "$node" >/dev/null ;;
    start) docker start "$node" >/dev/null ;;
    exec) docker exec "$node" "$@" ;;
    limit)
      docker exec "$node" tc qdisc del dev eth0 ingress 2>/dev/null || true
      [ "$1" = none ] || docker exec "$node" sh -c "tc qdisc add dev eth0 ingress &&
        tc filter add dev eth0 parent ffff: matchall action police rate $1 burst 1m conform-exceed drop" ;;
  esac
}

# The kubelet follows its folder of manifests within about 20 seconds.
apiserver() {
  local want=$1 from=$2 to=$3 i
  docker exec $CONTROL sh -c "[ ! -e $from/kube-apiserver.yaml ] || mv $from/kube-apiserver.yaml $to/"
  for ((i = 0; i < 120; i++)); do
    [ "$(docker exec $CONTROL crictl ps --quiet --name kube-apiserver | wc -l)" != "$want" ] || return 0
    sleep 0.5
  done
  echo "kind.sh: after a minute there are not $want API servers" >&2
  return 1
}

service() {
  case $1-$2 in
    stop-apiserver) apiserver 0 /etc/kubernetes/manifests /etc/kubernetes ;;
    start-apiserver) apiserver 1 /etc/kubernetes /etc/kubernetes/manifests ;;
    stop-*) docker kill "$NAME-$2" >/dev/null ;;
    start-*) docker start "$NAME-$2" >/dev/null ;;
  esac
}

egress() {
  local r total=0 now
  for r in "${REGISTRIES[@]}"; do
    now=$(docker exec "$NAME-$r" cat /sys/class/net/eth0/statistics/tx_bytes 2>/dev/null || echo 0)
    total=$((total + now))
  done
  echo $total
}

suite() {
  VERSION=e2e-$(date +%s)
  export VERSION
  ARCHITECTURES=$(go env GOARCH)
  export ARCHITECTURES
  hack/images.sh
  HELM=helm hack/previous.sh
  go test -c -o bin/e2e/e2e.test ./test/e2e
  go build -o bin/kubectl-shoal ./operator/cmd/kubectl-shoal
  go build -modfile=hack/tools/e2e/go.mod -o bin/e2e/gotestsum gotest.tools/gotestsum
  (cd hack/cluster/tools && CGO_ENABLED=0 go build -o ../../../bin/e2e/probe ./images/probe)
  (cd hack/tools/huggingface && CGO_ENABLED=0 go build -o ../../../bin/e2e/gohf ./gohf)
  [ -n "${KEEP-}" ] || trap 'down' EXIT
  up
  for name in shoal-node shoal-operator; do
    for images in bin/images bin/e2e/previous/images; do
      bin/shoal-images push --insecure --layout "$images/$name" "$(address registry)/shoal/$name"
    done
  done
  SHOAL_E2E_PREVIOUS_CHART=$PWD/bin/e2e/previous/shoal.tgz SHOAL_E2E_PREVIOUS_TAG=$(cat bin/e2e/previous/version) \
    SHOAL_E2E_RIG=$self SHOAL_E2E_CHART=$PWD/charts/shoal SHOAL_E2E_PROBE=$PWD/bin/e2e/probe SHOAL_E2E_PLUGIN=$PWD/bin/kubectl-shoal \
    SHOAL_E2E_HUB_CLIENT=$PWD/bin/e2e/gohf SHOAL_E2E_TAG=$VERSION \
    SHOAL_E2E_REGISTRY=$(address registry) SHOAL_E2E_PRIVATE_REGISTRY=$(address private-registry) SHOAL_E2E_EXCLUDE=$CONTROL \
    bin/e2e/gotestsum --format standard-verbose --junitfile bin/e2e/junit.xml --raw-command -- \
    go tool test2json -t -p e2e bin/e2e/e2e.test -test.v=test2json -test.timeout=40m "$@"
}

case ${1-} in
  up | down | nodes | node | service | egress) "$@" ;;
  *) suite "$@" ;;
esac
