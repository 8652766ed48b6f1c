package schedule

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// ParticipantConfig bounds a participant's decisions. The zero value of a field means its default.
type ParticipantConfig struct {
	// Zone of the node.
	Zone string
	// Window is how many chunks the node asks of peers at one time, for all its blobs together; default 32. Each blob
	// may ask for a few in any case.
	Window int
	// PeerWindow is the most chunks asked of one peer at one time for one blob; default 8.
	PeerWindow int
	// Running counts the blobs that the node fetches now, which share Window. nil: one.
	Running func() int
	// PeerSilence is for how long a peer that was asked for chunks may not be heard of at all before it is passed
	// over; default 5 s. So long may a coordinator be silent, too. A peer is passed over sooner where it and others
	// have answered much sooner so far.
	PeerSilence time.Duration
	// PeerPatience is for how long a peer may send no chunk though it is alive: it may wait for the chunk itself, or
	// many may share its link; default 30 s. One that has the chunk already gets a third of that. One from which bytes
	// of any kind come gets four times as long.
	PeerPatience time.Duration
	// CoordinatorPatience is for how long a coordinator may leave the participant without anything to do; default 10
	// s. Then the participant reads one chunk of its own choice, and if that was not the beginning of more, leaves. One
	// that says again and again that another reads what the participant needs gets four times as long.
	CoordinatorPatience time.Duration
}

func (c ParticipantConfig) withDefaults() ParticipantConfig {
	c.Window = positiveOr(c.Window, 32)
	c.PeerWindow = positiveOr(c.PeerWindow, 8)
	c.PeerSilence = positiveOr(c.PeerSilence, 5*time.Second)
	c.PeerPatience = positiveOr(c.PeerPatience, 30*time.Second)
	c.CoordinatorPatience = positiveOr(c.CoordinatorPatience, 10*time.Second)
	if c.Running == nil {
		c.Running = func() int { return 1 }
	}
	return c
}

func positiveOr[T int | time.Duration](v, d T) T {
	if v > 0 {
		return v
	}
	return d
}

// What the agent and the simulator share besides.
const (
	// TickEvery is how often Participant.Tick is called.
	TickEvery = 250 * time.Millisecond
	// UpstreamStreams is the most runs that a node reads from upstream at one time.
	UpstreamStreams = 8
)

const (
	// lookAhead bounds how far the choice of the next want looks past chunks whose peer has enough to do.
	lookAhead = 512
	// minWindow is how many chunks a blob may ask for however many others the node fetches: the end of a large layer
	// must not stop the config that comes with it.
	minWindow = 4
	// maxPositions bounds how many different positions of readers count.
	maxPositions = 16
	// batch is how many chunks come before they are reported, unless the coordinator is waited for or waits sooner.
	batch = 8
	// fewBefore is how many chunks a peer sends before another, if that is to be raised.
	fewBefore = 2
	// longPatience is for how many times ParticipantConfig.PeerPatience a peer may send bytes, and no chunk; and for
	// how many times CoordinatorPatience a coordinator may say that another reads.
	longPatience = 4
	// pingAfter is after how long a peer that is asked and not heard of is pinged. One that then keeps silent for
	// farLonger times as long as the slowest answer so far, and shortSilence at the least, is dead.
	pingAfter    = 500 * time.Millisecond
	farLonger    = 4
	shortSilence = 3 * time.Second
	// flow is how many bytes show that a peer sends more than signs of life.
	flow = 64 << 10
)

// Ranks of wants, on one scale for all blobs of a node: Bitswap answers the higher ones first. A reader waits for an
// urgent chunk now. Others wait for a duty: the participant is its home. The rest is in the order in which readers
// come to it, and what no reader comes to goes last.
const (
	urgentRank int32 = 3 << 24
	dutyRank   int32 = 2 << 24
	aheadRank  int32 = 1 << 24
	unreadBy         = 1 << 22
)

