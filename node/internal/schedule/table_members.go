package schedule

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

type member struct {
	id       peer.ID
	zone     string
	group    *group // nil for a holder that discovery found
	upstream bool
	complete bool
	whole    bool
	need     set
	have     set
	told     set // chunks it was given a supplier or a lease for
	tried    map[int][]peer.ID
	supplier map[int]*member // whom it was told to ask for a chunk that it has not reported yet
	serving  int             // how many chunks others were told to ask of it and have not reported yet
	served   int             // how many they were told ever
	runs     []lease
	read     int // chunks of leases that it has claimed
	bringing set // chunks it brings into its group from peers, not reported yet
	direct   set // chunks it takes from holders for itself, not reported yet
	brought  int // chunks it was made home of, ever
	// elsewhere is how many chunks of other blobs it has to send, as it has told.
	elsewhere int
	// rank orders participants where nothing else does, in another way for each blob.
	rank uint64
	// barred is until when it is not sent upstream, which failed it.
	barred time.Time
	heard  time.Time // when it last reported
	lost   bool      // it said nothing of a lease until that ended, and has not reported since
	// sidelined is until when others are preferred to it as a supplier, since several participants got nothing from it.
	// accusers are those, and when.
	sidelined time.Time
	accusers  map[peer.ID]time.Time
	window    span // of one that holds few chunks at a time
}

// bring counts a chunk that m was made home of.
func (m *member) bring() {
	m.brought++
	m.group.brought++
}

// busy weighs what m has to send now, of this blob and of others, and what it was made to send so far, so that both are
// spread.
func (m *member) busy() int { return 4*(m.serving+m.elsewhere) + m.served }

// maxElsewhere is more chunks than a node has to send at one time.
const maxElsewhere = 1 << 16

type group struct {
	zone    string
	members []*member       // those active
	homed   set             // chunks whose hash is known and that have a home here
	brought int             // chunks that members were made homes of, ever
	homes   map[int]*member // for each chunk its home in this group
	ready   set             // chunks that have no home here though their hash is known
}

// rank is a number of a peer and the blob.
func (t *Table) rank(id peer.ID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.cfg.Blob))
	_, _ = h.Write([]byte(id)) // a hash never fails
	return h.Sum64()
}

func (t *Table) initMember(m *member) {
	m.supplier = map[int]*member{}
	if m.whole && t.n > 0 {
		m.need.addRun(Run{First: 0, Count: t.n})
	}
}

// enter puts m into the first group of its zone that has room.
func (t *Table) enter(m *member) {
	t.active = append(t.active, m)
	t.zoneActive[m.zone]++
	if t.zones[m.zone] == nil {
		t.zones[m.zone] = map[int]*member{}
	}
	for _, g := range t.groups {
		if g.zone == m.zone && len(g.members) < t.cfg.GroupSize {
			m.group = g
			break
		}
	}
	if m.group == nil {
		m.group = &group{zone: m.zone, homes: map[int]*member{}, ready: t.known.clone()}
		t.groups = append(t.groups, m.group)
	}
	m.group.members = append(m.group.members, m)
	// What its group has homes for already it takes from them.
	t.refill(m)
}

func (t *Table) complete(m *member) {
	m.complete = true
	if m.group != nil {
		t.releaseLeases(m)
		t.leaveGroup(m)
	}
	if t.n > 0 {
		m.have.addRun(Run{First: 0, Count: t.n})
	}
	t.holders = append(t.holders, m)
	t.zoneHolders[m.zone]++
}

func (t *Table) leaveGroup(m *member) {
	for i := range m.supplier {
		t.unserve(m, i)
	}
	before := len(t.active)
	t.active = slices.DeleteFunc(t.active, func(x *member) bool { return x == m })
	t.zoneActive[m.zone] -= before - len(t.active)
	m.group.members = slices.DeleteFunc(m.group.members, func(x *member) bool { return x == m })
}

func (t *Table) remove(id peer.ID) {
	m := t.members[id]
	if m == nil {
		return
	}
	delete(t.members, id)
	if m.complete {
		t.holders = slices.DeleteFunc(t.holders, func(x *member) bool { return x == m })
		t.zoneHolders[m.zone]--
	}
	if t.streamer == m {
		t.streamer = nil
	}
	if m.group == nil {
		return
	}
	t.releaseLeases(m)
	t.leaveGroup(m)
	var homes []int
	for i, home := range m.group.homes {
		if home == m {
			homes = append(homes, i)
		}
	}
	slices.Sort(homes)
	for _, i := range homes {
		t.vacate(m.group, i)
	}
	m.group = nil
}

// accuse sidelines m once a quarter of the participants, and more than one where there are more, got nothing from it:
// one alone may itself be the slow one, or not tell the truth. Of one that says nothing itself two are enough. Its
// leases end by themselves (Tick).
func (t *Table) accuse(m *member, by peer.ID) {
	if m.accusers == nil {
		m.accusers = map[peer.ID]time.Time{}
	}
	m.accusers[by] = t.now
	for p, at := range m.accusers {
		if t.now.Sub(at) > t.cfg.Penalty {
			delete(m.accusers, p)
		}
	}
	few := max(min(2, len(t.active)-1), 1)
	if len(m.accusers) >= max(few, len(t.active)/4) || len(m.accusers) >= few && t.mute(m) {
		m.sidelined = t.now.Add(t.cfg.Penalty)
	}
}

// muteAfter is for how long one that others accuse says nothing itself before it counts as dead. Who reads or gets
// chunks says so several times a second, but what it says may stand behind bulk on a full link for seconds.
const muteAfter = 5 * time.Second

// mute reports whether m has said nothing for a while, though it has something to say.
func (t *Table) mute(m *member) bool {
	return !m.complete && t.now.Sub(m.heard) > muteAfter
}
