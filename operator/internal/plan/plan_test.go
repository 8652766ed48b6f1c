package plan_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// model is a cluster whose nodes do as the plan says, when they are told to.
type model struct {
	plan.Input
}

func newModel(nodes int) *model {
	m := &model{plan.Input{Now: now, ZoneKey: "zone"}}
	for i := range nodes {
		m.Nodes = append(m.Nodes, plan.Node{
			Name: fmt.Sprint("node-", i), Labels: map[string]string{"zone": fmt.Sprint("z",
				i%3)}, Member: true, Joined: now, Capacity: 1000})
	}
	return m
}

func (m *model) pin(uid string, replicas any, change func(*v1alpha1.ArtifactPin)) *v1alpha1.ArtifactPin {
	p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: uid, UID: types.UID(uid),
		CreationTimestamp: metav1.NewTime(now)}}
	switch r := replicas.(type) {
	case int:
		p.Spec.Replicas = intstr.FromInt(r)
	case string:
		p.Spec.Replicas = intstr.FromString(r)
	}
	p.Spec.RepairDelay.Duration = 5 * time.Minute
	p.Status.Artifacts = []v1alpha1.ResolvedArtifact{{Source: uid, Digest: "sha256:" + uid, Size: 10}}
	if change != nil {
		change(p)
	}
	m.Pins = append(m.Pins, p)
	return p
}

// hand gives the nodes their assignments and leaves what they reported before.
func (m *model) hand() *plan.Plan {
	made := plan.Compute(m.Input)
	for i := range m.Nodes {
		m.Nodes[i].Assigned = made.Assignments[m.Nodes[i].Name]
	}
	return made
}

// report makes nodes that are up report a state for all that they are assigned.
func (m *model) report(state v1alpha1.PinState, reason string) {
	for i := range m.Nodes {
		if n := &m.Nodes[i]; n.DownSince.IsZero() {
			n.Progress, n.Unreported = nil, false
			for _, a := range n.Assigned {
				p := v1alpha1.PinProgress{UID: a.UID, Revision: a.Revision, State: state, Reason: reason, BytesHeld: 10,
					BytesWanted: 10}
				if a.Action == v1alpha1.ActionPurge {
					p.State = v1alpha1.PinPurged
				}
				n.Progress = append(n.Progress, p)
			}
		}
	}
}

// settle hands out and reports Ready until nothing changes.
func (m *model) settle() *plan.Plan {
	var made *plan.Plan
	for range 20 {
		made = m.hand()
		m.report(v1alpha1.PinReady, "")
	}
	return made
}

// anew has somebody delete a node's NodeCache: the operator has forgotten what the node holds. It returns what the agent
// will report of that once there is a NodeCache again.
func (m *model) anew(name string) []v1alpha1.PinProgress {
	n := m.node(name)
	held := slices.Clone(n.Progress)
	for i := range held {
		held[i].Reason = v1alpha1.ReasonUnlisted
	}
	n.Assigned, n.Progress, n.Unreported = nil, nil, true
	return held
}

// on are the nodes that have an entry for a pin.
func (m *model) on(uid string) []string {
	var names []string
	for _, n := range m.Nodes {
		if slices.ContainsFunc(n.Assigned, func(a v1alpha1.PinAssignment) bool { return a.UID == uid }) {
			names = append(names, n.Name)
		}
	}
	return names
}

func (m *model) node(name string) *plan.Node {
	i := slices.IndexFunc(m.Nodes, func(n plan.Node) bool { return n.Name == name })
	return &m.Nodes[i]
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		replicas any
		change   func(*model, *v1alpha1.ArtifactPin)
		want     int
		desired  int32
	}{
		"a count":                    {replicas: 4, want: 4, desired: 4},
		"a percentage is rounded up": {replicas: "25%", want: 3, desired: 3},
		"every node":                 {replicas: "All", want: 9, desired: 9},
		"more than there are nodes":  {replicas: 20, want: 9, desired: 20},
		"only selected nodes": {replicas: "All", want: 3, desired: 3, change: func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "z1"}}
		}},
		"not on a node with a taint": {replicas: "All", want: 8, desired: 8,
			change: func(m *model, _ *v1alpha1.ArtifactPin) {
				m.Nodes[0].Taints = []corev1.Taint{{Key: "gpu", Effect: "NoSchedule"}}
			}},
		"but if it is tolerated": {replicas: "All", want: 9, desired: 9,
			change: func(m *model, p *v1alpha1.ArtifactPin) {
				m.Nodes[0].Taints = []corev1.Taint{{Key: "gpu", Effect: "NoSchedule"}}
				p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: "Exists"}}
			}},
		"one that is cordoned is given nothing": {replicas: "All", want: 8, desired: 8,
			change: func(m *model, _ *v1alpha1.ArtifactPin) {
				m.Nodes[0].Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: "NoSchedule"}}
			}},
		"a node that starts is no loss": {replicas: "All", want: 9, desired: 9,
			change: func(m *model, _ *v1alpha1.ArtifactPin) {
				m.Nodes[0].Taints = []corev1.Taint{{Key: v1alpha1.StartupTaint, Effect: "NoSchedule"}}
			}},
		"not on one that is no member": {replicas: "All", want: 8, desired: 8,
			change: func(m *model, _ *v1alpha1.ArtifactPin) {
				m.Nodes[0].Member = false
			}},
		"not on one that is too small": {replicas: "All", want: 8, desired: 9,
			change: func(m *model, _ *v1alpha1.ArtifactPin) {
				m.Nodes[0].Capacity = 9
			}},
		"none while unresolved": {replicas: "All", want: 0, desired: 9,
			change: func(_ *model, p *v1alpha1.ArtifactPin) {
				p.Status.Artifacts = nil
			}},
		"none above the size limit": {replicas: "All", want: 0, desired: 9,
			change: func(_ *model, p *v1alpha1.ArtifactPin) {
				q := resource.MustParse("9")
				p.Spec.SizeLimit = &q
			}},
		"none when suspended at first": {replicas: "All", want: 0, desired: 9,
			change: func(_ *model, p *v1alpha1.ArtifactPin) {
				p.Spec.Suspend = true
			}},
		"none when expired": {replicas: "All", want: 0, desired: 0, change: func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.Expiry = &v1alpha1.Expiry{Until: &metav1.Time{Time: now}}
		}},
		"none outside of the window": {replicas: "All", want: 0, desired: 9,
			change: func(_ *model, p *v1alpha1.ArtifactPin) {
				p.Spec.Schedule = &v1alpha1.Schedule{Cron: "0 2 * * *", TimeZone: "UTC",
					Window: metav1.Duration{Duration: time.Hour}}
			}},
		"all within it": {replicas: "All", want: 9, desired: 9, change: func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.Schedule = &v1alpha1.Schedule{Cron: "30 13 * * *", TimeZone: "Europe/Berlin",
				Window: metav1.Duration{Duration: time.Hour}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(9)
			p := m.pin("a", tc.replicas, nil)
			if tc.change != nil {
				tc.change(m, p)
			}
			s := m.settle().Pins["a"]
			require.Len(t, m.on("a"), tc.want)
			require.Equal(t, tc.desired, s.Desired)
		})
	}
}