// A Participant is one node's part in the plan of one blob, the counterpart of Table. It does no I/O, starts no
// goroutine and reads no clock. Each call may lead to Actions, which the caller takes and carries out, in the order in
// which it took them. It is not safe for concurrent use.
type Participant struct {
	cfg  ParticipantConfig
	self peer.ID

	size      int64 // bytes; -1 while not known
	pieces    []piece
	missing   int // of the chunks needed
	absent    int // of all chunks
	need      *bitset.BitSet
	duties    *bitset.BitSet // assigned and to be asked for first: others wait for them
	todo      *bitset.BitSet // assigned and to be asked for
	readers   map[int]int    // where each reader is
	positions []int          // the different ones of these, ascending
	bySum     map[Sum][]int  // chunks that were asked for
	peers     map[peer.ID]*source
	inFlight  int
	turns     int          // chunks asked for, ever
	leased    map[Run]bool // runs that are being read from upstream; true: on a coordinator's orders

	tie         tie
	coordinator peer.ID
	link        source
	upstream    bool          // upstream may be asked
	offered     bool          // the coordinator was told so
	failed      bool          // upstream was asked, and gave not all that it was asked for
	apart       bool          // other coordinators were of no use: the node is its own
	progress    time.Time     // when orders last led to a chunk
	ticked      time.Time     // when Tick was last called
	lag         time.Duration // how long the slowest of all peers took to answer a ping, of late
	idle        time.Time     // since when there is nothing to wait for
	awaited     time.Time     // when the coordinator last said that another reads what is needed
	helped      bool          // it has read a chunk of its own choice since

	unsaid []int // chunks that arrived and are not reported yet
	out    Actions
	closed bool
}

// tie is how a participant stands with a coordinator.
type tie int

const (
	untied  tie = iota // reports would reach no one, and the next Join tells everything
	joining            // what has changed since Join is reported once the coordinator has answered
	tied
)

// piece is what a participant knows of one chunk.
type piece struct {
	present  bool
	arriving bool // its bytes are here, and not yet on disk
	claimed  bool
	duty     bool // others wait for it
	held     bool // from has it already
	has      bool // asked has it already
	claim    Claim
	from     peer.ID // whom to ask
	via      peer.ID // the coordinator that passed the claim on
	asked    peer.ID // who was asked, "" where no one
	rank     int32   // with which rank
	turn     int     // after how many others
}

// source is a peer that chunks are asked of, or the coordinator.
type source struct {
	asked, held int       // chunks; those of them that it has already
	moved       time.Time // when it last sent one, or was first asked
	bytes       int64     // of any kind, heard from it
	heard       time.Time // when they last grew
	flowed      time.Time // when they last grew by much
	mark        int64     // how many there were then
	pinged      time.Time
	unanswered  time.Time     // when it was pinged first of the times that it has not answered; zero: it has
	lag         time.Duration // how long it took to answer, of late
	again       time.Time     // when its wants were sent once more
}

// Want asks a peer for a chunk. One that is sent again with a higher rank replaces the earlier.
type Want struct {
	From     peer.ID
	Index    int
	Sum      Sum
	Priority int32
	// Held: From is thought to have the chunk already, and is to say so if it does not.
	Held bool
}

// PassedOver is a peer that did not send chunks in time, or the coordinator that was left.
type PassedOver struct {
	Peer            peer.ID
	Chunks          int
	Silent, NoChunk time.Duration
}

// Actions are what a participant wants done.
type Actions struct {
	Wants []Want
	// Leases are runs to read from upstream. LeaseEnded is to follow each.
	Leases []Run
	// Report goes to the coordinator.
	Report Report
	// Pings are peers from which a sign of life is wanted.
	Pings []peer.ID
	// Leave: the coordinator is to be left, and another joined; Participant.Apart reports whether that may be another
	// node.
	Leave bool
	// Hopeless is why the blob cannot be had.
	Hopeless error
	// Stalled is how many chunks peers did not send; PassedOver and LeftBehind are for the log.
	Stalled    int
	PassedOver []PassedOver
	LeftBehind *PassedOver
}

// Empty reports whether there is nothing to do.
func (a *Actions) Empty() bool {
	return len(a.Wants) == 0 && len(a.Leases) == 0 && a.Report.Empty() && len(a.Pings) == 0 && !a.Leave &&
		a.Hopeless == nil &&
		a.Stalled == 0 && len(a.PassedOver) == 0 && a.LeftBehind == nil
}

// NewParticipant returns the part of node self in the plan of a blob whose size is not known yet.
func NewParticipant(cfg ParticipantConfig, self peer.ID) *Participant {
	return &Participant{
		cfg: cfg.withDefaults(), self: self, size: -1, readers: map[int]int{}, bySum: map[Sum][]int{},
		peers: map[peer.ID]*source{}, leased: map[Run]bool{},
	}
}

// Take returns, and forgets, what has come up since the last call.
func (p *Participant) Take() Actions {
	a := p.out
	p.out = Actions{}
	if p.closed {
		return Actions{}
	}
	if p.tie != tied {
		p.out.Report = a.Report
		a.Report = Report{}
	}
	return a
}

