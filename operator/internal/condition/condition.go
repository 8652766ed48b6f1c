// Package condition sets the conditions of an object's status.
package condition

import (
	"strings"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxMessage is below what the API takes (32 KiB), and as much as a person reads.
const maxMessage = 1024

// Set sets a condition as of now and reports whether its status or reason changed. A message that is too long is cut.
func Set(conditions *[]metav1.Condition, c metav1.Condition, now time.Time) (changed bool) {
	before := apimeta.FindStatusCondition(*conditions, c.Type)
	changed = before == nil || before.Reason != c.Reason || before.Status != c.Status
	c.LastTransitionTime = metav1.NewTime(now)
	c.Message = cut(c.Message)
	apimeta.SetStatusCondition(conditions, c)
	return changed
}

// cut makes of a message what the API server hands back as it was given: else whoever compares the two writes for ever.
func cut(message string) string {
	message = strings.ToValidUTF8(message, "?")
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-3], "") + "..." // without the character that the cut went through
}

// Status is True or False.
func Status(ok bool) metav1.ConditionStatus {
	if ok {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}
