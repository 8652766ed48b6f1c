package membership

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/apply"
	"github.com/shoal-cache/shoal/operator/internal/condition"
)

// DefaultRetireAfter is how long a Peer without Node stands, unadmitted, before it is deleted: long enough for a node
// that is registered anew, as happens when its kubelet is set up again.
const DefaultRetireAfter = 30 * time.Second

// peerIDIndex is the field index of Peers by the peer ID that they claim.
const peerIDIndex = "spec.peerID"

// +kubebuilder:rbac:groups=shoal.dev,resources=peers,verbs=get;list;watch;delete
// +kubebuilder:rbac:groups=shoal.dev,resources=peers/status,verbs=patch
// +kubebuilder:rbac:groups=shoal.dev,resources=swarms,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// PeerReconciler admits and retires peers.
type PeerReconciler struct {
	Client client.Client
	// Live reads from the API server and not from a cache, which may lag: asked before a Peer is deleted.
	Live     client.Reader
	Recorder events.EventRecorder
	Clock    clock.Clock
	Metrics  prometheus.Registerer
	// RetireAfter is DefaultRetireAfter, but for tests.
	RetireAfter time.Duration

	verdicts *prometheus.CounterVec
	// missing is since when peers' nodes have been seen to be missing, by name: those who wrote the times in a Peer had
	// other clocks.
	missing sync.Map
}

// SetupWithManager wires the reconciler to what it watches.
func (r *PeerReconciler) SetupWithManager(ctx context.Context, mgr ctrl.Manager) error {
	r.verdicts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_operator_peer_verdicts_total", Help: "Changes of verdict about peers, by reason."},
		[]string{"reason"})
	if err := r.Metrics.Register(r.verdicts); err != nil {
		return fmt.Errorf("peer controller: %w", err)
	}
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.Peer{}, peerIDIndex, func(o client.Object) []string {
		return []string{o.(*v1alpha1.Peer).Spec.PeerID}
	})
	if err != nil {
		return fmt.Errorf("index peers by peer ID: %w", err)
	}
	return ctrl.NewControllerManagedBy(mgr).Named("peer").
		For(&v1alpha1.Peer{}).
		Watches(&v1alpha1.Peer{}, handler.EnqueueRequestsFromMapFunc(r.rivals)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(sameName),
			builder.WithPredicates(existenceOrLabels())).
		Watches(&v1alpha1.Swarm{}, handler.EnqueueRequestsFromMapFunc(r.everyPeer),
			builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 16}).
		Complete(r)
}

// existenceOrLabels passes the events of a Node that can change a verdict, and not its heartbeats.
func existenceOrLabels() predicate.Predicate { return predicate.LabelChangedPredicate{} }

func sameName(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.GetName()}}}
}

// rivals are the other Peers that claim an object's peer ID: they may win it when this one goes.
func (r *PeerReconciler) rivals(ctx context.Context, o client.Object) []reconcile.Request {
	peers, err := r.withPeerID(ctx, o.(*v1alpha1.Peer))
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Find peers of the same peer ID")
		return nil
	}
	return requestsFor(peers)
}

func (r *PeerReconciler) withPeerID(ctx context.Context, p *v1alpha1.Peer) ([]v1alpha1.Peer, error) {
	var list v1alpha1.PeerList
	if err := r.Client.List(ctx, &list, client.MatchingFields{peerIDIndex: p.Spec.PeerID}); err != nil {
		return nil, fmt.Errorf("list peers of peer ID %s: %w", p.Spec.PeerID, err)
	}
	others := list.Items[:0]
	for _, o := range list.Items {
		if o.Name != p.Name {
			others = append(others, o)
		}
	}
	return others, nil
}

func (r *PeerReconciler) everyPeer(ctx context.Context, _ client.Object) []reconcile.Request {
	var list v1alpha1.PeerList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "List peers")
		return nil
	}
	return requestsFor(list.Items)
}

