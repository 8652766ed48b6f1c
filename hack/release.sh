#!/bin/bash
# release.sh (make release-dry-run): makes all that a release has, below bin/release/VERSION, and publishes nothing:
#
#   shoal-node_VERSION_OS_ARCH.tar.gz, shoal-operator_…, kubectl-shoal_…   the programs, with LICENSE and README
#   images/NAME            OCI image layouts of shoal-node and shoal-operator for all architectures
#   shoal-VERSION.tgz      the chart, which names those images
#   NAME_….cdx.json        what each program is made of, in CycloneDX
#   CHANGELOG.md           the commits since the release before, by the room that they changed
#   SHA256SUMS             of all files; sha256sum --check tells
#
# Same commit, same bytes, but for the serial numbers in the CycloneDX documents. With warm caches of Go's modules it
# needs no network.
#
#   VERSION=v0.2.0        default: what git calls this commit
#   ARCHITECTURES="amd64 arm64"
#   PLUGIN_PLATFORMS="linux/amd64 linux/arm64"    add darwin/arm64, darwin/amd64 or windows/amd64
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

tag=${VERSION:-$(git describe --tags --always --dirty)}
export VERSION=${tag#v}
export ARCHITECTURES=${ARCHITECTURES:-amd64 arm64}
PLUGIN_PLATFORMS=${PLUGIN_PLATFORMS:-linux/amd64 linux/arm64}
# A chart has a semantic version, which a bare commit is not.
if [[ $VERSION =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]]; then semver=$VERSION; else semver=0.0.0-dev.$VERSION; fi
out=bin/release/$VERSION
export SOURCE_DATE_EPOCH; SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
rm -rf "$out"
mkdir -p "$out/images"

step() { printf '• %s\n' "$*"; }

# pack FILE NAME PLATFORM: an archive of a program, the same bytes each time, and the list of what it is made of.
pack() {
  local file=$1 name=$2 os=${3%/*} arch=${3#*/} folder
  folder=$(mktemp -d)
  install -m 755 "$file" "$folder/$name$([ "$os" != windows ] || echo .exe)"
  cp LICENSE README.md "$folder/"
  [ "$name" != kubectl-shoal ] || install -m 755 hack/kubectl_complete-shoal "$folder/"
  tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$folder" . |
    gzip --no-name >"$out/${name}_${VERSION}_${os}_$arch.tar.gz"
  go tool -modfile=hack/tools/release/go.mod cyclonedx-gomod bin -json -version "$VERSION" \
    -output "$out/${name}_${VERSION}_${os}_$arch.cdx.json" "$file"
  rm -rf "$folder"
}

step "images of shoal-node and shoal-operator for $ARCHITECTURES"
hack/images.sh
for name in shoal-node shoal-operator; do
  cp -r "bin/images/$name" "$out/images/$name"
  for arch in $ARCHITECTURES; do pack "bin/images/$name.linux-$arch" "$name" "linux/$arch"; done
done

step "kubectl-shoal for $PLUGIN_PLATFORMS"
for platform in $PLUGIN_PLATFORMS; do
  file=bin/images/kubectl-shoal.${platform/\//-}
  CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$VERSION" -o "$file" ./operator/cmd/kubectl-shoal
  pack "$file" kubectl-shoal "$platform"
done

step "chart $semver"
helm=$(. hack/cluster/lib.sh; echo "$BIN/helm")
[ -x "$helm" ] || { helm=$PWD/bin/helm; go build -C hack/cluster/tools -o "$helm" helm.sh/helm/v4/cmd/helm; }
"$helm" package charts/shoal --version "$semver" --app-version "$VERSION" --destination "$out" >/dev/null

step "changelog"
before=$(git describe --tags --abbrev=0 "HEAD^" 2>/dev/null || true)
{
  printf '# %s\n\n' "$tag"
  [ -z "$before" ] || printf 'Changes since %s.\n\n' "$before"
  # A subject is "room: what is so now". Commits of one room stand together.
  git log --no-merges --reverse --format=%s "${before:+$before..}HEAD" |
    awk -F': ' '{
      room = NF > 1 && $1 !~ /[.!?]/ ? $1 : "other"
      text = room == "other" ? $0 : substr($0, length($1) + 3)
      if (!(room in said)) rooms[++n] = room
      said[room] = said[room] "- " text "\n"
    } END { for (i = 1; i <= n; i++) printf "## %s\n\n%s\n", rooms[i], said[rooms[i]] }'
} >"$out/CHANGELOG.md"

step "checksums"
(cd "$out" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)

step "looking at what was made"
(cd "$out" && sha256sum --check --quiet SHA256SUMS)
for arch in $ARCHITECTURES; do
  for name in shoal-node shoal-operator; do
    grep -q "\"architecture\":\"$arch\"" "$out/images/$name/blobs/sha256/"* ||
      { echo "image $name has nothing for $arch" >&2; exit 1; }
  done
done
own=$(go env GOOS)_$(go env GOARCH)
for name in shoal-node shoal-operator kubectl-shoal; do
  said=$(tar --extract --gzip --to-stdout --file "$out/${name}_${VERSION}_$own.tar.gz" "./$name" >"$out/.program" &&
    chmod +x "$out/.program" && "$out/.program" --version)
  rm "$out/.program"
  [[ $said == *"$VERSION"* ]] || { echo "$name says that it is $said, not $VERSION" >&2; exit 1; }
done
"$helm" template shoal "$out/shoal-$semver.tgz" | grep -q "image: ghcr.io/shoal-cache/shoal-node:$VERSION\$" ||
  { echo "the chart does not name the images of $VERSION" >&2; exit 1; }

printf '\n%s, which nobody has published:\n' "$out"
(cd "$out" && find . -maxdepth 2 -not -name . -not -path './images/*/*' -printf '%P\n' | sort | sed 's/^/  /')
