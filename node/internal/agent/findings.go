package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// Finding is something about the runtime's mirror configuration that somebody should look at, such as a runtime that
// reads none.
type Finding struct {
	// Reason is one of those of the condition MirrorConfigured.
	Reason string
	// Message says what was found and what to do.
	Message string
}

// SetFindings replaces the findings; before the first call it counts as not known how the runtime is configured. Each
// that is new becomes a warning event on the Node, and one event tells when the last is gone. Together they are the
// condition MirrorConfigured of the NodeCache.
func (a *Agent) SetFindings(findings []Finding) {
	findings = slices.SortedFunc(slices.Values(findings), byGravity)
	a.events.set(findings)
	if before := a.findings.Swap(&findings); before == nil || !slices.Equal(*before, findings) {
		a.report.changed.raise()
	}
}

// FindingReasons are the reasons of findings in order: first those for which the runtime asks the agent for nothing at
// all.
func FindingReasons() []string { return slices.Clone(gravity) }

var gravity = []string{
	v1alpha1.ReasonRuntimeBypasses, v1alpha1.ReasonCRIDisabled, v1alpha1.ReasonConfigPathUnset,
	v1alpha1.ReasonConfigPathList,
	v1alpha1.ReasonLegacyMirrors,
	v1alpha1.ReasonConfigPathElsewhere, v1alpha1.ReasonMirrorMissing,
	v1alpha1.ReasonRestartNeeded, v1alpha1.ReasonRuntimeConfigUnreadable, v1alpha1.ReasonNotMirrored,
	v1alpha1.ReasonMirrorOutdated,
	v1alpha1.ReasonMirrorEdited,
}

// byGravity puts what is not known above last.
func byGravity(a, b Finding) int {
	rank := func(f Finding) int {
		if i := slices.Index(gravity, f.Reason); i >= 0 {
			return i
		}
		return len(gravity)
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
}

// events makes events on the Node.
type events struct {
	node    *corev1.ObjectReference
	sink    record.EventSink
	changed signal

	mu       sync.Mutex
	findings map[Finding]bool // those that stand; false: no event yet
	resolved bool             // the last has gone, and no event tells it yet
}

func newEvents(a *api, nodeName string, m *metrics) *events {
	return &events{
		// The kubelet names a Node so in its events, and kubectl describe looks for it.
		node:    &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: types.UID(nodeName)},
		sink:    countedSink{&typedcorev1.EventSinkImpl{Interface: a.core.Events("")}, m},
		changed: newSignal(), findings: make(map[Finding]bool),
	}
}

func (e *events) set(findings []Finding) {
	e.mu.Lock()
	now := make(map[Finding]bool, len(findings))
	for _, f := range findings {
		now[f] = e.findings[f]
	}
	e.resolved = len(now) == 0 && (e.resolved || len(e.findings) > 0)
	e.findings = now
	e.mu.Unlock()
	e.changed.raise()
}

// take returns the events to make now.
func (e *events) take() (warnings []Finding, resolved bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for f, told := range e.findings {
		if !told {
			e.findings[f] = true
			warnings = append(warnings, f)
		}
	}
	resolved, e.resolved = e.resolved, false
	return warnings, resolved
}

// run makes events until ctx ends. The recorder bounds their rate, and tries again when the API server can't be
// reached.
func (e *events) run(ctx context.Context) {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(e.sink)
	recorder := broadcaster.NewRecorder(runtime.NewScheme(),
		corev1.EventSource{Component: "shoal-node", Host: e.node.Name}).
		WithLogger(klog.FromContext(ctx))
	follow(ctx, e.changed, func() {
		warnings, resolved := e.take()
		slices.SortFunc(warnings, byGravity)
		for _, f := range warnings {
			recorder.Event(e.node, corev1.EventTypeWarning, f.Reason, f.Message)
		}
		if resolved {
			recorder.Event(e.node, corev1.EventTypeNormal, v1alpha1.ReasonMirrorConfigured,
				"The container runtime uses the mirror of this node.")
		}
	})
}

// countedSink counts the writes.
type countedSink struct {
	record.EventSink
	metrics *metrics
}

func (s countedSink) Create(event *corev1.Event) (*corev1.Event, error) {
	made, err := s.EventSink.Create(event)
	s.count(err)
	return made, err
}

func (s countedSink) Update(event *corev1.Event) (*corev1.Event, error) {
	made, err := s.EventSink.Update(event)
	s.count(err)
	return made, err
}

func (s countedSink) Patch(old *corev1.Event, data []byte) (*corev1.Event, error) {
	made, err := s.EventSink.Patch(old, data)
	s.count(err)
	return made, err
}

func (s countedSink) count(err error) {
	result := "written"
	switch {
	case err != nil && unreached(err):
		result = "unreachable"
	case err != nil:
		result = "refused"
	}
	s.metrics.writes.WithLabelValues("Event", result).Inc()
}
