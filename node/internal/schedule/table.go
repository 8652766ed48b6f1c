package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// ErrSize: a participant and the table do not agree on the blob's size, so one of them has been told wrong.
var ErrSize = errors.New("blob size differs from what the other participants know")

// Table is the plan for one blob. It is not safe for concurrent use.
//
// The size is a participant's word, and a run is as short to say when it is long. So the table keeps no more than what
// participants have sent: there is an entry for a chunk once its hash is known or someone reads it, and sets are of
// runs.
type Table struct {
	cfg  Config
	now  time.Time
	size int64 // -1: not known
	n    int   // chunks, 0 while the size is not known
	open bool  // upstream may be asked

	chunks      map[int]*chunk // whose hash is known or that someone reads from upstream
	members     map[peer.ID]*member
	active      []*member // those that need chunks, in the order in which they joined
	holders     []*member // those that have the whole blob
	turn        int       // round robin over holders
	firstGroup  int       // round robin over groups
	zoneHolders map[string]int
	zoneActive  map[string]int // participants in need
	groups      []*group
	zones       map[string]map[int]*member // zone -> for each chunk the first group home that brings it into the zone

	known    set           // chunks whose hash is known
	leased   int           // runs being read from upstream
	began    time.Time     // when the oldest of them was leased while none was
	claimed  time.Time     // when a chunk of one was last claimed
	pace     time.Duration // what a chunk from upstream takes, of late
	fresh    int           // chunks whose hash is not known and that no one reads from upstream
	streamer *member       // where upstream has no Range: the one that reads the whole blob
	noRange  bool

	out      map[peer.ID]*Orders
	outOrder []peer.ID
	ticked   time.Time // when Tick was last called
	lack     []*member // memory that spread uses again
}

type chunk struct {
	claim  Claim
	known  bool
	lessee *member // who reads it from upstream now
}

type member struct {
	id       peer.ID
	zone     string
	group    *group // nil for a holder that discovery found
	upstream bool
	complete bool
	whole    bool
	need     set
	have     set
	told     set // chunks it was given a source or a lease for
	tried    map[int][]peer.ID
	source   map[int]*member // whom it was told to ask for a chunk that it has not reported yet
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
	lost   bool      // it is dead by what others say, and has not reported since
	// sidelined is until when others are preferred to it as a source, since several participants got nothing from it.
	// accusers are those, and when.
	sidelined time.Time
	accusers  map[peer.ID]time.Time
}

// bring counts a chunk that m was made home of.
func (m *member) bring() {
	m.brought++
	m.group.brought++
}

// busy weighs what m has to send now, of this blob and of others, and what it was made to send so far, so that both are
// spread.
func (m *member) busy() int { return 4*(m.serving+m.elsewhere) + m.served }

// lease is a run that is read from upstream. It is booked a little at a time: what one stream reads may be the whole
// blob.
type lease struct {
	run     Run
	next    int // the chunks before it are booked
	left    int // how many of those are still to be claimed
	expires time.Time
	claimed time.Time // when a chunk of it was last claimed, or it was given
}

// maxElsewhere is more chunks than a node has to send at one time.
const maxElsewhere = 1 << 16

// bookAhead is how many chunks of a lease are booked at one time, more than a run has that is not a whole stream.
const bookAhead = 64

type group struct {
	zone    string
	members []*member       // those active
	homed   set             // chunks whose hash is known and that have a home here
	brought int             // chunks that members were made homes of, ever
	roots   map[int]*member // for each chunk its home in this group
	ready   set             // chunks that have no home here though their hash is known
}

// New makes the plan of a blob whose size is not known yet. No one is sent upstream before Open.
func New(cfg Config) *Table {
	return &Table{
		cfg: cfg.withDefaults(), size: -1, chunks: map[int]*chunk{}, members: map[peer.ID]*member{},
		zones: map[string]map[int]*member{}, zoneHolders: map[string]int{}, zoneActive: map[string]int{},
		out: map[peer.ID]*Orders{},
	}
}

