package survey

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Cluster is what the API server knows of the cache. What the user may not read is empty, and Hidden says so.
type Cluster struct {
	Swarm  *v1alpha1.Swarm
	Peers  []v1alpha1.Peer
	Caches []v1alpha1.NodeCache
	Pins   []v1alpha1.ArtifactPin
	Nodes  []corev1.Node
	Agents []corev1.Pod
	// Operators are the operators' pods, in the agents' namespace. Who may see those sees these.
	Operators []corev1.Pod
	Daemons   []appsv1.DaemonSet
	Hidden    []string
	// Namespace is where the pods were looked for; empty: everywhere.
	Namespace string
}

// DefaultNamespace is where agents are looked for by those who may not look everywhere.
const DefaultNamespace = "shoal-system"

// HiddenPods, hiddenOperators and hiddenPins are what Hidden says of the agents' pods, of the operators', and of pins.
const (
	HiddenPods      = "the agents' pods"
	hiddenOperators = "the operators' pods"
	hiddenPins      = "pins"
)

// AgentLabels and OperatorLabels select the pods of agents and operators, whatever the release is called.
var (
	AgentLabels    = client.MatchingLabels{"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/component": "agent"}
	OperatorLabels = client.MatchingLabels{"app.kubernetes.io/part-of": "shoal",
		"app.kubernetes.io/component": "operator"}
)

// Look reads all of it, of agents those in the namespace, or in any where it is empty. Who may not look everywhere sees
// those of DefaultNamespace. The kinds of Shoal must be readable, the rest need not.
func Look(ctx context.Context, api client.Reader, namespace string) (*Cluster, error) {
	c := &Cluster{Namespace: namespace}
	var swarm v1alpha1.Swarm
	switch err := api.Get(ctx, types.NamespacedName{Name: v1alpha1.SwarmName}, &swarm); {
	case err == nil:
		c.Swarm = &swarm
	case !apierrors.IsNotFound(err):
		return nil, err
	}
	var peers v1alpha1.PeerList
	var caches v1alpha1.NodeCacheList
	for _, list := range []client.ObjectList{&peers, &caches} {
		if err := api.List(ctx, list); err != nil {
			return nil, err
		}
	}
	c.Peers, c.Caches = peers.Items, caches.Items
	var pins v1alpha1.ArtifactPinList
	var nodes corev1.NodeList
	var agents, operators corev1.PodList
	var daemons appsv1.DaemonSetList
	for _, l := range []struct {
		what string
		list client.ObjectList
		ours client.MatchingLabels // of what is in the agents' namespace
	}{
		{hiddenPins, &pins, nil},
		{"nodes", &nodes, nil},
		{HiddenPods, &agents, AgentLabels},
		{hiddenOperators, &operators, OperatorLabels},
		{"the agents' DaemonSet", &daemons, AgentLabels},
	} {
		var err error
		if l.ours != nil {
			err = c.listOurs(ctx, api, l.list, l.ours)
		} else {
			err = api.List(ctx, l.list)
		}
		if apierrors.IsForbidden(err) {
			c.Hidden = append(c.Hidden, l.what)
		} else if err != nil {
			return nil, fmt.Errorf("list %s: %w", l.what, err)
		}
	}
	c.Pins, c.Nodes, c.Daemons = pins.Items, nodes.Items, daemons.Items
	c.Agents, c.Operators = agents.Items, operators.Items
	return c, nil
}

// listOurs lists what is in the agents' namespace: in all of them where that is not known and the user may.
func (c *Cluster) listOurs(ctx context.Context, api client.Reader, list client.ObjectList,
	labels client.MatchingLabels) error {
	err := api.List(ctx, list, labels, client.InNamespace(c.Namespace))
	if apierrors.IsForbidden(err) && c.Namespace == "" {
		c.Namespace = DefaultNamespace
		err = api.List(ctx, list, labels, client.InNamespace(c.Namespace))
	}
	return err
}

// Sums are what the nodes reported, together.
type Sums struct {
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

// Sums adds up what the nodes reported.
func (c *Cluster) Sums() Sums {
	var s Sums
	for i := range c.Caches {
		st := &c.Caches[i].Status
		s.Nodes++
		s.Hits += st.Counters.Hits
		s.Requests += st.Counters.Hits + st.Counters.Misses
		s.Bytes += SizeOf(st.Usage.Bytes)
		s.Capacity += SizeOf(st.Usage.Capacity)
		s.Pinned += SizeOf(st.Usage.PinnedBytes)
		s.Peers += SizeOf(st.Counters.PeerBytes)
		s.Upstream += SizeOf(st.Counters.UpstreamBytes)
		s.Saved += SizeOf(st.Counters.SavedBytes)
	}
	return s
}

// SizeOf is a size that may be left out.
func SizeOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}

// written is when the API server took a node's last report down: by its clock, which is right where the node's is off.
// Where that is not known it is when the node says that it wrote it. The node has reported.
func written(c *v1alpha1.NodeCache) time.Time {
	for _, m := range c.ManagedFields {
		if m.Manager == v1alpha1.AgentFieldManager && m.Subresource == "status" && m.Time != nil {
			return m.Time.Time
		}
	}
	return c.Status.ReportedAt.Time
}

// skew is how far the clock of a node that has reported is from the API server's: between what the agent wrote as the
// time of its report and when the API server took it down. It is 0 where that is not known.
func skew(c *v1alpha1.NodeCache) time.Duration { return c.Status.ReportedAt.Sub(written(c)) }

// Runs reports whether an agent runs, as far as the user may know. Where none does, what Peers and NodeCaches say of
// their nodes is from before: they outlive the agents.
func (c *Cluster) Runs() bool {
	return len(Running(c.Agents, "")) > 0 || slices.Contains(c.Hidden, HiddenPods)
}

// liveOperators are the operators' pods without those that have ended or are about to: others take their place.
func (c *Cluster) liveOperators() []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(c.Operators), func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	})
}

// ReadyOperators is how many operators are ready, and of how many. seen: the user may know.
func (c *Cluster) ReadyOperators() (ready, all int, seen bool) {
	live := c.liveOperators()
	for i := range live {
		if unready(&live[i]) == "" {
			ready++
		}
	}
	return ready, len(live), !slices.Contains(c.Hidden, hiddenOperators)
}
