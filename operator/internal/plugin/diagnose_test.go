package plugin

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// sound is a cluster of two nodes in which nothing is amiss, and what their agents show.
func sound() (*cluster, []agentView[shown]) {
	c := &cluster{Swarm: &v1alpha1.Swarm{}}
	var answers []agentView[shown]
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
		answers = append(answers, agentView[shown]{Node: name,
			Value: shown{Peers: []view.Peer{{ID: "other"}}, Registries: []view.Registry{{Host: "docker.io"}}}})
	}
	c.Daemons = []appsv1.DaemonSet{{Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, CurrentNumberScheduled: 2,
		UpdatedNumberScheduled: 2}}}
	return c, answers
}

func mirrorReason(reason string) func(*cluster, []agentView[shown]) {
	return func(c *cluster, _ []agentView[shown]) {
		c.Caches[0].Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionMirrorConfigured,
			Status: metav1.ConditionFalse, Reason: reason, Message: "what it is"}
	}
}

// planted are faults, by the reason that must name them.
var planted = map[string]struct {
	reason string
	plant  func(*cluster, []agentView[shown])
}{
	"no config_path":               {v1alpha1.ReasonConfigPathUnset, mirrorReason(v1alpha1.ReasonConfigPathUnset)},
	"a config_path that is a list": {v1alpha1.ReasonConfigPathList, mirrorReason(v1alpha1.ReasonConfigPathList)},
	"a mirror that was removed":    {v1alpha1.ReasonMirrorMissing, mirrorReason(v1alpha1.ReasonMirrorMissing)},
	"a runtime that does not ask":  {v1alpha1.ReasonRuntimeBypasses, mirrorReason(v1alpha1.ReasonRuntimeBypasses)},
	"the same, not reported yet": {v1alpha1.ReasonMirrorMissing, func(_ *cluster, a []agentView[shown]) {
		a[0].Value.Node.Findings = []view.Finding{{Reason: v1alpha1.ReasonMirrorMissing, Message: "gone"}}
	}},
	"a port that is closed": {reasonNoPeers, func(_ *cluster, a []agentView[shown]) { a[0].Value.Peers = nil }},
	"a peer that is not admitted": {reasonNotAdmitted, func(c *cluster, _ []agentView[shown]) {
		c.Peers[0].Status = v1alpha1.PeerStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAdmitted,
			Status: metav1.ConditionFalse, Reason: "Denied", Message: "no"}}}
	}},
	"a clock that is behind": {reasonClockOff, func(c *cluster, _ []agentView[shown]) {
		c.Caches[0].Status.ReportedAt = &metav1.Time{Time: now.Add(-time.Hour)}
	}},
	"a clock that is ahead": {reasonClockOff, func(c *cluster, _ []agentView[shown]) {
		c.Caches[0].Status.ReportedAt = &metav1.Time{Time: now.Add(time.Hour)}
	}},
	"a disk that is full": {v1alpha1.ReasonDiskFull, func(c *cluster, _ []agentView[shown]) {
		c.Caches[0].Status.Conditions[1] = metav1.Condition{Type: v1alpha1.ConditionStoreUsable,
			Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDiskFull}
	}},
	"the same, not reported yet either": {v1alpha1.ReasonDiskFull, func(_ *cluster, a []agentView[shown]) {
		a[0].Value.Node.Store.Problem = "write /var/lib/shoal: no space left on device"
	}},
	"a registry's CA that is missing": {reasonRegistryCA, func(_ *cluster, a []agentView[shown]) {
		a[0].Value.Registries[0].Problem = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
	}},
	"an agent that is frozen": {reasonAgentSilent, func(_ *cluster, a []agentView[shown]) {
		a[0].Err = errors.New("context deadline exceeded")
	}},
	"an agent that is silent": {reasonNotReported, func(c *cluster, _ []agentView[shown]) {
		at := metav1.NewTime(now.Add(-time.Hour))
		c.Caches[0].Status.ReportedAt, c.Caches[0].ManagedFields[0].Time = &at, &at
	}},
	"an agent that crashes": {reasonAgentNotReady, func(c *cluster, _ []agentView[shown]) {
		c.Agents[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}
	}},
	"a node without an agent": {reasonAgentMissing, func(c *cluster, _ []agentView[shown]) {
		c.Daemons[0].Status.CurrentNumberScheduled = 1
	}},
	"no Swarm":          {reasonNoSwarm, func(c *cluster, _ []agentView[shown]) { c.Swarm = nil }},
	"nothing installed": {reasonNotInstalled, func(c *cluster, _ []agentView[shown]) { *c = cluster{} }},
	"what an installation left": {reasonNotInstalled, func(c *cluster, _ []agentView[shown]) {
		*c = cluster{Peers: c.Peers, Caches: c.Caches}
	}},
}

