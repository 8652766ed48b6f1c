package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// acceptVariants renders the chart with each of its ci/ values and has the API server check the result without keeping
// it.
func acceptVariants(t *testing.T, c *cluster) {
	c.removeAll(t)
	c.kubectl(t, "create", "namespace", shoalNamespace)
	c.kubectl(t, "apply", "--server-side", "-f", filepath.Join(c.current.chart, "crds"))
	c.kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "-f", filepath.Join(c.current.chart, "crds"))
	variants, err := filepath.Glob(filepath.Join(c.current.chart, "ci", "*-values.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, variants)
	for _, values := range variants {
		// The Prometheus operator's kinds are not installed here.
		rendered := c.helm(t, "template", release, c.current.chart, "-n", shoalNamespace, "-f", values,
			"--set", "metrics.podMonitor.create=false,metrics.alerts.create=false")
		out, err := run(t.Context(), rendered, "kubectl", "apply", "--server-side", "--dry-run=server", "-f", "-")
		require.NoError(t, err, values)
		tell(t, "%s: %d objects", filepath.Base(values), strings.Count(out, "\n"))
	}
	c.deleteDefinitions(t)
	c.kubectl(t, "delete", "namespace", shoalNamespace)
}

func refuseValues(t *testing.T, c *cluster) {
	for set, advice := range map[string]string{
		"agent.prot.swarm=1":             "additional properties 'prot' not allowed",
		"runtime.flavour=docker":         "must be one of 'containerd', 'k3s', 'rke2', 'microk8s', 'talos', 'crio'",
		"runtime.flavour=crio":           "name them in mirror.registries",
		"metrics.podMonitor.create=true": "needs agent.exposeMetrics: true",
		"agent.config.store.capcity=1Gi": "additional properties 'capcity' not allowed",
	} {
		_, err := run(t.Context(), "", "helm", "install", release, c.current.chart, "-n", shoalNamespace, "--set", set)
		require.ErrorContains(t, err, advice)
		tell(t, "--set %s: … %s", set, advice)
	}
}

// install runs the very commands that the chart's README shows.
func install(t *testing.T, c *cluster) {
	c.removeAll(t) // what an earlier run may have left on a cluster that was kept
	commands := c.documentedCommands(t, "Install", c.current)
	require.Contains(t, readFile(t, filepath.Join(c.current.chart, "..", "..", "README.md")),
		"```sh\n"+strings.Join(commands, "\n")+"\n```",
		"the repository's README shows the same commands")
	for _, command := range commands {
		tell(t, "$ %s", command)
		if strings.HasPrefix(command, "helm ") {
			command += " --timeout=4m -f " + c.values(t, c.current)
		}
		if err := c.inRepository(t, command); err != nil {
			c.explain(t)
			require.NoError(t, err)
		}
	}
	var ds appsv1.DaemonSet
	c.get(t, &ds, agents, "-n", shoalNamespace)
	require.EqualValues(t, len(c.nodes), ds.Status.NumberReady, "every node has a ready agent")
}

// values writes what differs from a user's installation of a version: where images and registries are.
func (c *cluster) values(t *testing.T, v version) string {
	t.Helper()
	image := func(name string) map[string]any {
		return map[string]any{"repository": c.public.address + "/shoal/" + name, "tag": v.tag}
	}
	endpoint := func(r registry) map[string]any {
		return map[string]any{"registry": r.address, "endpoints": []string{"http://" + r.address}}
	}
	// kind's control plane is a node that no test may switch off.
	exclude := map[string]any{"key": "kubernetes.io/hostname", "operator": "NotIn",
		"values": []string{os.Getenv("SHOAL_E2E_EXCLUDE")}}
	values := map[string]any{
		"agent": map[string]any{
			"image": image("shoal-node"),
			// The nodes share the machine's disk, and what else is on it is not theirs to weigh.
			"store":  map[string]any{"capacity": "4GiB"},
			"config": map[string]any{"store": map[string]any{"minFree": "100MiB"}},
			"affinity": map[string]any{"nodeAffinity": map[string]any{"requiredDuringSchedulingIgnoredDuringExecution": map[string]any{
				"nodeSelectorTerms": []any{map[string]any{"matchExpressions": []any{exclude}}}}}},
		},
		"operator":  map[string]any{"image": image("shoal-operator")},
		"runtime":   map[string]any{"loadImages": true},
		"upstreams": []any{endpoint(c.public), endpoint(c.private)},
	}
	if v == c.current {
		values["hub"] = map[string]any{"enabled": true, "endpoint": c.hub.URL(), "allowFrom": []string{"10.0.0.0/8"}}
	}
	data, err := json.Marshal(values)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	return file
}

// chartInREADME is how the README names the chart.
const chartInREADME = "./charts/shoal"

// documentedCommands are the commands of the first code block below a heading of the chart's README, with a version's
// chart in the place of the one beside the README.
func (c *cluster) documentedCommands(t *testing.T, heading string, v version) []string {
	t.Helper()
	block := regexp.MustCompile("(?s)\n## " + heading +
		"\n.*?```sh\n(.*?)```").FindStringSubmatch(readFile(t, filepath.Join(c.current.chart, "README.md")))
	require.NotNil(t, block, "README has commands below %q", heading)
	commands := strings.TrimSpace(block[1])
	if v != c.current {
		commands = strings.ReplaceAll(commands, chartInREADME, v.chart)
	}
	return strings.Split(commands, "\n")
}

// inRepository runs a command where users are told to run it.
func (c *cluster) inRepository(t *testing.T, command string) error {
	t.Helper()
	_, err := run(t.Context(), "", "sh", "-c", "cd '"+filepath.Join(c.current.chart, "..", "..")+"' && "+command)
	return err
}

// explain adds what somebody would look at first to the story of a failed installation.
func (c *cluster) explain(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"-n", shoalNamespace, "get", "events", "--sort-by=.lastTimestamp"},
		{"-n", shoalNamespace, "logs", "-l", "app.kubernetes.io/component=agent", "--all-containers", "--prefix",
			"--tail=10"},
		{"-n", shoalNamespace, "logs", "-l", "app.kubernetes.io/component=operator", "--prefix", "--tail=10"},
	} {
		out, err := run(t.Context(), "", "kubectl", args...)
		tell(t, "$ kubectl %s\n%s%v", strings.Join(args, " "), out, err)
	}
}

