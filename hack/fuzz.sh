#!/usr/bin/env bash
# fuzz.sh (make fuzz): runs every fuzz target of the repository, one after the other, for FUZZTIME (default 30s) each.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

time=${FUZZTIME:-30s}
grep -rl --include='*_test.go' '^func Fuzz' api node operator | while read -r file; do
  grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | while read -r _ target; do
    echo "== ./$(dirname "$file") $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" </dev/null
  done
done