func TestDiagnose_NamesEachPlantedFaultAndNothingElse(t *testing.T) {
	t.Parallel()
	c, answers := sound()
	require.Empty(t, diagnose(c, answers, now), "where nothing is amiss nothing is said")
	for what, p := range planted {
		c, answers := sound()
		p.plant(c, answers)
		found := diagnose(c, answers, now)
		if p.reason == reasonNotInstalled {
			found = diagnose(c, nil, now)
		}
		require.Len(t, found, 1, "%s: %+v", what, found)
		require.Equal(t, p.reason, found[0].Reason, what)
		require.True(t, found[0].Grave, what)
		require.NotContains(t, found[0].Mend, "POD", what)
		require.NotContains(t, found[0].Mend, "NODE", what)
		require.NotEqual(t, "see the link", found[0].Mend, what)
	}
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
	found := diagnose(c, answers, now)
	require.Len(t, found, 1)
	require.False(t, found[0].Grave, "it works again")
	require.Equal(t, "agent was restarted 2 times, last 19s ago, after it had ended with code 137", found[0].Message)
	require.Equal(t, "read why it ended: kubectl logs -n shoal-system agent-node1 -c agent --previous", found[0].Mend)
	ended(2 * time.Hour)
	require.Empty(t, diagnose(c, answers, now))
}

func TestDiagnose_WhatFollowsFromAnotherFindingIsLeftOut(t *testing.T) {
	t.Parallel()
	unready := func(c *cluster, a []agentView[shown]) {
		c.Agents[0].Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "agent", State: corev1.ContainerState{
			Running: &corev1.ContainerStateRunning{}}}
		a[0].Value.Ready = errors.New("GET /readyz: 503: swarm: not ready: no peer answers\nstore: ready")
	}
	c, answers := sound()
	unready(c, answers)
	found := diagnose(c, answers, now)
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
		found := diagnose(c, answers, now)
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
	found := diagnose(c, answers, now)
	require.Len(t, found, 2)
	require.Equal(t, []string{"a list", "none"}, []string{found[0].Message, found[1].Message})
}

func TestTogether_WhatNodesHaveInCommonIsSaidOnce(t *testing.T) {
	t.Parallel()
	d := &diagnosis{}
	for _, node := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		d.add(true, reasonAgentSilent, node, "no answer")
	}
	d.add(true, reasonAgentSilent, "h", "another answer")
	d.add(true, reasonNoSwarm, "", "none")
	groups := together(d.found)
	require.Len(t, groups, 3)
	require.Equal(t, "a, b, c, d, e and 2 more", groups[0].on())
	require.Equal(t, "h", groups[1].on())
	require.Equal(t, "AgentSilent (a, b, c, d, e and 2 more), AgentSilent (h), NoSwarm (cluster), no agent runs",
		state{Findings: d.found}.wrong())
}

func TestDiagnose_EveryReasonHasItsSectionInTheTroubleshootingPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../charts/shoal/TROUBLESHOOTING.md")
	require.NoError(t, err)
	for reason := range mends {
		require.True(t, slices.ContainsFunc(strings.Split(string(page), "\n"), func(line string) bool {
			return line == "### "+reason
		}), "%s", reason)
	}
}

func TestRedact_TakesOutWhatLooksLikeACredential(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"Authorization: Bearer hunter2hunter2", "authorization=Basic aHVudGVyMg==hunter2",
		"https://user:hunter2@registry.example/v2/",
		"https://s3.example/a?X-Amz-Signature=hunter2&x=1", `{"password":"hunter2"}`, "token: hunter2",
		`"auth": "hunter2"`,
		"GET https://blob.example/x?sv=1&sig=hunter2%3D", "identitytoken=hunter2",
	} {
		require.NotContains(t, string(redact([]byte(text))), "hunter2", text)
	}
	for _, text := range []string{"pulled image=docker.io/library/redis:7 took=2s", "sha256:0123456789",
		`{"peerID":"12D3KooW"}`} {
		require.Equal(t, text, string(redact([]byte(text))))
	}
}
