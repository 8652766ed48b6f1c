#!/usr/bin/env bash
# containerds.sh (make containerds): builds the versions of containerd that test/clients runs beside Debian's, from Go
# modules, each once, into ~/.cache/shoal/containerd-VERSION. From an empty cache two quiet cores take about ten minutes.
#
#   containerds.sh             all of them
#   containerds.sh v2.4        the newest of one line
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

# The last of each line that merges or reads its configuration in a way of its own.
versions=(v1.7.35 v2.0.14 v2.1.9 v2.2.9 v2.3.7 v2.4.2)

for version in "${versions[@]}"; do
  [[ $version == "${1:-v}"* ]] || continue
  target=$HOME/.cache/shoal/containerd-$version
  [ -x "$target/containerd" ] && continue
  module=github.com/containerd/containerd
  [[ $version == v1.* ]] || module=$module/v2
  # The module is built as it is in the module cache, by its own go.mod and go.sum: go install refuses those with excludes.
  # That of v2.0 has a part of a vendor directory, which go would take all packages from without -mod=mod.
  source=$(go mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mod=$(mktemp -d)
  cp "$source/go.mod" "$source/go.sum" "$mod/"
  chmod u+w "$mod"/*
  CGO_ENABLED=0 nice -n 19 go -C "$source" build -mod=mod -modfile "$mod/go.mod" -trimpath -tags "no_btrfs no_devmapper no_zfs" -ldflags "-s -w" \
    -o "$target/containerd" ./cmd/containerd
  rm -r "$mod"
done