// Close ends the part: nothing comes of later calls.
func (p *Participant) Close() { p.closed = true }

// Size is the blob's size in bytes, -1 while it is not known.
func (p *Participant) Size() int64 { return p.size }

// Len is the number of chunks, 0 while the size is not known.
func (p *Participant) Len() int { return len(p.pieces) }

// Absent is how many chunks are not here.
func (p *Participant) Absent() int { return p.absent }

// Has reports whether chunk i is here.
func (p *Participant) Has(i int) bool { return p.pieces[i].present }

// NeedsAll reports whether every chunk is needed.
func (p *Participant) NeedsAll() bool { return p.need != nil && p.need.All() }

// FirstAbsent is the first chunk that is needed and not here, -1 where there is none.
func (p *Participant) FirstAbsent() int {
	if p.need == nil {
		return -1
	}
	for u, ok := p.need.NextSet(0); ok; u, ok = p.need.NextSet(u + 1) {
		if !p.pieces[u].present {
			return int(u)
		}
	}
	return -1
}

// AskedOf is whom chunk i is asked of, "" where of no one.
func (p *Participant) AskedOf(i int) peer.ID { return p.pieces[i].asked }

// Asks reports whether chunks are asked of a peer.
func (p *Participant) Asks(id peer.ID) bool {
	s := p.peers[id]
	return s != nil && s.asked > 0
}

// Reads reports whether chunk i is in a run that is being read from upstream.
func (p *Participant) Reads(i int) bool {
	for r := range p.leased {
		if r.First <= i && i < r.End() {
			return true
		}
	}
	return false
}

// Apart reports whether the node has found that other coordinators are of no use.
func (p *Participant) Apart() bool { return p.apart }

// Coordinator is whom the participant reports to now, "" where to no one.
func (p *Participant) Coordinator() peer.ID { return p.coordinator }

// SetUpstream reports whether upstream may be asked. A coordinator that was told otherwise, or that upstream refused
// this node, is joined anew.
func (p *Participant) SetUpstream(now time.Time, may bool) {
	switch {
	case !may:
		p.offered = false
	case !p.upstream:
		p.failed = false // which was upstream's answer to others
	}
	p.upstream = may
	if may && !p.offered && p.tie == tied {
		p.leave(now, nil)
	}
}

// SetSize makes the blob's size known, once; present tells which chunks an earlier try has left.
func (p *Participant) SetSize(size int64, present func(i int) bool) {
	n := uint(content.Chunks(size))
	p.size, p.pieces, p.absent = size, make([]piece, n), int(n)
	p.need, p.duties, p.todo = bitset.New(n), bitset.New(n), bitset.New(n)
	for i := range p.pieces {
		if present(i) {
			p.pieces[i].present = true
			p.absent--
		}
	}
	p.report(Report{Size: size})
}

// Demand adds chunks to what is needed.
func (p *Participant) Demand(now time.Time, r Run) {
	var added []Run
	for i := max(r.First, 0); i < min(r.End(), len(p.pieces)); i++ {
		if p.need.Test(uint(i)) {
			continue
		}
		p.need.Set(uint(i))
		if p.pieces[i].present {
			continue
		}
		p.missing++
		if k := len(added) - 1; k >= 0 && added[k].End() == i {
			added[k].Count++
		} else {
			added = append(added, Run{First: i, Count: 1})
		}
	}
	if len(added) > 0 {
		p.idle = now
		p.report(Report{Need: added})
		p.pump(now)
	}
}

// SetPosition tells where a reader is: it waits for that chunk, or will read it next. Each reader has a number of its
// own.
func (p *Participant) SetPosition(now time.Time, reader, chunk int) {
	if at, ok := p.readers[reader]; ok && at == chunk || chunk < 0 || chunk >= len(p.pieces) {
		return
	}
	p.readers[reader] = chunk
	p.sortPositions()
	if p.overtaken(chunk) {
		p.want(chunk)
	}
	p.pump(now)
}

// overtaken reports whether the peer that was asked for chunk i was asked for several others before, and sends those
// first. To raise the want of a chunk that is next in any case would gain nothing, and might meet the chunk on its
// way, and have it sent twice.
func (p *Participant) overtaken(i int) bool {
	c := &p.pieces[i]
	if c.asked == "" || c.arriving || c.rank >= urgentRank || p.peers[c.asked].held < fewBefore {
		return false
	}
	before := 0
	for k := range p.pieces {
		if o := &p.pieces[k]; o.asked == c.asked && o.has && o.turn < c.turn && o.rank > c.rank && !o.arriving {
			before++
		}
	}
	return before >= fewBefore
}

