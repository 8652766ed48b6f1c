#!/bin/bash
# check.sh: shows that the cluster of up.sh works: images by a registry mirror, pods, services, DNS, logs, exec, volumes,
# in-cluster API access, CRDs, a Helm chart, a node's loss and return. Prints "N passed, N failed" at its end.
set -o nounset -o pipefail
. "$(dirname "$0")/lib.sh"
k() { "$SCRIPTS/shell.sh" kubectl "$@"; }
hub() { "$SCRIPTS/shell.sh" "$@"; }
pass=0 fail=0
# t WHAT CMD...: CMD must succeed. tm WHAT PATTERN CMD...: CMD's output must have PATTERN.
t()  { local w=$1 o; shift; if o=$("$@" 2>&1); then pass=$((pass + 1)); echo "ok    $w"; else fail=$((fail + 1)); echo "FAIL  $w: $o"; fi; }
tm() { local w=$1 p=$2 o; shift 2; o=$("$@" 2>&1); if grep -qE "$p" <<<"$o"; then pass=$((pass + 1)); echo "ok    $w: $(grep -oE -m1 "$p" <<<"$o" | head -1)"; else fail=$((fail + 1)); echo "FAIL  $w: $o"; fi; }
# until SECONDS CMD...: succeeds as soon as CMD does.
until_ok() { local end=$((SECONDS + $1)); shift; until "$@"; do ((SECONDS < end)) || return 1; sleep 0.3; done; }

tm "three nodes" "^$NODES$" bash -c "'$SCRIPTS/shell.sh' kubectl get nodes --no-headers | grep -cw Ready"
t "push an image" hub "$BIN/mkimage" -bin "$BIN/probe" -ref "$REGISTRY/test/probe:1" -push

k create namespace check --dry-run=client -o yaml | k apply -f - >/dev/null
k apply -f - >/dev/null <<'EOF'
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: check}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: check}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader, namespace: check}]
---
# As a registry mirror's agent does: on every node, in the node's network, with a folder of the node's.
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: check}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      initContainers:
      - name: mirror          # writes containerd's mirror configuration for registry.example.test
        image: registry.invalid/test/probe:1
        args: ["write", "/host/certs.d/registry.example.test/hosts.toml", "[host.\"http://10.77.0.1:5000\"]\n"]
        volumeMounts: [{name: certs, mountPath: /host/certs.d}]
      containers:
      - name: agent
        image: registry.invalid/test/probe:1     # a host that does not exist: only the mirror has it
        args: [":9000"]
        readinessProbe: {httpGet: {port: 9000}, periodSeconds: 1}
        volumeMounts: [{name: certs, mountPath: /host/certs.d}, {name: sock, mountPath: /host/containerd.sock}]
      volumes:
      - {name: certs, hostPath: {path: /etc/containerd/certs.d, type: DirectoryOrCreate}}
      - {name: sock, hostPath: {path: /run/containerd/containerd.sock, type: Socket}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: check}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: reader
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
      containers:
      - name: web
        image: registry.invalid/test/probe:1
        ports: [{containerPort: 8080, hostPort: 30080}]
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 200m, memory: 64Mi}}
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: check}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: check}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
EOF
t "DaemonSet (hostNetwork, hostPath) on every node" k -n check rollout status ds/agent --timeout=60s
t "Deployment spread over the nodes" k -n check rollout status deploy/web --timeout=60s
pod=$(k -n check get pod -l app=web -o jsonpath='{.items[0].metadata.name}')
ip=$(k -n check get pod "$pod" -o jsonpath='{.status.podIP}')
svc=$(k -n check get svc web -o jsonpath='{.spec.clusterIP}')
tm "containers run by containerd" "containerd://[0-9.]+" k get nodes -o wide
tm "pod address from the hub" "host=$pod remote=.*" hub curl -s -m 5 "http://$ip:8080/"
tm "kubectl logs" "probe on $pod listens.*" k -n check logs "$pod"
tm "kubectl exec" "nameserver $DNS_SVC_IP" k -n check exec "$pod" -- /probe cat /etc/resolv.conf
tm "API by the pod's token, through the service address" '"kind":"PodList"' hub curl -s -m 5 "http://$ip:8080/api/api/v1/namespaces/check/pods"
tm "and no more than its role lets it" '"code":403' bash -c "'$SCRIPTS/shell.sh' curl -s -m 5 http://$ip:8080/api/api/v1/nodes | tr -d ' '"
tm "DNS: service" "\[$svc\] <nil>" hub curl -s -m 5 "http://$ip:8080/dns?name=web.check.svc.cluster.local"
tm "DNS: headless service has three addresses" "\[[0-9.]+ [0-9.]+ [0-9.]+\] <nil>" hub curl -s -m 5 "http://$ip:8080/dns?name=headless"
tm "pod to service, by name" "host=web-.*" hub curl -s -m 5 "http://$ip:8080/get?url=http://web/"
tm "node (hostNetwork pod) to service" "host=web-.*" hub curl -s -m 5 "http://$(node_ip 1):9000/get?url=http://$svc/"
tm "NodePort" "host=web-.*" hub curl -s -m 5 "http://$(node_ip 2):30081/"
tm "hostPort" "host=web-.*" hub curl -s -m 5 "http://$(node_ip 2):30080/"
tm "hostPort on the node's loopback" "host=web-.*" "$SCRIPTS/node.sh" exec 2 curl -s -m 5 http://127.0.0.1:30080/
tm "hostPath: the DaemonSet's file is the node's" '\[host.*5000.*' "$SCRIPTS/node.sh" exec 3 cat /etc/containerd/certs.d/registry.example.test/hosts.toml
t "and is not the machine's" test ! -e /etc/containerd/certs.d/registry.example.test
k -n check run second --image=registry.example.test/test/probe:1 --restart=Never --dry-run=client -o yaml | k apply -f - >/dev/null
t "a pod pulled by that mirror" k -n check wait --for=condition=Ready pod/second --timeout=60s
tm "memory limit is in force" 67108864 bash -c "find /sys/fs/cgroup/memory/$PREFIX -name memory.limit_in_bytes -path '*pod*' | xargs cat"

