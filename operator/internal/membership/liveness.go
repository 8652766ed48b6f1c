package membership

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Liveness tells which nodes can be counted on, by one clock: that of its caller. A node's own clock may be wrong, so
// what counts of a report is when it was seen to be another than before, as in Kubernetes' node lifecycle controller.
//
// A process that begins has seen nothing. It gives every agent StaleAfter from its first look on, so that nobody is
// taken for silent who is not, and until it has heard of them tells whose last report looks old (Unheard), so that no
// one relies on these.
//
// The zero value has seen nothing. It is not for concurrent use.
type Liveness struct {
	seen map[string]sighting
}

// Life is what a look tells of a node.
type Life struct {
	// DownSince is since when the node can't be counted on: since it is not Ready, or since its agent should have
	// reported and did not. Zero: it is up.
	DownSince time.Time
	// Unheard: nothing has been heard of the agent since this process began, and what it said last may be hours old.
	Unheard bool
}

// sighting is what was seen of a node, and when.
type sighting struct {
	peer     types.UID
	reported int64     // the agent's own time, of which only counts that it changes
	heard    time.Time // when either was seen to change, or was first looked at
	unheard  bool
	notReady time.Time // since when; zero if it is Ready
}

// Look takes in what the API server holds of all nodes, peers and NodeCaches, the latter two by name. Nodes that are
// gone are forgotten.
func (l *Liveness) Look(nodes []corev1.Node, peers map[string]*v1alpha1.Peer, caches map[string]*v1alpha1.NodeCache,
	now time.Time) map[string]Life {
	seen, lives := make(map[string]sighting, len(nodes)), make(map[string]Life, len(nodes))
	for i := range nodes {
		node := &nodes[i]
		before, known := l.seen[node.Name]
		s := before.next(known, node, peers[node.Name], caches[node.Name], now)
		seen[node.Name], lives[node.Name] = s, s.life(now)
	}
	l.seen = seen
	return lives
}

// ByName are the objects of a list by their names.
func ByName[T any, P interface {
	*T
	metav1.Object
}](list []T) map[string]P {
	byName := make(map[string]P, len(list))
	for i := range list {
		o := P(&list[i])
		byName[o.GetName()] = o
	}
	return byName
}

// next is the sighting that follows s, if it is known, or is the first. peer and cache may be nil.
func (s sighting) next(known bool, node *corev1.Node, peer *v1alpha1.Peer, cache *v1alpha1.NodeCache,
	now time.Time) sighting {
	changed := false
	if peer != nil && peer.UID != s.peer {
		s.peer, changed = peer.UID, true
	}
	recent := false
	if cache != nil && cache.Status.ReportedAt != nil {
		at := cache.Status.ReportedAt.Time
		changed = changed || at.UnixNano() != s.reported
		s.reported, recent = at.UnixNano(), now.Sub(at).Abs() < v1alpha1.StaleAfter
	}
	switch {
	case !known:
		s.heard, s.unheard = now, !recent
	case changed:
		s.heard, s.unheard = now, false
	}
	switch c := readiness(node); {
	case c == nil || c.Status == corev1.ConditionTrue:
		s.notReady = time.Time{}
	case !s.notReady.IsZero():
	case known:
		s.notReady = now
	default: // it is down, and a new operator must not begin its repair anew; when it went down only others have seen
		if s.notReady = c.LastTransitionTime.Time; s.notReady.IsZero() || s.notReady.After(now) {
			s.notReady = now
		}
	}
	return s
}

func (s sighting) life(now time.Time) Life {
	life := Life{DownSince: s.notReady, Unheard: s.unheard}
	if silent := s.heard.Add(v1alpha1.StaleAfter); life.DownSince.IsZero() && now.After(silent) {
		life.DownSince = silent
	}
	return life
}

// readiness is a node's condition Ready, nil if there is none.
func readiness(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeReady {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}
