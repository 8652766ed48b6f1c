package page

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// scene is a cluster in which all is well, and nothing moves: nodes over zones, named by name.
func scene(nodes, zones int, name string) *gathered {
	g := &gathered{at: now, asked: true, cluster: &survey.Cluster{Swarm: &v1alpha1.Swarm{},
		Operators: []corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodRunning}}}}}
	at := metav1.NewTime(now.Add(-42 * time.Second))
	size := func(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
	for i := range nodes {
		node := fmt.Sprintf("%s-%03d", name, i)
		id := "12D3KooW" + node
		g.cluster.Peers = append(g.cluster.Peers, v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: node},
			Spec:   v1alpha1.PeerSpec{PeerID: id, Zone: fmt.Sprintf("eu-central-1%c", 'a'+i%zones)},
			Status: v1alpha1.PeerStatus{Admitted: true, AdmittedPeerID: id}})
		n := int64(i + 1)
		g.cluster.Caches = append(g.cluster.Caches, v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node},
			Status: v1alpha1.NodeCacheStatus{ReportedAt: &at, Version: "v0.9.1",
				Usage: v1alpha1.CacheUsage{Bytes: size(n << 28), Capacity: size(20 << 30), PinnedBytes: size(n << 26)},
				Counters: v1alpha1.CacheCounters{Hits: 90 * n, Misses: 10 * n, PeerBytes: size(n << 31),
					UpstreamBytes: size(n << 28), SavedBytes: size(n << 32)},
				Conditions: []metav1.Condition{{Type: v1alpha1.ConditionMirrorConfigured, Status: metav1.ConditionTrue,
					Reason: v1alpha1.ReasonMirrorConfigured}}}})
		g.cluster.Agents = append(g.cluster.Agents, corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "shoal-agent-" + node, Namespace: "shoal-system"},
			Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning,
				ContainerStatuses: []corev1.ContainerStatus{{Name: "agent", Ready: true}}}})
		g.health = append(g.health, survey.Answer[survey.Shown]{Node: node,
			Value: survey.Shown{Peers: []view.Peer{{ID: "another"}}}})
		g.moving = append(g.moving, survey.Answer[[]view.Fetch]{Node: node})
	}
	g.cluster.Daemons = []appsv1.DaemonSet{{Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: int32(nodes),
		CurrentNumberScheduled: int32(nodes), UpdatedNumberScheduled: int32(nodes)}}}
	return g
}

// burst lets all nodes fetch the layers of an image: each got a part of each of them from the registry, and the rest
// from the node before it.
func burst(g *gathered, repository string, layers int) {
	for l := range layers {
		layer := digest.FromString(fmt.Sprint(repository, l)).String()
		for i := range g.moving {
			a := &g.moving[i]
			f := view.Fetch{Digest: layer, Repository: repository, Size: 256 << 20, Readers: 1,
				Started: g.at.Add(-10 * time.Second)}
			for cell := range 64 {
				f.Map = append(f.Map, max(0, min(10, 4*((cell*7+i*11)%16)-i%20)))
			}
			f.FromUpstream, f.FromPeers = 24<<20, int64(i%7+1)*(20<<20)
			f.Present = f.FromUpstream + f.FromPeers
			before := g.cluster.Peers[(i+len(g.moving)-1)%len(g.moving)].Spec.PeerID
			f.Peers = map[string]int64{before: f.FromPeers}
			a.Value = append(a.Value, f)
		}
	}
}

// ill plants problems of each kind.
func ill(g *gathered) {
	g.cluster.Caches[0].Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionMirrorConfigured,
		Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonConfigPathUnset,
		Message: "containerd reads no mirrors: /etc/containerd/config.toml names no config_path"}
	g.cluster.Peers[1].Status = v1alpha1.PeerStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAdmitted,
		Status: metav1.ConditionFalse, Reason: "NodeDenied", Message: "spec.admission.denyNodes names it"}}}
	g.health[2].Err = errors.New("it gave no answer in time")
	g.cluster.Nodes = append(g.cluster.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: g.cluster.Peers[3].Name},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady,
			Status: corev1.ConditionUnknown, Message: "Kubelet stopped posting node status."}}}})
}

// pinned adds pins, one of which is not whole.
func pinned(g *gathered) {
	for i, status := range []v1alpha1.ArtifactPinStatus{
		{Ready: 2, Desired: 2, Summary: "docker.io/library/debian:stable-slim",
			BytesHeld: resource.NewQuantity(60<<20, resource.BinarySI), BytesWanted: resource.NewQuantity(60<<20, resource.BinarySI),
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "AllReady"}}},
		{Ready: 1, Desired: 3, Summary: "registry.example/team/a-model-with-a-rather-long-name:2026-06-30-rc.1 and 3 more",
			BytesHeld: resource.NewQuantity(5<<30, resource.BinarySI), BytesWanted: resource.NewQuantity(15<<30, resource.BinarySI),
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
				Reason: v1alpha1.ReasonFetching, Message: "2 of 3 copies are on their way"}}},
	} {
		g.cluster.Pins = append(g.cluster.Pins, v1alpha1.ArtifactPin{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: fmt.Sprintf("pin-%d", i)}, Status: status})
	}
}

// past is a day of points.
func past(h *history) {
	var s survey.Sums
	for i := range 200 {
		s.Requests += int64(i % 40)
		s.Hits += int64(i % 40 * 8 / 10)
		s.Saved += int64(i%40) << 27
		s.Upstream += int64(i%40) << 24
		h.add(now.Add(time.Duration(i-200)*every), s)
	}
}

// serve serves a scene.
func serve(t *testing.T, g *gathered, with ...func(*gathered)) (*Page, *httptest.Server) {
	t.Helper()
	for _, change := range with {
		change(g)
	}
	p := New(Options{Clock: clock.RealClock{}, Now: time.Now, Log: slog.New(slog.DiscardHandler), Version: "v0.9.1"})
	p.gather.last, p.gather.until = g, time.Now().Add(time.Hour)
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	return p, server
}

// longName is a node's name as clouds give them.
var longName = "ip-10-0-128-17.eu-central-1.compute.internal-" + strings.Repeat("gpu-pool-", 4) + "node"