// resource is what the suite reads of Shoal's own kinds, as a client without their types does.
type resource struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     map[string]any    `json:"spec"`
	Status   struct {
		Admitted     bool               `json:"admitted"`
		Members      int                `json:"members"`
		Ready        int                `json:"ready"`
		Desired      int                `json:"desired"`
		MatchedNodes int                `json:"matchedNodes"`
		AppliedNodes int                `json:"appliedNodes"`
		Conditions   []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

type resources struct {
	Items []resource `json:"items"`
}

func peered(t *testing.T, c *cluster) {
	eventually(t, 2*time.Minute, func() error {
		var peers resources
		if err := c.tryGet(t.Context(), &peers, "peers.shoal.dev"); err != nil {
			return err
		}
		if len(peers.Items) != len(c.nodes) {
			return fmt.Errorf("%d peers, want %d", len(peers.Items), len(c.nodes))
		}
		for _, peer := range peers.Items {
			if !peer.Status.Admitted {
				return fmt.Errorf("peer %s is not admitted: %v", peer.Metadata.Name, peer.Status.Conditions)
			}
		}
		return nil
	})
	c.awaitConnections(t, time.Minute)
	c.show(t, "get", "peers.shoal.dev,swarms.shoal.dev")
}

// awaitConnections waits until every agent is connected to every other.
func (c *cluster) awaitConnections(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		for _, node := range c.nodes {
			n, err := c.tryMetric(t.Context(), node, "shoal_swarm_peers")
			if err != nil {
				return err
			}
			if int(n) != len(c.nodes)-1 {
				return fmt.Errorf("the agent of %s is connected to %v others, want %d", node, n, len(c.nodes)-1)
			}
		}
		return nil
	})
}

// onlySwarmPort knocks at one node's agent from another node and from the node itself.
func onlySwarmPort(t *testing.T, c *cluster) {
	var node corev1.Node
	c.get(t, &node, "node", c.nodes[0])
	var address string
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			address = a.Address
		}
	}
	for _, knock := range []struct{ port, want string }{{"5050", "closed"}, {"5051", "closed"}, {"5052", "open"}} {
		answer := c.rig.exec(t, c.nodes[1], "bash", "-c",
			"timeout 5 bash -c '</dev/tcp/"+address+"/"+knock.port+"' 2>/dev/null && echo open || echo closed")
		require.Equal(t, knock.want, answer, "port %s from another node", knock.port)
		tell(t, "%s:%s is %s from %s", address, knock.port, answer, c.nodes[1])
	}
	c.rig.exec(t, c.nodes[0], "curl", "-sf", "-m", "5", "http://127.0.0.1:5050/v2/")
	tell(t, "127.0.0.1:5050 answers on %s", c.nodes[0])
}