// Open lets participants be sent upstream: those who may hold the blob already have been looked for.
func (t *Table) Open(now time.Time) {
	t.now, t.open = now, true
	t.plan()
}

// Known reports whether the hash of chunk i is known, so that another claim of it would tell nothing new.
func (t *Table) Known(i int) bool { return i >= 0 && t.known.has(i) }

// Informed reports whether the hash of any chunk is known.
func (t *Table) Informed() bool { return t.known.size > 0 }

// Size is the blob's size in bytes, or -1 where it is not known yet.
func (t *Table) Size() int64 { return t.size }

// Active is the number of participants that need chunks.
func (t *Table) Active() int { return len(t.active) }

// Holders is the number of peers known to have the whole blob.
func (t *Table) Holders() int { return len(t.holders) }

// Join lets a participant in; one that is in already starts anew. It fails with ErrSize.
func (t *Table) Join(now time.Time, id peer.ID, j Join) error {
	t.now = now
	if j.Size > 0 || j.Complete {
		if err := t.setSize(j.Size); err != nil {
			return err
		}
	}
	if t.members[id] != nil {
		t.remove(id)
	}
	m := &member{
		id: id, zone: j.Zone, upstream: j.Upstream, whole: j.Whole, rank: t.rank(id), tried: map[int][]peer.ID{},
		heard: now,
	}
	t.members[id] = m
	t.initMember(m)
	if t.size >= 0 {
		t.tell(m).Size = t.size
	}
	if !j.Complete {
		t.enter(m)
	}
	stream := t.noRange || slices.ContainsFunc(j.Failed, func(f Failure) bool { return f.Trouble == NoRange })
	for _, r := range j.Leased {
		t.resume(m, r, stream)
	}
	t.apply(m, j.Report)
	t.plan()
	return nil
}

// rank is a number of a peer and the blob.
func (t *Table) rank(id peer.ID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.cfg.Blob))
	_, _ = h.Write([]byte(id)) // a hash never fails
	return h.Sum64()
}

// AddHolder makes known a peer that has the whole blob. It fails with ErrSize.
func (t *Table) AddHolder(now time.Time, id peer.ID, zone string, size int64, claims []Claim) error {
	if t.participates(id) {
		return nil // it knows best
	}
	return t.Join(now, id, Join{Zone: zone, Report: Report{Size: size, Claims: claims, Complete: true}})
}

func errStranger(id peer.ID) error { return fmt.Errorf("report of %s, which is no participant", id) }

// Report takes in what a participant tells. It fails with ErrSize, and for one that has not joined.
func (t *Table) Report(now time.Time, id peer.ID, r Report) error {
	t.now = now
	m := t.members[id]
	if m == nil {
		return errStranger(id)
	}
	if r.Size > 0 {
		if err := t.setSize(r.Size); err != nil {
			return err
		}
	}
	m.heard, m.lost = now, false
	t.apply(m, r)
	t.plan()
	return nil
}

// Leave takes a participant or holder out; what it was to bring is given to others.
func (t *Table) Leave(now time.Time, id peer.ID) {
	t.now = now
	t.remove(id)
	t.plan()
}

// tickEvery is how often Tick wants to be called.
const tickEvery = time.Second

// Tick takes back leases without progress. It wants to be called every tickEvery.
func (t *Table) Tick(now time.Time) {
	t.now = now
	if late := now.Sub(t.ticked) - tickEvery; !t.ticked.IsZero() && late > 0 {
		for _, m := range t.active { // what they said meanwhile waits to be taken in
			m.heard = m.heard.Add(late)
		}
	}
	t.ticked = now
	for _, m := range slices.Clone(t.active) {
		for _, l := range slices.Clone(m.runs) {
			switch {
			case now.After(l.expires):
				t.fail(m, Failure{Run: l.run, Trouble: Transient})
			case t.drips(m, l):
				t.fail(m, Failure{Run: l.run, Trouble: Transient})
				m.barred = now.Add(slowPenalties * t.cfg.Penalty) // it would only hold up the others again
			}
		}
	}
	t.reassure()
	t.plan()
}

