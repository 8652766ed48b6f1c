#!/usr/bin/env bash
# show.sh: the control plane as a user sees it. On a real API server, with the real operator and four real agents (shoal-node) on
# loopback, it creates policies and pins, loses a node, and prints kubectl's answers at each step.
#
#   test/operator/show.sh [-k]     -k keeps the working folder, with all logs
#
# Needs bin/shoal-node and bin/shoal-operator (make build), docker-registry (Debian), openssl, curl, and kube-apiserver, etcd and
# kubectl in $SHOAL_K8S_BIN (hack/cluster/build.sh makes them). No kubelet runs: the Node objects stand for machines.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/../.."

K8S=${SHOAL_K8S_BIN:-$HOME/.cache/shoal/cluster/bin}
AGENTS=(node-a1 node-a2 node-b1 node-c1) # the letter is the zone
WORK=$(mktemp -d)
KEEP=
[ "${1:-}" = -k ] && KEEP=1
declare -A PID=()

die() { echo "show.sh: $*" >&2; exit 1; }
for p in "$K8S"/{etcd,kube-apiserver,kubectl} bin/shoal-node bin/shoal-operator; do [ -x "$p" ] || die "$p is missing"; done

stop() { [ -z "${PID[$1]:-}" ] || { kill "${PID[$1]}" 2>/dev/null || true; wait "${PID[$1]}" 2>/dev/null || true; unset "PID[$1]"; }; }
finish() {
  local code=$?
  for name in "${!PID[@]}"; do [[ $name == shoal-* ]] && stop "$name"; done
  for name in "${!PID[@]}"; do stop "$name"; done
  if [ -n "$KEEP" ] || [ $code != 0 ]; then echo "logs are in $WORK"; else rm -rf "$WORK"; fi
}
trap finish EXIT
daemon() { local name=$1; shift; "$@" >"$WORK/$name.log" 2>&1 </dev/null & PID[$name]=$!; }
# until_ok SECONDS WHAT CMD...: repeats a command until it succeeds.
until_ok() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || die "not in time: $what"; sleep 0.3; done
}
free_ports() { # prints N ports that are free now
  local n=0 p
  while [ $n -lt "$1" ]; do
    p=$((20000 + RANDOM % 12000))
    ! (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null && { echo $p; n=$((n + 1)); }
  done
}
k() { "$K8S/kubectl" --kubeconfig "$WORK/admin.kubeconfig" "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
see() { printf '$ kubectl %s\n' "$*"; k "$@"; }
kubeconfig() { # FILE TOKEN
  cat >"$1" <<EOF
{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "https://127.0.0.1:$API", insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: "$2"}}]}
EOF
}

