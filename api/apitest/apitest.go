// Package apitest runs a real kube-apiserver and etcd on loopback for tests, with the CRDs, the admission policy and
// the roles of this project, and hands out clients: the administrator's, and those of agents whose tokens the API
// server itself bound to a pod on a node.
package apitest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Names that the admission policy and the roles go by.
const (
	Namespace              = "shoal-system"
	AgentServiceAccount    = "shoal-agent"
	OperatorServiceAccount = "shoal-operator"
)

// BinDirEnv names the variable with the folder that holds kube-apiserver and etcd. The default is where
// hack/cluster/build.sh puts them.
const BinDirEnv = "SHOAL_K8S_BIN"

// Cluster is a control plane without nodes of its own: tests make the Node objects.
type Cluster struct {
	// Config is the administrator's.
	Config *rest.Config
	// Client is the administrator's, uncached.
	Client client.Client
	// Scheme knows Kubernetes' own kinds and this project's.
	Scheme *kruntime.Scheme

	env *envtest.Environment
}

// Main runs a package's tests against one control plane, which setup receives. Where the programs are missing it says
// so and runs the tests with a nil Cluster; Require then skips them.
func Main(m *testing.M, set func(*Cluster)) {
	dir := binDir()
	if _, err := os.Stat(filepath.Join(dir, "kube-apiserver")); err != nil {
		fmt.Fprintf(os.Stderr, "SKIP: no kube-apiserver in %s: run hack/cluster/build.sh or set %s\n", dir, BinDirEnv)
		os.Exit(m.Run())
	}
	c, err := Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "start control plane:", err)
		os.Exit(1)
	}
	set(c)
	code := m.Run()
	if err := c.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop control plane:", err)
	}
	os.Exit(code)
}

// Require skips the test when there is no control plane.
func Require(t testing.TB, c *Cluster) *Cluster {
	t.Helper()
	if c == nil {
		t.Skipf("needs kube-apiserver and etcd: run hack/cluster/build.sh or set %s", BinDirEnv)
	}
	return c
}

func binDir() string {
	if d := os.Getenv(BinDirEnv); d != "" {
		return d
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "shoal", "cluster", "bin")
}

// APIDir is the folder api of the repository whose tests run: they run in a folder below its go.mod. A build with
// -trimpath knows no paths of sources.
func APIDir() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "api")
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			panic("apitest: no go.mod above the working directory")
		}
		dir = parent
	}
}

// Start runs etcd and kube-apiserver and loads CRDs, admission policy and roles.
func Start() (*Cluster, error) {
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		Scheme:                   scheme,
		BinaryAssetsDirectory:    binDir(),
		CRDDirectoryPaths:        []string{filepath.Join(APIDir(), "crds")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: 90 * time.Second,
		ControlPlaneStopTimeout:  30 * time.Second,
	}
	config, err := env.Start()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd and kube-apiserver from %s: %w", env.BinaryAssetsDirectory, err),
			env.Stop())
	}
	config.QPS, config.Burst = -1, -1 // tests are not to wait for themselves
	c := &Cluster{Config: config, Scheme: scheme, env: env}
	if err := c.load(); err != nil {
		return nil, errors.Join(err, env.Stop())
	}
	return c, nil
}

// Stop ends both programs and removes their data.
func (c *Cluster) Stop() error { return c.env.Stop() }

// PauseAPIServer stops kube-apiserver where it stands, and returns what lets it go on. In between it accepts
// connections and answers nothing, which is the worst that an API server can do to its clients.
func (c *Cluster) PauseAPIServer() (resume func() error, err error) {
	var pids []string
	all, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, fmt.Errorf("find kube-apiserver: %w", err)
	}
	for _, path := range all {
		if children, err := os.ReadFile(path); err == nil {
			pids = append(pids, strings.Fields(string(children))...)
		}
	}
	for _, s := range pids {
		command, err := os.ReadFile("/proc/" + s + "/cmdline")
		pid, convErr := strconv.Atoi(s)
		if err != nil || convErr != nil ||
			!strings.Contains(strings.Split(string(command), "\x00")[0], "kube-apiserver") {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return nil, fmt.Errorf("pause kube-apiserver: %w", err)
		}
		return func() error { return syscall.Kill(pid, syscall.SIGCONT) }, nil
	}
	return nil, errors.New("pause kube-apiserver: it is no child of this process")
}

// Kubeconfig is an administrator's kubeconfig.
func (c *Cluster) Kubeconfig() []byte { return c.env.KubeConfig }

