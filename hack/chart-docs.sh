#!/bin/bash
# chart-docs.sh: makes what of the chart is made from other files: README.md from the comments in values.yaml, the copies of
# the API's resource definitions, roles and admission policies, and of values.schema.json the part that the definitions say.
# hack/verify.sh fails when they have drifted.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

chart=charts/shoal
rm -f $chart/crds/*.yaml
cp api/crds/*.yaml $chart/crds/
cp api/rbac/agent.yaml $chart/files/agent-role.yaml
cp api/rbac/role.yaml $chart/files/operator-role.yaml
cp api/admission/policy.yaml $chart/files/admission.yaml
cp api/admission/hub.yaml $chart/files/hub-admission.yaml

go run ./hack/chart-schema $chart
go tool -modfile=hack/tools/chart/go.mod helm-docs --chart-search-root $chart --sort-values-order file --log-level warning
