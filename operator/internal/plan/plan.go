// Package plan computes, from everything the operator knows, what each node is to keep and how each pin fares. It is a
// pure function: no clock, no client, nothing remembered. Whatever happened before, a crash included, the next plan
// follows from what the API server holds.
//
// The rules, in order:
//
//  1. Pins are placed by priority, then age, so that where room is short the lower and the younger go without.
//  2. A suspended pin stands as it is. An expired or deleted one is released, or purged.
//  3. Eligible are members that match the pin's selector and whose taints it tolerates. Of these, package placement
//     picks as many as are wanted among those that are up and have room. A node that Kubernetes has closed for a while
//     (a cordon, pressure) keeps what it has and is given nothing new.
//  4. A node that is down, or whose peer is not admitted for now, keeps its assignment: what it holds is there when it
//     comes back. So does one whose agent has yet to report to its NodeCache: that may have been made anew, and then
//     the node may hold all that it lists.
//  5. A copy on a node that is no longer picked, be it of an earlier revision, is released only when as many picked
//     nodes are ready as are wanted, not counting those of whose agents the operator has yet to hear. Where no node is
//     picked it stays, and one of an earlier revision stays until as many are ready as the pin asks for, as long as
//     its node has room beside pins of higher priority.
//  6. New work waits for a slot (parallelism) and for the schedule; making a copy again from a copy that exists waits
//     for neither schedule nor registry.
//  7. A starting node waits for its pins, but not for ever.
//  8. What a node reports as Unlisted, because its NodeCache was made anew, counts as held by it. Where it is to go, an
//     entry says so until the node has let go of it; where it is to stay as it is, nothing need be said.
package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/klog/v2"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/placement"
)

// Node is a node as the plan sees it.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	// Member: its peer is admitted, and neither peer nor node is being deleted.
	Member bool
	// DownSince is when the node stopped being Ready or its agent fell silent; zero while it is up.
	DownSince time.Time
	// Unheard: its agent has yet to be heard since the operator began, and its last report is old. It is taken to be
	// up, and what it reported is not relied on.
	Unheard bool
	// Unreported: its agent has yet to report to its NodeCache. Where that was made anew, the node may hold whatever it
	// lists.
	Unreported bool
	// Joined is when node and peer were both there.
	Joined time.Time
	// Capacity of the cache in bytes; 0 when the agent has not reported it. ModelCapacity is the part of it that is for
	// files of model hubs and nothing else; 0: they share the capacity with images.
	Capacity, ModelCapacity int64
	// Assigned is the spec, Progress the status, of the node's NodeCache.
	Assigned []v1alpha1.PinAssignment
	Progress []v1alpha1.PinProgress
}

// Input is everything a plan follows from. It is not modified.
type Input struct {
	Now time.Time
	// ZoneKey is the node label over which copies are spread where a pin does not say.
	ZoneKey string
	Nodes   []Node
	Pins    []*v1alpha1.ArtifactPin
}

// Plan is what is to be.
type Plan struct {
	// Assignments by node, in order of UID. Every node of the input that is a member or has assignments is a key.
	Assignments map[string][]v1alpha1.PinAssignment
	// Pins by UID.
	Pins map[types.UID]*Summary
	// Gates are, by node, the pins with startup Gate that are not ready there. A node without assignment waits for
	// none.
	Gates map[string][]types.NamespacedName
	// Waived are, by node, the pins with startup Gate that are not ready there and have been waited for long enough.
	Waived map[string][]types.NamespacedName
}

// Summary is how a pin fares.
type Summary struct {
	// Generation, Artifacts and PullSecrets are the pin's as the plan saw them: it says nothing about any others.
	Generation  int64
	Artifacts   []v1alpha1.ResolvedArtifact
	PullSecrets []string

	Eligible, Desired, Ready, Pending, Failed, Domains int32
	// Chosen is the number of nodes that are to have a copy now: Desired, but for those that are TooSmall, Full or
	// Down.
	Chosen int32
	// Whole is Ready and the nodes that hold an earlier revision whole while the present one is on its way, or one
	// that has no successor. WholeDomains are the domains of these.
	Whole, WholeDomains    int32
	BytesHeld, BytesWanted int64
	LastUsed               *metav1.Time
	// Failures of nodes, the first MaxFailures by name.
	Failures []v1alpha1.NodeFailure
	// TooSmall is the number of eligible nodes without capacity for a copy, Full of those with as many pins as a node
	// keeps, Down of those that are down for longer than the repair delay.
	TooSmall, Full, Down int32
	// Holding is the number of nodes that are up and have an assignment, whatever its action.
	Holding int32
	// Expired and Suspended say why nothing is wanted or done, WindowShut that work waits for the schedule.
	Expired, Suspended, WindowShut bool
	// Invalid says what in the spec can't be carried out; empty if all can.
	Invalid string
}

