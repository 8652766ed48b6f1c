package survey

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/hack/ports"
)

// programEnv names the variable that holds the path of a program of shoal-node, whose agents faults are planted in.
const programEnv = "SHOAL_NODE"

// realAgents are processes of shoal-node, each on a node of its own with a fault that was planted there.
type realAgents struct {
	t       *testing.T
	program string
	admin   map[string]string // address, by the node
	front   map[string]string // the same of the registry front
	running map[string]*exec.Cmd
}

// Open gives the agent's own address: port-forwards are Kubernetes' business.
func (r *realAgents) Open(_ context.Context, pod *corev1.Pod, _ string) (*view.Client, func(), error) {
	transport := &http.Transport{}
	return &view.Client{HTTP: &http.Client{Transport: transport}, Base: "http://" + r.admin[pod.Spec.NodeName]},
		transport.CloseIdleConnections, nil
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := ports.Loopback(t.Context(), 1)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", free[0])
}

// start starts an agent that joins another, with further lines of configuration.
func (r *realAgents) start(node, joins, more string) {
	t := r.t
	t.Helper()
	dir := t.TempDir()
	r.admin[node] = freeAddress(t)
	if r.front[node] == "" {
		r.front[node] = freeAddress(t)
	}
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
registry: {listen: %q}
admin: {listen: %q}
swarm: {listen: [/ip4/127.0.0.1/tcp/0], admission: Open, bootstrap: [%s]}
log: {level: error}
%s`, r.front[node], r.admin[node], joins, strings.ReplaceAll(more, "DIR", dir)), 0o600))
	cmd := exec.CommandContext(t.Context(), r.program, "--config", file)
	if !strings.Contains(more, "store:") {
		cmd.Args = append(cmd.Args, "--store-path", filepath.Join(dir, "store"), "--store-min-free", "0")
	}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Start())
	r.running[node] = cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// addressOf is where others join an agent.
func (r *realAgents) addressOf(node string) (address, peerID string) {
	var v view.Node
	require.Eventually(r.t, func() bool {
		var err error
		v, err = view.Get[view.Node](r.t.Context(), &view.Client{Base: "http://" + r.admin[node]}, view.NodePath, nil)
		return err == nil
	}, time.Minute, 20*time.Millisecond)
	return v.Addresses[0], v.PeerID
}

// mirrored is a node whose containerd has such a configuration, with the mirror installed, and what tells its agent of
// it.
func (r *realAgents) mirrored(node, containerd string, after func(root string)) string {
	t := r.t
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc/containerd"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/containerd/config.toml"), []byte(containerd), 0o600))
	state := filepath.Join(root, "state")
	r.front[node] = freeAddress(t) // what the mirror leads to
	install := exec.CommandContext(t.Context(), r.program, "mirror", "install", "--root", root, "--state-dir", state,
		"--runtime-version", "2.0.0", "--endpoint", "http://"+r.front[node])
	if out, err := install.CombinedOutput(); err != nil {
		t.Logf("mirror install: %v: %s", err, out) // it says what it finds amiss, and ends with 1
	}
	if after != nil {
		after(root)
	}
	return fmt.Sprintf("mirror: {stateDir: %q, root: %q}", state, root)
}

// member is a node as the API server knows it where nothing is amiss.
func member(c *Cluster, node string) {
	at := metav1.NewTime(time.Now())
	id := "12D3KooW" + node
	c.Peers = append(c.Peers, v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec: v1alpha1.PeerSpec{PeerID: id}, Status: v1alpha1.PeerStatus{Admitted: true, AdmittedPeerID: id}})
	c.Caches = append(c.Caches, v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node,
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: v1alpha1.AgentFieldManager, Subresource: "status",
			Time: &at}}}, Status: v1alpha1.NodeCacheStatus{ReportedAt: &at}})
	c.Agents = append(c.Agents, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-" + node, Namespace: "shoal-system"},
		Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning,
			ContainerStatuses: []corev1.ContainerStatus{{Name: "agent", Ready: true}}}})
}

// TestPlanted_EachOfNineFaultsIsFound plants each fault on a node of its own: seven in a real agent's configuration,
// surroundings or process, and two, of which an agent itself knows nothing, in what the API server holds. Each is
// found on its node, with its mend, and nothing else is.
func TestPlanted_EachOfNineFaultsIsFound(t *testing.T) {
	t.Parallel()
	program := os.Getenv(programEnv)
	if program == "" {
		t.Skipf("plants faults in real agents: make planted, or set %s to a program of shoal-node", programEnv)
	}
	r := &realAgents{t: t, admin: map[string]string{}, front: map[string]string{}, running: map[string]*exec.Cmd{}, program: program}
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	defer untrusted.Close()

	const path = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '%s'\n"
	want := map[string][]string{
		// What containerd makes of it depends on its version, which is not known here.
		"no-config-path": {v1alpha1.ReasonConfigPathList, v1alpha1.ReasonConfigPathUnset},
		"colon-list":     {v1alpha1.ReasonConfigPathList},
		"mirror-removed": {v1alpha1.ReasonMirrorMissing},
		"port-closed":    {ReasonNoPeers},
		"not-admitted":   {ReasonNotAdmitted},
		"clock-off":      {ReasonClockOff},
		"disk-full":      {ReasonDiskFull},
		"ca-missing":     {reasonRegistryCA},
		"frozen":         {ReasonAgentSilent},
	}
	r.start("sound", "", r.mirrored("sound", fmt.Sprintf(path, "/etc/containerd/certs.d"), nil))
	address, id := r.addressOf("sound")
	joins := address + "/p2p/" + id
	r.start("port-closed", "/ip4/127.0.0.1/tcp/1/p2p/"+id, "")
	for node, more := range map[string]string{
		"no-config-path": r.mirrored("no-config-path", "version = 3\n", nil),
		"colon-list":     r.mirrored("colon-list", fmt.Sprintf(path, "/etc/containerd/certs.d:/etc/docker/certs.d"), nil),
		"mirror-removed": r.mirrored("mirror-removed", fmt.Sprintf(path, "/etc/containerd/certs.d"), func(root string) {
			require.NoError(t, os.RemoveAll(filepath.Join(root, "etc/containerd/certs.d")))
		}),
		"not-admitted": "", "clock-off": "", "frozen": "",
		"disk-full":  "store: {path: DIR/store, minFree: 1PiB}",
		"ca-missing": fmt.Sprintf("upstreams: [{registry: registry.test, endpoints: [%q]}]", untrusted.URL),
	} {
		r.start(node, joins, more)
	}
	c := &Cluster{Swarm: &v1alpha1.Swarm{}, Pins: []v1alpha1.ArtifactPin{ownPin()},
		Operators: []corev1.Pod{operatorPod("one")}}
	for _, node := range append(slices.Sorted(maps.Keys(want)), "sound") {
		member(c, node)
		p, cache := &c.Peers[len(c.Peers)-1], &c.Caches[len(c.Caches)-1]
		switch node {
		case "not-admitted":
			p.Status = v1alpha1.PeerStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAdmitted,
				Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDenied, Message: "spec.admission denies it"}}}
		case "clock-off":
			cache.Status.ReportedAt = &metav1.Time{Time: time.Now().Add(time.Hour)}
		}
	}
	frozen := r.running["frozen"].Process
	require.NoError(t, frozen.Signal(syscall.SIGSTOP))

	pods := map[bool][]corev1.Pod{}
	for _, pod := range c.Agents {
		asleep := pod.Spec.NodeName == "frozen"
		pods[asleep] = append(pods[asleep], pod)
	}
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		answers := AskAll(r.t.Context(), r, time.Minute, pods[false], AskHealth)
		answers = append(answers, AskAll(r.t.Context(), r, time.Second, pods[true], AskHealth)...)
		got := map[string][]string{}
		for _, f := range Diagnose(c, answers, time.Now()) {
			got[f.Node] = append(got[f.Node], f.Reason)
			assert.NotEqual(t, "see the link", f.Mend, f.Reason)
			assert.True(t, f.Grave, f.Reason)
		}
		assert.Equal(t, want, got)
	}, 2*time.Minute, 100*time.Millisecond)
}