func TestParallelismBoundsWhoFetches(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	two := int32(2)
	p := m.pin("a", "All", func(p *v1alpha1.ArtifactPin) { p.Spec.Parallelism = &two })
	m.hand()
	m.hand() // with nothing reported, nothing more is handed out
	require.Len(t, m.on("a"), 2)
	m.report(v1alpha1.PinFetching, "")
	m.hand()
	require.Len(t, m.on("a"), 2)
	m.report(v1alpha1.PinReady, "")
	m.hand()
	require.Len(t, m.on("a"), 4)
	m.report(v1alpha1.PinFailed, v1alpha1.FetchDiskFull)
	made := m.hand()
	require.Equal(t, int32(4), made.Pins["a"].Failed)
	require.Len(t, m.on("a"), 6, "nodes that fail hold up no others")

	m.settle()
	p.Status.Artifacts[0].Digest = "sha256:moved"
	m.hand()
	moved := 0
	for _, n := range m.Nodes {
		if n.Assigned[0].Artifacts[0].Digest == "sha256:moved" {
			moved++
		}
	}
	require.Equal(t, 2, moved, "a tag that moves is followed two nodes at a time, the others keep what they have")
}

func TestANodeThatIsDown(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	m.pin("a", 3, nil)
	m.settle()
	before := m.on("a")
	down := m.node(before[0])

	down.DownSince = now.Add(-time.Minute)
	m.settle()
	require.Equal(t, before, m.on("a"), "within the repair delay nothing moves")

	down.DownSince = now.Add(-time.Hour)
	made := m.settle()
	require.Len(t, m.on("a"), 4, "after it another node takes over, and the one that is down keeps its entry")
	require.Subset(t, m.on("a"), before)
	require.Equal(t, int32(3), made.Pins["a"].Ready)

	down.DownSince = time.Time{}
	m.hand()
	m.settle()
	require.Equal(t, before, m.on("a"), "back again, it has its copy, and the other is released")
}

func TestANewOperatorReliesOnNobodyItHasNotHeard(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	m.pin("a", 3, nil)
	m.settle()
	before := m.on("a")
	dead := m.node(before[0])
	dead.DownSince = now.Add(-time.Hour) // its agent is silent
	m.settle()
	with := m.on("a")
	require.Len(t, with, 4, "another has taken over")

	dead.DownSince, dead.Unheard = time.Time{}, true // a new operator does not know that
	m.settle()
	require.Equal(t, with, m.on("a"), "nothing is released on the word of one that may be dead")

	dead.DownSince = now.Add(-time.Hour) // now it does
	m.settle()
	require.Equal(t, with, m.on("a"), "nothing is to be made anew")

	dead.DownSince, dead.Unheard = time.Time{}, false
	m.settle()
	require.Equal(t, before, m.on("a"), "alive after all, it has its copy, and the other is released")
}

func TestANodeThatIsClosedForAWhileKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	for name, taint := range map[string]corev1.Taint{
		"cordoned":               {Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
		"short of memory":        {Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
		"not Ready for a minute": {Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(9)
			m.pin("few", 3, nil)
			m.pin("all", "All", func(p *v1alpha1.ArtifactPin) { p.Spec.DeletionPolicy = v1alpha1.DeletionPurge })
			m.settle()
			few, all := m.on("few"), m.on("all")
			m.node(few[0]).Taints = []corev1.Taint{taint}
			made := m.settle()
			require.Equal(t, few, m.on("few"))
			require.Equal(t, all, m.on("all"))
			require.Equal(t, []int32{9, 9, 9}, []int32{made.Pins["all"].Eligible, made.Pins["all"].Desired,
				made.Pins["all"].Ready})
		})
	}

	t.Log("a taint that somebody else gives a node moves its copies away")
	m := newModel(9)
	m.pin("few", 3, nil)
	m.settle()
	before := m.on("few")
	m.node(before[0]).Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler",
		Effect: corev1.TaintEffectNoSchedule}}
	m.hand()
	require.Len(t, m.on("few"), 4, "its successor comes first")
	m.settle()
	require.NotContains(t, m.on("few"), before[0])
	require.Len(t, m.on("few"), 3)
}

