package survey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// ownPin is the operator's pin of Shoal's own images.
func ownPin() v1alpha1.ArtifactPin {
	return v1alpha1.ArtifactPin{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedByOperator}},
		Status: v1alpha1.ArtifactPinStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady,
			Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAllReady}}},
	}
}

func operatorPod(name string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shoal-system"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning,
			ContainerStatuses: []corev1.ContainerStatus{{Name: "operator", Ready: true}}}}
}

// sound is a cluster of two nodes in which nothing is amiss, and what their agents show.
func sound() (*Cluster, []Answer[Shown]) {
	c := &Cluster{Swarm: &v1alpha1.Swarm{}, Pins: []v1alpha1.ArtifactPin{ownPin()},
		Operators: []corev1.Pod{operatorPod("one"), operatorPod("two")}}
	var answers []Answer[Shown]
	for _, name := range []string{"node1", "node2"} {
		at := metav1.NewTime(now.Add(-10 * time.Second))
		id := "12D3KooW" + name
		c.Peers = append(c.Peers, v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:   v1alpha1.PeerSpec{PeerID: id},
			Status: v1alpha1.PeerStatus{Admitted: true, AdmittedPeerID: id}})
		c.Caches = append(c.Caches, v1alpha1.NodeCache{
			ObjectMeta: metav1.ObjectMeta{Name: name, ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: v1alpha1.AgentFieldManager, Subresource: "status", Time: &at}}},
			Status: v1alpha1.NodeCacheStatus{ReportedAt: &at, Conditions: []metav1.Condition{
				{Type: v1alpha1.ConditionMirrorConfigured, Status: metav1.ConditionTrue,
					Reason: v1alpha1.ReasonMirrorConfigured},
				{Type: v1alpha1.ConditionStoreUsable, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDiskWorks},
			}},
		})
		c.Nodes = append(c.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
		c.Agents = append(c.Agents, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-" + name,
			Namespace: "shoal-system"},
			Spec: corev1.PodSpec{NodeName: name},
			Status: corev1.PodStatus{Phase: corev1.PodRunning,
				ContainerStatuses: []corev1.ContainerStatus{{Name: "agent", Ready: true}}}})
		answers = append(answers, Answer[Shown]{Node: name,
			Value: Shown{Peers: []view.Peer{{ID: "other"}}, Registries: []view.Registry{{Host: "docker.io"}}}})
	}
	c.Daemons = []appsv1.DaemonSet{{Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, CurrentNumberScheduled: 2,
		UpdatedNumberScheduled: 2}}}
	return c, answers
}

func mirrorReason(reason string) func(*Cluster, []Answer[Shown]) {
	return func(c *Cluster, _ []Answer[Shown]) {
		c.Caches[0].Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionMirrorConfigured,
			Status: metav1.ConditionFalse, Reason: reason, Message: "what it is"}
	}
}

