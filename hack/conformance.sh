#!/usr/bin/env bash
# conformance.sh URL REPOSITORY: runs the OCI distribution specification's conformance suite, at the version that
# hack/tools/conformance/go.mod names, against the registry front at URL (http://host:port), in the categories that a
# read-only registry has: pull and content discovery. It prints the report and exits non-zero when a test fails.
#
# The suite reads what is there, which these variables name, each a list separated by spaces:
#   OCI_RO_DATA_TAGS, OCI_RO_DATA_MANIFESTS (digests), OCI_RO_DATA_BLOBS (digests), OCI_RO_DATA_REFERRERS (subjects)
set -o errexit -o nounset -o pipefail

url=${1:?usage: conformance.sh URL REPOSITORY}
repository=${2:?usage: conformance.sh URL REPOSITORY}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

CGO_ENABLED=0 go -C "$(dirname "$0")/tools/conformance" build -o "$build/conformance" github.com/opencontainers/distribution-spec/conformance
case $url in
  https://*) tls=enabled ;;
  *) tls=disabled ;;
esac
host=${url#*://}
export OCI_REGISTRY=${host%/} OCI_TLS=$tls OCI_REPO1=$repository OCI_RESULTS_DIR=$build/results
export OCI_API_PUSH=false OCI_API_BLOBS_DELETE=false OCI_API_MANIFESTS_DELETE=false OCI_API_TAGS_DELETE=false
cd "$build"
# The verdict is read from the report: in read-only mode this version of the suite crashes after it has printed it, where
# it writes the same as YAML.
./conformance 2>"$build/log" | tee "$build/report" || true
if ! grep -q '^OCI Conformance Test: Pass$' "$build/report"; then
  cat "$build/log" >&2
  exit 1
fi
