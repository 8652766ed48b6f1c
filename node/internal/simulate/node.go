package simulate

import (
	"math"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/shoal-cache/shoal/node/internal/schedule"
)

const (
	// streams and tickEvery are those of package fetch.
	streams   = 8
	tickEvery = 250 * time.Millisecond
	// keepAlive is after how long the loss of a silent node's connection is noticed: yamux asks for a sign of life so
	// often.
	keepAlive = 30 * time.Second
	// pingBytes are what the answer to a ping takes.
	pingBytes = 64
)

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

	owed int // chunks that others wait for

	heard   map[int]int64 // bytes from each node
	crossed int64         // bytes from other zones' nodes
}

// fetch is a node's getting of one blob: a participant, and the links that its actions go over.
type fetch struct {
	n        *node
	blob     *blob
	part     *schedule.Participant
	have     *bitset.BitSet
	asked    []int32 // who was asked last, -1 where no one
	position int     // of the one reader
	complete bool
	begun    bool
	pulled   bool          // by a reader
	began    time.Duration // when that came
	moved    bool
	streams  map[int]struct{} // of the registry, that are being read
	came     int64            // bytes of chunks that are under way on them
	queued   int
	told     time.Duration  // when the last report reaches the coordinator
	wanted   map[int][]want // chunk -> who waits for it
}

// want is a chunk that a peer waits for.
type want struct {
	by       *node
	priority int32
}

// bit is a chunk of a blob.
type bit struct{ blob, chunk int }

func (n *node) dead() bool { return n.died <= n.sim.now }

// start begins the pull of all blobs.
func (n *node) start() {
	for range n.sim.cfg.Parallel {
		n.pull()
	}
}

// pull has a reader ask for the next blob that is not here, from its start. The blobs after it are begun, too, as far
// as Config.ReadAhead goes.
func (n *node) pull() {
	for n.next < len(n.fetches) && n.fetches[n.next].complete {
		n.next++
	}
	if n.next == len(n.fetches) {
		return
	}
	f := n.fetches[n.next]
	n.next++
	f.began = n.sim.now
	f.pulled = true
	f.begin()
	f.advance()
	left := n.sim.cfg.ReadAhead
	for _, ahead := range n.fetches[n.next:] {
		if left -= ahead.blob.size; left < 0 {
			return
		}
		ahead.begin()
	}
}

// begin starts the getting of all of a blob, unless it has begun.
func (f *fetch) begin() {
	if f.begun {
		return
	}
	f.begun = true
	f.n.asking++
	now := f.n.sim.clock()
	f.part.SetUpstream(true)
	f.part.SetSize(f.blob.size, func(int) bool { return false })
	f.part.Demand(now, schedule.Run{Count: f.blob.cut.Len()})
	f.join()
	f.tick()
}

func newFetch(n *node, b *blob) *fetch {
	f := &fetch{
		n: n, blob: b, have: bitset.New(uint(b.cut.Len())), asked: slices.Repeat([]int32{-1}, b.cut.Len()),
		wanted:  map[int][]want{},
		streams: map[int]struct{}{},
	}
	f.part = schedule.NewParticipant(schedule.ParticipantConfig{
		Zone: n.zone, Grain: n.sim.cfg.Schedule.Grain, Running: func() int { return n.asking },
	}, n.id)
	return f
}

// join enters the coordinator's table.
func (f *fetch) join() {
	j := f.part.Join()
	j.Load = f.n.owed
	f.send(func(c *coordinator) { c.join(f.n, j) })
	f.part.Joined(f.n.sim.clock(), f.blob.coordinator.host.id)
	f.act()
}

// send has something reach the coordinator, after what was sent to it before.
func (f *fetch) send(do func(*coordinator)) {
	s, c := f.n.sim, f.blob.coordinator
	f.told = max(f.told, s.now+s.latency(f.n, c.host))
	s.at(f.told, func() { do(c) })
}

// act carries out what the participant wants done.
func (f *fetch) act() {
	if f.n.dead() {
		return
	}
	a := f.part.Take()
	for _, w := range a.Wants {
		f.ask(w)
	}
	for _, r := range a.Leases {
		f.lease(r)
	}
	for _, id := range a.Pings {
		f.n.ping(f.n.sim.nodes[indexOf(id)])
	}
	if !a.Report.Empty() {
		a.Report.Load = f.n.owed
		f.send(func(c *coordinator) { c.report(f.n, a.Report) })
	}
	if a.Leave {
		f.send(func(c *coordinator) { c.leave(f.n) })
		f.join()
	}
}

// tick is the part of the fetch that looks after time.
func (f *fetch) tick() {
	f.n.sim.after(tickEvery, func() {
		if f.complete || f.n.dead() {
			return
		}
		now := f.n.sim.clock()
		if f.moved || f.queued > 0 || f.flows() {
			f.moved = false
			f.part.Reading()
		}
		f.part.Tick(now, f.n.heardFrom)
		f.act()
		f.tick()
	})
}

// flows reports whether bytes of a run come from the registry.
func (f *fetch) flows() bool {
	came := int64(0)
	for stream := range f.streams {
		came += f.n.sim.registry.part(stream)
	}
	before := f.came
	f.came = came
	return came > before
}

// heardFrom counts the bytes from a peer: chunks, and signs of life.
func (n *node) heardFrom(id peerID) int64 {
	other := n.sim.nodes[indexOf(id)]
	return n.heard[other.index] + other.up.part(n.index)
}

// ping wants a sign of life, which a live peer gives at once.
func (n *node) ping(other *node) {
	s := n.sim
	s.after(s.latency(n, other), func() {
		if !other.dead() {
			s.after(s.latency(other, n), func() { n.heard[other.index] += pingBytes })
		}
	})
}