// planted are faults, by the reason that must name them.
var planted = map[string]struct {
	reason string
	plant  func(*Cluster, []Answer[Shown])
}{
	"no config_path":               {v1alpha1.ReasonConfigPathUnset, mirrorReason(v1alpha1.ReasonConfigPathUnset)},
	"a config_path that is a list": {v1alpha1.ReasonConfigPathList, mirrorReason(v1alpha1.ReasonConfigPathList)},
	"a mirror that was removed":    {v1alpha1.ReasonMirrorMissing, mirrorReason(v1alpha1.ReasonMirrorMissing)},
	"a runtime that does not ask":  {v1alpha1.ReasonRuntimeBypasses, mirrorReason(v1alpha1.ReasonRuntimeBypasses)},
	"the same, not reported yet": {v1alpha1.ReasonMirrorMissing, func(_ *Cluster, a []Answer[Shown]) {
		a[0].Value.Node.Findings = []view.Finding{{Reason: v1alpha1.ReasonMirrorMissing, Message: "gone"}}
	}},
	"a port that is closed": {ReasonNoPeers, func(_ *Cluster, a []Answer[Shown]) { a[0].Value.Peers = nil }},
	"a peer that is not admitted": {ReasonNotAdmitted, func(c *Cluster, _ []Answer[Shown]) {
		c.Peers[0].Status = v1alpha1.PeerStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAdmitted,
			Status: metav1.ConditionFalse, Reason: "Denied", Message: "no"}}}
	}},
	"a clock that is behind": {ReasonClockOff, func(c *Cluster, _ []Answer[Shown]) {
		c.Caches[0].Status.ReportedAt = &metav1.Time{Time: now.Add(-time.Hour)}
	}},
	"a clock that is ahead": {ReasonClockOff, func(c *Cluster, _ []Answer[Shown]) {
		c.Caches[0].Status.ReportedAt = &metav1.Time{Time: now.Add(time.Hour)}
	}},
	"a disk that is full": {v1alpha1.ReasonDiskFull, func(c *Cluster, _ []Answer[Shown]) {
		c.Caches[0].Status.Conditions[1] = metav1.Condition{Type: v1alpha1.ConditionStoreUsable,
			Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDiskFull}
	}},
	"the same, not reported yet either": {v1alpha1.ReasonDiskFull, func(_ *Cluster, a []Answer[Shown]) {
		a[0].Value.Node.Store.Problem = "write /var/lib/shoal: no space left on device"
	}},
	"a registry's CA that is missing": {reasonRegistryCA, func(_ *Cluster, a []Answer[Shown]) {
		a[0].Value.Registries[0].Problem = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
	}},
	"an agent that is frozen": {ReasonAgentSilent, func(_ *Cluster, a []Answer[Shown]) {
		a[0].Err = errors.New("context deadline exceeded")
	}},
	"a node that is off, which Kubernetes has not found out yet": {ReasonAgentSilent, func(_ *Cluster, a []Answer[Shown]) {
		a[0].Err = Unreached("reach the agent on node1", errDial)
	}},
	"an agent that is silent": {ReasonNotReported, func(c *Cluster, _ []Answer[Shown]) {
		at := metav1.NewTime(now.Add(-time.Hour))
		c.Caches[0].Status.ReportedAt, c.Caches[0].ManagedFields[0].Time = &at, &at
	}},
	"an agent that crashes": {ReasonAgentNotReady, func(c *Cluster, _ []Answer[Shown]) {
		c.Agents[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}
	}},
	"a node without an agent": {reasonAgentMissing, func(c *Cluster, _ []Answer[Shown]) {
		c.Daemons[0].Status.CurrentNumberScheduled = 1
	}},
	"no agent at all, and no DaemonSet": {reasonAgentMissing, func(c *Cluster, _ []Answer[Shown]) {
		c.Agents, c.Daemons, c.Operators = nil, nil, nil
	}},
	"no operator at all": {ReasonOperatorMissing, func(c *Cluster, _ []Answer[Shown]) { c.Operators = nil }},
	"operators that are gone": {ReasonOperatorMissing, func(c *Cluster, _ []Answer[Shown]) {
		c.Operators[0].Status.Phase, c.Operators[1].DeletionTimestamp = corev1.PodFailed, &metav1.Time{Time: now}
	}},
	"the one operator crashes": {ReasonOperatorNotReady, func(c *Cluster, _ []Answer[Shown]) {
		c.Operators = c.Operators[:1]
		c.Operators[0].Status.ContainerStatuses[0] = crashing
	}},
	"the one operator finds no node": {ReasonOperatorNotReady, func(c *Cluster, _ []Answer[Shown]) {
		c.Operators = []corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"}}}}}
	}},
	"no Swarm":          {reasonNoSwarm, func(c *Cluster, _ []Answer[Shown]) { c.Swarm = nil }},
	"nothing installed": {reasonNotInstalled, func(c *Cluster, _ []Answer[Shown]) { *c = Cluster{} }},
	"what an installation left": {reasonNotInstalled, func(c *Cluster, _ []Answer[Shown]) {
		*c = Cluster{Peers: c.Peers, Caches: c.Caches}
	}},
}

