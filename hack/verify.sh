#!/usr/bin/env bash
# verify.sh (make verify): fails when something is not as it is to be committed: formatting, lint, files that are made from
# others, and the module's requirements. It changes no file, runs all checks, and names those that failed.
#
#   verify.sh               all checks
#   verify.sh format lint   some of them
#   verify.sh vet           go vet, for who has no time for lint, which looks for all that go vet does
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

check_format() {
  local files
  files=$(git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do [ ! -e "$f" ] || echo "$f"; done | xargs gofmt -l)
  [ -z "$files" ] || { echo "run gofmt -w on:" "$files"; return 1; }
}

check_vet() { go vet ./...; }

check_lint() { go tool -modfile=hack/tools/golangci-lint/go.mod golangci-lint run; }

check_scripts() {
  local script
  for script in .ci/run hack/*.sh hack/cluster/*.sh test/operator/*.sh; do bash -n "$script"; done
}

check_generated() { hack/generate.sh --verify; }

# The chart's generator writes in place, so it runs on a copy of what it reads.
check_chart() {
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  cp -r --parents api charts go.mod go.sum hack/chart-docs.sh hack/chart-schema hack/tools "$copy"
  (cd "$copy" && hack/chart-docs.sh)
  diff -ru charts "$copy/charts" || { echo "run hack/chart-docs.sh and commit"; return 1; }
}

check_modules() { go mod tidy -diff; }

# govulncheck compares what the programs call with a database of known weaknesses, which may be out of reach. So who has one names
# it: GOVULNDB=https://vuln.go.dev, or file:///DIRECTORY for a copy.
check_vulnerabilities() {
  if [ -z "${GOVULNDB:-}" ]; then
    echo "NOT CHECKED for known vulnerabilities: set GOVULNDB to a database, such as https://vuln.go.dev"
    return
  fi
  go tool -modfile=hack/tools/govulncheck/go.mod govulncheck -db "$GOVULNDB" ./node ./operator ./operator/cmd/kubectl-shoal
}

checks=("$@")
[ ${#checks[@]} -gt 0 ] || checks=(format lint scripts generated chart modules vulnerabilities)
failed=()
for check in "${checks[@]}"; do
  echo "== $check"
  # In a condition bash ignores errexit, even in a subshell; a shell of its own does not.
  if ! bash -c "set -o errexit -o nounset -o pipefail; $(declare -f "check_$check"); check_$check"; then
    failed+=("$check")
  fi
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
