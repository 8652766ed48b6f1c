package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// conditions are those of the NodeCache, as they follow from what the agent knows. The times of their transitions are
// taken from the NodeCache as it was last seen.
func (a *Agent) conditions(pins []v1alpha1.PinProgress, now time.Time) []metav1.Condition {
	told := []metav1.Condition{a.mirrorConfigured(), a.policyApplied(), pinsReady(pins),
		storeUsable(a.opts.StoreHealth())}
	if a.opts.Crowded != nil {
		told = append(told, modelsFit(a.opts.Crowded()))
	}
	var before []metav1.Condition
	if c, ok := a.api.caches.get(a.opts.NodeName); ok {
		before = c.Status.Conditions
	}
	return since(before, told, now)
}

// since gives conditions the times of their transitions. What is told no longer, as of models once the hub front is
// off, goes.
func since(before, told []metav1.Condition, now time.Time) []metav1.Condition {
	all := slices.DeleteFunc(slices.Clone(before), func(b metav1.Condition) bool {
		return apimeta.FindStatusCondition(told, b.Type) == nil
	})
	for _, c := range told {
		c.LastTransitionTime = metav1.NewTime(now)
		apimeta.SetStatusCondition(&all, c)
	}
	return all
}

func (a *Agent) mirrorConfigured() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionMirrorConfigured}
	findings := a.findings.Load()
	switch {
	case findings == nil:
		c.Status, c.Reason = metav1.ConditionUnknown, v1alpha1.ReasonMirrorNotChecked
		c.Message = "the agent does not know how the container runtime is configured"
	case len(*findings) == 0:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonMirrorConfigured
		c.Message = "the container runtime uses the mirror of this node"
	default:
		c.Status, c.Reason = metav1.ConditionFalse, (*findings)[0].Reason
		messages := make([]string, len(*findings))
		for i, f := range *findings {
			messages[i] = f.Reason + ": " + f.Message
		}
		messages[0] = (*findings)[0].Message // whose reason is the condition's
		c.Message = pin.Shorten(strings.Join(messages, "; "), maxConditionMessage)
	}
	return c
}

func (a *Agent) policyApplied() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionPolicyApplied}
	inForce, rejected := a.inForce.Load(), a.rejected.Load()
	switch {
	case rejected != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonPolicyRejected, pin.Shorten(*rejected,
			maxConditionMessage)
	case inForce == nil:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, v1alpha1.ReasonApplying,
			"the policies have not been read yet"
	case len(inForce.Policies) == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonApplied,
			"no CachePolicy matches; the agent's configuration holds"
	default:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonApplied
		c.Message = pin.Shorten("in force, in order of precedence: "+strings.Join(inForce.Policies, ", "),
			maxConditionMessage)
	}
	return c
}

// pinsReady says no numbers that change while bytes arrive: those are in the status itself.
func pinsReady(pins []v1alpha1.PinProgress) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionPinsReady, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonAllReady, Message: "every pin is whole"}
	waiting, failed := 0, 0
	for _, p := range pins {
		switch p.State {
		case v1alpha1.PinFailed:
			failed++
		case v1alpha1.PinPending, v1alpha1.PinFetching:
			waiting++
		}
	}
	switch {
	case failed > 0:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonFetchFailed
		c.Message = fmt.Sprintf("%d of %d pins fail; status.pins says why", failed, len(pins))
	case waiting > 0:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonFetching
		c.Message = fmt.Sprintf("%d of %d pins are on their way", waiting, len(pins))
	}
	return c
}

// storeUsable says what a store's Health means.
func storeUsable(err error) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionStoreUsable, Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonDiskFails}
	switch {
	case err == nil:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonDiskWorks,
			"the agent can write to its disk"
		return c
	case errors.Is(err, content.ErrNoSpace):
		c.Reason = v1alpha1.ReasonDiskFull
	}
	c.Message = pin.Shorten(fmt.Sprintf("what is not cached passes through from the registry: %v", err),
		maxConditionMessage)
	return c
}

// modelsFit says what it means that a file had no room.
func modelsFit(crowded string) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionModelsFit, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonModelsFit, Message: "every file of a model that was asked for of late has room"}
	if crowded != "" {
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonNoRoomForModels
		c.Message = pin.Shorten(crowded, maxConditionMessage)
	}
	return c
}

// maxConditionMessage is in bytes. It keeps a NodeCache small, because every one is in the operator's memory.
const maxConditionMessage = 1024
