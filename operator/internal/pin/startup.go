package pin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch

// StartupReconciler lifts the startup taint from nodes on which every pin that they wait for is ready.
type StartupReconciler struct {
	Client   client.Client
	Recorder events.EventRecorder
	Clock    clock.Clock
	Board    *Board
}

// SetupWithManager wires the reconciler to the plan, which names the nodes with the taint each time it is made.
func (r *StartupReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("startup").WatchesRawSource(r.Board.starting.source()).Complete(r)
}

// Reconcile lifts the taint of one node. A node whose peer is not admitted yet keeps it for some time, because no pin
// could be placed there. It is looked at again with the next plan.
func (r *StartupReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	made := r.Board.Plan()
	if made == nil || len(made.Gates[req.Name]) > 0 {
		return ctrl.Result{}, nil
	}
	var node corev1.Node
	if err := r.Client.Get(ctx, req.NamespacedName, &node); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !slices.ContainsFunc(node.Spec.Taints, isStartupTaint) {
		return ctrl.Result{}, nil
	}
	_, joined := made.Assignments[req.Name]
	if !joined {
		if waited, err := r.waited(ctx, &node); err != nil || waited < v1alpha1.StartupPatience {
			return ctrl.Result{}, err
		}
	}
	if err := r.lift(ctx, &node); err != nil {
		return ctrl.Result{}, fmt.Errorf("lift taint %s of node %s: %w", v1alpha1.StartupTaint, node.Name, err)
	}
	waived := made.Waived[req.Name]
	switch {
	case !joined:
		r.Recorder.Eventf(&node, nil, corev1.EventTypeWarning, "AgentNotAdmitted", "LiftTaint",
			"lifted taint %s, though no agent of the node is admitted: waited for long enough", v1alpha1.StartupTaint)
	case len(waived) > 0:
		r.Recorder.Eventf(&node, nil, corev1.EventTypeWarning, "PinsNotReady", "LiftTaint",
			"lifted taint %s, though %s not ready, %s among them: waited for long enough",
			v1alpha1.StartupTaint, view.Are(len(waived), "pin"), waived[0])
	default:
		r.Recorder.Eventf(&node, nil, corev1.EventTypeNormal, "PinsReady", "LiftTaint",
			"lifted taint %s: every pin that was waited for is ready", v1alpha1.StartupTaint)
	}
	return ctrl.Result{}, nil
}

// lift takes the taint from a node, and the annotation that went with it. Taints are one list, so the write must not
// undo what others did to it in between. The patch is written out, and not told from two nodes: the cache knows no
// other annotation, so their difference would be that the last is gone, and the API server would take all others away
// as well.
func (r *StartupReconciler) lift(ctx context.Context, node *corev1.Node) error {
	metadata := map[string]any{"resourceVersion": node.ResourceVersion}
	if _, marked := node.Annotations[v1alpha1.StartingSince]; marked {
		metadata["annotations"] = map[string]any{v1alpha1.StartingSince: nil}
	}
	data, err := json.Marshal(map[string]any{
		"metadata": metadata,
		"spec":     map[string]any{"taints": slices.DeleteFunc(slices.Clone(node.Spec.Taints), isStartupTaint)},
	})
	if err != nil {
		return err
	}
	return r.Client.Patch(ctx, node, client.RawPatch(types.MergePatchType, data))
}

// waited is for how long operators have seen a node wait for its agent. The node itself remembers since when: it may be
// older than Shoal, its clock or the API server's may be another than this one, and an operator that is started again
// and again would never come to the end of a time of its own.
func (r *StartupReconciler) waited(ctx context.Context, node *corev1.Node) (time.Duration, error) {
	now := r.Clock.Now()
	since, err := time.Parse(time.RFC3339, node.Annotations[v1alpha1.StartingSince])
	if err == nil && !since.After(now) {
		return now.Sub(since), nil
	}
	patch := client.MergeFrom(node.DeepCopy())
	metav1.SetMetaDataAnnotation(&node.ObjectMeta, v1alpha1.StartingSince, now.UTC().Format(time.RFC3339))
	if err := client.IgnoreNotFound(r.Client.Patch(ctx, node, patch)); err != nil {
		return 0, fmt.Errorf("note on node %s since when it waits: %w", node.Name, err)
	}
	return 0, nil
}

func isStartupTaint(t corev1.Taint) bool { return t.Key == v1alpha1.StartupTaint }