// quiet is for how long nothing has come from upstream when those who wait for it are told that it is awaited.
const quiet = 2 * time.Second

// reassure tells participants that what they need is being read, where that takes long. Else each of them would have to
// take a registry that thinks, or a reader whose machine is slow, for a coordinator that is of no use, and read itself
// what another reads.
func (t *Table) reassure() {
	if t.leased == 0 || t.now.Sub(t.began) < quiet || t.now.Sub(t.claimed) < quiet {
		return
	}
	var reading set
	for i, ch := range t.chunks {
		if ch.lessee != nil && !ch.known {
			reading.add(i)
		}
	}
	for _, m := range t.active {
		_, waits := m.need.first(0, []*set{&reading}, []*set{&m.have})
		if waits || t.size < 0 {
			t.tell(m).Awaited = true
		}
	}
}

// drips reports whether m is too slow with a lease that another could read. Of a registry without Range the other would
// have to begin at the start, so there it keeps the lease. Where the others are as slow it is the registry or its link,
// and to read anew what is half read would make it slower.
func (t *Table) drips(m *member, l lease) bool {
	// for the slow one sets the pace too
	patience := min(max(t.cfg.ChunkTimeout, slower*t.pace), slower*t.cfg.ChunkTimeout)
	return !t.noRange && t.now.Sub(l.claimed) > patience && slices.ContainsFunc(t.active, func(x *member) bool {
		return x != m && x.upstream && !x.barred.After(t.now)
	})
}

// slower is how many times as long as of late, and as Config.ChunkTimeout, a chunk from upstream may take.
const slower = 4

// slowPenalties is for how many times Config.Penalty one that is slow with upstream is not sent there again.
const slowPenalties = 10

// Take returns, and forgets, the orders that have come up since the last call.
func (t *Table) Take(give func(to peer.ID, o Orders)) {
	for _, id := range t.outOrder {
		if o := t.out[id]; o != nil && !o.Empty() {
			give(id, *o)
		}
	}
	clear(t.out)
	t.outOrder = t.outOrder[:0]
}

func (t *Table) tell(m *member) *Orders {
	o := t.out[m.id]
	if o == nil {
		o = &Orders{}
		t.out[m.id] = o
		t.outOrder = append(t.outOrder, m.id)
	}
	return o
}

func (t *Table) setSize(size int64) error {
	switch {
	case t.size == size:
		return nil
	case t.size >= 0:
		return fmt.Errorf("%d bytes, and %d: %w", t.size, size, ErrSize)
	case size > content.MaxSize || size < 0:
		return fmt.Errorf("%d bytes: %w", size, ErrSize)
	}
	t.size, t.n = size, content.Chunks(size)
	t.fresh = t.n
	for _, m := range t.active {
		t.initMember(m)
		t.tell(m).Size = size
		if len(m.runs) > 0 { // the one lease that was given before the size was known
			m.runs = nil
			t.leased--
			t.book(m, Run{First: 0, Count: 1})
		}
	}
	return nil
}

func (t *Table) initMember(m *member) {
	m.source = map[int]*member{}
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
		m.group = &group{zone: m.zone, roots: map[int]*member{}, ready: t.known.clone()}
		t.groups = append(t.groups, m.group)
	}
	m.group.members = append(m.group.members, m)
	// What its group has homes for already it takes from them.
	t.refill(m)
}

// refill tells m whom to ask for chunks that have a home in its group, up to Config.Told at one time. The rest is told
// as it reports what came: by then others have those chunks too, and their homes are not asked by everyone.
func (t *Table) refill(m *member) {
	g := m.group
	for i := 0; len(m.source) < t.told(m); i++ {
		var ok bool
		if i, ok = g.homed.nextIn(i, &m.need, &m.have, &m.told); !ok {
			return
		}
		if g.roots[i] != m {
			t.assign(m, i, t.leastBusy(m, i, g.roots[i]), false)
		}
	}
}

