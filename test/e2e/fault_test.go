package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// agentKilled ends an agent while its node's runtime is in the middle of a cold pull through it.
func agentKilled(t *testing.T, c *cluster) {
	p := c.startPull(t, "killed", c.nodes[1])
	c.killAgent(t, p.node)
	start := time.Now()
	c.awaitRollout(t, p.name, 3*time.Minute)
	tell(t, "the pod was ready %s after its agent was killed, which had got %s",
		time.Since(start).Round(100*time.Millisecond), mebibytes(p.got))
	c.awaitOtherAgent(t, p)
}

// slowPull is a pod whose image its node's runtime is in the middle of pulling, at a slow pace, through its agent.
type slowPull struct {
	name, node string
	agent      string // the container
	got        int64  // what the agent had from the registry
}

// startPull starts a cold pull that takes ten seconds and more, and returns when the agent has the first 10 MiB.
func (c *cluster) startPull(t *testing.T, name, node string) slowPull {
	t.Helper()
	img := c.public.push(t, name+"/app", 120, 2)
	containers, err := c.containers(t.Context())
	require.NoError(t, err)
	before := c.metric(t, node, "shoal_upstream_bytes_total")
	c.rig.limit(t, node, "100mbit")
	t.Cleanup(func() { c.delete(t, "daemonset", name) })
	c.apply(t, workload{name: name, image: img.ref, node: node}.daemonSet())
	var got float64
	eventually(t, time.Minute, func() error {
		now, err := c.tryMetric(t.Context(), node, "shoal_upstream_bytes_total")
		if got = now - before; err == nil && got < 10*mib {
			err = fmt.Errorf("the pull has not got far: %v bytes", got)
		}
		return err
	})
	require.Less(t, got, float64(img.own), "the pull is over already")
	return slowPull{name: name, node: node, agent: containers[node], got: int64(got)}
}

// awaitOtherAgent waits until the agent that served a pull has been replaced, and all agents are ready.
func (c *cluster) awaitOtherAgent(t *testing.T, p slowPull) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		now, err := c.containers(t.Context())
		if err == nil && now[p.node] == p.agent {
			err = fmt.Errorf("the agent of %s has not been ended and started again", p.node)
		}
		return err
	})
	c.awaitAgents(t)
}

func (c *cluster) killAgent(t *testing.T, node string) {
	t.Helper()
	c.signalAgent(t, node, "KILL")
}

// signalAgent sends a signal to the agent of a node, and not to its guard.
func (c *cluster) signalAgent(t *testing.T, node, signal string) {
	t.Helper()
	c.rig.exec(t, node, "pkill", "-"+signal, "-f", "^/shoal-node --config")
}

// signalGuard sends a signal to the guard of a node, and not to its agent.
func (c *cluster) signalGuard(t *testing.T, node, signal string) {
	t.Helper()
	c.rig.exec(t, node, "pkill", "-"+signal, "-f", "^/shoal-node mirror guard")
}

// agentFrozen stops an agent in the middle of a pull: its port goes on to accept connections, and nobody answers. The
// guard ends it, so that the runtime goes on without it.
func agentFrozen(t *testing.T, c *cluster) {
	p := c.startPull(t, "frozen", c.nodes[1])
	c.signalAgent(t, p.node, "STOP")
	start := time.Now()
	c.awaitRollout(t, p.name, 2*time.Minute)
	tell(t, "the pod was ready %s after its agent was stopped", time.Since(start).Round(100*time.Millisecond))
	c.awaitOtherAgent(t, p)
	c.awaitMirror(t, p.node)
	tell(t, "the agent was ended and started again, and the runtime asks it")
}

// awaitMirror waits until the runtime of a node is set up to ask its agent.
func (c *cluster) awaitMirror(t *testing.T, node string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		_, err := c.rig.tryExec(t.Context(), node, "grep", "-rqF", "127.0.0.1:5050", "/etc/containerd/certs.d")
		return err
	})
}

// agentsDown keeps every agent from living, with the runtimes still configured to use them.
func agentsDown(t *testing.T, c *cluster) {
	img := c.public.push(t, "fallback/app", 20, 1)
	// While the file is there, and at most for four minutes, whatever starts as an agent on the node is killed.
	const kill = `touch /run/no-agent; i=0
		while [ -e /run/no-agent ] && [ $i -lt 2400 ]; do pkill -KILL -x shoal-node; i=$((i+1)); sleep 0.1; done`
	var killers errgroup.Group
	for _, node := range c.nodes {
		killers.Go(func() error {
			_, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "sh", "-c", kill)
			return err
		})
	}
	live := func() {
		for _, node := range c.nodes {
			if _, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "rm", "-f",
				"/run/no-agent"); err != nil {
				t.Error(err)
			}
		}
		if err := killers.Wait(); err != nil {
			t.Error(err)
		}
	}
	func() {
		defer live()
		eventually(t, 30*time.Second, func() error {
			for _, node := range c.nodes {
				if _, err := c.tryMetric(t.Context(), node, "shoal_swarm_peers"); err == nil {
					return fmt.Errorf("the agent of %s still answers", node)
				}
			}
			return nil
		})
		took := c.rollout(t, workload{name: "fallback", image: img.ref}, 3*time.Minute)
		tell(t, "ready after %s with no agent on any node", took.Round(100*time.Millisecond))
	}()
	c.awaitAgents(t)
}

