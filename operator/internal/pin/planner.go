package pin

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/debounce"
	"github.com/shoal-cache/shoal/operator/internal/membership"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

const (
	// gather is how long events are gathered before a new plan.
	gather = 250 * time.Millisecond
	// rest is how many times its own length a plan is followed by rest, so that planning takes no more than a fifth of
	// one core, however many nodes report.
	rest = 4
	// tick is how often a plan is made without an event: schedules open and shut, pins expire, repair delays end.
	tick = 15 * time.Second
	// statusPace spaces the status writes that one plan calls for, so that a change that touches every pin, such as a
	// node that joins, does not keep assignments waiting. What changes again in between is written once.
	statusPace = 10 * time.Millisecond
	// firstPlan is how long the first plan waits for peers to be judged: else a swarm that forms would move its copies
	// with each peer that is admitted.
	firstPlan = time.Minute
)

// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins;peers;nodecaches;swarms,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// Planner makes the plan.
type Planner struct {
	Client  client.Client
	Clock   clock.Clock
	Board   *Board
	Metrics prometheus.Registerer

	seconds prometheus.Histogram
	copies  *prometheus.GaugeVec
	// Of the one worker: when it first looked, until when it rests, and what it has seen of the nodes.
	started, notUntil time.Time
	liveness          membership.Liveness
}

// SetupWithManager wires the planner to what it watches: everything.
func (r *Planner) SetupWithManager(mgr ctrl.Manager) error {
	r.seconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "shoal_operator_plan_seconds", Help: "Time to compute a plan for all nodes and pins.",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)})
	r.copies = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "shoal_operator_pin_copies", Help: "Copies of all pins that are neither suspended " +
			"nor wait for their schedule, by state: desired, ready, pending, failed."},
		[]string{"state"})
	for _, m := range []prometheus.Collector{r.seconds, r.copies} {
		if err := r.Metrics.Register(m); err != nil {
			return fmt.Errorf("planner: %w", err)
		}
	}
	all := debounce.To(reconcile.Request{NamespacedName: types.NamespacedName{Name: "all"}}, gather)
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		a, b := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
		return !reflect.DeepEqual(a.Labels, b.Labels) || !reflect.DeepEqual(a.Spec.Taints, b.Spec.Taints) ||
			!a.DeletionTimestamp.Equal(b.DeletionTimestamp) || membership.ReadinessChanged().Update(e)
	}}
	return ctrl.NewControllerManagedBy(mgr).Named("planner").
		Watches(&v1alpha1.ArtifactPin{}, all, builder.WithPredicates(predicate.Funcs{UpdateFunc: pinInputChanged})).
		Watches(&v1alpha1.Peer{}, all).
		Watches(&v1alpha1.NodeCache{}, all, builder.WithPredicates(predicate.Funcs{UpdateFunc: cacheInputChanged})).
		Watches(&v1alpha1.Swarm{}, all, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Node{}, all, builder.WithPredicates(relevant)).
		Complete(r)
}

// pinInputChanged passes updates of what a plan is made from, and not of what is made from the plan.
func pinInputChanged(e event.UpdateEvent) bool {
	a, b := e.ObjectOld.(*v1alpha1.ArtifactPin), e.ObjectNew.(*v1alpha1.ArtifactPin)
	return a.Generation != b.Generation || !a.DeletionTimestamp.Equal(b.DeletionTimestamp) ||
		!reflect.DeepEqual(a.Status.Artifacts, b.Status.Artifacts) ||
		!slices.Equal(a.Status.PullSecrets, b.Status.PullSecrets)
}

// cacheInputChanged passes updates of a NodeCache that a plan may follow from, and not heartbeats and counters, which
// are most of them: that an agent has fallen silent, or has not, the next tick sees.
func cacheInputChanged(e event.UpdateEvent) bool {
	a, b := e.ObjectOld.(*v1alpha1.NodeCache), e.ObjectNew.(*v1alpha1.NodeCache)
	return a.Generation != b.Generation || !equality.Semantic.DeepEqual(a.Status.Pins, b.Status.Pins) ||
		!equality.Semantic.DeepEqual(a.Status.Usage.Capacity, b.Status.Usage.Capacity) ||
		!equality.Semantic.DeepEqual(a.Status.Usage.ModelCapacity, b.Status.Usage.ModelCapacity)
}

