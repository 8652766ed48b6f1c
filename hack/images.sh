#!/bin/bash
# images.sh (make images): builds the container images of shoal-node and shoal-operator without a container engine, as OCI
# image layouts under bin/images. Same sources, same bytes.
#
#   images.sh                     build
#   images.sh push REGISTRY/PATH  build and push; --insecure before it for plain HTTP
#
# VERSION names the images' tag. Default: what git calls this commit, without the v of a release, as in the chart's
# appVersion. ARCHITECTURES="amd64 arm64" builds for more than this machine.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

VERSION=${VERSION:-$(git describe --tags --always --dirty)}
VERSION=${VERSION#v}
ARCHITECTURES=${ARCHITECTURES:-$(go env GOARCH)}
OUT=bin/images
revision=$(git rev-parse HEAD)
created=$(TZ=UTC0 git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)

mkdir -p "$OUT"
(cd hack/images && go build -o ../../bin/shoal-images .)

# image NAME PACKAGE USER DESCRIPTION
image() {
  local name=$1 package=$2 user=$3 description=$4 programs=() arch
  for arch in $ARCHITECTURES; do
    CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" \
      -o "$OUT/$name.linux-$arch" "$package"
    programs+=("$OUT/$name.linux-$arch")
  done
  bin/shoal-images build --name "$name" --description "$description" --version "$VERSION" --revision "$revision" \
    --created "$created" --user "$user" --layout "$OUT/$name" "${programs[@]}"
}

# The agent owns folders of the node (see the chart's DaemonSet), so it runs as their owner, root without capabilities.
image shoal-node ./node 0:0 "Shoal's node agent: a registry mirror whose nodes share layers among themselves"
image shoal-operator ./operator 65532:65532 "Shoal's operator: admission, bootstrapping, cache policies and pins"

if [ "${1-}" = push ]; then
  shift
  insecure=()
  if [ "${1-}" = --insecure ]; then insecure=(--insecure); shift; fi
  [ $# = 1 ] || { echo "images.sh push: want one REGISTRY/PATH, such as registry.example.com/shoal" >&2; exit 2; }
  for name in shoal-node shoal-operator; do bin/shoal-images push --layout "$OUT/$name" "${insecure[@]}" "$1/$name"; done
  printf '\nInstall them with:\n  helm install shoal ./charts/shoal --namespace shoal-system --set images.registry=%s --set-string images.tag=%s --wait\n' \
    "$1" "$VERSION"
fi
