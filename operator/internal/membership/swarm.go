package membership

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/apply"
	"github.com/shoal-cache/shoal/operator/internal/bootstrap"
	"github.com/shoal-cache/shoal/operator/internal/condition"
	"github.com/shoal-cache/shoal/operator/internal/debounce"
)

const (
	// gather is how long events are gathered before the swarm is looked at as a whole.
	gather = 500 * time.Millisecond
	// livenessCheck is how often peers are looked at without an event, because an agent that falls silent makes none.
	livenessCheck = time.Minute
	// maxDown is how many members that are down are named.
	maxDown = 10
)

// +kubebuilder:rbac:groups=shoal.dev,resources=swarms,verbs=get;list;watch
// +kubebuilder:rbac:groups=shoal.dev,resources=swarms/status,verbs=patch
// +kubebuilder:rbac:groups=shoal.dev,resources=peers;nodecaches,verbs=get;list;watch

// SwarmReconciler publishes the swarm.
type SwarmReconciler struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.Clock
	Metrics  prometheus.Registerer

	members, registered prometheus.Gauge
	liveness            Liveness // of the one worker
}

// SetupWithManager wires the reconciler to what it watches.
func (r *SwarmReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.members = prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_operator_members", Help: "Admitted peers."})
	r.registered = prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_operator_peers",
		Help: "Registered peers, admitted or not."})
	for _, m := range []prometheus.Collector{r.members, r.registered} {
		if err := r.Metrics.Register(m); err != nil {
			return fmt.Errorf("swarm controller: %w", err)
		}
	}
	swarm := debounce.To(reconcile.Request{NamespacedName: types.NamespacedName{Name: v1alpha1.SwarmName}}, gather)
	return ctrl.NewControllerManagedBy(mgr).Named("swarm").
		For(&v1alpha1.Swarm{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Peer{}, swarm).
		Watches(&corev1.Node{}, swarm, builder.WithPredicates(predicate.Or(existenceOrLabels(), ReadinessChanged()))).
		Watches(&v1alpha1.NodeCache{}, swarm, builder.WithPredicates(mirrorChanged())).
		Complete(r)
}

// Reconcile writes the Swarm's status.
func (r *SwarmReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var swarm v1alpha1.Swarm
	if err := r.Client.Get(ctx, req.NamespacedName, &swarm); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var peers v1alpha1.PeerList
	var nodes corev1.NodeList
	var caches v1alpha1.NodeCacheList
	for _, list := range []client.ObjectList{&peers, &nodes, &caches} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return ctrl.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	status, reason, message := r.describe(&swarm, peers.Items, nodes.Items, caches.Items)
	r.members.Set(float64(status.Members))
	r.registered.Set(float64(status.Registered))
	changed := condition.Set(&status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady,
		Status: condition.Status(reason == v1alpha1.ReasonBootstrapPublished), Reason: reason, Message: message,
		ObservedGeneration: swarm.Generation}, r.Clock.Now())
	if !equality.Semantic.DeepEqual(*status, swarm.Status) {
		swarm.Status = *status
		if err := apply.Status(ctx, r.Client, &swarm, v1alpha1.ManagedByOperator); err != nil {
			return ctrl.Result{}, err
		}
		if changed {
			r.Recorder.Eventf(&swarm, nil, corev1.EventTypeNormal, reason, "Publish", "%s", message)
		}
	}
	return ctrl.Result{RequeueAfter: livenessCheck}, nil
}