func TestACopyIsReleasedOnlyWhenItsSuccessorIsReady(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	p := m.pin("a", 1, nil)
	m.settle()
	holder := m.on("a")[0]
	p.Spec.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone",
		Operator: "NotIn", Values: []string{m.node(holder).Labels["zone"]}}}}
	m.hand()
	require.Contains(t, m.on("a"), holder)
	require.Len(t, m.on("a"), 2)
	m.settle()
	require.NotContains(t, m.on("a"), holder)
	require.Len(t, m.on("a"), 1)
}

func TestACopyThatHasNoSuccessorStays(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*model, *v1alpha1.ArtifactPin)
		stays  bool
	}{
		"the tag moves to what fits no node": {func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Status.Artifacts[0].Digest, p.Status.Artifacts[0].Size = "sha256:large", 2000
		}, true},
		"the selector matches no node": {func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "none"}}
		}, true},
		"the selector matches no node, of a pin on every node": {func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.Replicas = intstr.FromString("All")
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "none"}}
		}, true},
		"the selector matches nodes without room": {func(m *model, p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "small"}}
			m.Nodes = append(m.Nodes, plan.Node{Name: "small", Labels: map[string]string{"zone": "small"}, Member: true,
				Capacity: 1})
		}, true},
		"a pin of higher priority takes the room": {func(m *model, p *v1alpha1.ArtifactPin) {
			p.Status.Artifacts[0].Digest, p.Status.Artifacts[0].Size = "sha256:large", 2000
			m.pin("high", "All", ofImage(995)).Spec.Priority = 1
		}, false},
		"a pin of higher priority takes the room of the present revision": {
			func(m *model, _ *v1alpha1.ArtifactPin) { m.pin("high", "All", ofImage(995)).Spec.Priority = 1 }, false},
		"nodes elsewhere are ready instead": {func(_ *model, p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "z1"}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(9)
			p := m.pin("a", 3, func(p *v1alpha1.ArtifactPin) { p.Spec.DeletionPolicy = v1alpha1.DeletionPurge })
			m.settle()
			before := m.on("a")
			tc.change(m, p)
			made := m.settle()
			if tc.stays {
				require.Equal(t, before, m.on("a"))
				require.Equal(t, []int32{3, 3}, []int32{made.Pins["a"].Whole, made.Pins["a"].WholeDomains}, "and counts")
			} else {
				require.NotSubset(t, m.on("a"), before)
			}
		})
	}

	t.Log("it goes when what the pin is now has room elsewhere")
	m := newModel(9)
	p := m.pin("a", 3, nil)
	m.settle()
	before := m.on("a")
	p.Status.Artifacts[0].Digest, p.Status.Artifacts[0].Size = "sha256:large", 2000
	m.settle()
	for i := range m.Nodes {
		if !slices.Contains(before, m.Nodes[i].Name) {
			m.Nodes[i].Capacity = 5000
		}
	}
	m.settle()
	require.Len(t, m.on("a"), 3)
	require.NotSubset(t, m.on("a"), before)
}

// A copy of an earlier revision takes the room that it has, and not that of what the pin is now.
func TestACopyThatHasNoSuccessorLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	m := newModel(3)
	first := m.pin("first", "All", nil)
	m.pin("other", "All", ofImage(900)).Spec.Priority = -1
	m.settle()
	first.Status.Artifacts[0].Digest, first.Status.Artifacts[0].Size = "sha256:large", 2000
	m.settle()
	require.Len(t, m.on("first"), 3)
	require.Len(t, m.on("other"), 3)
}

func TestWhatIsHeldOfAnEarlierRevisionIsWhole(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	p := m.pin("a", 3, nil)
	require.Equal(t, int32(3), m.settle().Pins["a"].Whole)

	p.Status.Artifacts[0].Digest = "sha256:moved"
	m.hand()
	s := m.hand().Pins["a"]
	require.Equal(t, []int32{0, 3, 3}, []int32{s.Ready, s.Whole, s.WholeDomains},
		"agents have said nothing about the new revision yet")

	held := map[string]string{}
	for i := range m.Nodes {
		for _, progress := range m.Nodes[i].Progress {
			held[m.Nodes[i].Name] = progress.Revision
		}
	}
	m.report(v1alpha1.PinFetching, "")
	s = m.hand().Pins["a"]
	require.Zero(t, s.Whole, "fetching, and nothing said about what is held")
	for i := range m.Nodes {
		for j := range m.Nodes[i].Progress {
			m.Nodes[i].Progress[j].HeldRevision = held[m.Nodes[i].Name]
		}
	}
	s = m.hand().Pins["a"]
	require.Equal(t, []int32{0, 3, 3, 3}, []int32{s.Ready, s.Pending, s.Whole, s.WholeDomains})
	s = m.settle().Pins["a"]
	require.Equal(t, []int32{3, 3}, []int32{s.Ready, s.Whole})
}