// told is how many chunks m is told to ask for at one time: of few that are left, few, so that what is left can be
// spread over those who get it meanwhile.
func (t *Table) told(m *member) int {
	return max(min((t.n-m.have.size)/4, t.cfg.Told), fewTold)
}

// fewTold keeps a participant busy while it waits for orders.
const fewTold = 16

// leastBusy picks from whom m takes chunk i, which has a home in m's group. One that joins late finds that others have
// the chunk too, or will, and the home would be asked for too much.
func (t *Table) leastBusy(m *member, i int, home *member) *member {
	best, least := home, home.busy()
	worth := detour * min(len(m.group.members), max(t.n/2, 1))
	if i == 0 { // all readers wait for it: it goes down a tree
		worth = detour
	}
	tried := m.tried[i]
	for _, x := range m.group.members {
		cost := x.busy()
		if x == m || x == home || cost > least {
			continue
		}
		has := x.have.has(i)
		if !has {
			cost += worth
		}
		if cost > least || cost == least && (best == home || best.rank < x.rank) || !has && !t.relays(x, i) ||
			x.sidelined.After(t.now) || slices.Contains(tried, x.id) {
			continue
		}
		best, least = x, cost
	}
	for range min(len(t.holders), 4) {
		if h := t.holder(m, i, true); h != nil && h.busy() < least {
			best, least = h, h.busy()
		}
	}
	return best
}

// detour is by how much less busy than the home, for each member of their group, one must be who has yet to get a chunk
// itself, to be asked for it. A home sends to all of its group, so that in a large one a small difference says nothing,
// and detours only make chains on which the last ones wait. But where chunks are few so are homes, and the others have
// nothing to send: there a small difference is worth a detour, and all the more where the same home has brought many
// small blobs. Without, the node that is first at one layer of an image is first at the next too, reads all of them,
// and everyone waits for its link.
const detour = 3

// relays reports whether x, who has yet to get chunk i, may be asked for it: it gets the chunk from one who has it or
// brings it. Longer chains make those at their end wait for as many links as they have parts, each of them filled with
// other blobs.
func (t *Table) relays(x *member, i int) bool {
	if !x.told.has(i) {
		return false
	}
	from := x.source[i]
	return from == nil || from.have.has(i) || t.lessee(i) == from || from.bringing.has(i)
}

// apply takes in one report of m.
func (t *Table) apply(m *member, r Report) {
	n := t.n
	if need := united(r.Need, n); len(need) > 0 {
		for _, run := range need {
			m.need.addRun(run)
		}
		if m.group != nil {
			t.refill(m)
		}
	}
	for _, c := range r.Claims {
		if c.Index >= 0 && c.Index < n {
			t.claim(m, c)
		}
	}
	for _, i := range r.Have {
		if i >= 0 && i < n {
			t.have(m, i)
		}
	}
	m.elsewhere = min(max(r.Load-m.serving, 0), maxElsewhere)
	if r.Reading {
		for k := range m.runs {
			m.runs[k].expires = t.now.Add(t.cfg.LeaseTimeout)
		}
	}
	for _, f := range r.Failed {
		t.fail(m, f)
	}
	for _, s := range r.Suspects {
		if s.Index >= 0 && s.Index < n {
			t.suspect(m, s)
		}
	}
	if r.Complete && !m.complete {
		t.complete(m)
	}
}

