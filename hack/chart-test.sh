#!/bin/bash
# chart-test.sh: lints the chart with each of its ci/ values and runs its unit tests. The end-to-end suite does the rest:
# it has a real API server check every variant.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
chart=charts/shoal

# Helm as the cluster has it, built here where that is not.
helm=$(. hack/cluster/lib.sh; echo "$BIN/helm")
[ -x "$helm" ] || { helm=$PWD/bin/helm; go build -C hack/cluster/tools -o "$helm" helm.sh/helm/v4/cmd/helm; }

for values in "$chart"/ci/*-values.yaml; do
  "$helm" lint --strict --quiet "$chart" --values "$values"
done
go tool -modfile=hack/tools/chart/go.mod helm-unittest "$chart"