// awaitAgents waits until every node's agent is ready and connected again.
func (c *cluster) awaitAgents(t *testing.T) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		pods, err := c.agentPods(t.Context())
		if err != nil {
			return err
		}
		for _, node := range c.nodes {
			if !podReady(pods[node]) {
				return fmt.Errorf("the agent of %s is not ready", node)
			}
		}
		return nil
	})
	c.awaitConnections(t, 2*time.Minute)
}

func podReady(pod corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// startNode switches a node on and waits until it runs pods again. It runs as a cleanup too.
func (c *cluster) startNode(t *testing.T, node string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if _, err := run(ctx, "", c.rig.program, "node", "start", node); err != nil {
		t.Error(err)
		return
	}
	for _, args := range [][]string{
		{"wait", "--for=condition=Ready", "node/" + node, "--timeout=120s"},
		{"-n", shoalNamespace, "rollout", "status", agents, "--timeout=180s"},
	} {
		if _, err := run(ctx, "", "kubectl", args...); err != nil {
			t.Error(err)
		}
	}
}

// nodeReboot cuts a node's power.
func nodeReboot(t *testing.T, c *cluster) {
	node := c.nodes[2]
	img := c.public.push(t, "reboot/app", 30, 1)
	c.rollout(t, workload{name: "before", image: img.ref, node: node}, time.Minute)
	c.delete(t, "daemonset", "before")
	before := c.metric(t, node, "shoal_store_bytes")
	c.rig.stopNode(t, node)
	eventually(t, 2*time.Minute, func() error {
		var n corev1.Node
		if err := c.tryGet(t.Context(), &n, "node", node); err != nil {
			return err
		}
		for _, condition := range n.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%s is off and still Ready", node)
	})
	start := time.Now()
	c.startNode(t, node)
	c.awaitAgents(t)
	tell(t, "%s is back in the swarm %s after it was switched on", node, time.Since(start).Round(100*time.Millisecond))
	require.GreaterOrEqual(t, c.metric(t, node, "shoal_store_bytes"), before, "bytes that the cache kept")

	c.forget(t, img)
	sent := c.rig.egress(t)
	c.requireServed(t, img, []string{node}, func() {
		c.rollout(t, workload{name: "after", image: img.ref, node: node}, time.Minute)
	})
	sent = c.rig.egress(t) - sent
	tell(t, "the image starts from its cache: the registry sent %s", mebibytes(sent))
	require.Less(t, sent, int64(mib))
}

// controlPlaneDown takes the operator and the API server away, restarts an agent, and pulls on all nodes at once. No
// pod can be made without an API server, so containerd's own client pulls.
func controlPlaneDown(t *testing.T, c *cluster) {
	img := c.public.push(t, "headless/app", 60, 2)
	const operator = "deployment/shoal-operator"
	replicas := c.kubectl(t, "-n", shoalNamespace, "get", operator, "-o", "jsonpath={.spec.replicas}")
	c.kubectl(t, "-n", shoalNamespace, "scale", operator, "--replicas=0")
	c.kubectl(t, "-n", shoalNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator",
		"--timeout=60s")
	// Deferred, not a cleanup: a cleanup's context has ended.
	defer func() {
		c.rig.startService(t, "apiserver")
		eventually(t, time.Minute, func() error {
			_, err := run(t.Context(), "", "kubectl", "get", "--raw", "/readyz")
			return err
		})
		c.kubectl(t, "-n", shoalNamespace, "scale", operator, "--replicas="+replicas)
		c.kubectl(t, "-n", shoalNamespace, "rollout", "status", operator, "--timeout=120s")
		c.kubectl(t, "wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
		c.awaitAgents(t)
	}()
	c.rig.stopService(t, "apiserver")
	c.killAgent(t, c.nodes[0])
	c.awaitConnections(t, 2*time.Minute)
	tell(t, "an agent that was restarted meanwhile has rejoined")

	before := c.rig.egress(t)
	start := time.Now()
	pulls, ctx := errgroup.WithContext(t.Context())
	for _, node := range c.nodes {
		pulls.Go(func() error {
			_, err := c.rig.tryExec(ctx, node, "ctr", "-n", "k8s.io", "images", "pull", "--hosts-dir",
				"/etc/containerd/certs.d", img.ref)
			return err
		})
	}
	require.NoError(t, pulls.Wait())
	sent := c.rig.egress(t) - before
	tell(t, "%d nodes pulled %s in %s; the registry sent %.3f images", len(c.nodes), mebibytes(img.size),
		time.Since(start).Round(100*time.Millisecond), float64(sent)/float64(img.size))
	require.LessOrEqual(t, float64(sent), 1.1*float64(img.size))
}

// noMirrorsRead has two nodes' containerds read no mirrors: one as containerd is by itself, with no config_path, and
// one with a list. That is reported where somebody who looks at the node, or at all of them, finds it, and mended where
// the chart is told to.
func noMirrorsRead(t *testing.T, c *cluster) {
	edits := map[string]string{
		c.nodes[0]: "/config_path/d",
		c.nodes[1]: `s#config_path = .*#config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"#`,
	}
	// What each release of containerd makes of a file without config_path differs.
	reasons := map[string][]string{c.nodes[0]: {"ConfigPathList", "ConfigPathUnset"}, c.nodes[1]: {"ConfigPathList"}}
	pods, err := c.agentPods(t.Context())
	require.NoError(t, err)
	for node, script := range edits {
		c.editRuntime(t, node, script)
		c.kubectl(t, "-n", shoalNamespace, "delete", "pod", pods[node].Name)
	}
	c.awaitAgents(t)
	for node := range edits {
		c.awaitFinding(t, node, reasons[node]...)
	}
	c.show(t, "get", "nodecaches")
	var found diagnosis
	require.Equal(t, 1, c.shoal(t, &found, "check"))
	for node := range edits {
		require.True(t, found.names(node, reasons[node]...), "%s: %+v", node, found)
	}

	set := func(value string) {
		c.helm(t, "upgrade", release, c.current.chart, "-n", shoalNamespace, "--reuse-values", "--set",
			"mirror.fixConfigPath="+value, "--wait", "--timeout=4m")
		c.awaitAgents(t)
	}
	defer set("false") // not a cleanup: a cleanup's context has ended
	set("true")
	img := c.public.push(t, "mended/app", 5, 1)
	for node := range edits {
		c.awaitMirror(t, node)
		before := c.metric(t, node, "shoal_registry_requests_total")
		c.rollout(t, workload{name: "mended-" + node, image: img.ref, node: node}, 2*time.Minute)
		require.Greater(t, c.metric(t, node, "shoal_registry_requests_total"), before,
			"the runtime of %s asked its agent", node)
		tell(t, "with mirror.fixConfigPath the runtime of %s asks its agent", node)
		eventually(t, mirrorLook, func() error {
			return c.mirrorCondition(t, node, metav1.ConditionTrue, "MirrorConfigured")
		})
	}
}

// mirrorLook is the time within which an agent has looked at the mirror's files again, and said so.
const mirrorLook = 3 * time.Minute

// editRuntime changes containerd's configuration on a node by a sed script until the end of the test. Containerd reads
// it.
func (c *cluster) editRuntime(t *testing.T, node, script string) {
	t.Helper()
	const file, kept = "/etc/containerd/config.toml", "/tmp/config.toml"
	c.rig.exec(t, node, "sh", "-c", "cp -p "+file+" "+kept+" && sed -i '"+script+"' "+file)
	t.Cleanup(func() {
		if _, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "mv", kept, file); err != nil {
			t.Error(err)
		}
		c.restartRuntime(t, node)
	})
	c.restartRuntime(t, node)
}

// restartRuntime ends a node's containerd, which is started again, and waits until it answers. Pods go on.
func (c *cluster) restartRuntime(t *testing.T, node string) {
	t.Helper()
	const restart = `pid=$(cat /run/services/containerd.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done
		for i in $(seq 300); do ctr version >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1`
	if _, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "sh", "-c", restart); err != nil {
		t.Errorf("restart containerd of %s: %v", node, err)
	}
}

