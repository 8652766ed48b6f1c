package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
)

// pinSurvives loses a node that holds a pinned copy.
func pinSurvives(t *testing.T, c *cluster) {
	img := c.public.push(t, "pinned/model", 30, 2)
	t.Cleanup(func() { c.delete(t, "artifactpin", "model") })
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: model},
		spec: {artifacts: [{image: %q}], replicas: 2, repairDelay: 5s}}`, img.ref))
	c.awaitPin(t, "model", 2, 2*time.Minute)
	c.show(t, "-n", workNamespace, "get", "artifactpins")
	holders, err := c.holders(t.Context(), "model")
	require.NoError(t, err)
	require.Len(t, holders, 2)
	tell(t, "copies on %v", holders)

	lost := holders[0]
	c.rig.stopNode(t, lost)
	t.Cleanup(func() { c.startNode(t, lost) })
	tell(t, "%s is off", lost)
	var live []string
	eventually(t, 3*time.Minute, func() error {
		// What the lost node holds stays assigned to it: it may come back.
		all, err := c.holders(t.Context(), "model")
		live = slices.DeleteFunc(all, func(node string) bool { return node == lost })
		if err == nil && len(live) != 2 {
			err = fmt.Errorf("copies are assigned to %v, while %s is off", live, lost)
		}
		return err
	})
	c.awaitPin(t, "model", 2, 2*time.Minute)
	c.show(t, "-n", workNamespace, "get", "artifactpins")
	tell(t, "copies on %v", live)

	c.startNode(t, lost)
	eventually(t, 2*time.Minute, func() error {
		holders, err = c.holders(t.Context(), "model")
		if err == nil && len(holders) != 2 {
			err = fmt.Errorf("%s is back, and copies are assigned to %v", lost, holders)
		}
		return err
	})
	tell(t, "%s is back, and the copy too many is released: copies on %v", lost, holders)
}

// pinLoads pins an image with target CacheAndRuntime. A pod that may not pull starts from it.
func pinLoads(t *testing.T, c *cluster) {
	img := c.public.push(t, "loaded/app", 10, 1)
	t.Cleanup(func() { c.delete(t, "artifactpin", "loaded") })
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: loaded},
		spec: {artifacts: [{image: %q}], replicas: All, target: CacheAndRuntime}}`, img.ref))
	c.awaitPin(t, "loaded", len(c.nodes), 2*time.Minute)
	c.rollout(t, workload{name: "loaded", image: img.ref, neverPull: true}, time.Minute)
	tell(t, "pods that may not pull run on every node")
}

