package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// coldRollout is the promise that a burst costs one copy: a DaemonSet of an image that no node has.
func coldRollout(t *testing.T, c *cluster) {
	img := c.public.push(t, "cold/app", 200, 3)
	before := c.rig.egress(t)
	took := c.rollout(t, workload{name: "cold", image: img.ref}, 3*time.Minute)
	c.cold = img
	sent := c.rig.egress(t) - before
	tell(t, "%d nodes, %s image, ready after %s: the registry sent %s, %.3f images (headers of all protocols included)",
		len(c.nodes), mebibytes(c.cold.size), took.Round(100*time.Millisecond), mebibytes(sent), float64(sent)/float64(c.cold.size))
	for _, node := range c.nodes {
		tell(t, "  %s: %s from the registry, %s from peers, %s to peers", node,
			mebibytes(int64(c.metric(t, node, "shoal_upstream_bytes_total"))),
			mebibytes(int64(c.metric(t, node, "shoal_peer_received_bytes_total"))),
			mebibytes(int64(c.metric(t, node, "shoal_peer_sent_bytes_total"))))
	}
	require.LessOrEqual(t, float64(sent), 1.1*float64(c.cold.size), "bytes that the registry sent")
}

// registryOff pulls the same image again, by its tag, after every runtime has forgotten it.
func registryOff(t *testing.T, c *cluster) {
	c.warm(t)
	c.forget(t, c.cold)
	c.rig.stopService(t, "registry")
	c.requireServed(t, c.cold, c.nodes, func() {
		took := c.rollout(t, workload{name: "again", image: c.cold.ref}, 2*time.Minute)
		tell(t, "ready after %s with no registry", took.Round(100*time.Millisecond))
	})
}

// privateImage has one node pull a private image with its secret. Then every byte of it is in the swarm, and still a
// pod without the secret gets none.
func privateImage(t *testing.T, c *cluster) {
	img := c.private.push(t, "team/app", 20, 1)
	t.Cleanup(func() { c.delete(t, "secret", "pull") })
	c.kubectl(t, "-n", workNamespace, "create", "secret", "docker-registry", "pull",
		"--docker-server="+c.private.address,
		"--docker-username="+c.private.user, "--docker-password="+c.private.password)
	c.rollout(t, workload{name: "with-secret", image: img.ref, node: c.nodes[0], pullSecret: "pull"}, 2*time.Minute)
	tell(t, "%s starts it with the secret", c.nodes[0])

	// What the kubelet tells is the last host's answer, and the agent is the first.
	const unauthorized = `shoal_registry_requests_total{code="401"`
	refusals := c.metric(t, c.nodes[1], unauthorized)
	t.Cleanup(func() { c.delete(t, "daemonset", "without-secret") })
	c.apply(t, workload{name: "without-secret", image: img.ref, node: c.nodes[1]}.daemonSet())
	var why string
	eventually(t, time.Minute, func() error {
		var pods corev1.PodList
		if err := c.tryGet(t.Context(), &pods, "pods", "-n", workNamespace, "-l", "app=without-secret"); err != nil {
			return err
		}
		for _, pod := range pods.Items {
			for _, status := range pod.Status.ContainerStatuses {
				if waiting := status.State.Waiting; waiting != nil && waiting.Reason == "ErrImagePull" {
					why = waiting.Message
					return nil
				}
			}
		}
		return fmt.Errorf("the pod without the secret has not been refused yet")
	})
	tell(t, "%s without it is refused: %s", c.nodes[1], why)
	require.Greater(t, c.metric(t, c.nodes[1], unauthorized), refusals,
		"answers 401 of the agent, which knows the image")
	held := c.rig.exec(t, c.nodes[1], "sh", "-c", "ctr -n k8s.io images ls -q | grep -cF "+img.ref+" || true")
	require.Equal(t, "0", held, "images of that name on %s", c.nodes[1])

	before := c.rig.egress(t)
	c.requireServed(t, img, c.nodes[2:3], func() {
		c.rollout(t, workload{name: "cached", image: img.ref, node: c.nodes[2], pullSecret: "pull"}, 2*time.Minute)
	})
	sent := c.rig.egress(t) - before
	tell(t, "%s with it starts it from the cache: the registry sent %s to check the credentials", c.nodes[2],
		mebibytes(sent))
	require.Less(t, sent, int64(mib), "bytes that the registry sent for a cached image")
}

// imageVolume mounts an image that holds no program, and an artifact of the ModelPack specification, whose config and
// layers are of types of their own. Both come through the agents. What a runtime shows of layers whose type it does not
// know is its own matter: containerd 2.4 shows an empty folder.
func imageVolume(t *testing.T, c *cluster) {
	program := c.public.push(t, "volume/app", 1, 1)
	img := c.public.pushFiles(t, "volume/model", map[string][]byte{"weights.txt": []byte("0.1 0.2 0.3")})
	c.rollout(t, workload{name: "volume", image: program.ref, volume: img.ref}, 2*time.Minute)
	content := c.kubectl(t, "-n", workNamespace, "exec", "daemonset/volume", "--", "/probe", "cat",
		"/volume/weights.txt")
	require.Equal(t, "0.1 0.2 0.3", content)

	model := c.public.pushModel(t, "volume/modelpack", 2*mib)
	c.requireServed(t, model, c.nodes, func() {
		c.rollout(t, workload{name: "modelpack", image: program.ref, volume: model.ref}, 2*time.Minute)
	})
	_, err := run(t.Context(), "", "kubectl", "-n", workNamespace, "exec", "daemonset/modelpack", "--", "/probe", "cat",
		"/volume/weights")
	tell(t, "a ModelPack artifact was pulled through the agents of %d nodes; its file in the volume: %v", len(c.nodes), err)
}
