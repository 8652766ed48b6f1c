#!/usr/bin/env bash
# generate.sh: makes from api/v1alpha1 the deepcopy functions and the CRDs in api/crds, and from the +kubebuilder:rbac
# markers of operator/ the ClusterRole in api/rbac. The generator's version is that of hack/tools/go.mod.
# "generate.sh --verify" changes nothing and fails with a diff if what is committed is not what would be made.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."

out=api
if [ "${1:-}" = --verify ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
gen=$(mktemp -d)/controller-gen
go -C hack/tools build -o "$gen" sigs.k8s.io/controller-tools/cmd/controller-gen
"$gen" object paths=./api/v1alpha1 output:object:dir="$out/v1alpha1"
"$gen" crd:maxDescLen=600 paths=./api/v1alpha1 output:crd:dir="$out/crds"
# A quantity that people write has a rule with a sentence. The generator's regular expression would be told them instead.
sed -i '/^ *maxLength: 32$/{n;/^ *pattern: ^(\\+|-)?((\[0-9\]/d}' "$out"/crds/*.yaml
# Likewise a time that people write.
sed -i '/^ *format: date-time$/{N;s/.*\n\( *maxLength: 64\)$/\1/}' "$out"/crds/*.yaml
# The API server takes times that Go does not: 2026-12-31t00:00:00z, and offsets of 99 hours. One object with such a time
# would keep every list of its kind from being decoded.
time='^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$'
sed -i "s/^\( *\)format: date-time$/&\n\1pattern: $time/" "$out"/crds/*.yaml
# Likewise the generator's expression for quantities that programs write: 1e1.5 does not decode, and at 1e-999999999 Go
# computes a number of so many digits.
quantity='^[+-]?[0-9]{1,32}(\\.[0-9]{1,32})?([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$'
sed -i "s/^\( *pattern: \)^(\\\\+|-)?((\[0-9\].*/\1$quantity/" "$out"/crds/*.yaml
if [ -d operator/internal ]; then
  "$gen" rbac:roleName=shoal-operator paths=./operator/... output:rbac:dir="$out/rbac"
fi
rm -rf "$(dirname "$gen")"

if [ "$out" != api ]; then
  for f in v1alpha1/zz_generated.deepcopy.go crds rbac/role.yaml; do
    diff -ru "api/$f" "$out/$f" || { echo "api/$f is out of date: run hack/generate.sh and commit" >&2; exit 1; }
  done
fi
