package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// upgrade installs the previous version and replaces it while pods with cold images are being started on all nodes. It
// begins with nothing installed, for the previous version would not read what a newer one has stored.
func upgrade(t *testing.T, c *cluster) {
	c.removeAll(t)
	for _, command := range c.documentedCommands(t, "Install", c.previous) {
		if strings.HasPrefix(command, "helm ") {
			command += " --timeout=4m -f " + c.values(t, c.previous)
		}
		require.NoError(t, c.inRepository(t, command))
	}
	c.awaitAgents(t)
	tell(t, "installed %s", c.previous.tag)
	kept := c.public.push(t, "kept/app", 20, 1)
	c.rollout(t, workload{name: "kept", image: kept.ref}, time.Minute)
	c.delete(t, "daemonset", "kept")
	t.Cleanup(func() { c.delete(t, "artifactpin", "kept") })
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: kept},
		spec: {artifacts: [{image: %q}], replicas: 2}}`, kept.ref))
	c.awaitPin(t, "kept", 2, 2*time.Minute)

	ended := make(chan error, 1)
	commands := c.documentedCommands(t, "Upgrade", c.current)
	for i, command := range commands {
		if strings.HasPrefix(command, "helm ") {
			// Time in which old and new agents serve each other, for every node.
			commands[i] += " --timeout=5m -f " + c.values(t, c.current) + " --set agent.minReadySeconds=20"
		}
		tell(t, "$ %s", command)
	}
	go func() {
		for _, command := range commands {
			if err := c.inRepository(t, command); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	mixed := make(chan bool, 1)
	watch, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { mixed <- c.sawVersionsExchange(watch) }()

	var slowest time.Duration
	images := 0
	for done := false; !done; images++ {
		img := c.public.push(t, fmt.Sprintf("upgrade/app%d", images), 10, 1)
		name := fmt.Sprintf("upgrade-%d", images)
		slowest = max(slowest, c.rollout(t, workload{name: name, image: img.ref}, 2*time.Minute))
		c.delete(t, "daemonset", name)
		select {
		case err := <-ended:
			require.NoError(t, err)
			done = true
		default:
		}
	}
	stop()
	tell(t, "%d cold images started on %d nodes meanwhile, the slowest after %s", images, len(c.nodes),
		slowest.Round(100*time.Millisecond))
	require.True(t, <-mixed, "an agent of the new version exchanged bytes with those of the old one")
	tell(t, "agents of both versions exchanged bytes")
	c.awaitAgents(t)
	for node, version := range c.versions(t) {
		require.Equal(t, c.current.tag, version, "the agent of %s", node)
	}
	c.kubectl(t, "-n", shoalNamespace, "rollout", "status", "deployment/shoal-operator", "--timeout=60s")
	c.showHelm(t, "history", release, "-n", shoalNamespace)

	c.awaitPin(t, "kept", 2, time.Minute)
	c.forget(t, kept)
	before := c.rig.egress(t)
	c.requireServed(t, kept, c.nodes, func() {
		c.rollout(t, workload{name: "still", image: kept.ref}, time.Minute)
	})
	sent := c.rig.egress(t) - before
	require.Less(t, sent, int64(mib), "bytes that the registry sent for what the previous version had cached")
	tell(t, "what the previous version cached starts from the cache: the registry sent %s", mebibytes(sent))
}

// removeAll makes the cluster one that never had Shoal, but for what else is in its registries and runtimes.
func (c *cluster) removeAll(t *testing.T) {
	t.Helper()
	if c.kubectl(t, "get", "namespace", shoalNamespace, "--ignore-not-found") != "" {
		c.helm(t, "uninstall", release, "-n", shoalNamespace, "--ignore-not-found", "--wait")
		c.deleteDefinitions(t)
		// The agents' pods go with it, and they are what undoes the mirror configuration.
		c.kubectl(t, "delete", "namespace", shoalNamespace, "--timeout=3m")
		for _, node := range c.nodes {
			c.rig.exec(t, node, "rm", "-rf", "/var/lib/shoal")
		}
	}
	if c.original == nil {
		c.original = make(map[string]string)
		for _, node := range c.nodes {
			c.original[node] = c.mirrorConfiguration(t, node)
		}
	}
}

// deleteDefinitions removes Shoal's resource definitions, and with them all its resources. The API server makes the
// storage of a kind when somebody first asks for it. If that is the API server itself, as it deletes the definition, it
// fails, tries again too soon, and then leaves the definition until its caches' next resync, five minutes later. So
// somebody asks before.
func (c *cluster) deleteDefinitions(t *testing.T) {
	t.Helper()
	definitions := filepath.Join(c.current.chart, "crds")
	for name := range strings.FieldsSeq(c.kubectl(t, "get", "-f", definitions, "--ignore-not-found", "-o",
		"jsonpath={.items[*].metadata.name}")) {
		c.kubectl(t, "get", name, "-A")
	}
	c.kubectl(t, "delete", "-f", definitions, "--ignore-not-found", "--timeout=3m")
}

// versions are the versions of the agents by node.
func (c *cluster) versions(t *testing.T) map[string]string {
	t.Helper()
	versions := make(map[string]string)
	for _, node := range c.nodes {
		v, err := c.agentVersion(t.Context(), node)
		require.NoError(t, err)
		versions[node] = v
	}
	return versions
}

func (c *cluster) agentVersion(ctx context.Context, node string) (string, error) {
	out, err := c.rig.tryExec(ctx, node, "curl", "-sf", "-m", "5", "http://127.0.0.1:5051/debug/shoal/node")
	if err != nil {
		return "", err
	}
	var view struct {
		Version string `json:"version"`
	}
	return view.Version, json.Unmarshal([]byte(out), &view)
}

// sawVersionsExchange watches an upgrade until ctx ends, and reports whether the first agent of the new version has
// exchanged bytes with others: at that time all others were of the old version.
func (c *cluster) sawVersionsExchange(ctx context.Context) bool {
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for {
		for _, node := range c.nodes {
			if c.exchangedWithOld(ctx, node) {
				return true
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return false
		}
	}
}

func (c *cluster) exchangedWithOld(ctx context.Context, node string) bool {
	if v, err := c.agentVersion(ctx, node); err != nil || v != c.current.tag {
		return false
	}
	var bytes float64
	for _, name := range []string{"shoal_peer_received_bytes_total", "shoal_peer_sent_bytes_total"} {
		n, err := c.tryMetric(ctx, node, name)
		if err != nil {
			return false
		}
		bytes += n
	}
	if bytes == 0 {
		return false
	}
	// Asked after the bytes were counted. Who does not answer is being replaced, and so was of the old version until
	// now.
	for _, other := range c.nodes {
		if v, err := c.agentVersion(ctx, other); other != node && err == nil && v != c.previous.tag {
			return false
		}
	}
	return true
}

// uninstall leaves nothing of Shoal in the runtimes' configuration, and nothing in the API that can't be deleted.
func uninstall(t *testing.T, c *cluster) {
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: purged},
		spec: {artifacts: [{image: %q}], replicas: 1, deletionPolicy: Purge}}`, c.public.push(t, "purged/app", 1, 1).ref))
	c.awaitPin(t, "purged", 1, time.Minute)

	for _, command := range c.documentedCommands(t, "Uninstall", c.current) {
		tell(t, "$ %s", command)
		require.NoError(t, c.inRepository(t, command))
	}
	c.kubectl(t, "-n", workNamespace, "delete", "artifactpins.shoal.dev", "purged", "--timeout=30s")
	tell(t, "no pin waits for an operator that is gone")
	// Helm waits for the DaemonSet to be gone, which it is a moment before its pods are.
	c.kubectl(t, "-n", shoalNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=agent",
		"--timeout=90s")
	for _, node := range c.nodes {
		require.Equal(t, c.original[node], c.mirrorConfiguration(t, node), "mirror configuration of %s", node)
	}
	tell(t, "every file of the runtimes' mirror configuration is as it was before the installation")

	img := c.public.push(t, "uninstalled/app", 5, 1)
	c.rollout(t, workload{name: "uninstalled", image: img.ref}, time.Minute)
	tell(t, "pods start")

	c.deleteDefinitions(t)
	tell(t, "every resource definition and resource of Shoal could be deleted")
}
