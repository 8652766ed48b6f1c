package pin

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/apply"
	"github.com/shoal-cache/shoal/operator/internal/condition"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

// statusFields are those of ArtifactPin.status that this controller writes; the resolver writes the others.
var statusFields = []string{"observedGeneration", "eligible", "desired", "ready", "pending", "failed", "domains",
	"bytesHeld", "bytesWanted", "held", "wanted", "lastUsed", "failures", "conditions"}

// statusConditions likewise.
var statusConditions = []string{v1alpha1.ConditionReady, v1alpha1.ConditionDegraded, v1alpha1.ConditionExpired}

// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins,verbs=get;list;watch
// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins/status,verbs=patch

// StatusReconciler writes how each pin fares.
type StatusReconciler struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.Clock
	Board    *Board
}

// SetupWithManager wires the reconciler to the plan, and to what the resolver finds.
func (r *StatusReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("pinstatus").
		For(&v1alpha1.ArtifactPin{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: pinStatusChanged})).
		WatchesRawSource(r.Board.pins.source()).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(r)
}

// pinStatusChanged passes updates of what a status follows from, and of the status itself: its own last write may not
// have been seen yet when the plan went back to what was before it, and that is noticed when it is seen.
func pinStatusChanged(e event.UpdateEvent) bool {
	a, b := e.ObjectOld.(*v1alpha1.ArtifactPin), e.ObjectNew.(*v1alpha1.ArtifactPin)
	return pinInputChanged(e) || !equality.Semantic.DeepEqual(resolution(a), resolution(b)) ||
		!equality.Semantic.DeepEqual(own(a.Status), own(b.Status))
}

func resolution(p *v1alpha1.ArtifactPin) *metav1.Condition {
	return apimeta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionResolved)
}

// Reconcile writes the status of one pin from the plan.
func (r *StatusReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var p v1alpha1.ArtifactPin
	if err := r.Client.Get(ctx, req.NamespacedName, &p); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	made := r.Board.Plan()
	if made == nil || made.Pins[p.UID] == nil || !made.Pins[p.UID].Of(&p) {
		return ctrl.Result{}, nil // the next plan has it as it is now, and tells
	}
	if !p.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	s := made.Pins[p.UID]
	want := describe(&p, s, r.Clock.Now())
	if equality.Semantic.DeepEqual(want, own(p.Status)) {
		return ctrl.Result{}, nil
	}
	before := p.Status
	p.Status = want
	if err := apply.Status(ctx, r.Client, &p, v1alpha1.ManagedByOperator, statusFields...); err != nil {
		return ctrl.Result{}, err
	}
	r.report(&p, before.Conditions)
	return ctrl.Result{}, nil
}

// own is the part of a status that this controller writes.
func own(s v1alpha1.ArtifactPinStatus) v1alpha1.ArtifactPinStatus {
	return v1alpha1.ArtifactPinStatus{
		ObservedGeneration: s.ObservedGeneration, Eligible: s.Eligible, Desired: s.Desired, Ready: s.Ready,
		Pending: s.Pending,
		Failed:  s.Failed, Domains: s.Domains, BytesHeld: s.BytesHeld, BytesWanted: s.BytesWanted, Held: s.Held,
		Wanted: s.Wanted, LastUsed: s.LastUsed,
		Failures: s.Failures,
		Conditions: slices.DeleteFunc(slices.Clone(s.Conditions), func(c metav1.Condition) bool {
			return !slices.Contains(statusConditions, c.Type)
		}),
	}
}

// describe is this controller's part of the status that follows from the plan.
func describe(p *v1alpha1.ArtifactPin, s *plan.Summary, now time.Time) v1alpha1.ArtifactPinStatus {
	mine := own(p.Status)
	status := *mine.DeepCopy()
	status.ObservedGeneration = p.Generation
	status.Eligible, status.Desired, status.Ready, status.Pending, status.Failed = s.Eligible, s.Desired, s.Ready,
		s.Pending, s.Failed
	status.Domains, status.LastUsed, status.Failures = s.Domains, s.LastUsed, s.Failures
	status.BytesHeld, status.BytesWanted = resource.NewQuantity(s.BytesHeld,
		resource.BinarySI), resource.NewQuantity(s.BytesWanted, resource.BinarySI)
	status.Held, status.Wanted = v1alpha1.GiB(s.BytesHeld), v1alpha1.GiB(s.BytesWanted)
	for _, c := range []metav1.Condition{readiness(p, s), degradation(p, s), expiry(s)} {
		c.ObservedGeneration = p.Generation
		condition.Set(&status.Conditions, c, now)
	}
	return status
}

