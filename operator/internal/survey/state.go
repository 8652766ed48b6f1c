package survey

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// State is how the cache is, in short.
type State struct {
	Agents   int         `json:"agents"`
	Ready    int         `json:"ready"`
	Admitted int         `json:"admitted"`
	Zones    []string    `json:"zones"`
	Sums     Sums        `json:"sums"`
	Pins     int         `json:"pins"`
	Whole    int         `json:"pinsReady"`
	Nodes    []NodeState `json:"nodes"`
	Findings []Finding   `json:"findings"`
	Hidden   []string    `json:"notReadable"`
}

// NodeState is one line of it.
type NodeState struct {
	Name     string `json:"name"`
	Zone     string `json:"zone,omitempty"`
	Admitted bool   `json:"admitted"`
	Mirror   string `json:"mirror"`
	Used     int64  `json:"used"`
	Capacity int64  `json:"capacity"`
	Hits     int64  `json:"hits"`
	Requests int64  `json:"requests"`
	Peers    int64  `json:"fromPeers"`
	Upstream int64  `json:"fromUpstream"`
	Saved    int64  `json:"saved"`
	Version  string `json:"version,omitempty"`
	// Reported is how long ago the agent reported, by the API server's clock; -1: never.
	Reported time.Duration `json:"reported"`
}

// StateOf puts it together. now is the API server's time.
func StateOf(c *Cluster, found []Finding, now time.Time) State {
	s := State{Agents: len(Running(c.Agents, "")), Sums: c.Sums(), Pins: len(c.Pins), Findings: found,
		Hidden: append([]string{}, c.Hidden...), Zones: []string{}, Nodes: []NodeState{}}
	for _, p := range Running(c.Agents, "") {
		whole := true
		for _, container := range p.Status.ContainerStatuses {
			whole = whole && container.Ready
		}
		if whole {
			s.Ready++
		}
	}
	for i := range c.Pins {
		if apimeta.IsStatusConditionTrue(c.Pins[i].Status.Conditions, v1alpha1.ConditionReady) {
			s.Whole++
		}
	}
	caches := map[string]*v1alpha1.NodeCache{}
	for i := range c.Caches {
		caches[c.Caches[i].Name] = &c.Caches[i]
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		r := NodeState{Name: p.Name, Zone: p.Spec.Zone, Admitted: p.IsAdmitted(), Reported: -1}
		if r.Admitted {
			s.Admitted++
		}
		if !slices.Contains(s.Zones, r.Zone) {
			s.Zones = append(s.Zones, r.Zone)
		}
		if n := caches[p.Name]; n != nil {
			st := n.Status
			r.Used, r.Capacity, r.Version = SizeOf(st.Usage.Bytes), SizeOf(st.Usage.Capacity), st.Version
			r.Hits, r.Requests = st.Counters.Hits, st.Counters.Hits+st.Counters.Misses
			r.Peers, r.Upstream, r.Saved = SizeOf(st.Counters.PeerBytes), SizeOf(st.Counters.UpstreamBytes),
				SizeOf(st.Counters.SavedBytes)
			if cond := apimeta.FindStatusCondition(st.Conditions, v1alpha1.ConditionMirrorConfigured); cond != nil {
				r.Mirror = cond.Reason
			}
			if st.ReportedAt != nil {
				r.Reported = max(0, now.Sub(written(n)))
			}
		}
		s.Nodes = append(s.Nodes, r)
	}
	slices.Sort(s.Zones)
	slices.SortFunc(s.Nodes, func(a, b NodeState) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Wrong names in one line what is wrong.
func (s State) Wrong() string {
	var said []string
	for _, g := range Together(s.Findings) {
		if g.Grave {
			said = append(said, g.Reason+" ("+g.On()+")")
		}
	}
	if s.Agents == 0 && !slices.Contains(s.Hidden, HiddenPods) {
		said = append(said, "no agent runs")
	}
	return cmp.Or(strings.Join(said, ", "), "nothing")
}

// Group is a finding that several nodes have in common.
type Group struct {
	Finding
	Nodes []string
}

// Together joins findings that differ by the node alone.
func Together(all []Finding) []Group {
	var groups []Group
	for _, f := range all {
		i := slices.IndexFunc(groups, func(g Group) bool {
			return g.Reason == f.Reason && g.Grave == f.Grave && g.Message == f.Message &&
				g.general == f.general && (g.general != "" || g.Mend == f.Mend) && len(g.Nodes) > 0 && f.Node != ""
		})
		if i < 0 {
			groups = append(groups, Group{Finding: f})
			i = len(groups) - 1
		}
		if f.Node != "" {
			groups[i].Nodes = append(groups[i].Nodes, f.Node)
		}
	}
	return groups
}

// On names the nodes of a group, the first of them where they are many.
func (g Group) On() string {
	const most = 5
	if n := len(g.Nodes); n > most {
		return fmt.Sprintf("%s and %d more", strings.Join(g.Nodes[:most], ", "), n-most)
	}
	return cmp.Or(strings.Join(g.Nodes, ", "), "cluster")
}