// claim records that m knows a chunk's hash: from upstream itself, or (when it joins) as another claimed it.
func (t *Table) claim(m *member, c Claim) {
	ch := t.chunk(c.Index)
	if !ch.known {
		ch.claim, ch.known = c, true
		t.known.add(c.Index)
		if ch.lessee == nil {
			t.fresh--
		}
		for _, g := range t.groups {
			if root := g.roots[c.Index]; root != nil {
				g.homed.add(c.Index)
				t.spread(g, c.Index)
			} else {
				g.ready.add(c.Index)
			}
		}
	}
	if ch.lessee == m {
		ch.lessee = nil
		t.progress(m, c.Index)
	}
	if c.By == m.id {
		t.have(m, c.Index)
	}
}

// progress notes that a chunk of one of m's leases is done.
func (t *Table) progress(m *member, i int) {
	for k := range m.runs {
		l := &m.runs[k]
		if i < l.run.First || i >= l.run.End() {
			continue
		}
		l.left--
		m.read++
		t.pace = (3*t.pace + t.now.Sub(l.claimed)) / 4
		l.expires, l.claimed, t.claimed = t.now.Add(t.cfg.LeaseTimeout), t.now, t.now
		t.extend(m, l)
		if l.left <= 0 {
			m.runs = slices.Delete(m.runs, k, k+1)
			t.leased--
		}
		return
	}
}

// have records that m has chunk i; where its group has no home for it, m becomes that.
func (t *Table) have(m *member, i int) {
	if m.have.has(i) {
		return
	}
	m.have.add(i)
	t.unserve(m, i)
	delete(m.tried, i)
	g := m.group
	if g == nil {
		return
	}
	m.bringing.remove(i)
	m.direct.remove(i)
	if g.ready.has(i) {
		t.setRoot(g, i, m)
		t.spread(g, i)
	}
	if len(m.source) < t.told(m) {
		t.refill(m)
	}
}

func (t *Table) setRoot(g *group, i int, m *member) {
	g.ready.remove(i)
	g.roots[i] = m
	if t.known.has(i) {
		g.homed.add(i)
	}
	zone := t.zones[g.zone]
	if z := zone[i]; z == nil || t.members[z.id] != z || z.sidelined.After(t.now) {
		zone[i] = m
	}
}

// spread tells those in g who need chunk i, and have room to be told, whom to ask for it: it has a home now.
func (t *Table) spread(g *group, i int) {
	lack := t.lack[:0]
	for _, q := range g.members {
		if q != g.roots[i] && len(q.source) < t.told(q) && !q.told.has(i) && q.need.has(i) && !q.have.has(i) {
			lack = append(lack, q)
		}
	}
	// Who is told of a chunk first may be the one who passes it on: who has the least to send.
	slices.SortStableFunc(lack, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.busy(), b.busy()), cmp.Compare(a.rank, b.rank))
	})
	for _, q := range lack {
		t.assign(q, i, t.leastBusy(q, i, g.roots[i]), false)
	}
	t.lack = lack
}

func (t *Table) assign(m *member, i int, from *member, root bool) {
	if from == m || !m.need.has(i) || m.have.has(i) {
		return
	}
	m.told.add(i)
	t.unserve(m, i)
	m.source[i] = from
	from.serving++
	from.served++
	o := t.tell(m)
	o.Chunks = append(o.Chunks, Assignment{
		Claim: t.chunks[i].claim, From: from.id, Root: root, Held: from.have.has(i),
	})
}

// unserve: m does not wait for chunk i of anyone any more.
func (t *Table) unserve(m *member, i int) {
	if s := m.source[i]; s != nil {
		s.serving--
		delete(m.source, i)
	}
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
	for i := range m.source {
		t.unserve(m, i)
	}
	before := len(t.active)
	t.active = slices.DeleteFunc(t.active, func(x *member) bool { return x == m })
	t.zoneActive[m.zone] -= before - len(t.active)
	m.group.members = slices.DeleteFunc(m.group.members, func(x *member) bool { return x == m })
}

// releaseLeases takes m's leases back; others may be given them.
func (t *Table) releaseLeases(m *member) {
	for _, l := range m.runs {
		t.leased--
		for i := l.run.First; i < l.next; i++ {
			t.release(m, i)
		}
	}
	m.runs = nil
}

