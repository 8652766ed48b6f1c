#!/bin/bash
# chart-docs.sh: makes what of the chart is made from other files: README.md from the comments in values.yaml, and the
# copies of the API's resource definitions, roles and admission policy. hack/verify.sh fails when they have drifted.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

chart=charts/shoal
rm -f $chart/crds/*.yaml
cp api/crds/*.yaml $chart/crds/
cp api/rbac/agent.yaml $chart/files/agent-role.yaml
cp api/rbac/role.yaml $chart/files/operator-role.yaml
cp api/rbac/release.yaml $chart/files/release-role.yaml
cp api/admission/policy.yaml $chart/files/admission.yaml

go tool -modfile=hack/tools/chart/go.mod helm-docs --chart-search-root $chart --sort-values-order file --log-level warning