func TestPurge_AnEntryThatSaysSoIsPurgedWhenThePinIsGone(t *testing.T) {
	t.Parallel()
	m := newModel(3)
	m.pin("kept", "All", nil)
	m.pin("a", "All", func(p *v1alpha1.ArtifactPin) { p.Spec.DeletionPolicy = v1alpha1.DeletionPurge })
	m.settle()

	t.Log("the pins go while one node is away: the order to purge waits for it")
	m.Pins, m.Nodes[0].DownSince = nil, now
	m.hand()
	require.Len(t, m.on("a"), 3)
	for _, n := range m.Nodes {
		require.Len(t, n.Assigned, 1, "the entry of a pin that keeps its copies is dropped")
		require.Equal(t, v1alpha1.ActionPurge, n.Assigned[0].Action)
	}
	m.report(v1alpha1.PinReady, "")
	m.hand()
	require.Equal(t, []string{"node-0"}, m.on("a"))
	m.Nodes[0].DownSince = time.Time{}
	m.report(v1alpha1.PinReady, "")
	m.hand()
	require.Empty(t, m.on("a"))
}

func TestPurge_APinThatIsBeingDeletedIsPurged(t *testing.T) {
	t.Parallel()
	m := newModel(3)
	p := m.pin("a", "All", func(p *v1alpha1.ArtifactPin) { p.Spec.DeletionPolicy = v1alpha1.DeletionPurge })
	m.settle()
	p.DeletionTimestamp = &metav1.Time{Time: now}
	made := m.hand()
	require.Equal(t, int32(3), made.Pins["a"].Holding)
	for _, n := range m.Nodes {
		require.Equal(t, v1alpha1.ActionPurge, n.Assigned[0].Action)
	}
}

func TestPriorityDecidesWhoGoesWithout(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	low := m.pin("low", 1, func(p *v1alpha1.ArtifactPin) { p.Status.Artifacts[0].Size = 600 })
	m.settle()
	require.Equal(t, []string{"node-0"}, m.on("low"))
	m.pin("high", 1, func(p *v1alpha1.ArtifactPin) { p.Spec.Priority = 1; p.Status.Artifacts[0].Size = 600 })
	made := m.settle()
	require.Equal(t, []string{"node-0"}, m.on("high"))
	require.Equal(t, int32(1), made.Pins[low.UID].TooSmall)
}

func TestPinsShareWhatTheyHaveInCommon(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	for _, uid := range []string{"a", "b", "c"} {
		m.pin(uid, 1, func(p *v1alpha1.ArtifactPin) {
			p.Status.Artifacts[0].Digest, p.Status.Artifacts[0].Size = "sha256:base", 600
		})
	}
	m.pin("d", 1, func(p *v1alpha1.ArtifactPin) { p.Spec.Priority, p.Status.Artifacts[0].Size = -1, 600 })
	made := m.settle()
	for _, uid := range []string{"a", "b", "c"} {
		require.Equal(t, []string{"node-0"}, m.on(uid), "600 of 1000 bytes hold what three pins name")
	}
	require.Empty(t, m.on("d"))
	require.Equal(t, int32(1), made.Pins["d"].TooSmall)
}

// ofHub makes a pin's artifact files of a hub's repository at a commit.
func ofHub(commit string, size int64) func(*v1alpha1.ArtifactPin) {
	return func(p *v1alpha1.ArtifactPin) {
		p.Status.Artifacts = []v1alpha1.ResolvedArtifact{{Source: "s", Repository: "hub.example/org/model", Size: size,
			Hub: &v1alpha1.ResolvedHub{Commit: commit, Files: []string{"*.safetensors"}}}}
	}
}

func ofImage(size int64) func(*v1alpha1.ArtifactPin) {
	return func(p *v1alpha1.ArtifactPin) { p.Status.Artifacts[0].Size = size }
}

func TestRoom_ModelsAndImagesAreEachPlannedByTheirOwn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		capacity, models int64
		first, then      func(*v1alpha1.ArtifactPin) // first has the higher priority
		want             int32                       // nodes too small for the second
	}{
		"a model that is larger than what is for models, though the whole would hold it": {1000, 300, ofImage(1),
			ofHub("a", 301), 1},
		"a model that just fits":                             {1000, 300, ofImage(1), ofHub("a", 300), 0},
		"an image that is larger than what is for images":    {1000, 300, ofHub("a", 1), ofImage(701), 1},
		"an image that just fits":                            {1000, 300, ofHub("a", 1), ofImage(700), 0},
		"an image takes nothing from models":                 {1000, 300, ofImage(700), ofHub("a", 300), 0},
		"a model takes nothing from images":                  {1000, 300, ofHub("a", 300), ofImage(700), 0},
		"a second model has what the first leaves":           {1000, 300, ofHub("a", 200), ofHub("b", 101), 1},
		"the same files of a commit take room once":          {1000, 300, ofHub("a", 200), ofHub("a", 200), 0},
		"where they share, a model has what an image leaves": {1000, 0, ofImage(800), ofHub("a", 201), 1},
		"where they share, a model may have all":             {1000, 0, ofImage(0), ofHub("a", 1000), 0},
		"where only the disk bounds images":                  {300, 300, ofHub("a", 300), ofImage(5000), 0},
		"where the node has not reported":                    {0, 0, ofImage(1), ofHub("a", 1<<50), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(1)
			m.Nodes[0].Capacity, m.Nodes[0].ModelCapacity = tc.capacity, tc.models
			m.pin("first", 1, tc.first).Spec.Priority = 1
			m.pin("then", 1, tc.then)
			made := m.settle()
			require.Zero(t, made.Pins["first"].TooSmall)
			require.Equal(t, tc.want, made.Pins["then"].TooSmall)
			require.Len(t, m.on("then"), int(1-tc.want))
		})
	}
}

