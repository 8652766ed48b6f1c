package schedule

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// party is a participant as the table knows it.
type party struct {
	id       peer.ID
	zone     string
	group    *group // nil for a holder that discovery found
	upstream bool
	complete bool
	whole    bool
	again    bool // see Join.Again
	need     set
	have     set
	told     set // chunks it was given a supplier or a lease for
	tried    map[int][]peer.ID
	supplier map[int]*party // whom it was told to ask for a chunk that it has not reported yet
	serving  int            // how many chunks others were told to ask of it and have not reported yet
	served   int            // how many they were told ever
	runs     []lease
	taken    []Run // which it had and said nothing of, since it was last given one
	read     int   // chunks of leases that it has claimed
	bringing set   // chunks it brings into its group from peers, not reported yet
	direct   set   // chunks it takes from holders for itself, not reported yet
	brought  int   // chunks it was made home of, ever
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

// bring counts a chunk that p was made home of.
func (p *party) bring() {
	p.brought++
	p.group.brought++
}

// busy weighs what p has to send now, of this blob and of others, and what it was made to send so far, so that both are
// spread.
func (p *party) busy() int { return 4*(p.serving+p.elsewhere) + p.served }

// maxElsewhere is more chunks than a node has to send at one time.
const maxElsewhere = 1 << 16

type group struct {
	zone    string
	parties []*party       // those active
	homed   set            // chunks whose hash is known and that have a home here
	brought int            // chunks that parties were made homes of, ever
	homes   map[int]*party // for each chunk its home in this group
	ready   set            // chunks that have no home here though their hash is known
}

// rank is a number of a peer and the blob.
func (t *Table) rank(id peer.ID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.cfg.Blob))
	_, _ = h.Write([]byte(id)) // a hash never fails
	return h.Sum64()
}

func (t *Table) initParty(p *party) {
	p.supplier = map[int]*party{}
	if p.whole && t.n > 0 {
		p.need.addRun(Run{First: 0, Count: t.n})
	}
}

// enter puts p into the first group of its zone that has room.
func (t *Table) enter(p *party) {
	t.active = append(t.active, p)
	t.zoneActive[p.zone]++
	if t.zones[p.zone] == nil {
		t.zones[p.zone] = map[int]*party{}
	}
	for _, g := range t.groups {
		if g.zone == p.zone && len(g.parties) < t.cfg.GroupSize {
			p.group = g
			break
		}
	}
	if p.group == nil {
		p.group = &group{zone: p.zone, homes: map[int]*party{}, ready: t.known.clone()}
		t.groups = append(t.groups, p.group)
	}
	p.group.parties = append(p.group.parties, p)
	// What its group has homes for already it takes from them.
	t.refill(p)
}

func (t *Table) complete(p *party) {
	p.complete = true
	if p.group != nil {
		t.releaseLeases(p)
		t.leaveGroup(p)
	}
	if t.n > 0 {
		p.have.addRun(Run{First: 0, Count: t.n})
	}
	t.holders = append(t.holders, p)
	t.zoneHolders[p.zone]++
}

// mostSayAgain reports whether more than half of those who take part say that it is a second try, so that no one alone
// can make it one, or keep it from being one.
func (t *Table) mostSayAgain() bool {
	say := 0
	for _, p := range t.active {
		if p.again {
			say++
		}
	}
	return 2*say > len(t.active)
}

func (t *Table) leaveGroup(p *party) {
	for i := range p.supplier {
		t.unserve(p, i)
	}
	before := len(t.active)
	t.active = slices.DeleteFunc(t.active, func(x *party) bool { return x == p })
	t.zoneActive[p.zone] -= before - len(t.active)
	p.group.parties = slices.DeleteFunc(p.group.parties, func(x *party) bool { return x == p })
}

func (t *Table) remove(id peer.ID) {
	p := t.parties[id]
	if p == nil {
		return
	}
	delete(t.parties, id)
	if p.complete {
		t.holders = slices.DeleteFunc(t.holders, func(x *party) bool { return x == p })
		t.zoneHolders[p.zone]--
	}
	if t.streamer == p {
		t.streamer = nil
	}
	if p.group == nil {
		return
	}
	t.releaseLeases(p)
	t.leaveGroup(p)
	var homes []int
	for i, home := range p.group.homes {
		if home == p {
			homes = append(homes, i)
		}
	}
	slices.Sort(homes)
	for _, i := range homes {
		t.vacate(p.group, i)
	}
	p.group = nil
}

// accuse sidelines p once a quarter of the participants, and more than one where there are more, got nothing from it:
// one alone may itself be the slow one, or not tell the truth. Of one that says nothing itself two are enough. Its
// leases end by themselves (Tick).
func (t *Table) accuse(p *party, by peer.ID) {
	if p.accusers == nil {
		p.accusers = map[peer.ID]time.Time{}
	}
	p.accusers[by] = t.now
	for accuser, at := range p.accusers {
		if t.now.Sub(at) > penalty {
			delete(p.accusers, accuser)
		}
	}
	few := max(min(2, len(t.active)-1), 1)
	if len(p.accusers) >= max(few, len(t.active)/4) || len(p.accusers) >= few && t.mute(p) {
		p.sidelined = t.now.Add(penalty)
	}
}

// muteAfter is for how long one that others accuse says nothing itself before it counts as dead. Who reads or gets
// chunks says so several times a second, but what it says may stand behind bulk on a full link for seconds.
const muteAfter = 5 * time.Second

// mute reports whether p has said nothing for a while, though it has something to say.
func (t *Table) mute(p *party) bool {
	// Where this node itself stood still, what was said meanwhile waits to be taken in.
	stood := !t.ticked.IsZero() && t.now.Sub(t.ticked) > 2*tickEvery
	return !p.complete && !stood && t.now.Sub(p.heard) > muteAfter
}