// Reconcile makes a plan and tells the other controllers where it differs from what is.
func (r *Planner) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	start := r.Clock.Now()
	if wait := r.notUntil.Sub(start); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	in, caches, unjudged, err := r.input(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	if r.started.IsZero() {
		r.started = start
	}
	if r.Board.Plan() == nil && unjudged > 0 && start.Sub(r.started) < firstPlan {
		return ctrl.Result{RequeueAfter: gather}, nil
	}
	made := plan.Compute(in)
	before := r.Board.current.Swap(made)
	took := r.Clock.Since(start)
	r.seconds.Observe(took.Seconds())
	r.notUntil = r.Clock.Now().Add(rest * took)

	for name, want := range made.Assignments {
		if cache := caches[name]; cache == nil || !slices.EqualFunc(cache.Spec.Pins, want, sameAssignment) {
			r.Board.nodes.send(types.NamespacedName{Name: name}, 0)
		}
	}
	changed := 0
	for _, p := range in.Pins {
		s := made.Pins[p.UID]
		if before == nil || !reflect.DeepEqual(before.Pins[p.UID], s) {
			r.Board.pins.send(client.ObjectKeyFromObject(p), time.Duration(changed)*statusPace)
			changed++
		}
	}
	for state, n := range copies(made) {
		r.copies.WithLabelValues(state).Set(float64(n))
	}
	for i := range in.Nodes {
		if n := &in.Nodes[i]; slices.ContainsFunc(n.Taints, isStartupTaint) {
			r.Board.starting.send(types.NamespacedName{Name: n.Name}, 0)
		}
	}
	return ctrl.Result{RequeueAfter: tick}, nil
}

// copies counts those of all pins, by state. Those of a pin that is suspended, or waits for a window of its schedule,
// are as they are to be for now, and not among them.
func copies(made *plan.Plan) map[string]int32 {
	states := map[string]int32{"desired": 0, "ready": 0, "pending": 0, "failed": 0} // of no pin, none
	for _, s := range made.Pins {
		if s.Suspended || s.WindowShut {
			continue
		}
		states["desired"] += s.Desired
		states["ready"] += s.Ready
		states["pending"] += s.Pending
		states["failed"] += s.Failed
	}
	return states
}

func sameAssignment(a, b v1alpha1.PinAssignment) bool {
	return a.UID == b.UID && a.Revision == b.Revision
}

// input gathers what the plan is made from, and counts the peers that no one has judged yet. The objects are the
// cache's own and are only read.
func (r *Planner) input(ctx context.Context) (in plan.Input, cacheOf map[string]*v1alpha1.NodeCache, unjudged int,
	err error) {
	in = plan.Input{Now: r.Clock.Now(), ZoneKey: corev1.LabelTopologyZone}
	var swarms v1alpha1.SwarmList
	var nodes corev1.NodeList
	var peers v1alpha1.PeerList
	var caches v1alpha1.NodeCacheList
	var pins v1alpha1.ArtifactPinList
	for _, list := range []client.ObjectList{&swarms, &nodes, &peers, &caches, &pins} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return in, nil, 0, fmt.Errorf("list %T: %w", list, err)
		}
	}
	for i := range swarms.Items {
		if key := swarms.Items[i].Spec.ZoneKey; key != "" {
			in.ZoneKey = key
		}
	}
	for i := range peers.Items {
		if peers.Items[i].Status.AdmittedPeerID == "" {
			unjudged++
		}
	}
	peerOf := membership.ByName(peers.Items)
	cacheOf = membership.ByName(caches.Items)
	lives := r.liveness.Look(nodes.Items, peerOf, cacheOf, in.Now)
	in.Nodes = make([]plan.Node, 0, len(nodes.Items))
	for i := range nodes.Items {
		name := nodes.Items[i].Name
		in.Nodes = append(in.Nodes, planned(&nodes.Items[i], peerOf[name], cacheOf[name], lives[name]))
	}
	in.Pins = make([]*v1alpha1.ArtifactPin, len(pins.Items))
	for i := range pins.Items {
		in.Pins[i] = &pins.Items[i]
	}
	return in, cacheOf, unjudged, nil
}

// planned is a node as the plan sees it. peer and cache may be nil.
func planned(node *corev1.Node, peer *v1alpha1.Peer, cache *v1alpha1.NodeCache, life membership.Life) plan.Node {
	n := plan.Node{
		Name: node.Name, Labels: node.Labels, Taints: node.Spec.Taints,
		Member:    peer != nil && peer.IsAdmitted() && node.DeletionTimestamp.IsZero(),
		DownSince: life.DownSince, Unheard: life.Unheard,
		Joined: node.CreationTimestamp.Time,
	}
	if peer != nil && peer.CreationTimestamp.After(n.Joined) {
		n.Joined = peer.CreationTimestamp.Time
	}
	if cache != nil {
		n.Assigned, n.Progress = cache.Spec.Pins, cache.Status.Pins
		n.Unreported = cache.Status.ReportedAt == nil
		if c := cache.Status.Usage.Capacity; c != nil {
			n.Capacity = c.Value()
		}
		if c := cache.Status.Usage.ModelCapacity; c != nil {
			n.ModelCapacity = c.Value()
		}
	}
	return n
}