// obey carries out orders.
func (n *node) obey(b *blob, o schedule.Orders) {
	f := n.fetches[b.index]
	if n.dead() || f.complete {
		return
	}
	f.part.Orders(n.sim.clock(), o)
	f.act()
}

// lease reads a run from the registry, chunk by chunk, when a stream is free.
func (f *fetch) lease(r schedule.Run) {
	n := f.n
	read := func() {
		f.queued--
		n.reading++
		n.sim.registryRequests++
		n.sim.after(registryLatency, func() { f.read(r) })
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
	f.streams[stream] = struct{}{}
	for i := r.First; i < r.End(); i++ {
		n.sim.registry.offer(stream, parcel{
			size: f.blob.lengthOf(i), latency: registryLatency, to: &n.down,
			arrived: func(time.Duration) {
				if n.dead() {
					return
				}
				f.moved = true
				f.land(i, true)
				f.part.Claimed(n.sim.clock(), schedule.Claim{Index: i, Sum: sum(f.blob, i), By: n.id})
				if i == r.End()-1 {
					delete(f.streams, stream)
					f.part.LeaseEnded(n.sim.clock(), r, 0)
					f.endRun()
				}
				f.advance()
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

// ask sends a want.
func (f *fetch) ask(w schedule.Want) {
	n, from := f.n, f.n.sim.nodes[indexOf(w.From)]
	n.partners.Set(uint(from.index))
	f.asked[w.Index] = int32(from.index)
	n.sim.after(n.sim.latency(n, from), func() {
		if !from.dead() {
			from.fetches[f.blob.index].asks(want{by: n, priority: w.Priority}, w.Index)
			return
		}
		if !n.sim.cfg.SilentDeaths { // the connection is refused
			n.sim.after(n.sim.latency(n, from), func() { f.lose(from, w.Index) })
		}
	})
}

// lose tells the participant that a chunk will not come from whom it was asked of.
func (f *fetch) lose(from *node, i int) {
	if f.n.dead() || f.complete || f.asked[i] != int32(from.index) {
		return
	}
	f.asked[i] = -1
	f.part.Lost(f.n.sim.clock(), from.id, sum(f.blob, i))
	f.act()
}

// asks takes a want: answered at once, or when the chunk is here. One that comes again counts with the higher
// priority.
func (f *fetch) asks(w want, i int) {
	f.n.partners.Set(uint(w.by.index))
	if f.have.Test(uint(i)) {
		f.serve(w, i)
		return
	}
	if k := slices.IndexFunc(f.wanted[i], func(o want) bool { return o.by == w.by }); k >= 0 {
		f.wanted[i][k].priority = w.priority
		return
	}
	f.wanted[i] = append(f.wanted[i], w)
	f.n.owed++
}

// serve sends a chunk, unless it is on its way. What has gone is sent again: so does boxo's server.
func (f *fetch) serve(w want, i int) {
	n, what := f.n, bit{f.blob.index, i}
	if n.up.raise(w.by.index, what, w.priority) {
		return
	}
	n.owed++
	n.up.offer(w.by.index, parcel{
		what: what, size: f.blob.lengthOf(i), priority: w.priority, latency: n.sim.latency(n, w.by), to: &w.by.down,
		arrived: func(sent time.Duration) {
			n.owed--
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
	f.n.heard[from.index] += f.blob.lengthOf(i)
	if f.have.Test(uint(i)) {
		f.n.sim.duplicates++
		return
	}
	now := f.n.sim.clock()
	for _, i := range f.part.Arrived(now, from.id, sum(f.blob, i)) {
		f.land(i, false)
		f.part.Landed(now, i)
	}
	f.advance()
}

// land has chunk i, and serves those who wait for it.
func (f *fetch) land(i int, upstream bool) {
	if f.have.Test(uint(i)) {
		return
	}
	f.have.Set(uint(i))
	f.asked[i] = -1
	if s := f.n.sim; s.cfg.Shared {
		s.landings = append(s.landings, Landing{At: s.now, Node: f.n.index, Blob: f.blob.index, Chunk: i,
			Upstream: upstream})
	}
	for _, w := range f.wanted[i] {
		f.n.owed--
		f.serve(w, i)
	}
	delete(f.wanted, i)
}

// advance moves the reader on, and reports a blob that has become complete.
func (f *fetch) advance() {
	n := f.n
	if !f.pulled {
		f.end()
		return
	}
	if f.position == 0 && f.have.Test(0) {
		f.blob.firstByte = max(f.blob.firstByte, n.sim.now-f.began)
	}
	for f.position < f.blob.cut.Len() && f.have.Test(uint(f.position)) {
		f.position++
	}
	f.part.SetPosition(n.sim.clock(), 0, f.position)
	f.end()
}

// end reports a blob that has become complete.
func (f *fetch) end() {
	n := f.n
	if f.part.Absent() > 0 || f.complete {
		f.act()
		return
	}
	f.complete = true
	f.part.Complete()
	f.act()
	n.asking--
	if f.pulled {
		n.pull()
	}
	if n.asking == 0 {
		n.done = n.sim.now
		n.sim.unfinished--
	}
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
			s.after(s.latency(n, other), func() { other.disconnected(n) })
		}
	}
	for _, b := range s.blobs {
		s.after(notice+s.latency(n, b.coordinator.host), func() { b.coordinator.leave(n) })
	}
}

// disconnected: the connection to another node is gone, and with it all that was asked of it.
func (n *node) disconnected(from *node) {
	for _, f := range n.fetches {
		for i, a := range f.asked {
			if a == int32(from.index) {
				f.lose(from, i)
			}
		}
	}
}

func (b *blob) lengthOf(i int) int64 {
	_, n := b.cut.Range(i)
	return n
}