// A node whose part for models is too small is passed over, and the copy goes where there is room.
func TestRoom_AModelGoesToNodesWithRoomForModels(t *testing.T) {
	t.Parallel()
	m := newModel(9)
	for i := range m.Nodes {
		m.Nodes[i].ModelCapacity = int64(100 * (1 + i%2)) // node-1, node-3, … have more
	}
	m.pin("a", 4, ofHub("a", 150))
	made := m.settle()
	require.Len(t, m.on("a"), 4)
	for _, name := range m.on("a") {
		require.EqualValues(t, 200, m.node(name).ModelCapacity, name)
	}
	require.EqualValues(t, 4, made.Pins["a"].Ready)
}

// referrers is as many as one artifact can have.
func referrers(seed int) []string {
	var all []string
	for i := range 32 {
		all = append(all, fmt.Sprintf("sha256:%064x", seed*32+i))
	}
	return all
}

func TestANodesPinsFitItsObjectHoweverLargeTheyAre(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	m.Nodes[0].Capacity = 0
	for i := range 100 {
		m.pin(fmt.Sprintf("p%03d", i), 1, func(p *v1alpha1.ArtifactPin) {
			for j := range 30 {
				p.Status.Artifacts = append(p.Status.Artifacts, v1alpha1.ResolvedArtifact{
					Source: "s", Repository: "registry.example/app", Digest: fmt.Sprintf("sha256:%064x",
						j), Referrers: referrers(j)})
			}
		})
	}
	made := m.settle()
	b, err := json.Marshal(m.Nodes[0].Assigned)
	require.NoError(t, err)
	require.LessOrEqual(t, len(b), v1alpha1.MaxPinBytesPerNode+v1alpha1.MaxPinsPerNode)
	require.NotEmpty(t, m.Nodes[0].Assigned)
	full := 0
	for _, s := range made.Pins {
		full += int(s.Full)
	}
	require.Equal(t, 100-len(m.Nodes[0].Assigned), full, "the others say why they have no copy")
}

func TestAFullNodePurgesBeforeItTakesMore(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	for i := range v1alpha1.MaxPinsPerNode + 1 {
		m.pin(fmt.Sprintf("p%04d", i), 1, func(p *v1alpha1.ArtifactPin) {
			p.Spec.DeletionPolicy, p.Status.Artifacts[0].Size = v1alpha1.DeletionPurge, 0
		})
	}
	m.settle()
	last := fmt.Sprintf("p%04d", v1alpha1.MaxPinsPerNode)
	require.Empty(t, m.on(last))
	m.Pins[0].DeletionTimestamp = &metav1.Time{Time: now}
	m.hand()
	require.Len(t, m.Nodes[0].Assigned, v1alpha1.MaxPinsPerNode, "the API server takes no more")
	require.NotEmpty(t, m.on("p0000"))
	m.settle()
	require.Empty(t, m.on("p0000"))
	require.NotEmpty(t, m.on(last))
}

func TestAFullNodePurgesBeforeItTakesMore_AlsoWhereEntriesAreFewAndLarge(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	generation := func(name string) {
		for i := range 256 {
			m.pin(fmt.Sprintf("%s%04d", name, i), 1, func(p *v1alpha1.ArtifactPin) {
				p.Spec.DeletionPolicy, p.Status.Artifacts[0].Size = v1alpha1.DeletionPurge, 0
				for k := range 22 {
					p.Status.Artifacts[0].Referrers = append(p.Status.Artifacts[0].Referrers, fmt.Sprintf("sha256:%090d", k))
				}
			})
		}
	}
	object := func() int {
		encoded, err := json.Marshal(m.Nodes[0].Assigned)
		require.NoError(t, err)
		return len(encoded)
	}
	const list = 2 * v1alpha1.MaxPinsPerNode // brackets and commas
	generation("old")
	m.settle()
	require.Greater(t, object(), v1alpha1.MaxPinBytesPerNode*9/10)
	m.Pins = nil
	generation("new")
	m.hand()
	require.LessOrEqual(t, object(), v1alpha1.MaxPinBytesPerNode+list)
	require.NotEmpty(t, m.on("old0000"))
	m.settle()
	require.Empty(t, m.on("old0000"))
	require.NotEmpty(t, m.on("new0000"))
	require.LessOrEqual(t, object(), v1alpha1.MaxPinBytesPerNode+list)
}

func TestANodeKeepsNoMorePinsThanFitItsObject(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	m.Nodes[0].Capacity = 0
	for i := range v1alpha1.MaxPinsPerNode + 10 {
		m.pin(fmt.Sprintf("p%04d", i), 1, nil)
	}
	made := m.settle()
	require.Len(t, m.Nodes[0].Assigned, v1alpha1.MaxPinsPerNode)
	full := 0
	for _, s := range made.Pins {
		full += int(s.Full)
	}
	require.Equal(t, 10, full)
}

