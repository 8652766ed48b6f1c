// Package policy shows how CachePolicies fare: how many nodes each matches, how many run with it, and which disagree.
// It decides nothing: agents merge policies by themselves, by the same v1alpha1.Effective.
package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
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
	"github.com/shoal-cache/shoal/operator/internal/condition"
	"github.com/shoal-cache/shoal/operator/internal/debounce"
)

const (
	// gather is how long events are gathered before all policies are looked at.
	gather = time.Second
	// maxConflicts is what CachePolicyStatus holds.
	maxConflicts = 32
)

// +kubebuilder:rbac:groups=shoal.dev,resources=cachepolicies;nodecaches,verbs=get;list;watch
// +kubebuilder:rbac:groups=shoal.dev,resources=cachepolicies/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch

// Reconciler writes the status of all policies.
type Reconciler struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.Clock
}

// SetupWithManager wires the reconciler to what it watches.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	all := debounce.To(reconcile.Request{NamespacedName: types.NamespacedName{Name: "all"}}, gather)
	answerChanged := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return answerOf(e.ObjectOld.(*v1alpha1.NodeCache)) != answerOf(e.ObjectNew.(*v1alpha1.NodeCache))
	}}
	return ctrl.NewControllerManagedBy(mgr).Named("policy").
		Watches(&v1alpha1.CachePolicy{}, all, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Node{}, all, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		Watches(&v1alpha1.NodeCache{}, all, builder.WithPredicates(answerChanged)).
		Complete(r)
}

// Reconcile writes every status that has changed.
func (r *Reconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	var policies v1alpha1.CachePolicyList
	var nodes corev1.NodeList
	var caches v1alpha1.NodeCacheList
	for _, list := range []client.ObjectList{&policies, &nodes, &caches} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return ctrl.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	statuses := Describe(policies.Items, nodes.Items, caches.Items, r.Clock.Now())
	var errs []error // one status that the API server does not take keeps no other from being written
	for i := range policies.Items {
		p := policies.Items[i].DeepCopy()
		if equality.Semantic.DeepEqual(statuses[i], p.Status) {
			continue
		}
		before := p.Status
		p.Status = statuses[i]
		if err := apply.Status(ctx, r.Client, p, v1alpha1.ManagedByOperator); err != nil {
			errs = append(errs, err)
			continue
		}
		r.report(p, before)
	}
	return ctrl.Result{}, errors.Join(errs...)
}

// report makes an event when a policy begins or ceases to conflict.
func (r *Reconciler) report(p *v1alpha1.CachePolicy, before v1alpha1.CachePolicyStatus) {
	had := len(before.Conflicts) > 0
	switch has := len(p.Status.Conflicts) > 0; {
	case has && !had:
		c := p.Status.Conflicts[0]
		r.Recorder.Eventf(p, nil, corev1.EventTypeWarning, v1alpha1.ReasonSamePriority, "Merge",
			"disagrees with %s about %s", c.Policy, c.Field)
	case had && !has:
		r.Recorder.Eventf(p, nil, corev1.EventTypeNormal, v1alpha1.ReasonNoConflict, "Merge",
			"disagrees with no other policy")
	}
}

// answer is what a node's agent says of the policies.
type answer struct {
	revision string // of those in force
	rejected string // why it does not take the present ones; empty if it does
}

func answerOf(c *v1alpha1.NodeCache) answer {
	a := answer{revision: c.Status.PolicyRevision}
	if applied := apimeta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionPolicyApplied); applied != nil &&
		applied.Reason == v1alpha1.ReasonPolicyRejected {
		a.rejected = applied.Message
	}
	return a
}

// Describe is the status of each policy, in order, that follows from what there is.
func Describe(policies []v1alpha1.CachePolicy, nodes []corev1.Node, caches []v1alpha1.NodeCache,
	now time.Time) []v1alpha1.CachePolicyStatus {
	answers := make(map[string]answer, len(caches))
	for i := range caches {
		answers[caches[i].Name] = answerOf(&caches[i])
	}
	rejections := make([][]string, len(policies))
	// of nodes without NodeCache nothing counts: no agent runs there
	statuses := make([]v1alpha1.CachePolicyStatus, len(policies))
	index := make(map[string]int, len(policies))
	for i := range policies {
		policies[i].Status.DeepCopyInto(&statuses[i])
		s := &statuses[i]
		s.ObservedGeneration, s.MatchedNodes, s.AppliedNodes, s.Conflicts = policies[i].Generation, 0, 0, nil
		index[policies[i].Name] = i
	}
	merge := newMerger(policies)
	for i := range nodes {
		node, runs := answers[nodes[i].Name]
		if !runs {
			continue
		}
		m := merge.of(nodes[i].Labels)
		for _, name := range m.policies {
			k := index[name]
			statuses[k].MatchedNodes++
			switch {
			case node.revision == m.revision:
				statuses[k].AppliedNodes++
			case node.rejected != "":
				rejections[k] = append(rejections[k], nodes[i].Name+": "+node.rejected)
			}
		}
	}
	for c := range merge.conflicts {
		w, l := &statuses[index[c.Winner]], &statuses[index[c.Loser]]
		w.Conflicts = append(w.Conflicts, v1alpha1.PolicyConflict{Policy: c.Loser, Field: c.Field, Wins: true})
		l.Conflicts = append(l.Conflicts, v1alpha1.PolicyConflict{Policy: c.Winner, Field: c.Field})
	}
	for i := range statuses {
		conclude(&policies[i], &statuses[i], rejections[i], now)
	}
	return statuses
}