// rule finds a reason why a pin is not ready.
type rule func(*v1alpha1.ArtifactPin, *plan.Summary) (reason, message string, holds bool)

// rules in the order in which they are asked; the first that holds decides.
var rules = []rule{purging, hasExpired, isInvalid, isSuspended, isUnresolved, hasNoNodes, isTooLarge, hasFailed,
	waitsForWindow, isFetching, lacksCapacity, exceedsPinLimit, awaitsNodes, hasTooFewNodes}

func readiness(p *v1alpha1.ArtifactPin, s *plan.Summary) metav1.Condition {
	for _, r := range rules {
		if reason, message, holds := r(p, s); holds {
			return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason,
				Message: message}
		}
	}
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue,
		Reason:  v1alpha1.ReasonAllReady,
		Message: wholeOf(s.Ready, s.Ready)}
}

// wholeOf says how many copies are whole.
func wholeOf(ready, desired int32) string {
	switch {
	case desired == 1 && ready == 0:
		return "the one copy is not whole yet"
	case ready < desired:
		return fmt.Sprintf("%d of %s are whole", ready, view.Count(desired, "copy"))
	case ready == 1:
		return "the one copy is whole"
	}
	return fmt.Sprintf("all %d copies are whole", ready)
}

func purging(p *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonPurging, fmt.Sprintf("%s still to be removed", view.Are(s.Holding, "copy")),
		!p.DeletionTimestamp.IsZero()
}

func hasExpired(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonExpired, "spec.expiry has passed; copies are released", s.Expired
}

func isInvalid(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonInvalidSpec, s.Invalid, s.Invalid != ""
}

func isSuspended(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonSuspended, "spec.suspend is set; copies that exist stay pinned", s.Suspended
}

func isUnresolved(p *v1alpha1.ArtifactPin, _ *plan.Summary) (string, string, bool) {
	c := resolution(p)
	switch {
	case c == nil:
		return v1alpha1.ReasonResolving, "artifacts are being resolved", true
	case c.ObservedGeneration != p.Generation: // what kept the spec before it from that may be mended by this one
		return v1alpha1.ReasonResolving, "artifacts are being resolved for the present spec", true
	case c.Status != metav1.ConditionTrue:
		return c.Reason, c.Message, true
	case p.Status.ResolvedGeneration != p.Generation:
		return v1alpha1.ReasonResolving, "artifacts are being resolved for the present spec", true
	}
	return "", "", false
}

func hasNoNodes(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonNoEligibleNodes, "no node with an admitted peer matches nodeSelector and tolerations",
		s.Eligible == 0
}

func isTooLarge(p *v1alpha1.ArtifactPin, _ *plan.Summary) (string, string, bool) {
	if !plan.TooLarge(p) {
		return "", "", false
	}
	return v1alpha1.ReasonSizeLimitExceeded, fmt.Sprintf("one copy has %s, and sizeLimit is %s",
		view.Bytes(plan.Size(p)), view.Bytes(p.Spec.SizeLimit.Value())), true
}

func hasFailed(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	if s.Failed == 0 || len(s.Failures) == 0 {
		return "", "", false
	}
	f := s.Failures[0]
	return v1alpha1.ReasonFetchFailed, fmt.Sprintf("%d of %s cannot be fetched, on node %s: %s: %s", s.Failed,
		view.Count(s.Desired, "copy"), f.NodeName, f.Reason, f.Message), true
}

func waitsForWindow(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonWaitingForSchedule, fmt.Sprintf("%s still to be fetched, in the next window of spec.schedule",
		view.Are(s.Pending, "copy")), s.WindowShut
}

func isFetching(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	message := wholeOf(s.Ready, s.Desired)
	if earlier := s.Whole - s.Ready; earlier > 0 {
		message += fmt.Sprintf("; on %s what was pinned before is kept until the new copy is whole",
			view.Count(earlier, "node"))
	}
	return v1alpha1.ReasonFetching, message, s.Ready < s.Chosen
}