func requestsFor(peers []v1alpha1.Peer) []reconcile.Request {
	requests := make([]reconcile.Request, len(peers))
	for i := range peers {
		requests[i].Name = peers[i].Name
	}
	return requests
}

// Reconcile writes the verdict about one peer, and deletes the Peer when its node has been gone for RetireAfter.
func (r *PeerReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var p v1alpha1.Peer
	if err := r.Client.Get(ctx, req.NamespacedName, &p); err != nil {
		r.missing.Delete(req.Name)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !p.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	facts, err := r.facts(ctx, &p)
	if err != nil {
		return ctrl.Result{}, err
	}
	verdict := Judge(facts)
	if err := r.publish(ctx, &p, verdict); err != nil {
		return ctrl.Result{}, err
	}
	if verdict.Reason == v1alpha1.ReasonNodeNotFound {
		return r.retire(ctx, &p)
	}
	r.missing.Delete(p.Name)
	return ctrl.Result{}, nil
}

func (r *PeerReconciler) facts(ctx context.Context, p *v1alpha1.Peer) (Facts, error) {
	f := Facts{Peer: p, Node: &corev1.Node{}, Swarm: &v1alpha1.Swarm{}}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: p.Name}, f.Node); apierrors.IsNotFound(err) {
		f.Node = nil
	} else if err != nil {
		return f, fmt.Errorf("get node: %w", err)
	}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: v1alpha1.SwarmName}, f.Swarm); apierrors.IsNotFound(err) {
		f.Swarm = nil
	} else if err != nil {
		return f, fmt.Errorf("get swarm: %w", err)
	}
	var err error
	f.SamePeerID, err = r.withPeerID(ctx, p)
	return f, err
}

func (r *PeerReconciler) publish(ctx context.Context, p *v1alpha1.Peer, v Verdict) error {
	status := p.Status.DeepCopy()
	status.ObservedGeneration = p.Generation
	status.Admitted = v.Admitted
	status.AdmittedPeerID = p.Spec.PeerID
	changed := condition.Set(&status.Conditions, metav1.Condition{Type: v1alpha1.ConditionAdmitted,
		Status: condition.Status(v.Admitted), Reason: v.Reason, Message: v.Message, ObservedGeneration: p.Generation},
		r.Clock.Now())
	if equality.Semantic.DeepEqual(status, &p.Status) {
		return nil
	}
	p.Status = *status
	if err := apply.Status(ctx, r.Client, p, v1alpha1.ManagedByOperator); err != nil {
		return err
	}
	if changed {
		r.verdicts.WithLabelValues(v.Reason).Inc()
		kind := corev1.EventTypeNormal
		if !v.Admitted {
			kind = corev1.EventTypeWarning
		}
		// cut to what a note holds
		message := apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAdmitted).Message
		r.Recorder.Eventf(p, nil, kind, v.Reason, "Admit", "%s", message)
	}
	return nil
}

func (r *PeerReconciler) retire(ctx context.Context, p *v1alpha1.Peer) (ctrl.Result, error) {
	since, _ := r.missing.LoadOrStore(p.Name, r.Clock.Now())
	if wait := r.RetireAfter - r.Clock.Since(since.(time.Time)); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	err := r.Live.Get(ctx, client.ObjectKey{Name: p.Name}, &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}})
	if err == nil {
		return ctrl.Result{RequeueAfter: r.RetireAfter}, nil // the cache lags; its watch will tell
	}
	if !apierrors.IsNotFound(err) {
		return ctrl.Result{}, fmt.Errorf("get node: %w", err)
	}
	if err := r.Client.Delete(ctx, p, client.Preconditions{UID: &p.UID}); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("retire peer %s: %w", p.Name, err)
	}
	r.Recorder.Eventf(p, nil, corev1.EventTypeNormal, "Retired", "Retire", "node %s is gone", p.Name)
	return ctrl.Result{}, nil
}