// conclude sorts the conflicts and sets the conditions.
func conclude(p *v1alpha1.CachePolicy, s *v1alpha1.CachePolicyStatus, rejections []string, now time.Time) {
	slices.SortFunc(s.Conflicts, func(a, b v1alpha1.PolicyConflict) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Field, b.Field))
	})
	s.Conflicts = s.Conflicts[:min(len(s.Conflicts), maxConflicts)]
	set := func(kind string, status bool, reason, message string) {
		condition.Set(&s.Conditions, metav1.Condition{Type: kind, Status: condition.Status(status), Reason: reason,
			Message:            message,
			ObservedGeneration: p.Generation}, now)
	}
	_, err := v1alpha1.Selects(p.Spec.NodeSelector, nil)
	switch {
	case err != nil:
		set(v1alpha1.ConditionReady, false, v1alpha1.ReasonInvalidSelector, fmt.Sprintf("nodeSelector: %v", err))
	case s.MatchedNodes == 0:
		set(v1alpha1.ConditionReady, true, v1alpha1.ReasonNoNodeMatches,
			"nodeSelector matches no node that runs an agent")
	case len(rejections) > 0:
		set(v1alpha1.ConditionReady, false, v1alpha1.ReasonPolicyRejected, fmt.Sprintf(
			"rejected by %d of %s, which go on with what they had: it makes no sense together with the "+
				"other policies that select them: %s", len(rejections), view.Count(s.MatchedNodes, "node"),
			slices.Min(rejections)))
	case s.AppliedNodes < s.MatchedNodes:
		set(v1alpha1.ConditionReady, false, v1alpha1.ReasonApplying,
			fmt.Sprintf("in force on %d of %s", s.AppliedNodes, view.Count(s.MatchedNodes, "node")))
	default:
		set(v1alpha1.ConditionReady, true, v1alpha1.ReasonApplied,
			"in force on "+view.Count(s.MatchedNodes, "node"))
	}
	if len(s.Conflicts) == 0 {
		set(v1alpha1.ConditionConflicting, false, v1alpha1.ReasonNoConflict,
			"no other policy of the same priority disagrees")
		return
	}
	var parts []string
	for _, c := range s.Conflicts {
		verb := "loses to"
		if c.Wins {
			verb = "wins over"
		}
		parts = append(parts, fmt.Sprintf("%s %s %s", c.Field, verb, c.Policy))
	}
	set(v1alpha1.ConditionConflicting, true, v1alpha1.ReasonSamePriority,
		"policies of the same priority disagree, and the first name decides; "+
			"give one of them another priority: "+strings.Join(parts, ", "))
}

// merger merges policies once for each set of policies that some node matches, of which there are few, instead of once
// for each node.
type merger struct {
	policies  []v1alpha1.CachePolicy
	bySet     map[string]*merged
	conflicts map[v1alpha1.Conflict]bool
}

type merged struct {
	policies []string
	revision string
}

func newMerger(policies []v1alpha1.CachePolicy) *merger {
	return &merger{policies: policies, bySet: map[string]*merged{}, conflicts: map[v1alpha1.Conflict]bool{}}
}

func (m *merger) of(labels map[string]string) *merged {
	set := make([]byte, len(m.policies))
	for i := range m.policies {
		if ok, err := v1alpha1.Selects(m.policies[i].Spec.NodeSelector, labels); ok && err == nil {
			set[i] = 1
		}
	}
	if known, ok := m.bySet[string(set)]; ok {
		return known
	}
	effective, conflicts := v1alpha1.Effective(m.policies, labels)
	for _, c := range conflicts {
		m.conflicts[c] = true
	}
	known := &merged{policies: effective.Policies, revision: effective.Revision}
	m.bySet[string(set)] = known
	return known
}