// RemoveReader forgets a reader that has gone.
func (p *Participant) RemoveReader(reader int) {
	delete(p.readers, reader)
	p.sortPositions()
}

func (p *Participant) sortPositions() {
	p.positions = slices.AppendSeq(p.positions[:0], maps.Values(p.readers))
	slices.Sort(p.positions)
	p.positions = slices.Compact(p.positions)
	p.positions = p.positions[:min(len(p.positions), maxPositions)]
}

// Join is all that a new coordinator must know. What changes after it is reported once Joined has been called.
func (p *Participant) Join() Join {
	p.tie, p.coordinator = joining, ""
	p.unsaid, p.out.Report, p.out.Leave = nil, Report{}, false
	p.offered = p.upstream
	j := Join{Zone: p.cfg.Zone, Upstream: p.upstream}
	if p.size < 0 {
		return j
	}
	j.Size = p.size
	j.Whole = p.need.All()
	if !j.Whole {
		j.Need = runsOf(p.need)
	}
	for i := range p.pieces {
		if c := &p.pieces[i]; c.present {
			j.Have = append(j.Have, i)
			if c.claimed {
				j.Claims = append(j.Claims, c.claim)
			}
		}
	}
	j.Leased = slices.SortedFunc(maps.Keys(p.leased), func(a, b Run) int {
		return cmp.Or(a.First-b.First, a.Count-b.Count)
	})
	return j
}

// Joined tells that a coordinator has let the participant in.
func (p *Participant) Joined(now time.Time, coordinator peer.ID) {
	p.tie, p.coordinator = tied, coordinator
	p.link = source{moved: now, heard: now, flowed: now}
	p.progress, p.idle, p.awaited, p.helped = now, now, time.Time{}, false
	if p.upstream && !p.offered { // someone in whose name upstream may be asked has come meanwhile
		p.leave(now, nil)
	}
}

// Left tells that the coordinator is lost.
func (p *Participant) Left() {
	p.tie, p.coordinator = untied, ""
}

// Orders takes in what the coordinator orders. Their size is not for the participant: the caller makes room for the
// blob, and calls SetSize.
func (p *Participant) Orders(now time.Time, o Orders) {
	if p.closed || p.tie != tied { // what a coordinator says that was left just now is out of date
		return
	}
	for _, a := range o.Chunks {
		p.assign(a)
	}
	for _, r := range o.Leases {
		if r.First >= 0 && r.Count > 0 && (p.size < 0 || r.First < len(p.pieces) && r.Count <= len(p.pieces)-r.First) {
			p.lease(r, true)
		}
	}
	if o.Awaited {
		p.awaited = now
	}
	if o.Hopeless && p.inFlight == 0 && len(p.leased) == 0 {
		p.hopeless(now)
	}
	p.pump(now)
}

// hopeless: no one else can have the blob, the coordinator says. But this node may not have asked upstream itself.
func (p *Participant) hopeless(now time.Time) {
	if p.upstream && !p.failed && !p.apart {
		p.apart = true
		p.leave(now, nil)
		return
	}
	p.out.Hopeless = content.ErrNotFound
}

// assign takes in whom to ask for a chunk.
func (p *Participant) assign(a Assignment) {
	if a.Index < 0 || a.Index >= len(p.pieces) || a.From == p.self || a.From == "" {
		return
	}
	c := &p.pieces[a.Index]
	switch {
	case c.arriving:
		return
	case c.present:
		p.unsaid = append(p.unsaid, a.Index) // of an earlier try: the coordinator does not know yet
		return
	case c.asked != "" && c.claimed && c.claim.Sum != a.Sum:
		p.unask(a.Index) // what was asked for is another block
	case c.asked != "" && a.Root && c.asked != a.From:
		p.unask(a.Index) // others wait for this node now, and it may be one of them that it asked
	}
	asked := c.asked != ""
	if asked && c.asked == a.From && a.Held && !c.has {
		c.has = true
		p.peers[c.asked].held++
	}
	c.from, c.duty, c.held, c.via = a.From, a.Root, a.Held, p.coordinator
	c.claim, c.claimed = a.Claim, true
	switch {
	case asked: // its answer is on the way; should it not come, the peer is passed over
	case a.Root:
		p.duties.Set(uint(a.Index))
	default:
		p.todo.Set(uint(a.Index))
	}
}

// maxLeased is how many leases a participant has at most. What a coordinator gives beyond that goes back.
const maxLeased = 64