func TestAPinOfHigherRankGetsThePlaceOfOneThatHasNone(t *testing.T) {
	t.Parallel()
	m := newModel(1)
	m.Nodes[0].Capacity = 0
	for i := range v1alpha1.MaxPinsPerNode {
		m.pin(fmt.Sprintf("p%04d", i), 1, nil)
	}
	m.settle()
	m.pin("new", 1, func(p *v1alpha1.ArtifactPin) { p.Spec.Priority = 1 })
	m.settle()
	require.Len(t, m.Nodes[0].Assigned, v1alpha1.MaxPinsPerNode)
	require.Equal(t, []string{"node-0"}, m.on("new"))
}

func TestSchedule_OneThatCannotBeSaysWhyInPlainWords(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ cron, zone, told string }{
		"in words": {"every day at two am", "UTC",
			`schedule.cron "every day at two am" is no time in five fields, such as '0 2 * * *': failed to parse int from every`},
		"of an hour that no day has": {"0 99 * * *", "UTC", "end of range (99) above maximum (23): 99"},
		"on a day that no year has":  {"0 0 30 2 *", "UTC", `schedule.cron "0 0 30 2 *" is never: no year has such a day`},
		"in no zone":                 {"0 2 * * *", "Mars/Phobos", "not a name of the IANA time zone database"},
		"in the operator's own zone": {"0 2 * * *", "Local", "not a name of the IANA time zone database"},
		"on the 29th of February":    {"0 0 29 2 *", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(1)
			m.pin("p", 1, func(p *v1alpha1.ArtifactPin) {
				p.Spec.Schedule = &v1alpha1.Schedule{Cron: tc.cron, TimeZone: tc.zone, Window: metav1.Duration{Duration: time.Hour}}
			})
			told := m.hand().Pins["p"].Invalid
			require.Equal(t, tc.told == "", told == "", told)
			require.Contains(t, told, tc.told)
			require.NotContains(t, told, "strconv")
		})
	}
}

func TestUnusedPinsExpire(t *testing.T) {
	t.Parallel()
	m := newModel(3)
	m.pin("a", 1, func(p *v1alpha1.ArtifactPin) {
		p.Spec.Expiry = &v1alpha1.Expiry{UnusedFor: &metav1.Duration{Duration: 24 * time.Hour}}
	})
	m.settle()
	m.Now = now.Add(20 * time.Hour)
	for i := range m.Nodes {
		for j := range m.Nodes[i].Progress {
			m.Nodes[i].Progress[j].LastUsed = &metav1.Time{Time: m.Now}
		}
	}
	made := m.hand()
	require.Equal(t, m.Now, made.Pins["a"].LastUsed.Time)
	m.Now = now.Add(43 * time.Hour)
	require.False(t, m.hand().Pins["a"].Expired, "its use counts")
	m.Now = now.Add(45 * time.Hour)
	require.True(t, m.hand().Pins["a"].Expired)
	require.Empty(t, m.on("a"))
}

func TestANodeWhoseClockIsAheadDoesNotKeepAPin(t *testing.T) {
	t.Parallel()
	m := newModel(3)
	p := m.pin("a", "All", func(p *v1alpha1.ArtifactPin) {
		p.Spec.Expiry = &v1alpha1.Expiry{UnusedFor: &metav1.Duration{Duration: 24 * time.Hour}}
	})
	m.settle()
	m.Now = now.Add(20*time.Hour + time.Minute)
	m.Nodes[0].Progress[0].LastUsed = &metav1.Time{Time: now.AddDate(70, 0, 0)}
	p.Status.LastUsed = m.hand().Pins["a"].LastUsed
	require.Equal(t, now.Add(20*time.Hour), p.Status.LastUsed.Time, "the same for an hour, because it is written")
	m.report(v1alpha1.PinReady, "") // its clock is set
	m.Now = now.Add(43 * time.Hour)
	require.False(t, m.hand().Pins["a"].Expired)
	m.Now = now.Add(45 * time.Hour)
	require.True(t, m.hand().Pins["a"].Expired)

	t.Log("what an earlier operator noted is no reason either")
	p.Status.LastUsed = &metav1.Time{Time: now.AddDate(70, 0, 0)}
	require.Equal(t, m.Now, m.hand().Pins["a"].LastUsed.Time)
}

func TestGates(t *testing.T) {
	t.Parallel()
	m := newModel(2)
	m.pin("a", "All", func(p *v1alpha1.ArtifactPin) { p.Spec.Startup = v1alpha1.StartupGate; p.Status.Artifacts = nil })
	require.Len(t, m.hand().Gates, 2, "a pin that is not resolved holds starting nodes back")
	m.Pins[0].Status.Artifacts = []v1alpha1.ResolvedArtifact{{Source: "a", Digest: "sha256:a"}}
	require.Len(t, m.hand().Gates, 2)
	m.report(v1alpha1.PinReady, "")
	require.Empty(t, m.hand().Gates)

	t.Log("a node waits for what does not come, but not for ever")
	m.report(v1alpha1.PinFailed, v1alpha1.ReasonNotFoundUpstream)
	m.Nodes[1].Joined = now.Add(-v1alpha1.StartupPatience)
	made := m.hand()
	require.Contains(t, made.Gates, "node-0")
	require.NotContains(t, made.Gates, "node-1")
	require.Contains(t, made.Waived, "node-1")
	m.Pins[0].Spec.TimeLimit = &metav1.Duration{Duration: time.Hour}
	require.Contains(t, m.hand().Gates, "node-1", "what may take longer is waited for longer")
	m.Pins[0].Spec.TimeLimit.Duration = 168 * time.Hour
	m.Nodes[1].Joined = now.Add(-v1alpha1.LongestStartupPatience)
	require.NotContains(t, m.hand().Gates, "node-1", "a user of one namespace keeps no node out for a week")
}