// describe is the status that follows from what there is, but for the condition, and the reason and message of that.
func (r *SwarmReconciler) describe(swarm *v1alpha1.Swarm, peers []v1alpha1.Peer, nodes []corev1.Node,
	caches []v1alpha1.NodeCache) (*v1alpha1.SwarmStatus, string, string) {
	nodeOf, peerOf := ByName(nodes), ByName(peers)
	lives := r.liveness.Look(nodes, peerOf, ByName(caches), r.Clock.Now())
	zones, down := map[string]bool{}, []string(nil)
	var members []bootstrap.Peer
	for i := range peers {
		p := &peers[i]
		if !p.IsAdmitted() {
			continue
		}
		life, hasNode := lives[p.Name]
		m := bootstrap.Peer{Name: p.Name, Created: p.CreationTimestamp.Time, Live: hasNode && life.DownSince.IsZero()}
		if node := nodeOf[p.Name]; node != nil {
			m.Zone = node.Labels[swarm.Spec.ZoneKey]
		}
		if !m.Live {
			down = append(down, p.Name)
		}
		zones[m.Zone] = true
		members = append(members, m)
	}
	live := len(members) - len(down)
	before := make([]string, 0, len(swarm.Status.Bootstrap))
	for _, b := range swarm.Status.Bootstrap {
		before = append(before, b.NodeName)
	}

	status := swarm.Status.DeepCopy()
	status.ObservedGeneration = swarm.Generation
	status.Members, status.Registered, status.Zones = int32(len(members)), int32(len(peers)), int32(len(zones))
	slices.Sort(down)
	status.Live, status.Down, status.Summary = int32(live), down[:min(len(down), maxDown)], summarize(caches)
	status.Summary.Live = fmt.Sprintf("%d/%d", live, len(members))
	status.Bootstrap = nil
	for _, name := range bootstrap.Choose(members, before, int(swarm.Spec.BootstrapPeers)) {
		p := peerOf[name]
		status.Bootstrap = append(status.Bootstrap, v1alpha1.BootstrapPeer{
			NodeName: name, PeerID: p.Spec.PeerID, Addresses: p.Spec.Addresses,
			Zone: nodeOf[name].Labels[swarm.Spec.ZoneKey]})
	}
	switch {
	case len(members) == 0:
		return status, v1alpha1.ReasonNoMembers, "no peer is admitted yet"
	case live == 0:
		return status, v1alpha1.ReasonNoLiveMembers,
			fmt.Sprintf("none of %s is on a Ready node and reports", view.Count(len(members), "admitted peer"))
	}
	return status, v1alpha1.ReasonBootstrapPublished,
		fmt.Sprintf("%s in %s, %d of them to start from", view.Count(len(members), "member"),
			view.Count(len(zones), "zone"), len(status.Bootstrap))
}

// summarize sums up what the nodes report.
func summarize(caches []v1alpha1.NodeCache) v1alpha1.SwarmSummary {
	var hits, requests, used, peers, upstream, saved int64
	var s v1alpha1.SwarmSummary
	for i := range caches {
		c := &caches[i].Status
		hits += c.Counters.Hits
		requests += c.Counters.Hits + c.Counters.Misses
		for sum, q := range map[*int64]*resource.Quantity{
			&used: c.Usage.Bytes, &peers: c.Counters.PeerBytes, &upstream: c.Counters.UpstreamBytes,
			&saved: c.Counters.SavedBytes,
		} {
			if q != nil {
				*sum += q.Value()
			}
		}
		if apimeta.IsStatusConditionFalse(c.Conditions, v1alpha1.ConditionMirrorConfigured) {
			s.Unmirrored++
		}
	}
	s.Hits, s.Used, s.FromPeers = v1alpha1.Percent(hits, requests), v1alpha1.GiB(used), v1alpha1.GiB(peers)
	s.FromUpstream, s.Saved = v1alpha1.GiB(upstream), v1alpha1.GiB(saved)
	return s
}

// mirrorChanged passes updates of a NodeCache whose runtime has begun or ceased to ask its agent, for the Swarm's
// status counts those that do not.
func mirrorChanged() predicate.Predicate {
	unmirrored := func(o client.Object) bool {
		c, ok := o.(*v1alpha1.NodeCache)
		return ok && apimeta.IsStatusConditionFalse(c.Status.Conditions, v1alpha1.ConditionMirrorConfigured)
	}
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc:  func(e event.UpdateEvent) bool { return unmirrored(e.ObjectOld) != unmirrored(e.ObjectNew) },
	}
}

// ReadinessChanged passes updates of a Node in which its condition Ready changes.
func ReadinessChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		after, ok2 := e.ObjectNew.(*corev1.Node)
		return ok && ok2 && ready(before) != ready(after)
	}}
}

func ready(n *corev1.Node) corev1.ConditionStatus {
	if c := readiness(n); c != nil {
		return c.Status
	}
	return ""
}