func (p *Participant) lease(r Run, ordered bool) {
	if _, reads := p.leased[r]; reads {
		return
	}
	if len(p.leased) >= maxLeased {
		p.report(Report{Failed: []Failure{{Run: r, Trouble: Returned}}})
		return
	}
	p.leased[r] = ordered
	p.out.Leases = append(p.out.Leases, r)
}

// LeaseEnded tells that a run has been read, or with trouble that not all of it could be.
func (p *Participant) LeaseEnded(now time.Time, r Run, trouble Trouble) {
	if _, reads := p.leased[r]; !reads {
		return
	}
	delete(p.leased, r)
	p.idle = now
	if trouble != 0 {
		p.failed = p.failed || trouble != Returned
		p.report(Report{Failed: []Failure{{Run: r, Trouble: trouble}}})
	}
}

// Rest is what of a run that is to be read now has not come from elsewhere meanwhile. The coordinator is told again
// who read what has, so that it does not wait for it.
func (p *Participant) Rest(r Run) Run {
	for r.Count > 0 && r.First < len(p.pieces) && p.pieces[r.First].present && p.pieces[r.First].claimed {
		p.report(Report{Claims: []Claim{p.pieces[r.First].claim}})
		r = Run{First: r.First + 1, Count: r.Count - 1}
	}
	return r
}

// Reading tells that bytes of leases come, or that the answer to one is awaited.
func (p *Participant) Reading() { p.report(Report{Reading: true}) }

// Busy tells that it is this node that has to do something first.
func (p *Participant) Busy(now time.Time) { p.idle = now }

// PassOver gives up on whom chunk i is asked of.
func (p *Participant) PassOver(now time.Time, i int) {
	p.giveUp(p.pieces[i].asked, []int{i})
	p.pump(now)
}

// pump asks for chunks as long as the windows allow: those that readers wait for in any case, then those that others
// wait for, then those that readers are nearest to.
func (p *Participant) pump(now time.Time) {
	if p.closed || p.pieces == nil {
		return
	}
	for _, i := range p.positions {
		if u := uint(i); p.todo.Test(u) || p.duties.Test(u) {
			p.ask(now, i, true)
		}
	}
	window := max(minWindow, p.cfg.Window/max(1, p.cfg.Running()))
	for at, ok := 0, true; ok && p.inFlight < window; {
		at, ok = p.askNext(now, p.duties, at)
	}
	ahead := slices.Clone(p.positions)
	for len(ahead) > 0 && p.inFlight < window {
		next := ahead[:0]
		for _, at := range ahead {
			if at, ok := p.askNext(now, p.todo, at); ok && p.inFlight < window {
				next = append(next, at)
			}
		}
		ahead = next
	}
	for at, ok := 0, true; ok && p.inFlight < window; {
		at, ok = p.askNext(now, p.todo, at)
	}
}

// askNext asks for the first chunk of set from chunk at on whose peer has room, and returns the chunk after it.
func (p *Participant) askNext(now time.Time, set *bitset.BitSet, at int) (next int, ok bool) {
	looked := 0
	for u, ok := set.NextSet(uint(at)); ok && looked < lookAhead; u, ok = set.NextSet(u + 1) {
		looked++
		if p.ask(now, int(u), false) {
			return int(u) + 1, true
		}
	}
	return 0, false
}

// ask asks for chunk i, unless there is no need to, or its peer has enough to do. It reports whether it did.
func (p *Participant) ask(now time.Time, i int, urgent bool) bool {
	u, c := uint(i), &p.pieces[i]
	if c.present || c.arriving || c.asked != "" {
		p.duties.Clear(u)
		p.todo.Clear(u)
		return false
	}
	s := p.peers[c.from]
	if s == nil {
		s = &source{}
		p.peers[c.from] = s
	}
	if s.asked >= p.cfg.PeerWindow && !urgent {
		return false
	}
	if s.asked == 0 {
		s.moved, s.heard, s.flowed, s.unanswered = now, now, now, time.Time{}
	}
	s.asked++
	if c.held {
		s.held++
	}
	p.inFlight++
	p.turns++
	c.asked, c.has, c.rank, c.turn = c.from, c.held, 0, p.turns
	p.duties.Clear(u)
	p.todo.Clear(u)
	if !slices.Contains(p.bySum[c.claim.Sum], i) {
		p.bySum[c.claim.Sum] = append(p.bySum[c.claim.Sum], i)
	}
	p.want(i)
	return true
}

