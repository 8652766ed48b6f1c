package plugin

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/shoal-cache/shoal/operator/internal/survey"
)

func TestRedact_TakesOutWhatLooksLikeACredential(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"Authorization: Bearer hunter2hunter2",
		"Authorization: Bearer hunter2",
		"authorization=Basic aHVudGVyMg==hunter2",
		`level=INFO msg=asked Authorization="Bearer hunter2 x"`,
		"map[Accept:[*/*] Authorization:[Bearer hunter2hunter2]]",
		"map[Accept:[*/*] Authorization:[Basic hunter2]]",
		`{"Authorization":["Basic hunter2="]}`,
		`{"msg":"{\"Authorization\":\"Bearer hunter2hunter2\"}"}`,
		"Proxy-Authorization: hunter2", "Cookie: session=hunter2", "X-Registry-Auth: hunter2",
		"https://user:hunter2@registry.example/v2/",
		"https://hunter2@registry.example/v2/",
		"https://user:hunter2/hunter2@registry.example/v2/",
		"https://user:p@hunter2@registry.example/v2/",
		`"HTTPS_PROXY=http://user:hunter2@proxy:3128"`,
		"scope=https%3A%2F%2Fuser%3Ahunter2%40registry.example",
		"https://s3.example/a?X-Amz-Signature=hunter2&x=1",
		`https://s3.example/a?x=1\u0026X-Amz-Signature=hunter2\u0026y=2`,
		"https://storage.googleapis.com/a?X-Goog-Credential=hunter2",
		"GET https://blob.example/x?sv=1&sig=hunter2%3D",
		"https://auth.example/token?refresh_token=hunter2&service=x",
		`{"password":"hunter2"}`, `{"password":"a b hunter2, with \"all\" hunter2"}`, `{"password":"h, hunter2"}`,
		`{"msg":"{\"password\":\"hunter2\"}"}`,
		`"auth": "hunter2"`, "identitytoken=hunter2", "token: hunter2", "  - password: hunter2 hunter2",
		"with password: hunter2", "clientSecret: 'hunter2 hunter2'", "HF_TOKEN=hunter2", "AWS_SECRET_ACCESS_KEY=hunter2",
		"api_key=hunter2", `"apiKey": "hunter2"`, "password=hunter2,",
		`Authorization: Digest username="u", response="hunter2"`, "Cookie: a=b; sid=hunter2",
		"password: |\n  hunter2\nnext: 1", "LS0tLS1CRUdJTihunter2hunter2hunter2",
		"hf_hunter2hunter2hunter2", "ghp_hunter2hunter2hunter2", "eyJhbGciOiJIUzI1NiJ9.hunter2.hunter2",
		`.dockerconfigjson: hunter2`, `".dockerconfigjson":"hunter2"`,
		"-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----",
		"-----BEGIN PRIVATE KEY-----\nhunter2", // the log was cut off
		"curl -su user:hunter2 https://registry.example", "docker login -u user -p hunter2 registry.example",
		"curl -u user:hunter2 https://registry.example", "--password hunter2", "--auth-token hunter2",
		"machine registry.example login user password hunter2", "X-Api-Key:hunter2", "pwd=hunter2", "secretKey: hunter2",
		"AccountName=a;AccountKey=hunter2==;EndpointSuffix=x", "{SecretAccessKey:hunter2}", "secret_key=hunter2",
		"npm_hunter2hunter2hunter2", "sk-proj-hunter2hunter2hunter2", "AIzaSyhunter2hunter2hunter2hunter2hunter2",
		"ya29.hunter2hunter2hunter2", "hvs.hunter2hunter2hunter2", "nvapi-hunter2hunter2hunter2",
		"pypi-hunter2hunter2hunter2", "gldt-hunter2hunter2hunter2", "api_org_hunter2hunter2hunter2",
		"AKCphunter2hunter2hunter2", "sk-or-v1-hunter2hunter2hunter2",
		"Authorization: ApiKey hunter2", "X-JFrog-Art-Api: hunter2", "password = hunter2", `:password=>"hunter2"`,
		"  password : hunter2", "user:hunter2@registry.example", "//user:hunter2@10.0.0.1:5000/v2",
		`https:\/\/user:hunter2@registry.example`, "https://s3.example/?x-oss-signature=hunter2",
		"https://x/?jwt=hunter2",
		"skopeo copy --src-creds user:hunter2 a b", "ctr images pull --user=user:hunter2 a", "DB_PASS=hunter2",
		"signing-key: hunter2", "client-key-data: hunter2",
		"-----BEGIN PGP PRIVATE KEY BLOCK-----\nhunter2\n-----END PGP PRIVATE KEY BLOCK-----",
	} {
		require.NotContains(t, string(redact([]byte(text))), "hunter2", text)
	}
}