func lacksCapacity(p *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	cache := "the cache"
	if slices.ContainsFunc(p.Status.Artifacts, func(a v1alpha1.ResolvedArtifact) bool { return a.Hub != nil }) {
		cache = "what the cache has for models"
	}
	return v1alpha1.ReasonInsufficientCapacity,
		fmt.Sprintf("beside pins of higher priority there is no room for a copy of %s in %s of %d of %s",
			view.Bytes(plan.Size(p)), cache, s.TooSmall, view.Count(s.Eligible, "eligible node")),
		s.TooSmall > 0 && s.Pending > 0
}

func exceedsPinLimit(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonPinLimit,
		fmt.Sprintf("%d of %s keep as many pins as one node can: %d, of %d KiB together",
			s.Full, view.Count(s.Eligible, "eligible node"), v1alpha1.MaxPinsPerNode, v1alpha1.MaxPinBytesPerNode>>10),
		s.Full > 0 && s.Pending > 0
}

func awaitsNodes(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonNodesDown,
		fmt.Sprintf("%s; %s not Ready, or silent", wholeOf(s.Ready, s.Desired), view.Are(s.Down, "eligible node")),
		s.Down > 0 && s.Pending > 0
}

func hasTooFewNodes(_ *v1alpha1.ArtifactPin, s *plan.Summary) (string, string, bool) {
	return v1alpha1.ReasonTooFewNodes, fmt.Sprintf("%s wanted, and only %s eligible", view.Are(s.Desired, "copy"),
		view.Are(s.Eligible, "node")), s.Ready < s.Desired
}

func degradation(p *v1alpha1.ArtifactPin, s *plan.Summary) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionTrue}
	minimum := int32(1)
	if p.Spec.MinReplicas != nil {
		minimum = *p.Spec.MinReplicas
	}
	domains := int32(0)
	if p.Spec.Spread != nil && p.Spec.Spread.MinDomains != nil {
		domains = *p.Spec.Spread.MinDomains
	}
	switch {
	case !p.DeletionTimestamp.IsZero():
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonPurging, "no copies are wanted any more"
	case s.Expired:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonExpired, "no copies are wanted any more"
	case s.Whole < minimum:
		c.Reason, c.Message = v1alpha1.ReasonTooFewCopies, fmt.Sprintf("%s whole, and the minimum is %d",
			view.Are(s.Whole, "copy"), minimum)
	case s.WholeDomains < domains:
		c.Reason = v1alpha1.ReasonTooFewDomains
		c.Message = fmt.Sprintf("there are copies in %s of %s, and the minimum is %d",
			view.Count(s.WholeDomains, "domain"), p.Spec.Spread.TopologyKey, domains)
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonEnoughCopies,
			fmt.Sprintf("%s whole, and the minimum is %d", view.Are(s.Whole, "copy"), minimum)
	}
	return c
}

func expiry(s *plan.Summary) metav1.Condition {
	if s.Expired {
		return metav1.Condition{Type: v1alpha1.ConditionExpired, Status: metav1.ConditionTrue,
			Reason: v1alpha1.ReasonExpired, Message: "spec.expiry has passed"}
	}
	return metav1.Condition{Type: v1alpha1.ConditionExpired, Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonNotExpired, Message: "spec.expiry has not passed"}
}

// report makes an event for each condition whose status or reason has changed.
func (r *StatusReconciler) report(p *v1alpha1.ArtifactPin, before []metav1.Condition) {
	for _, c := range p.Status.Conditions {
		b := apimeta.FindStatusCondition(before, c.Type)
		if b != nil && b.Status == c.Status && b.Reason == c.Reason {
			continue
		}
		kind := corev1.EventTypeNormal
		switch c.Type {
		case v1alpha1.ConditionReady:
			if r := apimeta.FindStatusCondition(before, v1alpha1.ConditionResolved); r != nil && r.Reason == c.Reason {
				continue // the resolver made the event
			}
			if c.Reason != v1alpha1.ReasonAllReady && c.Reason != v1alpha1.ReasonFetching &&
				c.Reason != v1alpha1.ReasonResolving {
				kind = corev1.EventTypeWarning
			}
		case v1alpha1.ConditionDegraded:
			if b == nil || b.Status == c.Status {
				continue // a pin that is new has no copies yet
			}
			if c.Status == metav1.ConditionTrue {
				kind = corev1.EventTypeWarning
			}
		default:
			if c.Status != metav1.ConditionTrue {
				continue
			}
		}
		r.Recorder.Eventf(p, nil, kind, c.Reason, "Keep", "%s", c.Message)
	}
}