// want sends the want for chunk i, with its rank or the one that it had if that was higher.
func (p *Participant) want(i int) {
	c := &p.pieces[i]
	c.rank = max(c.rank, p.rank(i))
	p.out.Wants = append(p.out.Wants, Want{From: c.asked, Index: i, Sum: c.claim.Sum, Priority: c.rank, Held: c.has})
}

// rank is how urgent chunk i is.
func (p *Participant) rank(i int) int32 {
	k, waits := slices.BinarySearch(p.positions, i)
	switch {
	case waits:
		return urgentRank
	case p.pieces[i].duty:
		return dutyRank - int32(min(i, unreadBy))
	case k > 0:
		return aheadRank - int32(min(i-p.positions[k-1], unreadBy))
	}
	return aheadRank - unreadBy - int32(min(i, unreadBy))
}

// Arrived tells that a peer has sent a block, and returns which chunks it is. Landed is to follow for each.
func (p *Participant) Arrived(now time.Time, from peer.ID, sum Sum) []int {
	if s := p.peers[from]; s != nil {
		s.moved = now
	}
	indexes := p.bySum[sum]
	delete(p.bySum, sum)
	return slices.DeleteFunc(indexes, func(i int) bool {
		c := &p.pieces[i]
		if c.present || c.arriving || c.claim.Sum != sum {
			return true
		}
		c.arriving = true
		return false
	})
}

// Landed tells that a chunk which has arrived from a peer is on disk now.
func (p *Participant) Landed(now time.Time, i int) {
	if !p.land(i) {
		return
	}
	p.progress, p.idle, p.helped = now, now, false
	p.unsaid = append(p.unsaid, i)
	// Others wait for a duty; and the coordinator for room to give orders, half of which is used up.
	if p.pieces[i].duty || len(p.unsaid) >= batch || len(p.unsaid) >= p.inFlight {
		p.say()
	}
	p.pump(now)
}

// Claimed tells that a chunk from upstream is on disk. The claim is this node's; it ends the coordinator's waiting for
// the chunk even where that has come from a peer meanwhile.
func (p *Participant) Claimed(now time.Time, c Claim) {
	if c.Index < 0 || c.Index >= len(p.pieces) {
		return
	}
	p.land(c.Index)
	for r, ordered := range p.leased { // what the node has read without a lease is not the coordinator's merit
		if ordered && r.First <= c.Index && c.Index < r.End() {
			p.progress, p.idle, p.helped = now, now, false
		}
	}
	p.pieces[c.Index].claim, p.pieces[c.Index].claimed = c, true
	p.report(Report{Claims: []Claim{c}})
	p.pump(now)
}

// land notes that chunk i is here. It reports whether that is new.
func (p *Participant) land(i int) bool {
	if i < 0 || i >= len(p.pieces) || p.pieces[i].present {
		return false
	}
	p.unask(i)
	p.pieces[i].present, p.pieces[i].arriving = true, false
	p.absent--
	if p.need.Test(uint(i)) {
		p.missing--
	}
	p.duties.Clear(uint(i))
	p.todo.Clear(uint(i))
	return true
}

// Complete tells that the blob is here and matches its digest.
func (p *Participant) Complete() {
	p.say()
	p.report(Report{Complete: true})
}

// Lost tells that a peer will not send a block: it cannot be asked, or does not have it.
func (p *Participant) Lost(now time.Time, from peer.ID, sum Sum) {
	var lost []int
	for _, i := range p.bySum[sum] {
		if p.pieces[i].asked == from {
			lost = append(lost, i)
		}
	}
	p.giveUp(from, lost)
	p.pump(now)
}

// unask notes that chunk i is not asked of anyone any more.
func (p *Participant) unask(i int) {
	c := &p.pieces[i]
	if c.asked == "" {
		return
	}
	s := p.peers[c.asked]
	s.asked--
	if c.has {
		s.held--
	}
	p.inFlight--
	c.asked = ""
}

// giveUp reports a peer that did not send chunks.
func (p *Participant) giveUp(from peer.ID, indexes []int) {
	var r Report
	for _, i := range indexes {
		c := &p.pieces[i]
		if c.arriving {
			continue
		}
		p.unask(i) // bySum stays: should the block come late after all, it is welcome
		p.out.Stalled++
		r.Suspects = append(r.Suspects, Suspicion{Index: i, From: from})
		if c.from != from { // the coordinator has named another meanwhile
			p.todo.Set(uint(i))
		}
	}
	p.report(r)
}