func TestRedact_LeavesTheRest(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"pulled image=docker.io/library/redis:7 took=2s", "sha256:0123456789",
		`{"peerID":"12D3KooW"}`,
		"GET https://registry.example:5000/v2/a/b@sha256:0123: 404",
		"docker://registry.example/a/b@sha256:0123", "image redis:7@sha256:0123 is here", "redis:7@sha256:0123",
		"agent@node1", "12:30:45 node@home",
		"authorization:\n  mode: Exempt",
		`{"authorization":{"mode":"Exempt"}}`,
		"automountServiceAccountToken: false",
		"ask the registry for a token: 401 Unauthorized",
		`Www-Authenticate: Bearer realm="https://auth.example/token",service="registry"`,
		"pullSecrets:\n- name: login", "kubectl shoal pin redis:7 --pull-secret login", "login failed -p", "task-1-risk-x",
		"global-registry-mirror-1", "gloo-mirror-eu-central-1", "sk-bratislava-worker-node-01",
		"https://auth.example/token?scope=repository:library/redis:pull&service=registry.docker.io",
		"/ip4/10.0.0.1/tcp/5052/p2p/12D3KooW",
	} {
		require.Equal(t, text, string(redact([]byte(text))))
	}
}

func TestReport_ShowsOfTheEnvironmentWhatIsKnown(t *testing.T) {
	t.Parallel()
	spec := corev1.PodSpec{Containers: []corev1.Container{{Env: []corev1.EnvVar{
		{Name: "MY_PAT", Value: "hunter2"}, {Name: "OTEL_EXPORTER_OTLP_HEADERS", Value: "x-key hunter2"},
		{Name: "GOMEMLIMIT", Value: "460MiB"}, {Name: "https_proxy", Value: "http://proxy:3128"},
		{Name: "HTTPS_PROXY", Value: "user:hunter2@proxy:3128"}, {Name: "http_proxy", Value: "http://u:p@ss@proxy:3128"},
		{Name: "NODE_IP", ValueFrom: &corev1.EnvVarSource{}},
	}}}}
	withoutSecrets(&spec)
	values := map[string]string{}
	for _, v := range spec.Containers[0].Env {
		values[v.Name] = v.Value
	}
	require.Equal(t, map[string]string{"MY_PAT": removed, "OTEL_EXPORTER_OTLP_HEADERS": removed,
		"GOMEMLIMIT": "460MiB", "https_proxy": "http://proxy:3128", "HTTPS_PROXY": removed + "@proxy:3128",
		"http_proxy": "http://" + removed + "@proxy:3128", "NODE_IP": ""}, values)
}

// A kubelet that answers late must not be waited for once for each node.
func TestReport_ReadsTheLogsOfManyNodesAtOnce(t *testing.T) {
	t.Parallel()
	const nodes = 8
	var all sync.WaitGroup
	all.Add(nodes)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("previous") == "true" {
			http.Error(w, "none", http.StatusNotFound)
			return
		}
		all.Done()
		all.Wait()
		_, _ = w.Write([]byte("log of " + strings.Split(r.URL.Path, "/")[6]))
	}))
	defer server.Close()
	core, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	require.NoError(t, err)
	c := &survey.Cluster{}
	for i := range nodes {
		pod := corev1.Pod{}
		pod.Namespace, pod.Name, pod.Spec.NodeName = "shoal-system", fmt.Sprint("pod", i), fmt.Sprint("node", i)
		pod.Spec.Containers = []corev1.Container{{Name: "agent"}}
		c.Agents = append(c.Agents, pod)
	}
	var text bytes.Buffer
	a := &archive{tar: tar.NewWriter(&text)}
	(&plugin{api: fake.NewClientBuilder().Build(), tolerance: time.Minute}).addSystem(t.Context(), a, core, c)
	require.NoError(t, a.err)
	for i := range nodes {
		require.Contains(t, text.String(), fmt.Sprintf("logs/node%d-agent.log", i))
		require.Contains(t, text.String(), fmt.Sprint("log of pod", i))
	}
}
