# shellcheck shell=bash
# Makes the cluster's certificates and kubeconfigs in $PKI (sourced by up.sh). Each is made once.

# cert NAME SUBJECT [SAN]: a key and a certificate signed by the cluster's CA, for both server and client use.
cert() {
  local n=$PKI/$1
  [ -s "$n.crt" ] && return 0
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$n.key" -subj "$2" -out "$n.csr" 2>/dev/null
  openssl x509 -req -in "$n.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -set_serial "0x$(openssl rand -hex 8)" -days 3650 \
    -extfile <(printf 'keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}") \
    -out "$n.crt" 2>/dev/null
  rm -f "$n.csr"
}

# kubeconfig NAME: a kubeconfig with NAME's certificate inside (so that the file alone can be handed around).
kubeconfig() {
  [ -s "$PKI/$1.kubeconfig" ] && return 0
  cat >"$PKI/$1.kubeconfig" <<EOF
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$HUB_IP:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: u, user: {client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key")}}]
contexts: [{name: d, context: {cluster: c, user: u}}]
current-context: d
EOF
  chmod 600 "$PKI/$1.kubeconfig"
}

make_pki() {
  local i n
  mkdir -p "$PKI"; chmod 700 "$PKI"
  if [ ! -s "$PKI/ca.crt" ]; then
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$PKI/ca.key" \
      -subj /CN=cluster-ca -days 3650 -out "$PKI/ca.crt" 2>/dev/null
    openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null      # signs ServiceAccount tokens
    openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  fi
  cert apiserver /CN=kube-apiserver \
    "IP:$HUB_IP,IP:127.0.0.1,IP:$API_SVC_IP,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  cert apiserver-kubelet /O=system:masters/CN=apiserver-kubelet    # apiserver -> kubelet: logs, exec
  cert front-proxy /CN=front-proxy                                 # apiserver -> aggregated APIs
  cert admin /O=system:masters/CN=admin;                        kubeconfig admin
  cert controller-manager /CN=system:kube-controller-manager;                  kubeconfig controller-manager
  cert scheduler /CN=system:kube-scheduler;                     kubeconfig scheduler
  cert proxy /CN=system:kube-proxy;                             kubeconfig proxy
  cert dns /CN=cluster-dns;                                          kubeconfig dns
  for ((i = 1; i <= NODES; i++)); do
    n=$(node_name "$i")
    cert "$n" "/O=system:nodes/CN=system:node:$n" "IP:$(node_ip "$i"),DNS:$n"; kubeconfig "$n"
  done
}