// Of reports whether the summary is of the pin as it is here.
func (s *Summary) Of(p *v1alpha1.ArtifactPin) bool {
	return s.Generation == p.Generation && slices.Equal(s.PullSecrets, p.Status.PullSecrets) &&
		equality.Semantic.DeepEqual(s.Artifacts, p.Status.Artifacts)
}

// MaxFailures bounds ArtifactPin.status.failures.
const MaxFailures = 10

// Compute makes the plan.
func Compute(in Input) *Plan {
	c := newComputation(in)
	pins := slices.Clone(in.Pins)
	slices.SortFunc(pins, func(a, b *v1alpha1.ArtifactPin) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	for _, p := range pins {
		c.plan.Pins[p.UID] = c.place(p)
		delete(c.holdings, string(p.UID))
	}
	c.orphans()
	for i := range in.Nodes {
		if n := &in.Nodes[i]; n.Member || len(n.Assigned) > 0 {
			assignments := c.fit(c.assignments[i], n.Assigned)
			slices.SortFunc(assignments, func(a, b v1alpha1.PinAssignment) int { return cmp.Compare(a.UID, b.UID) })
			c.plan.Assignments[n.Name] = assignments
		}
	}
	return c.plan
}

// fit leaves out what is new, the last first, of more assignments than a NodeCache holds, by number or by bytes. That
// happens while copies that are to go wait for their successors, or to be purged; were it all handed out, the API
// server would refuse it all.
func (c *computation) fit(assignments, assigned []v1alpha1.PinAssignment) []v1alpha1.PinAssignment {
	object := 0
	for k := range assignments {
		object += c.weight(&assignments[k])
	}
	for k := len(assignments) - 1; k >= 0 &&
		(len(assignments) > v1alpha1.MaxPinsPerNode || object > v1alpha1.MaxPinBytesPerNode); k-- {
		if !slices.ContainsFunc(assigned, func(a v1alpha1.PinAssignment) bool { return a.UID == assignments[k].UID }) {
			object -= c.weight(&assignments[k])
			assignments = slices.Delete(assignments, k, k+1)
		}
	}
	return assignments
}

// computation is the state of one Compute.
type computation struct {
	in          Input
	plan        *Plan
	hashes      []uint64                    // of node names
	holdings    map[string]map[int]holding  // by pin UID, then node
	assignments [][]v1alpha1.PinAssignment  // by node: the plan in the making
	room        []room                      // by node: what is left of it
	weights     map[string]int              // of assignments in a NodeCache, by revision
	eligible    map[string]eligibility      // by selector and tolerations, which many pins share
	fleets      map[string]*placement.Fleet // by these and the topology key
}

// holding is what a node has of a pin now.
type holding struct {
	assigned *v1alpha1.PinAssignment
	progress *v1alpha1.PinProgress // nil: no word of it yet
	// unlisted: the node's NodeCache has no entry for it. assigned is then what the entry would be, without an Action
	// where the node has another revision of the pin, whose content only the node knows.
	unlisted bool
}

func (h holding) state(revision string) v1alpha1.PinState {
	if h.progress == nil || h.progress.Revision != revision {
		return v1alpha1.PinPending
	}
	return h.progress.State
}

// kept reports whether the node is told to keep the pin.
func (h holding) kept() bool {
	return h.assigned != nil && h.assigned.Action != v1alpha1.ActionPurge && !h.assigned.LetsGo()
}

// holdsEarlier reports whether the node has a revision whole that is not the one given.
func (h holding) holdsEarlier(revision string) bool {
	p := h.progress
	return p != nil && (p.HeldRevision != "" || p.Revision != revision && p.State == v1alpha1.PinReady)
}

// whole reports whether the node has reported what it was last assigned as whole, or still holds what it was assigned
// before.
func (h holding) whole() bool {
	return h.state(h.assigned.Revision) == v1alpha1.PinReady || h.holdsEarlier(h.assigned.Revision)
}

// room is what is left of a node.
type room struct {
	pins   int   // assignments of its NodeCache
	object int   // bytes of these
	bytes  int64 // of its cache, where models have a part of their own without that
	models int64 // bytes of that part
	apart  bool  // there is one
	// counted are the sizes of artifacts that count already, by what names them: pins share what they have in common.
	// Nil where the cache's capacity is not known.
	counted map[string]int64
}

func newRoom(n *Node) room {
	r := room{pins: v1alpha1.MaxPinsPerNode, object: v1alpha1.MaxPinBytesPerNode, bytes: n.Capacity}
	if n.Capacity > 0 {
		r.counted = map[string]int64{}
	}
	if n.ModelCapacity > 0 {
		r.apart, r.models, r.bytes = true, n.ModelCapacity, n.Capacity-n.ModelCapacity
		if r.bytes <= 0 { // what is for images only the disk bounds
			r.bytes = math.MaxInt64
		}
	}
	return r
}

// takes is the number of bytes that a pin's copy adds to the cache, and to what the cache has for models alone.
func (r *room) takes(p *v1alpha1.ArtifactPin) (bytes, models int64) {
	for i := range p.Status.Artifacts {
		a := &p.Status.Artifacts[i]
		n := max(0, a.Size-r.counted[name(a)])
		if a.Hub != nil && r.apart {
			models += n
		} else {
			bytes += n
		}
	}
	return bytes, models
}

// fits reports whether a pin's copy has room.
func (r *room) fits(p *v1alpha1.ArtifactPin) bool {
	bytes, models := r.takes(p)
	return r.counted == nil || (bytes == 0 || bytes <= r.bytes) && (models == 0 || models <= r.models)
}

// name is the same for artifacts that are the same bytes: the digest, or the commit of a hub with what is kept of it.
// "": not known.
func name(a *v1alpha1.ResolvedArtifact) string {
	if a.Hub == nil {
		return a.Digest
	}
	return a.Repository + "@" + a.Hub.Commit + " " + strings.Join(a.Hub.Files, " ")
}

type eligibility struct {
	nodes  []int
	closed map[int]bool // those of nodes that are given nothing new
	err    error
}

func newComputation(in Input) *computation {
	n := len(in.Nodes)
	c := &computation{
		in: in,
		plan: &Plan{
			Assignments: make(map[string][]v1alpha1.PinAssignment, n),
			Pins:        make(map[types.UID]*Summary, len(in.Pins)),
			Gates:       map[string][]types.NamespacedName{},
			Waived:      map[string][]types.NamespacedName{},
		},
		hashes: make([]uint64, n), assignments: make([][]v1alpha1.PinAssignment, n), room: make([]room, n),
		holdings: map[string]map[int]holding{}, weights: map[string]int{},
		eligible: map[string]eligibility{}, fleets: map[string]*placement.Fleet{},
	}
	for i := range in.Nodes {
		node := &in.Nodes[i]
		c.hashes[i] = placement.Hash(node.Name)
		c.room[i] = newRoom(node)
		for j := range node.Assigned {
			a := &node.Assigned[j]
			if c.holdings[a.UID] == nil {
				c.holdings[a.UID] = map[int]holding{}
			}
			c.holdings[a.UID][i] = holding{assigned: a}
		}
		for j := range node.Progress {
			p := &node.Progress[j]
			h, ok := c.holdings[p.UID][i]
			if h.unlisted = !ok && p.Reason == v1alpha1.ReasonUnlisted; !ok && !h.unlisted {
				continue // it has left the NodeCache, and the node has yet to report so
			}
			if c.holdings[p.UID] == nil {
				c.holdings[p.UID] = map[int]holding{}
			}
			h.progress = p
			c.holdings[p.UID][i] = h
		}
	}
	return c
}

// place decides about one pin.
func (c *computation) place(p *v1alpha1.ArtifactPin) *Summary {
	held := c.holdings[string(p.UID)]
	adopt(p, held)
	s := &Summary{
		Generation: p.Generation, Artifacts: p.Status.Artifacts, PullSecrets: p.Status.PullSecrets,
		LastUsed: c.past(p.Status.LastUsed),
	}
	for _, h := range held {
		if h.progress == nil {
			continue
		}
		used := c.past(h.progress.LastUsed)
		if used != nil && (s.LastUsed == nil || s.LastUsed.Before(used)) {
			s.LastUsed = used
		}
	}
	open, err := windowOpen(p.Spec.Schedule, c.in.Now)
	if err != nil {
		s.Invalid = err.Error()
	}
	candidates := c.eligibleFor(p)
	if candidates.err != nil {
		s.Invalid = candidates.err.Error()
	}
	s.Eligible = candidates.count(held)
	s.Expired = expired(p, s.LastUsed, c.in.Now)
	s.Suspended = p.Spec.Suspend

	switch {
	case !p.DeletionTimestamp.IsZero() || s.Expired:
		for i, h := range held {
			c.release(p.Spec.DeletionPolicy, i, h)
		}
	case s.Invalid != "" || s.Suspended || len(p.Status.Artifacts) == 0 || TooLarge(p):
		for i, h := range held {
			if h.kept() {
				c.keep(i, p, *h.assigned)
			} else {
				c.release(p.Spec.DeletionPolicy, i, h)
			}
		}
		s.Desired = replicas(p.Spec.Replicas, int(s.Eligible))
		c.count(p, s, slices.Collect(maps.Keys(held)), nil, held, "")
		if p.Spec.Replicas.StrVal == v1alpha1.AllNodes && len(p.Status.Artifacts) == 0 {
			c.gate(p, candidates.nodes, func(int) bool { return false })
		}
	default:
		c.assign(p, s, candidates, held, open)
	}
	for i := range held {
		if c.in.Nodes[i].DownSince.IsZero() && c.has(i, string(p.UID)) {
			s.Holding++
		}
	}
	return s
}

// adopt says of what nodes hold unlisted what its entries would be.
func adopt(p *v1alpha1.ArtifactPin, held map[int]holding) {
	for i, h := range held {
		if !h.unlisted {
			continue
		}
		entry := Assignment(p)
		if entry.Revision != h.progress.Revision {
			entry = v1alpha1.PinAssignment{UID: entry.UID, Namespace: p.Namespace, Name: p.Name,
				Revision: h.progress.Revision}
		}
		h.assigned = &entry
		held[i] = h
	}
}

// past is the time, or where it has yet to come by this clock, that of the hour that has begun: one node whose clock is
// years ahead would else keep a pin for as long.
func (c *computation) past(t *metav1.Time) *metav1.Time {
	if t == nil || !t.After(c.in.Now) {
		return t
	}
	return &metav1.Time{Time: c.in.Now.Truncate(time.Hour)}
}

// assign picks nodes for a pin that is to be kept, and hands out its assignment.
func (c *computation) assign(p *v1alpha1.ArtifactPin, s *Summary, candidates eligibility, held map[int]holding,
	open bool) {
	assignment := Assignment(p)
	s.Desired = replicas(p.Spec.Replicas, int(s.Eligible))
	picked := c.pick(p, s, candidates, held, c.weight(&assignment))
	isPicked := make(map[int]bool, len(picked))
	for _, i := range picked {
		isPicked[i] = true
	}

	// Whether any copy of just this exists: then further ones come from peers.
	copied := false
	inFlight, ready := 0, 0
	for i, h := range held {
		switch h.state(assignment.Revision) {
		case v1alpha1.PinReady:
			copied = true
			if isPicked[i] && !c.in.Nodes[i].Unheard {
				ready++
			}
		case v1alpha1.PinPending, v1alpha1.PinFetching:
			if h.assigned.Revision == assignment.Revision && c.up(i, p) {
				inFlight++
			}
		}
	}
	slots := len(picked)
	if p.Spec.Parallelism != nil {
		slots = int(*p.Spec.Parallelism) - inFlight
	}
	for _, i := range picked {
		h, has := held[i]
		switch {
		case has && h.assigned.Revision == assignment.Revision:
			c.keep(i, p, *h.assigned)
		case slots > 0 && (open || copied):
			slots--
			c.keep(i, p, assignment)
		case has:
			c.keep(i, p, *h.assigned)
			s.WindowShut = s.WindowShut || !open
		default:
			c.reserve(i, p, &assignment)
			s.WindowShut = s.WindowShut || !open
		}
	}
	stayed := c.leave(p, s, candidates, held, isPicked, ready, assignment.Revision)
	c.count(p, s, picked, stayed, held, assignment.Revision)
	c.gate(p, picked, func(i int) bool { return held[i].state(assignment.Revision) == v1alpha1.PinReady })
}

// leave decides about the copies on nodes that are not picked, while so many of the picked are ready with a revision.
// It returns the nodes whose copies stay for want of a successor.
func (c *computation) leave(p *v1alpha1.ArtifactPin, s *Summary, candidates eligibility, held map[int]holding,
	picked map[int]bool, ready int, revision string) (stayed []int) {
	for i, h := range held {
		_, eligible := slices.BinarySearch(candidates.nodes, i)
		earlier := h.assigned.Revision != revision
		switch {
		case picked[i]:
		case !c.in.Nodes[i].Member, !c.up(i, p), c.in.Nodes[i].Unreported && h.kept():
			c.keep(i, p, *h.assigned)
		case !h.whole() || !h.kept():
			c.release(p.Spec.DeletionPolicy, i, h)
		case ready < min(int(s.Desired), len(picked)): // its successor is on its way
			c.keep(i, p, *h.assigned)
		case (len(picked) == 0 || ready < int(s.Desired) && eligible && earlier) && c.retain(i, p, h, earlier):
			// It has no successor: no node matches, or has room for what the pin is now.
			stayed = append(stayed, i)
		default:
			c.release(p.Spec.DeletionPolicy, i, h)
		}
	}
	return stayed
}

// retain keeps a copy that is whole if the node has the room for it: of an earlier revision as much as it reports, for
// nothing else tells its size any more.
func (c *computation) retain(i int, p *v1alpha1.ArtifactPin, h holding, earlier bool) bool {
	r := &c.room[i]
	if r.pins <= 0 || c.weight(h.assigned) > r.object {
		return false // a pin before it in rank has the place
	}
	if !earlier {
		if !r.fits(p) {
			return false
		}
		c.keep(i, p, *h.assigned)
		return true
	}
	left := &r.bytes
	if r.apart && slices.ContainsFunc(h.assigned.Artifacts, func(a v1alpha1.AssignedArtifact) bool {
		return a.Hub != nil
	}) {
		left = &r.models
	}
	if r.counted != nil && *left < h.progress.BytesHeld {
		return false
	}
	*left -= h.progress.BytesHeld
	r.pins--
	r.object -= c.weight(h.assigned)
	c.hand(i, *h.assigned)
	return true
}

// gate records, of a pin with startup Gate, the nodes that are not ready.
func (c *computation) gate(p *v1alpha1.ArtifactPin, nodes []int, ready func(i int) bool) {
	if p.Spec.Startup != v1alpha1.StartupGate || p.Spec.Suspend {
		return
	}
	patience := v1alpha1.StartupPatience
	if p.Spec.TimeLimit != nil {
		patience = max(patience, min(p.Spec.TimeLimit.Duration, v1alpha1.LongestStartupPatience))
	}
	name := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	for _, i := range nodes {
		switch node := &c.in.Nodes[i]; {
		case ready(i):
		case c.in.Now.Sub(node.Joined) < patience:
			c.plan.Gates[node.Name] = append(c.plan.Gates[node.Name], name)
		default:
			c.plan.Waived[node.Name] = append(c.plan.Waived[node.Name], name)
		}
	}
}

// pick chooses the nodes that are to have a copy.
func (c *computation) pick(p *v1alpha1.ArtifactPin, s *Summary, candidates eligibility, held map[int]holding,
	weight int) []int {
	key := c.in.ZoneKey
	if p.Spec.Spread != nil {
		key = p.Spec.Spread.TopologyKey
	}
	accept := func(i int) bool {
		r := &c.room[i]
		switch {
		case candidates.closed[i] && !held[i].kept():
		case !c.up(i, p):
			s.Down++
		case !r.fits(p):
			s.TooSmall++
		case r.pins <= 0 || weight > r.object:
			s.Full++
		default:
			return true
		}
		return false
	}
	if s.Desired >= s.Eligible {
		return slices.DeleteFunc(slices.Clone(candidates.nodes), func(i int) bool { return !accept(i) })
	}
	chosen := c.fleet(p, candidates.nodes, key).Pick(string(p.UID), int(s.Desired), func(k int) bool {
		return accept(candidates.nodes[k])
	})
	for k, e := range chosen {
		chosen[k] = candidates.nodes[e]
	}
	return chosen
}

// fleet groups a pin's eligible nodes by the domains of a label, once for all pins that have both in common.
func (c *computation) fleet(p *v1alpha1.ArtifactPin, eligible []int, topologyKey string) *placement.Fleet {
	key := topologyKey + "\n" + c.eligibilityKey(p)
	f := c.fleets[key]
	if f == nil {
		candidates := make([]placement.Candidate, len(eligible))
		for k, i := range eligible {
			candidates[k] = placement.Candidate{Domain: c.in.Nodes[i].Labels[topologyKey], Hash: c.hashes[i]}
		}
		f = placement.NewFleet(candidates)
		c.fleets[key] = f
	}
	return f
}

// count fills in how far the picked nodes are with a revision; with revision "", with what each was last assigned. What
// stayed elsewhere is whole.
func (c *computation) count(p *v1alpha1.ArtifactPin, s *Summary, picked, stayed []int, held map[int]holding,
	revision string) {
	key := c.in.ZoneKey
	if p.Spec.Spread != nil {
		key = p.Spec.Spread.TopologyKey
	}
	size, domains, wholeDomains := Size(p), map[string]bool{}, map[string]bool{}
	byName := slices.SortedFunc(slices.Values(picked), func(a, b int) int {
		return cmp.Compare(c.in.Nodes[a].Name, c.in.Nodes[b].Name)
	})
	for _, i := range byName {
		node, h := &c.in.Nodes[i], held[i]
		if h.assigned != nil && !h.kept() {
			continue
		}
		rev := revision
		if rev == "" && h.assigned != nil {
			rev = h.assigned.Revision
		}
		wanted := size
		if h.progress != nil {
			s.BytesHeld += h.progress.BytesHeld
			wanted = cmp.Or(h.progress.BytesWanted, size)
		}
		s.BytesWanted += wanted
		if h.state(rev) == v1alpha1.PinReady || h.holdsEarlier(rev) {
			s.Whole++
			wholeDomains[node.Labels[key]] = true
		}
		switch h.state(rev) {
		case v1alpha1.PinReady:
			s.Ready++
			domains[node.Labels[key]] = true
		case v1alpha1.PinFailed:
			s.Failed++
			if len(s.Failures) < MaxFailures {
				s.Failures = append(s.Failures, v1alpha1.NodeFailure{NodeName: node.Name, Reason: h.progress.Reason,
					Message: h.progress.Message})
			}
		default:
		}
	}
	for _, i := range stayed {
		s.Whole++
		wholeDomains[c.in.Nodes[i].Labels[key]] = true
	}
	s.Chosen = int32(len(picked))
	s.Domains, s.WholeDomains = int32(len(domains)), int32(len(wholeDomains))
	s.Pending = max(0, s.Desired-s.Ready-s.Failed)
}

// keep puts an assignment into the plan and takes its room.
func (c *computation) keep(i int, p *v1alpha1.ArtifactPin, assignment v1alpha1.PinAssignment) {
	c.hand(i, assignment)
	c.reserve(i, p, &assignment)
}

// hand puts an assignment into the plan, unless its content is not known here: then the node keeps it unlisted.
func (c *computation) hand(i int, assignment v1alpha1.PinAssignment) {
	if assignment.Action != "" {
		c.assignments[i] = append(c.assignments[i], assignment)
	}
}

// reserve takes the room of an assignment, which may have to wait for its slot.
func (c *computation) reserve(i int, p *v1alpha1.ArtifactPin, assignment *v1alpha1.PinAssignment) {
	r := &c.room[i]
	r.pins--
	r.object -= c.weight(assignment)
	if r.counted == nil {
		return
	}
	bytes, models := r.takes(p)
	r.bytes, r.models = r.bytes-bytes, r.models-models
	for k := range p.Status.Artifacts {
		a := &p.Status.Artifacts[k]
		if n := name(a); n != "" {
			r.counted[n] = max(r.counted[n], a.Size)
		}
	}
}

// weight is the number of bytes of an assignment in a NodeCache.
func (c *computation) weight(assignment *v1alpha1.PinAssignment) int {
	if assignment.Action == "" {
		return 0 // it is in none
	}
	n, ok := c.weights[assignment.Revision]
	if !ok {
		n = len(encode(assignment))
		c.weights[assignment.Revision] = n
	}
	return n
}

// release lets a copy go: the assignment is dropped, or turned into an order that stands until the node has reported it
// done, to purge it, or to let go of what it keeps unlisted.
func (c *computation) release(policy v1alpha1.DeletionPolicy, i int, h holding) {
	order, done := *h.assigned, v1alpha1.PinPurged
	switch {
	case order.Action == v1alpha1.ActionPurge:
	case policy == v1alpha1.DeletionPurge:
		order.Action = v1alpha1.ActionPurge
		order.Revision = Revision(order)
	case h.unlisted:
		order = v1alpha1.PinAssignment{UID: order.UID, Namespace: order.Namespace, Name: order.Name,
			Action: v1alpha1.ActionKeep}
		order.Revision = Revision(order)
	case order.LetsGo():
		done = v1alpha1.PinReady
	default:
		return
	}
	if h.state(order.Revision) != done {
		c.assignments[i] = append(c.assignments[i], order)
	}
}

// orphans releases the copies of pins that are gone, each as its assignment says.
func (c *computation) orphans() {
	for uid, held := range c.holdings {
		for i, h := range held {
			if h.unlisted {
				h.assigned = &v1alpha1.PinAssignment{UID: uid}
			}
			c.release(h.assigned.DeletionPolicy, i, h)
		}
	}
}

// has reports whether a node has an assignment of the pin that was placed last.
func (c *computation) has(i int, uid string) bool {
	a := c.assignments[i]
	return len(a) > 0 && a[len(a)-1].UID == uid
}

// up reports whether a node counts as being there for a pin: it may be down for less than the repair delay.
func (c *computation) up(i int, p *v1alpha1.ArtifactPin) bool {
	since := c.in.Nodes[i].DownSince
	return since.IsZero() || c.in.Now.Sub(since) < p.Spec.RepairDelay.Duration
}

// eligibleFor lists the nodes that match a pin's selector and whose taints it tolerates.
func (c *computation) eligibleFor(p *v1alpha1.ArtifactPin) eligibility {
	key := c.eligibilityKey(p)
	if e, ok := c.eligible[key]; ok {
		return e
	}
	e := eligibility{closed: map[int]bool{}}
	selector, err := v1alpha1.Selector(p.Spec.NodeSelector)
	if err != nil {
		e.err = fmt.Errorf("nodeSelector: %w", err)
	}
	for i := range c.in.Nodes {
		n := &c.in.Nodes[i]
		if e.err != nil || !n.Member || !selector.Matches(labels.Set(n.Labels)) {
			continue
		}
		if keeps, takes := tolerated(n.Taints, p.Spec.Tolerations); keeps {
			e.nodes = append(e.nodes, i)
			if !takes {
				e.closed[i] = true
			}
		}
	}
	c.eligible[key] = e
	return e
}

// count is the number of eligible nodes for a pin: a closed one counts if it has the pin already.
func (e eligibility) count(held map[int]holding) int32 {
	n := len(e.nodes) - len(e.closed)
	for i, h := range held {
		if e.closed[i] && h.kept() {
			n++
		}
	}
	return int32(n)
}

// eligibilityKey is the same for pins with the same selector and tolerations.
func (c *computation) eligibilityKey(p *v1alpha1.ArtifactPin) string {
	if p.Spec.NodeSelector == nil && len(p.Spec.Tolerations) == 0 {
		return ""
	}
	b, err := json.Marshal(struct {
		S *metav1.LabelSelector
		T []corev1.Toleration
	}{p.Spec.NodeSelector, p.Spec.Tolerations})
	if err != nil {
		panic(err) // both came as JSON
	}
	return string(b)
}

// passing are taints that say what the plan judges by itself (a node that is down), or that wait for the plan.
var passing = map[string]bool{
	corev1.TaintNodeNotReady: true, corev1.TaintNodeUnreachable: true, v1alpha1.StartupTaint: true,
}

// closing are taints by which Kubernetes closes a node for a while, and in spite of which a DaemonSet's pods stay: were
// copies to move, each round of maintenance would move them all twice.
var closing = map[string]bool{
	corev1.TaintNodeUnschedulable: true, corev1.TaintNodeMemoryPressure: true, corev1.TaintNodeDiskPressure: true,
	corev1.TaintNodePIDPressure: true, corev1.TaintNodeNetworkUnavailable: true,
}

// tolerated reports whether a node with these taints keeps a copy that it has, and whether it takes a new one.
func tolerated(taints []corev1.Taint, tolerations []corev1.Toleration) (keeps, takes bool) {
	keeps, takes = true, true
	for i := range taints {
		t := &taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || passing[t.Key] ||
			slices.ContainsFunc(tolerations, func(tol corev1.Toleration) bool { return tolerates(tol, t) }) {
			continue
		}
		takes = false
		keeps = keeps && closing[t.Key] && t.Effect == corev1.TaintEffectNoSchedule
	}
	return keeps, takes
}

// tolerates is the rule of Kubernetes for one toleration and one taint. The API server refuses a pod whose toleration
// has no key and another operator than Exists, and the rule relies on it; a pin's toleration it takes, so the rule
// stands here.
func tolerates(tol corev1.Toleration, t *corev1.Taint) bool {
	return (tol.Key != "" || tol.Operator == corev1.TolerationOpExists) &&
		tol.ToleratesTaint(klog.Background(), t, true)
}

// replicas turns spec.replicas into a number, of n eligible nodes.
func replicas(r intstr.IntOrString, n int) int32 {
	if r.Type == intstr.Int {
		return r.IntVal
	}
	percent, isPercent := strings.CutSuffix(r.StrVal, "%")
	if p, err := strconv.Atoi(percent); isPercent && err == nil {
		return int32((n*p + 99) / 100)
	}
	return int32(n) // AllNodes: validation lets nothing else through
}

// Size is the number of bytes of one copy, 0 when it is not known.
func Size(p *v1alpha1.ArtifactPin) int64 {
	var n int64
	for i := range p.Status.Artifacts {
		n += p.Status.Artifacts[i].Size
	}
	return n
}

// TooLarge reports whether one copy is known to exceed spec.sizeLimit.
func TooLarge(p *v1alpha1.ArtifactPin) bool {
	return p.Spec.SizeLimit != nil && Size(p) > p.Spec.SizeLimit.Value()
}

// expired reports whether a pin's end has come.
func expired(p *v1alpha1.ArtifactPin, lastUsed *metav1.Time, now time.Time) bool {
	e := p.Spec.Expiry
	if e == nil {
		return false
	}
	used := p.CreationTimestamp.Time
	if lastUsed != nil && lastUsed.After(used) {
		used = lastUsed.Time
	}
	return e.Until != nil && !now.Before(e.Until.Time) ||
		e.TTL != nil && !now.Before(p.CreationTimestamp.Add(e.TTL.Duration)) ||
		e.UnusedFor != nil && !now.Before(used.Add(e.UnusedFor.Duration))
}

// windowOpen reports whether new work may begin.
func windowOpen(s *v1alpha1.Schedule, now time.Time) (bool, error) {
	if s == nil {
		return true, nil
	}
	zone, err := time.LoadLocation(s.TimeZone)
	if err != nil || s.TimeZone == "Local" { // that is wherever the operator runs
		return false, fmt.Errorf("schedule.timeZone %q: not a name of the IANA time zone "+
			"database, such as Europe/Berlin", s.TimeZone)
	}
	times, err := cron.ParseStandard(s.Cron)
	if err != nil {
		why, _, _ := strings.Cut(err.Error(), ": strconv.")
		return false, fmt.Errorf("schedule.cron %q is no time in five fields, such as '0 2 * * *': %s", s.Cron, why)
	}
	start := times.Next(now.In(zone).Add(-s.Window.Duration))
	if start.IsZero() {
		return false, fmt.Errorf("schedule.cron %q is never: no year has such a day", s.Cron)
	}
	return !start.After(now), nil
}

// Assignment is what a node that keeps the pin is told.
func Assignment(p *v1alpha1.ArtifactPin) v1alpha1.PinAssignment {
	e := v1alpha1.PinAssignment{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name, Action: v1alpha1.ActionKeep,
		Platforms: p.Spec.Platforms, Target: p.Spec.Target, PullSecrets: p.Status.PullSecrets,
		Priority:  p.Spec.Priority,
		Bandwidth: p.Spec.Bandwidth, SizeLimit: p.Spec.SizeLimit, TimeLimit: p.Spec.TimeLimit,
	}
	if p.Spec.Backoff != (v1alpha1.Backoff{}) {
		e.Backoff = &p.Spec.Backoff
	}
	if p.Spec.DeletionPolicy == v1alpha1.DeletionPurge {
		e.DeletionPolicy = v1alpha1.DeletionPurge
	}
	for _, a := range p.Status.Artifacts {
		assigned := v1alpha1.AssignedArtifact{
			Repository: a.Repository, Tag: a.Tag, Digest: a.Digest, MediaType: a.MediaType, Referrers: a.Referrers,
			Hub: a.Hub}
		if a.Digest == "" {
			assigned.CID = a.CID
		}
		e.Artifacts = append(e.Artifacts, assigned)
	}
	e.Revision = Revision(e)
	return e
}

// Revision identifies the content of an assignment: 16 hexadecimal digits.
func Revision(e v1alpha1.PinAssignment) string {
	e.Revision = ""
	sum := sha256.Sum256(encode(&e))
	return hex.EncodeToString(sum[:8])
}

func encode(e *v1alpha1.PinAssignment) []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // an assignment is made of strings, numbers and lists of them
	}
	return b
}