// awaitFinding waits until a node's event and its NodeCache say why its runtime does not ask its agent: for one of the
// reasons.
func (c *cluster) awaitFinding(t *testing.T, node string, reasons ...string) {
	t.Helper()
	var reason string
	eventually(t, mirrorLook, func() error {
		var events corev1.EventList
		if err := c.tryGet(t.Context(), &events, "events", "-A",
			"--field-selector=involvedObject.kind=Node,involvedObject.name="+node); err != nil {
			return err
		}
		for _, event := range events.Items {
			if slices.Contains(reasons, event.Reason) {
				reason = event.Reason
				tell(t, "event on %s: %s", node, event.Message)
				return nil
			}
		}
		return fmt.Errorf("no event on %s says %v", node, reasons)
	})
	eventually(t, mirrorLook, func() error { return c.mirrorCondition(t, node, metav1.ConditionFalse, reason) })
}

// mirrorCondition reports, as an error, how a node's condition MirrorConfigured differs from the one given.
func (c *cluster) mirrorCondition(t *testing.T, node string, status metav1.ConditionStatus, reason string) error {
	t.Helper()
	var cache resource
	if err := c.tryGet(t.Context(), &cache, "nodecaches.shoal.dev", node); err != nil {
		return err
	}
	found := meta.FindStatusCondition(cache.Status.Conditions, "MirrorConfigured")
	if found == nil || found.Status != status || found.Reason != reason {
		return fmt.Errorf("conditions of %s: %v", node, cache.Status.Conditions)
	}
	return nil
}
