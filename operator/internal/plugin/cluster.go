package plugin

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// cluster is what the API server knows of the cache. What the user may not read is empty, and Hidden says so.
type cluster struct {
	Swarm   *v1alpha1.Swarm
	Peers   []v1alpha1.Peer
	Caches  []v1alpha1.NodeCache
	Pins    []v1alpha1.ArtifactPin
	Nodes   []corev1.Node
	Agents  []corev1.Pod
	Daemons []appsv1.DaemonSet
	Hidden  []string
}

// hiddenPods is what Hidden says of pods.
const hiddenPods = "the agents' pods"

// agentLabels select the agents' pods, whatever the release is called.
var agentLabels = client.MatchingLabels{"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/component": "agent"}

// look reads all of it. The kinds of Shoal must be readable, the rest need not.
func (p *plugin) look(ctx context.Context) (*cluster, error) {
	if err := p.connect(); err != nil {
		return nil, err
	}
	c := &cluster{}
	var swarm v1alpha1.Swarm
	switch err := p.api.Get(ctx, types.NamespacedName{Name: v1alpha1.SwarmName}, &swarm); {
	case err == nil:
		c.Swarm = &swarm
	case !apierrors.IsNotFound(err):
		return nil, err
	}
	var peers v1alpha1.PeerList
	var caches v1alpha1.NodeCacheList
	for _, list := range []client.ObjectList{&peers, &caches} {
		if err := p.api.List(ctx, list); err != nil {
			return nil, err
		}
	}
	c.Peers, c.Caches = peers.Items, caches.Items
	var pins v1alpha1.ArtifactPinList
	var nodes corev1.NodeList
	var agents corev1.PodList
	var daemons appsv1.DaemonSetList
	for _, l := range []struct {
		what string
		list client.ObjectList
		opts []client.ListOption
	}{
		{"pins", &pins, nil},
		{"nodes", &nodes, nil},
		{hiddenPods, &agents, []client.ListOption{agentLabels, client.InNamespace(p.system)}},
		{"the agents' DaemonSet", &daemons, []client.ListOption{agentLabels, client.InNamespace(p.system)}},
	} {
		err := p.api.List(ctx, l.list, l.opts...)
		if apierrors.IsForbidden(err) {
			c.Hidden = append(c.Hidden, l.what)
		} else if err != nil {
			return nil, fmt.Errorf("list %s: %w", l.what, err)
		}
	}
	c.Pins, c.Nodes, c.Agents, c.Daemons = pins.Items, nodes.Items, agents.Items, daemons.Items
	return c, nil
}

// sums are what the nodes reported, together.
type sums struct {
	Nodes    int   `json:"nodes"`
	Hits     int64 `json:"hits"`
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
	Capacity int64 `json:"capacity"`
	Pinned   int64 `json:"pinned"`
	Peers    int64 `json:"fromPeers"`
	Upstream int64 `json:"fromUpstream"`
	Saved    int64 `json:"saved"`
}

func (c *cluster) sums() sums {
	var s sums
	for i := range c.Caches {
		st := &c.Caches[i].Status
		s.Nodes++
		s.Hits += st.Counters.Hits
		s.Requests += st.Counters.Hits + st.Counters.Misses
		s.Bytes += sizeOf(st.Usage.Bytes)
		s.Capacity += sizeOf(st.Usage.Capacity)
		s.Pinned += sizeOf(st.Usage.PinnedBytes)
		s.Peers += sizeOf(st.Counters.PeerBytes)
		s.Upstream += sizeOf(st.Counters.UpstreamBytes)
		s.Saved += sizeOf(st.Counters.SavedBytes)
	}
	return s
}

// sizeOf is a size that may be left out.
func sizeOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}

// skew is how far a node's clock is from the API server's: between what the agent wrote as the time of its report and
// when the API server took it down. ok is false where that is not known.
func skew(c *v1alpha1.NodeCache) (d time.Duration, ok bool) {
	if c.Status.ReportedAt == nil {
		return 0, false
	}
	for _, m := range c.ManagedFields {
		if m.Manager == v1alpha1.AgentFieldManager && m.Subresource == "status" && m.Time != nil {
			return c.Status.ReportedAt.Sub(m.Time.Time), true
		}
	}
	return 0, false
}