// Tick looks after time: peers that stall, reports that wait, a coordinator that is of no use. heard counts all bytes
// that have come from a peer; Watched lists for which it is called. It wants to be called every TickEvery.
func (p *Participant) Tick(now time.Time, heard func(peer.ID) int64) {
	if p.closed {
		return
	}
	p.excuse(now)
	p.passOver(now, heard)
	p.say()
	p.watchCoordinator(now, heard)
}

// excuse gives peers the time for which this node itself was held up: their answers wait to be taken in.
func (p *Participant) excuse(now time.Time) {
	late := now.Sub(p.ticked) - TickEvery
	if !p.ticked.IsZero() && late > 0 {
		for _, s := range p.peers {
			if !s.unanswered.IsZero() {
				s.unanswered = s.unanswered.Add(late)
			}
		}
	}
	p.ticked = now
}

// Watched lists the peers that are waited for, and the coordinator.
func (p *Participant) Watched() []peer.ID {
	var out []peer.ID
	for id, s := range p.peers {
		if s.asked > 0 {
			out = append(out, id)
		}
	}
	if p.coordinator != "" && p.coordinator != p.self {
		out = append(out, p.coordinator)
	}
	return out
}

// Asked lists the blocks that peers were asked for and have not sent.
func (p *Participant) Asked() []Sum { return slices.Collect(maps.Keys(p.bySum)) }

// passOver gives up on peers that are dead or have sent no chunk for too long.
func (p *Participant) passOver(now time.Time, heard func(peer.ID) int64) {
	for _, id := range slices.Sorted(maps.Keys(p.peers)) {
		s := p.peers[id]
		if s.asked == 0 {
			continue
		}
		p.listen(id, s, pingAfter, now, heard)
		silent, noChunk := now.Sub(s.heard), now.Sub(s.moved)
		// While bytes of any kind flow from it, chunks take long because links are slow. Not for ever: it might send
		// anything.
		idle := max(min(noChunk, now.Sub(s.flowed)), noChunk/longPatience)
		dead := silent > p.cfg.PeerSilence || p.ignoresPings(s, now) || idle > p.cfg.PeerPatience
		// It has the chunks, and there is no sign that others keep it from sending them.
		mute := s.held > 0 && min(noChunk, now.Sub(s.flowed)) > p.cfg.PeerPatience/3
		if !dead && !mute {
			p.askAgain(id, s, now)
			continue
		}
		stalled := p.askedOf(id, func(c *piece) bool { return dead || c.has })
		p.out.PassedOver = append(p.out.PassedOver,
			PassedOver{Peer: id, Chunks: len(stalled), Silent: silent, NoChunk: noChunk})
		p.giveUp(id, stalled)
	}
	p.pump(now)
}

// askedOf lists the chunks that are asked of a peer.
func (p *Participant) askedOf(id peer.ID, which func(*piece) bool) (out []int) {
	for i := range p.pieces {
		if c := &p.pieces[i]; c.asked == id && which(c) {
			out = append(out, i)
		}
	}
	return out
}

// askAgain repeats the wants of a peer that is alive and has sent next to nothing for a while, in case one was lost on
// the way. While bytes flow it would only have sent twice what is under way.
func (p *Participant) askAgain(id peer.ID, s *source, now time.Time) {
	every := p.cfg.PeerPatience / 6
	if min(now.Sub(s.moved), now.Sub(s.flowed), now.Sub(s.again)) < every {
		return
	}
	s.again = now
	for _, i := range p.askedOf(id, func(*piece) bool { return true }) {
		p.want(i)
	}
}

// ignoresPings reports whether a peer has not answered for much longer than it and others took so far. Where machines
// are slow, answers are, and so is this.
func (p *Participant) ignoresPings(s *source, now time.Time) bool {
	slowest := max(s.lag, p.lag)
	return slowest > 0 && !s.unanswered.IsZero() && now.Sub(s.unanswered) > max(farLonger*slowest, shortSilence)
}

// listen notes what was heard of a peer, and wants a sign of life of one that is silent for so long.
func (p *Participant) listen(
	id peer.ID, s *source, every time.Duration, now time.Time, heard func(peer.ID) int64,
) {
	bytes := heard(id)
	if bytes != s.bytes {
		if !s.unanswered.IsZero() {
			lag := now.Sub(s.unanswered)
			s.lag, p.lag, s.unanswered = max(lag, s.lag-s.lag/8), max(lag, p.lag-p.lag/32), time.Time{}
		}
		s.bytes, s.heard = bytes, now
	}
	if bytes-s.mark >= flow {
		s.mark, s.flowed = bytes, now
	}
	if every = min(every, p.cfg.PeerSilence/4); now.Sub(s.heard) > every && now.Sub(s.pinged) > every {
		s.pinged = now
		if s.unanswered.IsZero() {
			s.unanswered = now
		}
		p.out.Pings = append(p.out.Pings, id)
	}
}