mapfile -t PORTS < <(free_ports $((5 + 3 * ${#AGENTS[@]})))
ETCD=${PORTS[0]} PEER=${PORTS[1]} API=${PORTS[2]} REGISTRY=127.0.0.1:${PORTS[3]}

# --- control plane and registry ---
openssl genrsa -out "$WORK/sa.key" 2048 2>/dev/null
openssl rsa -in "$WORK/sa.key" -pubout -out "$WORK/sa.pub" 2>/dev/null
echo 'show-admin,admin,admin,"system:masters"' >"$WORK/tokens.csv"
daemon etcd "$K8S/etcd" --data-dir "$WORK/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$ETCD" --advertise-client-urls "http://127.0.0.1:$ETCD" \
  --listen-peer-urls "http://127.0.0.1:$PEER" --initial-advertise-peer-urls "http://127.0.0.1:$PEER" --initial-cluster "default=http://127.0.0.1:$PEER"
daemon apiserver "$K8S/kube-apiserver" --etcd-servers "http://127.0.0.1:$ETCD" --cert-dir "$WORK/certs" --bind-address 127.0.0.1 --secure-port "$API" \
  --authorization-mode RBAC --token-auth-file "$WORK/tokens.csv" --service-account-issuer https://shoal.test --service-account-key-file "$WORK/sa.pub" \
  --service-account-signing-key-file "$WORK/sa.key" --service-cluster-ip-range 10.96.0.0/24 --disable-admission-plugins ServiceAccount
kubeconfig "$WORK/admin.kubeconfig" show-admin
cat >"$WORK/registry.yml" <<EOF
{version: 0.1, log: {level: warn}, storage: {filesystem: {rootdirectory: $WORK/registry}}, http: {addr: "$REGISTRY"}}
EOF
daemon registry docker-registry serve "$WORK/registry.yml"
until_ok 90 "the API server" k get --raw /readyz
until_ok 30 "the registry" curl -sf "http://$REGISTRY/v2/"

push_blob() { # REPOSITORY FILE: prints the digest
  local d location
  d=sha256:$(sha256sum "$2" | cut -d' ' -f1)
  location=$(curl -sf -D - -o /dev/null -X POST "http://$REGISTRY/v2/$1/blobs/uploads/" | tr -d '\r' | awk 'tolower($1) == "location:" { print $2 }')
  case $location in /*) location=http://$REGISTRY$location ;; esac
  curl -sf -o /dev/null -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$2" "$location&digest=$d"
  echo "$d"
}
push_image() { # REPOSITORY TAG MIB
  head -c $(($3 << 20)) /dev/urandom >"$WORK/layer"
  printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(sha256sum "$WORK/layer" | cut -d' ' -f1)" >"$WORK/config"
  local layer config
  layer=$(push_blob "$1" "$WORK/layer") config=$(push_blob "$1" "$WORK/config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%s","size":%d}]}' \
    "$config" "$(stat -c %s "$WORK/config")" "$layer" "$(stat -c %s "$WORK/layer")" >"$WORK/manifest"
  curl -sf -o /dev/null -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$WORK/manifest" "http://$REGISTRY/v2/$1/manifests/$2"
}
push_image team/app 1.0 8
push_image team/base 1 4

# --- what the chart installs ---
k create namespace shoal-system >/dev/null
until_ok 30 "namespace" k -n shoal-system get namespace shoal-system
for who in agent operator; do
  k -n shoal-system create serviceaccount "shoal-$who" >/dev/null
  k create clusterrolebinding "shoal-$who" --clusterrole "shoal-$who" --serviceaccount "shoal-system:shoal-$who" >/dev/null
done
k -n shoal-system create rolebinding shoal-operator --role shoal-operator --serviceaccount shoal-system:shoal-operator >/dev/null
k apply -f api/crds -f api/rbac -f api/admission >/dev/null
k wait --for condition=established --timeout 30s -f api/crds >/dev/null
until_ok 30 "the Swarm" k apply -f - <<<'{apiVersion: shoal.dev/v1alpha1, kind: Swarm, metadata: {name: default}}'

operator_token=$(k -n shoal-system create token shoal-operator --duration 2h)
kubeconfig "$WORK/operator.kubeconfig" "$operator_token"
echo 'allowAddresses: [127.0.0.0/8]' >"$WORK/operator.yaml"    # where the registry of this show is
daemon shoal-operator env KUBECONFIG="$WORK/operator.kubeconfig" bin/shoal-operator --config "$WORK/operator.yaml" --metrics-bind-address 0 --health-probe-bind-address 0

# --- four machines, each with its agent and a token that the API server bound to a pod on it ---
ready() { # NODE STATUS
  k patch node "$1" --subresource=status --type merge -p "{\"status\":{\"conditions\":[{\"type\":\"Ready\",\"status\":\"$2\",\"reason\":\"Show\",\"lastTransitionTime\":\"$(date -u +%FT%TZ)\"}]}}" >/dev/null
}
i=5
for node in "${AGENTS[@]}"; do
  zone=zone-${node:5:1}
  k apply -f - >/dev/null <<EOF
{apiVersion: v1, kind: Node, metadata: {name: $node, labels: {topology.kubernetes.io/zone: $zone, kubernetes.io/os: linux, kubernetes.io/arch: amd64, kubernetes.io/hostname: $node}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent-$node, namespace: shoal-system},
 spec: {nodeName: $node, serviceAccountName: shoal-agent, containers: [{name: agent, image: shoal}], tolerations: [{operator: Exists}]}}
EOF
  ready "$node" True
  kubeconfig "$WORK/$node.kubeconfig" "$(k -n shoal-system create token shoal-agent --duration 2h --bound-object-kind Pod --bound-object-name "agent-$node")"
  daemon "shoal-$node" bin/shoal-node --registry-listen "127.0.0.1:${PORTS[i]}" --admin-listen "127.0.0.1:${PORTS[i + 1]}" \
    --swarm-listen "/ip4/127.0.0.1/tcp/${PORTS[i + 2]}" --swarm-zone "$zone" --swarm-admission Kubernetes --store-path "$WORK/$node" --store-min-free 64MiB \
    --upstream-allow-addresses 127.0.0.0/8 \
    --kubernetes-enabled --kubernetes-node-name "$node" --kubernetes-kubeconfig "$WORK/$node.kubeconfig"
  i=$((i + 3))
done

say "Four agents have registered; the operator has admitted them and published where to start"
is() { [ "$(k "${@:2}")" = "$1" ]; } # VALUE GET...: whether kubectl prints just that
until_ok 60 "four members" is 4 get swarm default -o 'jsonpath={.status.members}'
see get swarm
see get peers

say "A policy for all nodes, another for one zone, and a third that contradicts the first"
k apply -f - <<EOF
{apiVersion: shoal.dev/v1alpha1, kind: CachePolicy, metadata: {name: everywhere}, spec: {storage: {capacity: 256Mi}, rules: [{match: ["$REGISTRY/**"], tagTTL: 10s}]}}
---
{apiVersion: shoal.dev/v1alpha1, kind: CachePolicy, metadata: {name: zone-a}, spec: {priority: 10, nodeSelector: {matchLabels: {topology.kubernetes.io/zone: zone-a}}, bandwidth: {upload: 100Mi}}}
---
{apiVersion: shoal.dev/v1alpha1, kind: CachePolicy, metadata: {name: mistake}, spec: {storage: {capacity: 1Gi}}}
EOF
until_ok 30 "the conflict" is True get cachepolicy mistake -o 'jsonpath={.status.conditions[?(@.type=="Conflicting")].status}'
see get cachepolicies
see get cachepolicy mistake -o 'jsonpath={.status.conditions[?(@.type=="Conflicting")].message}{"\n"}'
k delete cachepolicy mistake
until_ok 90 "agents run with the policies" is 4 get cachepolicy everywhere -o 'jsonpath={.status.appliedNodes}'
see get cachepolicies

say "What can't be right is refused, and says why"
printf '$ kubectl apply -f wrong-pin.yaml\n'
k apply -f - <<EOF 2>&1 && die "it was taken" || true
{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: wrong, namespace: default},
 spec: {artifacts: [{image: "https://$REGISTRY/team/app:1.0"}], replicas: 120%, resolve: {policy: Once, interval: 1h}}}
EOF

say "Two copies of an image in two zones, and another on every node"
k apply -f - <<EOF
{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: app, namespace: default},
 spec: {artifacts: [{image: "$REGISTRY/team/app:1.0"}], replicas: 2, minReplicas: 2, repairDelay: 10s, spread: {topologyKey: topology.kubernetes.io/zone, minDomains: 2}}}
---
{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: base, namespace: default}, spec: {artifacts: [{image: "$REGISTRY/team/base:1"}], replicas: All}}
---
{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: typo, namespace: default}, spec: {artifacts: [{image: "$REGISTRY/team/app:no-such"}]}}
EOF
until_ok 120 "two copies" is AllReady get pin app -o 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'
until_ok 120 "a copy on every node" is AllReady get pin base -o 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'
see get pins
see get pins -o wide
see get nodecaches

holders() { k get nodecaches -o jsonpath='{range .items[*]}{.metadata.name}{" "}{.spec.pins[*].name}{"\n"}{end}' | awk '/ app( |$)/ { print $1 }'; }
lost=$(holders | head -1)
say "$lost, which holds a copy of app, is lost: machine and agent"
stop "shoal-$lost"
ready "$lost" Unknown
until_ok 60 "the loss shows" is True get pin app -o 'jsonpath={.status.conditions[?(@.type=="Degraded")].status}'
see get pins
echo "… and after the repair delay of 10 s another node has taken over:"
until_ok 120 "the repair" is False get pin app -o 'jsonpath={.status.conditions[?(@.type=="Degraded")].status}'
see get pins
echo "nodes that keep app now: $(holders | tr '\n' ' ')"

say "Its Node is deleted: the peer is retired, everyone drops it"
k delete node "$lost"
until_ok 60 "not admitted" is false get peer "$lost" -o 'jsonpath={.status.admitted}'
see get peers
until_ok 90 "retired" is 3/3 get swarm default -o 'jsonpath={.status.members}/{.status.registered}'
until_ok 90 "no Peer" is "" get peers -o "jsonpath={.items[?(@.metadata.name==\"$lost\")].metadata.name}"
see get swarm

say "The tag moves upstream, and the pin follows when its spec asks again"
push_image team/app 1.0 8
k patch pin app --type merge -p '{"spec":{"priority":5}}'
until_ok 120 "the new digest everywhere" is 2/2/AllReady get pin app -o 'jsonpath={.status.resolvedGeneration}/{.status.observedGeneration}/{.status.conditions[?(@.type=="Ready")].reason}'
see get pin app -o wide
see describe pin app

say "When a pin with deletionPolicy Purge goes, the nodes remove its copies"
k patch pin base --type merge -p '{"spec":{"deletionPolicy":"Purge"}}'
until_ok 60 "the order for when it is gone" is Purge get nodecaches -o 'jsonpath={.items[0].spec.pins[?(@.name=="base")].deletionPolicy}'
see delete pin base --timeout 120s
see get pins
see get nodecaches

say "What the agents that are left wrote to the API server, in ${SECONDS} s"
i=5
for node in "${AGENTS[@]}"; do
  [ "$node" = "$lost" ] || curl -sf "http://127.0.0.1:${PORTS[i + 1]}/metrics" | sed -n "s/^shoal_agent_api_writes_total/$node: &/p"
  i=$((i + 3))
done

say "What happened, as events"
see get events.events.k8s.io -A --sort-by=.metadata.creationTimestamp -o custom-columns=KIND:.regarding.kind,NAME:.regarding.name,REASON:.reason,NOTE:.note