func (c *Cluster) load() error {
	var err error
	if c.Client, err = client.New(c.Config, client.Options{Scheme: c.Scheme}); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}
	if err := c.Client.Create(ctx, ns); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	for _, name := range []string{AgentServiceAccount, OperatorServiceAccount} {
		sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace}}
		if err := c.Client.Create(ctx, sa); err != nil {
			return fmt.Errorf("service account: %w", err)
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: Namespace}},
		}
		if err := c.Client.Create(ctx, binding); err != nil {
			return fmt.Errorf("cluster role binding: %w", err)
		}
	}
	lease := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: OperatorServiceAccount, Namespace: Namespace},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: OperatorServiceAccount},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: OperatorServiceAccount, Namespace: Namespace}},
	}
	if err := c.Client.Create(ctx, lease); err != nil {
		return fmt.Errorf("role binding: %w", err)
	}
	for _, path := range []string{"rbac/agent.yaml", "rbac/role.yaml", "admission/policy.yaml"} {
		if err := c.Apply(ctx, filepath.Join(APIDir(), path)); err != nil {
			return err
		}
	}
	return c.awaitAdmissionPolicy(ctx)
}

// Apply creates every object of a YAML file.
func (c *Cluster) Apply(ctx context.Context, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
		var u unstructured.Unstructured
		if err := utilyaml.Unmarshal(doc, &u.Object); err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
		if len(u.Object) == 0 {
			continue
		}
		if err := c.Client.Create(ctx, &u); err != nil {
			return fmt.Errorf("apply %s: %s %s: %w", path, u.GetKind(), u.GetName(), err)
		}
	}
}

// awaitAdmissionPolicy waits until the API server enforces the policy, which it does some time after it has taken it.
func (c *Cluster) awaitAdmissionPolicy(ctx context.Context) error {
	hostile, err := client.New(c.Impersonate("hostile", AgentServiceAccount), client.Options{Scheme: c.Scheme})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	probe := NewPeer("admission-probe", "12D3KooWBhSnGQkzYtGRVRGdQFDwNxQvXyqHLSSrkMfTwRjgDYaK")
	for {
		err := hostile.Create(ctx, probe.DeepCopy(), client.DryRunAll)
		if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "shoal-own-node") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("admission policy is not enforced: %w (last answer: %w)", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// NewPeer is a well-formed Peer without a valid proof.
func NewPeer(node, peerID string) *v1alpha1.Peer {
	return &v1alpha1.Peer{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec: v1alpha1.PeerSpec{
			NodeName: node, PeerID: peerID, Addresses: []string{"/ip4/127.0.0.1/tcp/4001"},
			Proof: bytes.Repeat([]byte{1}, 64),
		},
	}
}

// Impersonate is a config that acts as a service account of Namespace with a token bound to a node, or to none if node
// is empty: quick to make many of. AgentConfig has a real token.
func (c *Cluster) Impersonate(node, serviceAccount string) *rest.Config {
	config := rest.CopyConfig(c.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + Namespace + ":" + serviceAccount,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + Namespace, "system:authenticated"},
	}
	if node != "" {
		config.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	return config
}

// AgentConfig is the config of an agent on a node: its token is the API server's own, bound to a pod on that node. The
// Node must exist.
func (c *Cluster) AgentConfig(ctx context.Context, node string) (*rest.Config, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "agent-", Namespace: Namespace},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: AgentServiceAccount,
			Containers: []corev1.Container{{Name: "agent", Image: "shoal"}},
		},
	}
	if err := c.Client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("agent pod on %s: %w", node, err)
	}
	expires := int64(24 * 3600)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &expires,
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name,
			UID: pod.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: AgentServiceAccount, Namespace: Namespace}}
	if err := c.Client.SubResource("token").Create(ctx, account, token); err != nil {
		return nil, fmt.Errorf("token for the agent on %s: %w", node, err)
	}
	config := rest.AnonymousClientConfig(c.Config)
	config.BearerToken = token.Status.Token
	config.QPS, config.Burst = -1, -1
	return config, nil
}

// AgentClient is an uncached client with AgentConfig.
func (c *Cluster) AgentClient(t testing.TB, node string) client.Client {
	t.Helper()
	config, err := c.AgentConfig(t.Context(), node)
	require.NoError(t, err)
	return c.ClientFor(t, config)
}

// ClientFor is an uncached client with a config.
func (c *Cluster) ClientFor(t testing.TB, config *rest.Config) client.Client {
	t.Helper()
	made, err := client.New(config, client.Options{Scheme: c.Scheme})
	require.NoError(t, err)
	return made
}
