package e2e

import (
	"context"
	"fmt"
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
	node := c.nodes[1]
	img := c.public.push(t, "killed/app", 120, 2)
	containers, err := c.containers(t.Context())
	require.NoError(t, err)
	before := c.metric(t, node, "shoal_upstream_bytes_total")
	c.rig.limit(t, node, "100mbit") // ten seconds and more for the whole image

	t.Cleanup(func() { c.delete(t, "daemonset", "killed") })
	c.apply(t, workload{name: "killed", image: img.ref, node: node}.daemonSet())
	var got float64
	eventually(t, time.Minute, func() error {
		now, err := c.tryMetric(t.Context(), node, "shoal_upstream_bytes_total")
		if got = now - before; err == nil && got < 10*mib {
			err = fmt.Errorf("the pull has not got far: %v bytes", got)
		}
		return err
	})
	require.Less(t, got, float64(img.own), "the pull is over before its agent could be killed")
	c.killAgent(t, node)
	start := time.Now()
	c.awaitRollout(t, "killed", 3*time.Minute)
	tell(t, "the pod was ready %s after its agent was killed, which had got %s", time.Since(start).Round(100*time.Millisecond), mebibytes(int64(got)))
	eventually(t, time.Minute, func() error {
		now, err := c.containers(t.Context())
		if err == nil && now[node] == containers[node] {
			err = fmt.Errorf("the agent of %s was killed and has not been started again", node)
		}
		return err
	})
	c.awaitAgents(t)
}

func (c *cluster) killAgent(t *testing.T, node string) {
	t.Helper()
	c.rig.exec(t, node, "pkill", "-KILL", "-x", "shoal-node")
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
			if _, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "rm", "-f", "/run/no-agent"); err != nil {
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
	c.kubectl(t, "-n", shoalNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=60s")
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
			_, err := c.rig.tryExec(ctx, node, "ctr", "-n", "k8s.io", "images", "pull", "--hosts-dir", "/etc/containerd/certs.d", img.ref)
			return err
		})
	}
	require.NoError(t, pulls.Wait())
	sent := c.rig.egress(t) - before
	tell(t, "%d nodes pulled %s in %s; the registry sent %.3f images", len(c.nodes), mebibytes(img.size),
		time.Since(start).Round(100*time.Millisecond), float64(sent)/float64(img.size))
	require.LessOrEqual(t, float64(sent), 1.1*float64(img.size))
}

// noConfigPath takes the line from a node's containerd configuration by which it reads mirrors. Its agent says so, where
// somebody who looks at the node, or at all of them, finds it.
func noConfigPath(t *testing.T, c *cluster) {
	node := c.nodes[0]
	const file = "/etc/containerd/config.toml"
	pods, err := c.agentPods(t.Context())
	require.NoError(t, err)
	c.rig.exec(t, node, "sh", "-c", "cp -p "+file+" /tmp/config.toml && sed -i '/config_path/d' "+file)
	t.Cleanup(func() {
		if _, err := c.rig.tryExec(context.WithoutCancel(t.Context()), node, "mv", "/tmp/config.toml", file); err != nil {
			t.Error(err)
		}
	})
	c.kubectl(t, "-n", shoalNamespace, "delete", "pod", pods[node].Name)
	c.awaitAgents(t)
	eventually(t, time.Minute, func() error {
		var events corev1.EventList
		if err := c.tryGet(t.Context(), &events, "events", "-A", "--field-selector=involvedObject.kind=Node,involvedObject.name="+node+",reason=ConfigPathUnset"); err != nil {
			return err
		}
		if len(events.Items) == 0 {
			return fmt.Errorf("no event on %s", node)
		}
		tell(t, "event on %s: %s", node, events.Items[0].Message)
		return nil
	})
	eventually(t, time.Minute, func() error {
		var cache resource
		if err := c.tryGet(t.Context(), &cache, "nodecaches.shoal.dev", node); err != nil {
			return err
		}
		configured := meta.FindStatusCondition(cache.Status.Conditions, "MirrorConfigured")
		if configured == nil || configured.Status != metav1.ConditionFalse || configured.Reason != "ConfigPathUnset" {
			return fmt.Errorf("conditions of %s: %v", node, cache.Status.Conditions)
		}
		return nil
	})
	c.show(t, "get", "nodecaches")
}