// startupTaint gives a node the taint with which an administrator has nodes register, while a pin that starting nodes
// wait for names an image that is not there yet.
func startupTaint(t *testing.T, c *cluster) {
	node := c.nodes[2]
	const taint = "shoal.dev/starting"
	tainted := func() (bool, error) {
		var n corev1.Node
		err := c.tryGet(t.Context(), &n, "node", node)
		return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taint }), err
	}
	t.Cleanup(func() { c.delete(t, "artifactpin", "gated") })
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: ArtifactPin, metadata: {name: gated},
		spec: {artifacts: [{image: "%s/gated/app:1"}], replicas: All, startup: Gate}}`, c.public.address))
	eventually(t, time.Minute, func() error {
		var pin resource
		err := c.tryGet(t.Context(), &pin, "artifactpins.shoal.dev", "gated", "-n", workNamespace)
		if err == nil && !meta.IsStatusConditionFalse(pin.Status.Conditions, "Resolved") {
			err = fmt.Errorf("the pin of an image that is not there: %v", pin.Status.Conditions)
		}
		return err
	})
	c.kubectl(t, "taint", "node", node, taint+"=:NoSchedule")
	t.Cleanup(func() {
		// fails where the taint is lifted, as it is to be
		_, _ = run(context.WithoutCancel(t.Context()), "", "kubectl", "taint", "node", node, taint+"-")
	})
	held, err := tainted()
	require.NoError(t, err)
	require.True(t, held, "the taint stays while the pin's image is not there")

	c.public.push(t, "gated/app", 10, 1)
	eventually(t, 2*time.Minute, func() error {
		held, err := tainted()
		if err == nil && held {
			err = fmt.Errorf("%s still has the taint", node)
		}
		return err
	})
	c.awaitPin(t, "gated", len(c.nodes), time.Minute)
	tell(t, "the taint of %s was lifted when the pin's image was there", node)
}

// awaitPin waits until a pin has so many ready copies, and no other number is wanted.
func (c *cluster) awaitPin(t *testing.T, name string, copies int, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		var pin resource
		if err := c.tryGet(t.Context(), &pin, "artifactpins.shoal.dev", name, "-n", workNamespace); err != nil {
			return err
		}
		if pin.Status.Ready != copies || pin.Status.Desired != copies {
			return fmt.Errorf("pin %s: %d of %d copies ready, want %d: %v", name, pin.Status.Ready, pin.Status.Desired,
				copies, pin.Status.Conditions)
		}
		return nil
	})
}

// holders are the nodes that are told to keep a pin.
func (c *cluster) holders(ctx context.Context, pin string) ([]string, error) {
	var caches resources
	if err := c.tryGet(ctx, &caches, "nodecaches.shoal.dev"); err != nil {
		return nil, err
	}
	var nodes []string
	for _, cache := range caches.Items {
		pins, _ := cache.Spec["pins"].([]any)
		for _, entry := range pins {
			if entry, ok := entry.(map[string]any); ok && entry["name"] == pin && entry["namespace"] == workNamespace {
				nodes = append(nodes, cache.Metadata.Name)
			}
		}
	}
	slices.Sort(nodes)
	return nodes, nil
}

// policyChange sends the pulls of some repositories past the cache, and back.
func policyChange(t *testing.T, c *cluster) {
	img := c.public.push(t, "bypassed/app", 5, 1)
	manifest := fmt.Sprintf("http://127.0.0.1:5050/v2/bypassed/app/manifests/1?ns=%s", c.public.address)
	answers := func(want string) func() error {
		return func() error {
			for _, node := range c.nodes {
				code, err := c.rig.tryExec(t.Context(), node, "curl", "-s", "-m", "20", "-o", "/dev/null", "-w",
					"%{http_code}",
					"-H", "Accept: application/vnd.oci.image.manifest.v1+json", manifest)
				if err == nil && code != want {
					err = fmt.Errorf("the front of %s answers %s, want %s", node, code, want)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	eventually(t, time.Minute, answers("200"))
	containers, err := c.containers(t.Context())
	require.NoError(t, err)

	t.Cleanup(func() { c.delete(t, "cachepolicy", "bypass") })
	c.apply(t, fmt.Sprintf(`{apiVersion: shoal.dev/v1alpha1, kind: CachePolicy, metadata: {name: bypass},
		spec: {priority: 10, rules: [{match: ["%s/bypassed/**"], mode: Bypass}]}}`, c.public.address))
	start := time.Now()
	eventually(t, time.Minute, answers("404"))
	tell(t, "every agent bypasses it %s after kubectl apply", time.Since(start).Round(100*time.Millisecond))
	eventually(t, 2*time.Minute, func() error {
		var policy resource
		if err := c.tryGet(t.Context(), &policy, "cachepolicies.shoal.dev", "bypass"); err != nil {
			return err
		}
		if policy.Status.AppliedNodes != len(c.nodes) {
			return fmt.Errorf("%d of %d nodes have applied it", policy.Status.AppliedNodes, policy.Status.MatchedNodes)
		}
		return nil
	})
	c.show(t, "get", "cachepolicies")
	c.rollout(t, workload{name: "bypassed", image: img.ref}, time.Minute)
	tell(t, "pods of a bypassed image start")

	c.delete(t, "cachepolicy", "bypass")
	eventually(t, time.Minute, answers("200"))
	now, err := c.containers(t.Context())
	require.NoError(t, err)
	require.Equal(t, containers, now, "no agent was started again")
}
