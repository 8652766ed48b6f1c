#!/bin/bash
# install.sh: builds Shoal's images, pushes them to the registry of the cluster that `make cluster-up` brought up, and installs
# the chart from there, or upgrades it. Further arguments go to helm. The cluster has no way out, so its registry stands
# for all others, and is given the images that charts/shoal/TUTORIAL.md names: a small web server.
#
#   hack/cluster/install.sh
#   hack/cluster/install.sh --set agent.store.capacity=2GiB
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=hack/cluster/lib.sh
. hack/cluster/lib.sh
[ -e "/run/netns/$HUB" ] || die "the cluster is not up: make cluster-up"

VERSION=${VERSION:-local-$(date +%s)}
export VERSION
hack/images.sh
for name in shoal-node shoal-operator; do
  hack/cluster/shell.sh bin/shoal-images push --insecure --layout "bin/images/$name" "$REGISTRY/shoal/$name"
done
in_cluster() { hack/cluster/shell.sh "$@"; }
for tag in 1.29 1.29-alpine; do
  in_cluster mkimage -bin "$BIN/probe" -layer LICENSE -ref "$REGISTRY/library/nginx:$tag" -push
done
in_cluster kubectl create namespace shoal-system --dry-run=client -o yaml | in_cluster kubectl apply -f -
in_cluster kubectl label --overwrite namespace shoal-system pod-security.kubernetes.io/enforce=privileged
in_cluster kubectl apply --server-side --force-conflicts -f charts/shoal/crds
# The cluster's registries speak plain HTTP.
in_cluster helm upgrade --install shoal ./charts/shoal --namespace shoal-system --wait --timeout 5m \
  --set "images.registry=$REGISTRY/shoal" --set-string "images.tag=$VERSION" \
  --set-json "upstreams=[{\"registry\":\"*\",\"endpoints\":[\"http://$REGISTRY\"]},{\"registry\":\"$REGISTRY\",\"endpoints\":[\"http://$REGISTRY\"]},{\"registry\":\"$PRIVATE_REGISTRY\",\"endpoints\":[\"http://$PRIVATE_REGISTRY\"]}]" \
  "$@"
in_cluster kubectl get peers,nodecaches
