#!/bin/bash
# images.sh (make images): builds the container images of shoal-node and shoal-operator without a container engine, for
# amd64 and arm64, as OCI image layouts under bin/images. Same sources, same bytes.
#
#   images.sh                     build
#   images.sh push REGISTRY/PATH  build and push; --insecure before it for plain HTTP
#
# VERSION names the images' tag, ARCHITECTURES="amd64" builds fewer.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

VERSION=${VERSION:-$(git describe --tags --always --dirty)}
ARCHITECTURES=${ARCHITECTURES:-amd64 arm64}
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
  if [ "$1" = --insecure ]; then insecure=(--insecure); shift; fi
  for name in shoal-node shoal-operator; do bin/shoal-images push --layout "$OUT/$name" "${insecure[@]}" "$1/$name"; done
fi