k apply -f - >/dev/null <<'EOF'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.cluster.example}
spec:
  group: cluster.example
  names: {kind: Thing, plural: things}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}, x-kubernetes-validations: [{rule: "self.size > 0"}]}}}}
EOF
t "CRD" k wait --for=condition=Established crd/things.cluster.example --timeout=20s
tm "custom resource, checked by CEL" "spec: Invalid value: failed rule: self.size > 0" bash -c "echo '{\"apiVersion\":\"cluster.example/v1\",\"kind\":\"Thing\",\"metadata\":{\"name\":\"a\",\"namespace\":\"check\"},\"spec\":{\"size\":0}}' | '$SCRIPTS/shell.sh' kubectl apply -f -"

if [ -x "$BIN/helm" ]; then
  c=$RUN/check-chart; mkdir -p "$c/templates"
  printf 'apiVersion: v2\nname: check\nversion: 0.1.0\n' >"$c/Chart.yaml"
  echo 'greeting: none' >"$c/values.yaml"
  printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {greeting: {{ .Values.greeting }}}\n' >"$c/templates/cm.yaml"
  export HELM_CACHE_HOME=$RUN/helm HELM_CONFIG_HOME=$RUN/helm HELM_DATA_HOME=$RUN/helm
  tm "helm install" "STATUS: deployed" hub "$BIN/helm" -n check install rel "$c" --set greeting=hello --wait
  tm "its object" hello k -n check get cm rel -o 'jsonpath={.data.greeting}'
  t "helm upgrade" hub "$BIN/helm" -n check upgrade rel "$c" --set greeting=again
  t "helm uninstall" hub "$BIN/helm" -n check uninstall rel
fi

"$SCRIPTS/node.sh" stop 3
t "a node switched off is NotReady" until_ok 90 bash -c "'$SCRIPTS/shell.sh' kubectl get node node3 --no-headers | grep -qw NotReady"
"$SCRIPTS/node.sh" start 3
t "switched on it is Ready again" until_ok 60 bash -c "'$SCRIPTS/shell.sh' kubectl get node node3 --no-headers | grep -qw Ready"
t "and its pods run again" k -n check rollout status ds/agent --timeout=60s
t "a host port of it too" until_ok 60 bash -c "'$SCRIPTS/shell.sh' curl -sf -m 2 http://$(node_ip 3):30080/"

k delete namespace check --wait=false >/dev/null
k delete crd things.cluster.example --wait=false >/dev/null
echo "$pass passed, $fail failed"
[ "$fail" = 0 ]