// release takes the lease of chunk i from m, if it has it.
func (t *Table) release(m *member, i int) {
	if t.lessee(i) != m {
		return
	}
	if ch := t.chunks[i]; ch.known {
		ch.lessee = nil
	} else {
		delete(t.chunks, i)
		t.fresh++
	}
	if !m.have.has(i) {
		t.vacate(m.group, i)
	}
}

// unlease takes chunk i, whose hash is known, out of the lease of a member that others got nothing from. Else whoever
// were to read it next would not be its home, and it would be leased to everyone.
func (t *Table) unlease(m *member, i int) {
	ch := t.chunks[i]
	if ch == nil || ch.lessee != m || !ch.known {
		return
	}
	ch.lessee = nil
	for k := range m.runs {
		l := &m.runs[k]
		if i < l.run.First || i >= l.run.End() {
			continue
		}
		l.left--
		if t.extend(m, l); l.left <= 0 {
			m.runs = slices.Delete(m.runs, k, k+1)
			t.leased--
		}
		return
	}
}

// chunk is the entry of chunk i, which is made where there is none.
func (t *Table) chunk(i int) *chunk {
	ch := t.chunks[i]
	if ch == nil {
		ch = &chunk{}
		t.chunks[i] = ch
	}
	return ch
}

// lessee is who reads chunk i from upstream now, nil where no one does.
func (t *Table) lessee(i int) *member {
	if ch := t.chunks[i]; ch != nil {
		return ch.lessee
	}
	return nil
}

// vacate takes the home of chunk i in g away, and gives the chunk to a member that has it, if one does.
func (t *Table) vacate(g *group, i int) {
	old := g.roots[i]
	if old == nil {
		return
	}
	t.unseat(g, i)
	for _, q := range g.members {
		if !q.have.has(i) {
			q.told.remove(i)
			q.direct.remove(i)
			t.unserve(q, i)
		}
	}
	if !t.known.has(i) {
		return
	}
	for _, q := range g.members {
		if q != old && q.have.has(i) && !q.sidelined.After(t.now) {
			t.setRoot(g, i, q)
			t.spread(g, i)
			return
		}
	}
}

// unseat takes the home of chunk i in g away.
func (t *Table) unseat(g *group, i int) {
	old := g.roots[i]
	if old == nil {
		return
	}
	old.bringing.remove(i)
	delete(g.roots, i)
	g.homed.remove(i)
	if t.known.has(i) {
		g.ready.add(i)
	}
	if zone := t.zones[g.zone]; zone[i] == old {
		delete(zone, i)
	}
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
	for i, root := range m.group.roots {
		if root == m {
			homes = append(homes, i)
		}
	}
	slices.Sort(homes)
	for _, i := range homes {
		t.vacate(m.group, i)
	}
	m.group = nil
}

func (t *Table) fail(m *member, f Failure) {
	k := slices.IndexFunc(m.runs, func(l lease) bool { return l.run.First == f.Run.First })
	if k >= 0 {
		l := m.runs[k]
		m.runs = slices.Delete(m.runs, k, k+1)
		t.leased--
		for i := l.run.First; i < l.next; i++ {
			t.release(m, i)
		}
	}
	switch f.Trouble {
	case Returned:
	case Refused:
		m.upstream = false
	case NoRange:
		t.noRange = true
		t.releaseLeases(m)
		// Who has just seen it has the answer in hand, and reads on.
		if t.streamer == nil || !t.streamer.upstream || k >= 0 && len(t.streamer.runs) == 0 {
			t.streamer = m
		}
	default:
		m.barred = t.now.Add(t.cfg.Penalty)
		if t.streamer == m {
			t.streamer = nil
		}
	}
}