// watchCoordinator leaves a coordinator that is dead, for the next one. Only bytes are progress: one that is alive,
// and whose orders lead to none, is of no use, whether it is dead in part or lies, and the node goes on by itself.
func (p *Participant) watchCoordinator(now time.Time, heard func(peer.ID) int64) {
	if p.tie != tied || p.coordinator == p.self {
		return
	}
	p.listen(p.coordinator, &p.link, p.cfg.PeerSilence/4, now, heard)
	last := &PassedOver{Peer: p.coordinator, Silent: now.Sub(p.link.heard), NoChunk: now.Sub(p.progress)}
	if last.Silent > p.cfg.PeerSilence {
		p.leave(now, last)
		return
	}
	switch {
	case p.size >= 0 && p.missing == 0:
		p.progress, p.idle = now, now
		return
	case p.inFlight > 0 || len(p.leased) > 0:
		p.idle = now
		if now.Sub(p.progress) <= 2*p.cfg.PeerPatience || len(p.leased) > 0 {
			return
		}
	case p.Awaited(now) && now.Sub(p.progress) <= longPatience*p.cfg.CoordinatorPatience:
		p.idle = now
		return
	case !p.upstream:
		if now.Sub(p.idle) > p.cfg.PeerPatience {
			p.out.Hopeless = content.ErrUnavailable
		}
		return
	case now.Sub(p.idle) <= p.cfg.CoordinatorPatience:
		return
	case !p.helped:
		// Where the registry is slow, an honest coordinator has nothing else to tell the others while a few read: were
		// all of them to leave, it would be slower still. A chunk that no one else reads, as a rule, harms no one.
		p.helped = true
		p.lease(p.ownChoice(), false)
		return
	}
	if !p.upstream {
		p.out.Hopeless = content.ErrUnavailable
		return
	}
	p.apart = true
	p.leave(now, last)
}

// Awaited reports whether another reads what is needed from upstream, by what the coordinator said just now.
func (p *Participant) Awaited(now time.Time) bool {
	return p.tie == tied && !p.awaited.IsZero() && now.Sub(p.awaited) <= p.cfg.PeerSilence
}

// ownChoice is a chunk to read though no one said so: one that the coordinator has named no one for, and another for
// each participant.
func (p *Participant) ownChoice() Run {
	if p.size < 0 {
		return Run{First: 0, Count: 1}
	}
	var open []int
	for i := range p.pieces {
		if c := &p.pieces[i]; !c.present && !c.arriving && c.from == "" && p.need.Test(uint(i)) {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		for u, ok := p.need.NextSet(0); ok; u, ok = p.need.NextSet(u + 1) {
			if !p.pieces[u].present {
				return Run{First: int(u), Count: 1}
			}
		}
	}
	return Run{First: open[spread(p.self)%uint32(len(open))], Count: 1}
}

// spread is a number that differs from peer to peer.
func spread(id peer.ID) uint32 {
	if len(id) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(id[len(id)-4:]))
}

// leave leaves the coordinator.
func (p *Participant) leave(now time.Time, why *PassedOver) {
	p.tie, p.coordinator, p.idle = untied, "", now
	p.out.Leave, p.out.LeftBehind = true, why
}

// report tells the coordinator, if there is one just now; joining anew tells everything.
func (p *Participant) report(r Report) {
	if p.tie != untied {
		p.out.Report.Merge(r)
	}
}

// say reports the chunks that arrived.
func (p *Participant) say() {
	if len(p.unsaid) > 0 {
		p.report(Report{Have: p.unsaid})
		p.unsaid = nil
	}
}

// Hearsay lists the claims of other peers by which chunks were taken, each with the coordinator that passed it on.
func (p *Participant) Hearsay(tell func(c Claim, coordinator peer.ID)) {
	for i := range p.pieces {
		if c := &p.pieces[i]; c.claimed && c.claim.By != p.self {
			tell(c.claim, c.via)
		}
	}
}

// runsOf lists the runs of set bits.
func runsOf(b *bitset.BitSet) []Run {
	var out []Run
	for i, ok := b.NextSet(0); ok; {
		end, more := b.NextClear(i)
		if !more {
			end = b.Len()
		}
		out = append(out, Run{First: int(i), Count: int(end - i)})
		i, ok = b.NextSet(end)
	}
	return out
}
