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

# The alerts by Prometheus' own tool: are they well formed, and do they fire when they should.
if ! command -v promtool >/dev/null; then
  echo "no promtool, so the alerts are not played (apt-get install prometheus)"
  exit
fi
rules=$(mktemp -d)
trap 'rm -rf "$rules"' EXIT
"$helm" template shoal "$chart" --show-only templates/monitoring.yaml --set metrics.alerts.create=true |
  sed -n '/^spec:$/,$ s/^  //p' >"$rules/alerts.yaml"
cp "$chart/tests/alerts.promtool.yaml" "$rules/"
promtool check rules "$rules/alerts.yaml"
promtool test rules "$rules/alerts.promtool.yaml"