func TestDiagnose_NamesEachPlantedFaultAndNothingElse(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	require.Empty(t, Diagnose(c, answers, now), "where nothing is amiss nothing is said")
	for what, p := range planted {
		c, answers := sound()
		p.plant(c, answers)
		found := Diagnose(c, answers, now)
		if p.reason == reasonNotInstalled {
			found = Diagnose(c, nil, now)
		}
		require.Len(t, found, 1, "%s: %+v", what, found)
		require.Equal(t, p.reason, found[0].Reason, what)
		require.True(t, found[0].Grave, what)
		require.NotContains(t, found[0].Mend, "POD", what)
		require.NotContains(t, found[0].Mend, "NODE", what)
		require.NotEqual(t, "see the link", found[0].Mend, what)
		require.NotContains(t, found[0].Mend, "helm install", "%s: what helm takes is more than fits here", what)
		require.Equal(t, what == "what an installation left", strings.Contains(found[0].Mend, "README.md#uninstall"), what)
	}
}

func TestDiagnose_AnAgentWhoseClockIsOffAndThatIsSilentIsBoth(t *testing.T) {
	t.Parallel()
	for what, off := range map[string]time.Duration{"ahead": 5 * time.Hour, "behind": -5 * time.Hour} {
		c, answers := sound()
		at := metav1.NewTime(now.Add(-3 * time.Hour))
		said := metav1.NewTime(at.Add(off))
		c.Caches[0].Status.ReportedAt, c.Caches[0].ManagedFields[0].Time = &said, &at
		found := Diagnose(c, answers, now)
		require.Len(t, found, 2, what)
		require.Equal(t, []string{ReasonClockOff, ReasonNotReported}, []string{found[0].Reason, found[1].Reason}, what)
		require.Equal(t, "its agent has not reported for 3h", found[1].Message, what)
		require.Equal(t, 3*time.Hour, StateOf(c, found, now).Nodes[0].Reported, what)
	}
}

func TestDiagnose_OwnImagesThatNoPinKeepsAreWorthAWord(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	c.Pins[0].Labels = nil // a user's
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, reasonOwnImagesNotKept, found[0].Reason)
	require.False(t, found[0].Grave)
	c.Pins, c.Hidden = nil, []string{hiddenPins}
	require.Empty(t, Diagnose(c, answers, now), "nobody knows where pins may not be listed")
}

func TestDiagnose_AnAgentIsNotBlamedForWhatItIsNotAsked(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	answers[0].Err = &NotAllowedError{"you may not"}
	require.Empty(t, Diagnose(c, answers, now), "for want of a right of the user")
	answers[0].Err = fmt.Errorf("GET /debug/shoal/node: %w", view.ErrNotShown)
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, reasonVersionsDiffer, found[0].Reason)
	require.False(t, found[0].Grave)
}

func TestForwarded_SaysWhichRightIsMissing(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{
		http.StatusForbidden:  "you may not create pods/portforward in namespace shoal-system",
		http.StatusBadGateway: "reach the agent on node1",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		t.Cleanup(server.Close)
		config := &rest.Config{Host: server.URL}
		core, err := kubernetes.NewForConfig(config)
		require.NoError(t, err)
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shoal-system"}, Spec: corev1.PodSpec{
			NodeName: "node1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "admin", ContainerPort: 1}}}}}}
		_, _, err = (&Forwarded{Config: config, Core: core}).Open(t.Context(), &pod, "admin")
		require.ErrorContains(t, err, want)
		require.Equal(t, code == http.StatusForbidden, NotAllowed([]Answer[int]{{Err: err}}) != nil)
	}
}

func TestShort_LeavesOutTheAddressOfAPortForward(t *testing.T) {
	t.Parallel()
	require.Equal(t, "GET /readyz: 503", Short(errors.New("GET http://127.0.0.1:34567/readyz: 503")))
}

