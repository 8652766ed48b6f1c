package simulate

import (
	"math"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// The defaults and constants of package fetch.
const (
	window       = 32
	minWindow    = 4
	peerWindow   = 8
	lookAhead    = 512
	streams      = 8
	batch        = 8
	tickEvery    = 250 * time.Millisecond
	peerSilence  = 5 * time.Second
	peerPatience = 30 * time.Second
)

// keepAlive is after how long the loss of a silent node's connection is noticed: yamux asks for a sign of life so often.
const keepAlive = 30 * time.Second

const alive = time.Duration(math.MaxInt64)

// node is a virtual node.
type node struct {
	sim   *simulation
	index int
	id    peerID
	zone  string
	up    *uplink
	down  downlink

	fetches  []*fetch // by blob
	asking   int      // fetches under way
	next     int      // the blob to pull next
	reading  int      // runs being read from the registry
	waiting  []func() // runs that wait for their turn
	done     time.Duration
	died     time.Duration
	partners *bitset.BitSet // nodes asked or served

	crossed int64 // bytes from other zones' nodes
}

// fetch is a node's getting of one blob; see fetch.fetch, whose names it keeps.
type fetch struct {
	n        *node
	blob     *blob
	have     *bitset.BitSet
	roots    *bitset.BitSet // assigned, to be asked for first
	todo     *bitset.BitSet // assigned, to be asked for
	isRoot   *bitset.BitSet
	from     []int // whom to ask, -1 where not told
	asked    []int // who was asked, -1 where no one
	peers    map[int]*source
	inFlight int
	absent   int
	complete bool
	position uint
	unsaid   []int
	moved    bool
	queued   int
	wanted   map[int][]want // chunk -> who waits for it
}

type source struct {
	asked int
	moved time.Duration // when it last sent a chunk, or was first asked
}

// want is a chunk that a peer waits for.
type want struct {
	by       *node
	priority int
}

func (n *node) dead() bool { return n.died <= n.sim.now }

// start begins the pull of all blobs.
func (n *node) start() {
	for range n.sim.cfg.Parallel {
		n.pull()
	}
}

// pull begins with the next blob.
func (n *node) pull() {
	if n.next == len(n.sim.blobs) {
		return
	}
	b := n.sim.blobs[n.next]
	n.next++
	n.asking++
	n.sim.after(n.sim.latency(n, b.coordinator.host), func() { b.coordinator.join(n) })
	n.fetches[b.index].tick()
}

func newFetch(n *node, b *blob) *fetch {
	c := uint(b.chunks)
	f := &fetch{
		n: n, blob: b, have: bitset.New(c), roots: bitset.New(c), todo: bitset.New(c), isRoot: bitset.New(c),
		from: make([]int, c), asked: make([]int, c), peers: map[int]*source{}, absent: b.chunks, wanted: map[int][]want{},
	}
	for i := range c {
		f.from[i], f.asked[i] = -1, -1
	}
	return f
}

// tell sends a report to the coordinator.
func (f *fetch) tell(r schedule.Report) {
	n, c := f.n, f.blob.coordinator
	n.sim.after(n.sim.latency(n, c.host), func() {
		c.report(n, r)
	})
}

func (f *fetch) said() {
	if len(f.unsaid) > 0 {
		f.tell(schedule.Report{Have: f.unsaid})
		f.unsaid = nil
	}
}

// tick is the part of the fetch that looks after time.
func (f *fetch) tick() {
	f.n.sim.after(tickEvery, func() {
		if f.absent == 0 || f.n.dead() {
			return
		}
		f.passOver()
		f.said()
		if f.moved || f.queued > 0 {
			f.moved = false
			f.tell(schedule.Report{Reading: true})
		}
		f.tick()
	})
}

// obey carries out orders.
func (n *node) obey(b *blob, o schedule.Orders) {
	f := n.fetches[b.index]
	if n.dead() || f.absent == 0 {
		return
	}
	for _, a := range o.Chunks {
		f.assign(a)
	}
	for _, r := range o.Leases {
		f.lease(r)
	}
	f.pump()
}

func (f *fetch) assign(a schedule.Assignment) {
	u := uint(a.Index)
	if f.have.Test(u) {
		f.unsaid = append(f.unsaid, a.Index)
		return
	}
	f.from[a.Index] = indexOf(a.From)
	f.isRoot.SetTo(u, a.Root)
	switch asked := f.asked[a.Index]; {
	case asked < 0:
	case a.Root && asked != f.from[a.Index]:
		f.unask(a.Index)
	default:
		return
	}
	if a.Root {
		f.roots.Set(u)
	} else {
		f.todo.Set(u)
	}
}

// lease reads a run from the registry, chunk by chunk, when a stream is free.
func (f *fetch) lease(r schedule.Run) {
	n := f.n
	read := func() {
		f.queued--
		n.reading++
		n.sim.registryRequests++
		n.sim.after(n.sim.cfg.RegistryLatency, func() { f.read(r) })
	}
	f.queued++
	if n.reading < streams {
		read()
	} else {
		n.waiting = append(n.waiting, read)
	}
}

func (f *fetch) read(r schedule.Run) {
	n := f.n
	n.sim.stream++
	stream := n.sim.stream
	for i := r.First; i < r.End(); i++ {
		n.sim.registry.offer(stream, parcel{
			size: f.blob.lengthOf(i), latency: n.sim.cfg.RegistryLatency, to: &n.down,
			arrived: func(time.Duration) {
				if n.dead() {
					return
				}
				f.moved = true
				f.land(i)
				f.n.landed(f.blob, i, true)
				f.tell(schedule.Report{Claims: []schedule.Claim{{Index: i, Sum: sum(f.blob, i), By: n.id}}})
				if i == r.End()-1 {
					f.endRun()
				}
				f.finish()
			},
		})
	}
}

func (f *fetch) endRun() {
	n := f.n
	n.reading--
	if len(n.waiting) > 0 {
		next := n.waiting[0]
		n.waiting = n.waiting[1:]
		next()
	}
}

// pump asks for chunks as long as the windows allow: those that others wait for first, then those that readers are
// nearest to.
func (f *fetch) pump() {
	f.pumpFrom(f.roots, 0)
	f.pumpFrom(f.todo, f.position)
	f.pumpFrom(f.todo, 0)
}

func (f *fetch) pumpFrom(set *bitset.BitSet, from uint) {
	n := f.n
	most := max(minWindow, window/max(1, n.asking))
	looked := 0
	for u, ok := set.NextSet(from); ok && f.inFlight < most && looked < lookAhead; u, ok = set.NextSet(u + 1) {
		looked++
		i := int(u)
		if f.have.Test(u) || f.asked[i] >= 0 {
			set.Clear(u)
			continue
		}
		s := f.peers[f.from[i]]
		if s == nil {
			s = &source{}
			f.peers[f.from[i]] = s
		}
		if s.asked >= peerWindow {
			continue
		}
		if s.asked == 0 {
			s.moved = n.sim.now
		}
		s.asked++
		f.inFlight++
		f.asked[i] = f.from[i]
		set.Clear(u)
		f.ask(n.sim.nodes[f.from[i]], i)
	}
}

// ask sends a want.
func (f *fetch) ask(from *node, i int) {
	n := f.n
	n.partners.Set(uint(from.index))
	w := want{by: n, priority: f.blob.chunks - i}
	if f.isRoot.Test(uint(i)) {
		w.priority += f.blob.chunks
	}
	n.sim.after(n.sim.latency(n, from), func() {
		if !from.dead() {
			from.fetches[f.blob.index].asks(w, i)
			return
		}
		if !n.sim.cfg.SilentDeaths { // the connection is refused
			n.sim.after(n.sim.latency(n, from), func() { f.giveUp(from.index, []int{i}) })
		}
	})
}

// asks takes a want: answered at once, or when the chunk is here.
func (f *fetch) asks(w want, i int) {
	f.n.partners.Set(uint(w.by.index))
	if f.have.Test(uint(i)) {
		f.send(w, i)
	} else {
		f.wanted[i] = append(f.wanted[i], w)
	}
}

func (f *fetch) send(w want, i int) {
	n := f.n
	n.up.offer(w.by.index, parcel{
		size: f.blob.lengthOf(i), priority: w.priority, latency: n.sim.latency(n, w.by), to: &w.by.down,
		arrived: func(sent time.Duration) {
			if sent < n.died && !w.by.dead() {
				w.by.fetches[f.blob.index].block(n, i)
			}
		},
	})
}

// block takes a chunk from a peer.
func (f *fetch) block(from *node, i int) {
	if from.zone != f.n.zone {
		f.n.crossed += f.blob.lengthOf(i)
	}
	if s := f.peers[from.index]; s != nil {
		s.moved = f.n.sim.now
	}
	if f.have.Test(uint(i)) {
		f.n.sim.duplicates++
		return
	}
	f.unask(i)
	f.land(i)
	f.n.landed(f.blob, i, false)
	f.unsaid = append(f.unsaid, i)
	if f.isRoot.Test(uint(i)) || len(f.unsaid) >= batch {
		f.said()
	}
	f.finish()
	f.pump()
}

func (n *node) landed(b *blob, i int, upstream bool) {
	if n.sim.cfg.Shared {
		n.sim.landings = append(n.sim.landings, Landing{At: n.sim.now, Node: n.index, Blob: b.index, Chunk: i, Upstream: upstream})
	}
}

// land has chunk i, and serves those who wait for it.
func (f *fetch) land(i int) {
	u := uint(i)
	if f.have.Test(u) {
		return
	}
	f.have.Set(u)
	f.absent--
	f.roots.Clear(u)
	f.todo.Clear(u)
	for f.position < uint(f.blob.chunks) && f.have.Test(f.position) {
		f.position++
	}
	for _, w := range f.wanted[i] {
		f.send(w, i)
	}
	delete(f.wanted, i)
}

// finish reports a blob that has become complete.
func (f *fetch) finish() {
	if f.absent > 0 || f.complete {
		return
	}
	f.complete = true
	n := f.n
	f.said()
	f.tell(schedule.Report{Complete: true})
	n.asking--
	n.pull()
	if n.asking == 0 {
		n.done = n.sim.now
		n.sim.unfinished--
	}
}

func (f *fetch) unask(i int) {
	if f.asked[i] < 0 {
		return
	}
	f.peers[f.asked[i]].asked--
	f.inFlight--
	f.asked[i] = -1
}

// giveUp reports a peer that did not send chunks.
func (f *fetch) giveUp(p int, indexes []int) {
	if f.n.dead() {
		return
	}
	var r schedule.Report
	for _, i := range indexes {
		if f.asked[i] != p {
			continue
		}
		f.unask(i)
		r.Suspects = append(r.Suspects, schedule.Suspicion{Index: i, From: f.n.sim.nodes[p].id})
		if f.from[i] != p {
			f.todo.Set(uint(i))
		}
	}
	if len(r.Suspects) > 0 {
		f.tell(r)
		f.pump()
	}
}

// passOver gives up on peers that are silent, or have sent no chunk for too long.
func (f *fetch) passOver() {
	now := f.n.sim.now
	var stalled []int
	for p, s := range f.peers {
		heard := now // a live peer answers a ping
		if d := f.n.sim.nodes[p].died; d < now {
			heard = max(d, s.moved)
		}
		if s.asked > 0 && (now-heard > peerSilence || now-s.moved > peerPatience) {
			stalled = append(stalled, p)
		}
	}
	slices.Sort(stalled)
	for _, p := range stalled {
		f.giveUp(p, f.askedOf(p))
	}
}

// askedOf lists the chunks that are asked of p.
func (f *fetch) askedOf(p int) (out []int) {
	for i, a := range f.asked {
		if a == p {
			out = append(out, i)
		}
	}
	return out
}

// die ends a node. The others notice at once (its connections are reset) or, where deaths are silent, by its silence.
func (n *node) die() {
	if n.done > 0 {
		return
	}
	n.died = n.sim.now
	n.up.closed, n.down.closed = true, true
	n.sim.unfinished--
	s := n.sim
	notice := time.Duration(0)
	if s.cfg.SilentDeaths {
		notice = keepAlive
	} else {
		for p, ok := n.partners.NextSet(0); ok; p, ok = n.partners.NextSet(p + 1) {
			other := s.nodes[p]
			s.after(s.latency(n, other), func() {
				for _, f := range other.fetches {
					f.giveUp(n.index, f.askedOf(n.index))
				}
			})
		}
	}
	for _, b := range s.blobs {
		s.after(notice+s.latency(n, b.coordinator.host), func() { b.coordinator.leave(n) })
	}
}

func (b *blob) lengthOf(i int) int64 {
	_, n := content.ChunkRange(b.size, i)
	return n
}
