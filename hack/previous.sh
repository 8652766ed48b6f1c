#!/bin/bash
# previous.sh: makes what the end-to-end suites upgrade from, in bin/e2e/previous: the chart (shoal.tgz), the images'
# layouts (images/), and their tag (version).
#
# It is the newest release before this commit. Until there is one, the commit $PREVIOUS stands for it, which speaks the protocols
# that grow without another version; agents of commits before do not understand those of today. A clone that holds
# neither, such as a shallow one, takes this very commit, so that old and new differ in their version alone; previous.sh says which
# it is.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/cluster/lib.sh
. hack/cluster/lib.sh
PREVIOUS=${PREVIOUS:-6e0ea6a1f1542101ae3e1811d21ab429b3ee9bd9}
out=$PWD/bin/e2e/previous
helm=${HELM:-$BIN/helm}

has() { git cat-file -e "$1^{commit}" 2>/dev/null; }

if tag=$(git describe --tags --abbrev=0 --match 'v*' 'HEAD^' 2>/dev/null); then
  commit=$tag version=${tag#v} what="release $tag"
elif has "$PREVIOUS"; then
  commit=$PREVIOUS version=0.0.0-g${commit:0:7} what="commit ${commit:0:7}, for there is no release yet"
else
  commit=$(git rev-parse HEAD) version=0.0.0-g${commit:0:7} what="this very commit under another version, for this clone holds no earlier one"
fi
log "upgrades start from $version: $what"

rm -rf "$out"
mkdir -p "$out"
trap 'rm -rf "$out/src"' EXIT
git clone -q --no-checkout . "$out/src"
git -C "$out/src" -c advice.detachedHead=false checkout -q "$commit"
VERSION=$version "$out/src/hack/images.sh"
mv "$out/src/bin/images" "$out/images"
"$helm" package "$out/src/charts/shoal" --version "$version" --app-version "$version" --destination "$out" >/dev/null
mv "$out"/shoal-*.tgz "$out/shoal.tgz"
echo "$version" >"$out/version"