// suspect answers a participant whose source of a chunk did not deliver.
func (t *Table) suspect(m *member, s Suspicion) {
	if m.group == nil || m.have.has(s.Index) || t.lessee(s.Index) == m {
		return
	}
	from := t.members[s.From]
	if from != nil && !slices.Contains(m.tried[s.Index], s.From) { // who is no participant is not asked anyway
		m.tried[s.Index] = append(m.tried[s.Index], s.From)
	}
	m.told.remove(s.Index)
	m.direct.remove(s.Index) // or what never comes would fill its window for good
	t.unserve(m, s.Index)
	g := m.group
	if from != nil && from != m {
		t.accuse(from, m.id)
		t.unlease(from, s.Index)
	}
	root := g.roots[s.Index]
	if root == m && t.known.has(s.Index) {
		// The others have asked m and wait for it. Would another become the home, it and m might wait for each other.
		if src, _ := t.source(g, m, s.Index); src != nil {
			t.assign(m, s.Index, src, true)
			return
		}
	}
	if root != nil && (root == m || root == from || t.members[root.id] != root) {
		t.vacate(g, s.Index) // m brings it itself from elsewhere, or another home is found
		root = g.roots[s.Index]
	}
	if root == nil || !t.known.has(s.Index) {
		return // plan finds a home
	}
	if !slices.Contains(m.tried[s.Index], root.id) {
		t.assign(m, s.Index, root, false)
		return
	}
	// It has tried the home too: whoever else has the chunk, or upstream, or all over again.
	src, _ := t.source(g, m, s.Index)
	switch {
	case src != nil:
		t.assign(m, s.Index, src, false)
	case t.mayLease(m):
		if l := t.lessee(s.Index); l != nil {
			t.unlease(l, s.Index)
		}
		t.unseat(g, s.Index) // for m
		t.lease(m, Run{First: s.Index, Count: 1})
	default:
		delete(m.tried, s.Index)
		t.assign(m, s.Index, root, false)
	}
}

// accuse sidelines m once a quarter of the participants, and more than one where there are more, got nothing from it:
// one alone may itself be the slow one, or not tell the truth.
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
	switch few := max(min(2, len(t.active)-1), 1); {
	case len(m.accusers) >= few && t.mute(m):
		m.sidelined = t.now.Add(t.cfg.Penalty)
		t.expire(m)
	case len(m.accusers) >= max(few, len(t.active)/4):
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

// expire takes back the leases of one that is dead by what others say, without waiting for their end, and gives it no
// more until it reports.
func (t *Table) expire(m *member) {
	m.lost = true
	for _, l := range slices.Clone(m.runs) {
		t.fail(m, Failure{Run: l.run, Trouble: Returned})
	}
}

// resume takes in a run that m reads from upstream already, or what is left of it. What it says counts as far as the
// table would have leased it, or one who says that it reads everything would keep all others from upstream.
func (t *Table) resume(m *member, r Run, stream bool) {
	if m.group == nil || r.First < 0 || r.Count <= 0 || r.First > t.n-r.Count || len(m.runs) >= t.peerRuns() {
		return
	}
	if !stream {
		r.Count = min(r.Count, t.cfg.MaxRun)
	}
	for i := r.First; i < r.End(); i++ {
		if t.bookable(m, i) {
			t.book(m, r)
			return
		}
	}
	// Someone else has all of it by now: m's own reading does no harm, but no one waits for it.
}

// united are the parts of runs that lie within n chunks, in order, those that meet or overlap as one.
func united(runs []Run, n int) []Run {
	var out []Run
	for _, r := range runs {
		if r.First >= 0 && r.First < n && r.Count > 0 {
			out = append(out, Run{First: r.First, Count: min(r.Count, n-r.First)})
		}
	}
	slices.SortFunc(out, func(a, b Run) int { return a.First - b.First })
	k := 0
	for _, r := range out {
		if k > 0 && r.First <= out[k-1].End() {
			out[k-1].Count = max(out[k-1].End(), r.End()) - out[k-1].First
			continue
		}
		out[k] = r
		k++
	}
	return out[:k]
}