func TestANodeCacheMadeAnewReleasesNothing(t *testing.T) {
	t.Parallel()
	shut := &v1alpha1.Schedule{Cron: "0 2 * * *", TimeZone: "UTC", Window: metav1.Duration{Duration: time.Hour}}
	for name, tc := range map[string]struct {
		change func(*v1alpha1.ArtifactPin)
		listed bool // in the end, as before
	}{
		"of a pin that is suspended": {func(p *v1alpha1.ArtifactPin) { p.Spec.Suspend = true }, true},
		"of a pin that is suspended, and has another revision now": {func(p *v1alpha1.ArtifactPin) {
			p.Spec.Suspend, p.Spec.Priority = true, 7
		}, false},
		"of a pin that waits for its window": {func(p *v1alpha1.ArtifactPin) { p.Spec.Schedule = shut }, true},
		"of a pin that waits for its window with what its tag names now": {func(p *v1alpha1.ArtifactPin) {
			p.Spec.Schedule, p.Status.Artifacts[0].Digest = shut, "sha256:moved"
		}, false},
		"of a pin that can't be resolved now": {func(p *v1alpha1.ArtifactPin) { p.Status.Artifacts = nil }, false},
		"of a pin that is too large now": {func(p *v1alpha1.ArtifactPin) {
			q := resource.MustParse("9")
			p.Spec.SizeLimit = &q
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(3)
			p := m.pin("a", 1, nil)
			m.settle()
			holder := m.on("a")[0]
			tc.change(p)
			held := m.anew(holder)
			m.hand()
			require.Empty(t, m.node(holder).Assigned, "nothing is known of what it holds")
			m.node(holder).Progress = held
			for range 3 {
				made := m.hand()
				require.Equal(t, int32(1), made.Pins["a"].Whole)
				for _, n := range m.Nodes { // the agent goes on: it is told the same, or nothing
					require.Equal(t, tc.listed && n.Name == holder, len(n.Assigned) == 1, n.Name)
					require.False(t, len(n.Assigned) == 1 && n.Assigned[0].LetsGo())
				}
			}
		})
	}
}

func TestANodeIsToldToLetGoOfWhatItKeepsUnlisted(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*model, *v1alpha1.ArtifactPin){
		"where the pin is gone": func(m *model, _ *v1alpha1.ArtifactPin) { m.Pins = nil },
		"where others have taken over": func(m *model, p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "z1"}}
			m.settle()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(2)
			p := m.pin("a", 1, func(p *v1alpha1.ArtifactPin) {
				p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "z0"}}
			})
			m.settle()
			held := m.anew("node-0")
			change(m, p)
			m.node("node-0").Progress = held
			for range 3 { // until it has reported so
				m.hand()
				require.Len(t, m.node("node-0").Assigned, 1)
				require.True(t, m.node("node-0").Assigned[0].LetsGo())
			}
			m.report(v1alpha1.PinReady, "")
			m.hand()
			require.Empty(t, m.node("node-0").Assigned)
			m.hand()
			require.Empty(t, m.node("node-0").Assigned, "a report of what has left the list is no claim")
		})
	}

	t.Log("a pin that says so is purged")
	m := newModel(1)
	p := m.pin("a", 1, func(p *v1alpha1.ArtifactPin) { p.Spec.DeletionPolicy = v1alpha1.DeletionPurge })
	m.settle()
	m.node("node-0").Progress = m.anew("node-0")
	p.Spec.Expiry = &v1alpha1.Expiry{Until: &metav1.Time{Time: now}}
	m.hand()
	require.Equal(t, v1alpha1.ActionPurge, m.node("node-0").Assigned[0].Action)
}

// Between a NodeCache that is made anew and the agent's first report to it, the operator knows of nothing that the node
// holds. What it lists there it does not take back, or the agent would let go of what it has.
func TestWhatANodeCacheMadeAnewListsStaysUntilItsAgentHasReported(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*v1alpha1.ArtifactPin){
		"the pin fits nowhere any more": func(p *v1alpha1.ArtifactPin) {
			p.Status.Artifacts = []v1alpha1.ResolvedArtifact{{Source: "a", Digest: "sha256:b", Size: 2000}}
		},
		"it matches no node any more": func(p *v1alpha1.ArtifactPin) {
			p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "none"}}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			m := newModel(1)
			p := m.pin("a", 1, nil)
			m.settle()
			n := m.node("node-0")
			held := m.anew("node-0")
			m.hand()
			listed := n.Assigned
			require.Len(t, listed, 1)
			change(p)
			m.hand()
			require.Equal(t, listed, n.Assigned, "before its agent has reported")
			held[0].Reason = "" // it is listed
			n.Progress, n.Unreported = held, false
			m.hand()
			require.Equal(t, listed, n.Assigned, "it has no successor")
		})
	}

	t.Log("a node that holds nothing is given up as soon as it says so")
	m := newModel(1)
	p := m.pin("a", 1, nil)
	m.Nodes[0].Unreported = true
	m.hand()
	p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "none"}}
	m.hand()
	require.Len(t, m.Nodes[0].Assigned, 1)
	m.report(v1alpha1.PinFetching, "")
	m.hand()
	require.Empty(t, m.Nodes[0].Assigned)

	t.Log("a pin that is gone is")
	m = newModel(1)
	m.pin("a", 1, nil)
	m.Nodes[0].Unreported = true
	m.hand()
	m.Pins = nil
	m.hand()
	require.Empty(t, m.Nodes[0].Assigned)
}