func TestDiagnose_ARestartOfLatelyIsWorthAWord(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	ended := func(ago time.Duration) {
		c.Agents[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", Ready: true, RestartCount: 2,
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137,
				FinishedAt: metav1.NewTime(now.Add(-ago))}}}
	}
	ended(19 * time.Second)
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.False(t, found[0].Grave, "it works again")
	require.Equal(t, "agent was restarted 2 times, last 19s ago, after it had ended with code 137", found[0].Message)
	require.Equal(t, "read why it ended: kubectl logs -n shoal-system agent-node1 -c agent --previous", found[0].Mend)
	ended(2 * time.Hour)
	require.Empty(t, Diagnose(c, answers, now))
}

// errDial is what an API server answers where a node is off, as client-go words it.
var errDial = errors.New("error upgrading connection: error dialing backend: dial tcp 10.0.0.3:10250: connect: " +
	"connection refused")

func TestDiagnose_AnAgentIsNotBlamedForItsNode(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	answers[0].Err = Unreached("reach the agent on node1", errDial)
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, "the node's kubelet does not answer: dial tcp 10.0.0.3:10250: connect: connection refused", found[0].Message)
	require.Equal(t, "see whether the node is down: kubectl describe node node1", found[0].Mend)
	for name, silence := range map[string]error{"refused": answers[0].Err, "in time": context.DeadlineExceeded} {
		answers[0].Err = silence
		c.Nodes[0].Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown,
			Message: "Kubelet stopped posting node status."}
		found = Diagnose(c, answers, now)
		require.Len(t, found, 1, name)
		require.Equal(t, reasonNodeNotReady, found[0].Reason, name)
		require.True(t, found[0].Grave, "%s: it stands for the agent that is silent", name)
	}
	require.False(t, Diagnose(c, nil, now)[0].Grave, "nobody has asked the agent")
	at := metav1.NewTime(now.Add(-3 * time.Hour))
	for i := range c.Caches {
		c.Caches[i].Status.ReportedAt, c.Caches[i].ManagedFields[0].Time = &at, &at
	}
	groups := Together(Diagnose(c, answers, now))
	require.Len(t, groups, 3, "what has another mend is said apart")
	require.Equal(t, "see whether the node is down: kubectl describe node node1", groups[1].Mend)
	require.Contains(t, groups[2].Mend, "read the agent's log: can it reach the API server? kubectl logs -n shoal-system")
}

var crashing = corev1.ContainerStatus{Name: "operator", RestartCount: 7,
	State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff",
		Message: "back-off 5m0s restarting"}},
	LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}}

func TestDiagnose_AnOperatorThatIsNotWellIsNamedAndIsGraveWhereNoOtherIsReady(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	c.Operators[1].Status.ContainerStatuses[0] = crashing
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, ReasonOperatorNotReady, found[0].Reason)
	require.False(t, found[0].Grave, "the other works")
	require.Equal(t, "operator two: operator: CrashLoopBackOff back-off 5m0s restarting; it was restarted 7 times, and "+
		"ended last with code 1", found[0].Message)
	require.Contains(t, found[0].Mend, "kubectl logs -n shoal-system two")
	c.Operators[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "operator"}
	found = Diagnose(c, answers, now)
	require.Len(t, found, 2)
	require.True(t, found[0].Grave && found[1].Grave, "none works")

	c, answers = sound()
	c.Operators[0].Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
		ExitCode: 137, FinishedAt: metav1.NewTime(now.Add(-time.Minute))}
	found = Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, reasonOperatorRestarts, found[0].Reason)
	require.False(t, found[0].Grave, "it works again")

	c, answers = sound()
	c.Operators, c.Hidden = nil, []string{hiddenOperators}
	require.Empty(t, Diagnose(c, answers, now), "nobody knows where they may not be listed")
}