// TestNoCopyIsLost drives the model by random events. Once a node has had a copy whole, some node always has one, of
// whatever revision, and is told to keep it; and in the end there are as many as the pin asks for.
func TestNoCopyIsLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapid.IntRange(4, 12).Draw(t, "nodes"))
		p := m.pin("a", rapid.IntRange(1, 4).Draw(t, "replicas"), nil)
		m.settle()
		whole := map[string]bool{} // nodes that have a copy whole and have been told to keep the pin ever since
		for _, name := range m.on("a") {
			whole[name] = true
		}
		unlisted := map[string][]v1alpha1.PinProgress{} // of those what they keep though their NodeCache is made anew
		t.Repeat(map[string]func(*rapid.T){
			"replicas": func(t *rapid.T) { p.Spec.Replicas = intstr.FromInt(rapid.IntRange(1, 4).Draw(t, "replicas")) },
			"spec":     func(t *rapid.T) { p.Spec.Priority = rapid.Int32Range(0, 9).Draw(t, "priority") },
			"suspend":  func(t *rapid.T) { p.Spec.Suspend = rapid.Bool().Draw(t, "suspend") },
			"down": func(t *rapid.T) {
				n := &m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")]
				n.DownSince = rapid.SampledFrom([]time.Time{{}, now.Add(-time.Minute), now.Add(-time.Hour)}).Draw(t,
					"since")
			},
			"a new operator": func(t *rapid.T) { // takes whom it has yet to hear for up
				n := &m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")]
				if n.Unheard = rapid.Bool().Draw(t, "unheard"); n.Unheard {
					n.DownSince = time.Time{}
				}
			},
			"what the pin is moves, and may fit no node": func(t *rapid.T) {
				a := &p.Status.Artifacts[0]
				a.Size = rapid.SampledFrom([]int64{10, 20, 2000}).Draw(t, "size")
				a.Digest = fmt.Sprint("sha256:", a.Size)
			},
			"the selector matches all nodes, or none": func(t *rapid.T) {
				p.Spec.NodeSelector = nil
				if rapid.Bool().Draw(t, "none") {
					p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "none"}}
				}
			},
			"label": func(t *rapid.T) {
				m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")].Labels["zone"] = "z9"
			},
			"hand out": func(*rapid.T) { m.hand() },
			"nodes report what they keep unlisted": func(*rapid.T) {
				for name, held := range unlisted {
					n := m.node(name)
					n.Progress, n.Unreported = held, false
				}
			},
			"a NodeCache is made anew": func(t *rapid.T) {
				n := &m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")]
				listed := n.Assigned
				held := m.anew(n.Name)
				if len(held) == 0 && len(listed) > 0 { // it had yet to say how far it is with what it was told
					held = []v1alpha1.PinProgress{{UID: "a", Revision: listed[0].Revision, State: v1alpha1.PinFetching,
						HeldRevision: "earlier", Reason: v1alpha1.ReasonUnlisted}}
				}
				if whole[n.Name] && len(held) > 0 {
					unlisted[n.Name] = held
				}
			},
			"one node is ready": func(t *rapid.T) {
				n := &m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")]
				if len(n.Assigned) > 0 && n.DownSince.IsZero() {
					n.Progress, n.Unreported = []v1alpha1.PinProgress{{UID: "a", Revision: n.Assigned[0].Revision,
						State: v1alpha1.PinReady}}, false
					whole[n.Name] = true
				}
			},
			"one node has begun": func(t *rapid.T) {
				n := &m.Nodes[rapid.IntRange(0, len(m.Nodes)-1).Draw(t, "node")]
				if len(n.Assigned) > 0 && n.DownSince.IsZero() {
					progress := v1alpha1.PinProgress{UID: "a", Revision: n.Assigned[0].Revision,
						State: v1alpha1.PinFetching}
					if whole[n.Name] {
						progress.HeldRevision = "earlier"
					}
					n.Progress, n.Unreported = []v1alpha1.PinProgress{progress}, false
				}
			},
			"": func(t *rapid.T) {
				keeps := m.on("a")
				for name := range whole {
					n := m.node(name)
					switch told := slices.Contains(keeps, name); {
					case told && n.Assigned[0].LetsGo():
						delete(whole, name)
					case told: // and so listed
						delete(unlisted, name)
						continue
					case unlisted[name] != nil:
						continue
					}
					delete(unlisted, name)
					delete(whole, name)
					n.Progress = nil
				}
				require.NotEmpty(t, whole, "no node keeps a whole copy; told to keep one: %v", keeps)
			},
		})
		for i := range m.Nodes {
			m.Nodes[i].DownSince, m.Nodes[i].Unheard, m.Nodes[i].Unreported = time.Time{}, false, false
		}
		p.Spec.Suspend, p.Spec.NodeSelector, p.Status.Artifacts[0].Size = false, nil, 10
		p.Status.Artifacts[0].Digest = "sha256:10"
		m.settle()
		require.Len(t, m.on("a"), int(p.Spec.Replicas.IntVal))
	})
}