func TestDiagnose_APinThatNoOperatorLooksAtIsNamedAfterAMinute(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		age    time.Duration
		looked bool
		want   string
	}{
		"it was made just now":            {age: looksWithin},
		"it has waited for long":          {age: 5 * time.Minute, want: "pin team/app: the operator has not looked at it for 5m: does it run?"},
		"it was looked at and is fetched": {age: 5 * time.Minute, looked: true},
	} {
		cluster, answers := sound()
		pin := v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "app",
			CreationTimestamp: metav1.NewTime(now.Add(-c.age))}}
		if c.looked {
			pin.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
				Reason: v1alpha1.ReasonFetching}}
		}
		cluster.Pins = append(cluster.Pins, pin)
		found := Diagnose(cluster, answers, now)
		if c.want == "" {
			require.Empty(t, found, what)
			continue
		}
		require.Len(t, found, 1, what)
		require.Equal(t, reasonPinFails, found[0].Reason, what)
		require.Equal(t, c.want, found[0].Message, what)
		require.Contains(t, found[0].Mend, "component=operator", what)
	}
}

func TestDiagnose_WhatFollowsFromAnotherFindingIsLeftOut(t *testing.T) {
	t.Parallel()
	unready := func(c *Cluster, a []Answer[Shown]) {
		c.Agents[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", State: corev1.ContainerState{
			Running: &corev1.ContainerStateRunning{}}}
		a[0].Value.Ready = errors.New("GET /readyz: 503: swarm: not ready: no peer answers\nstore: ready")
	}
	c, answers := sound()
	unready(c, answers)
	found := Diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.Equal(t, "agent does not pass its readiness probe: no peer answers", found[0].Message, "in the agent's words")
	for _, fault := range []string{"a peer that is not admitted", "a port that is closed", "a disk that is full"} {
		c, answers := sound()
		unready(c, answers)
		planted[fault].plant(c, answers)
		answers[0].Value.Peers = nil
		if fault == "a disk that is full" {
			answers[0].Value.Peers = []view.Peer{{ID: "other"}}
		}
		found := Diagnose(c, answers, now)
		require.Len(t, found, 1, "%s: %+v", fault, found)
		require.Equal(t, planted[fault].reason, found[0].Reason, fault)
	}
}

func TestDiagnose_AMessageDoesNotRepeatItsReason(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	mirrorReason(v1alpha1.ReasonConfigPathUnset)(c, answers)
	c.Caches[0].Status.Conditions[0].Message = "ConfigPathUnset: none; ConfigPathList: a list"
	answers[0].Value.Node.Findings = []view.Finding{
		{Reason: v1alpha1.ReasonConfigPathUnset, Message: "ConfigPathUnset: none"},
		{Reason: v1alpha1.ReasonConfigPathList, Message: "ConfigPathList: a list"},
	}
	found := Diagnose(c, answers, now)
	require.Len(t, found, 2)
	require.Equal(t, []string{"a list", "none"}, []string{found[0].Message, found[1].Message})
}

func TestTogether_WhatNodesHaveInCommonIsSaidOnce(t *testing.T) {
	t.Parallel()
	d := &diagnosis{}
	for _, node := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		d.add(true, ReasonAgentSilent, node, "no answer")
	}
	d.add(true, ReasonAgentSilent, "h", "another answer")
	d.add(true, reasonNoSwarm, "", "none")
	groups := Together(d.found)
	require.Len(t, groups, 3)
	require.Equal(t, "a, b, c, d, e and 2 more", groups[0].On())
	require.Equal(t, "h", groups[1].On())
	require.Equal(t, "AgentSilent (a, b, c, d, e and 2 more), AgentSilent (h), NoSwarm (cluster), no agent runs",
		State{Findings: d.found}.Wrong())
}

func TestState_SaysNothingOfPodsThatItsUserMayNotList(t *testing.T) {
	t.Parallel()
	hidden := StateOf(&Cluster{Hidden: []string{HiddenPods}}, nil, time.Now())
	require.Equal(t, "nothing", hidden.Wrong())
	seen := StateOf(&Cluster{}, nil, time.Now())
	require.Equal(t, "no agent runs", seen.Wrong())
	encoded, err := json.Marshal(seen)
	require.NoError(t, err)
	require.Contains(t, string(encoded), `"notReadable":[]`, "a list also where it is empty")
}
