package schedule

import (
	"cmp"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// ParticipantConfig bounds a participant's decisions. The zero value of a field means its default.
type ParticipantConfig struct {
	// Zone of the node.
	Zone string
	// Grain is how finely the blob is cut.
	Grain content.Grain
	// Running counts the blobs that the node fetches now, which share nodeWindow. nil: one.
	Running func() int
	// PeerSilence is for how long a peer that was asked for chunks may not be heard of at all before it is passed
	// over; default 5 s. So long may a coordinator be silent, too. A peer is passed over sooner, after three fifths of
	// it at the soonest, where it and others have answered much sooner so far.
	PeerSilence time.Duration
	// PeerPatience is for how long a peer may send no chunk though it is alive: it may wait for the chunk itself, or
	// many may share its link; default 30 s. One that has the chunk already gets a third of that. One from which bytes
	// of any kind come gets four times as long.
	PeerPatience time.Duration
	// CoordinatorPatience is for how long a coordinator may leave the participant without anything to do; default 10
	// s. Then the participant reads up to a leaf of its own choice, and if that was not the beginning of more, leaves.
	// One that says again and again that another reads what the participant needs gets four times as long.
	CoordinatorPatience time.Duration
}

func (c ParticipantConfig) withDefaults() ParticipantConfig {
	c.PeerSilence = cmp.Or(c.PeerSilence, 5*time.Second)
	c.PeerPatience = cmp.Or(c.PeerPatience, 30*time.Second)
	c.CoordinatorPatience = cmp.Or(c.CoordinatorPatience, 10*time.Second)
	if c.Running == nil {
		c.Running = func() int { return 1 }
	}
	return c
}

func (c ParticipantConfig) shortSilence() time.Duration { return c.PeerSilence * 3 / 5 }

// What the agent and the simulator share besides.
const (
	// TickEvery is how often Participant.Tick is called.
	TickEvery = 250 * time.Millisecond
	// UpstreamStreams is the most runs that a node reads from one registry at one time, of all blobs, where the policy
	// bounds its requests there by no other number. How many runs of one blob there are is Config.UpstreamRuns' matter.
	UpstreamStreams = 8
)

// A Participant is one node's part in the plan of one blob, the counterpart of Table. It does no I/O, starts no
// goroutine and reads no clock. Each call may lead to Actions, which the caller takes and carries out, in the order in
// which it took them. It is not safe for concurrent use.
type Participant struct {
	cfg  ParticipantConfig
	self peer.ID

	size      int64 // bytes; -1 while not known
	per       int   // chunks of a leaf, in which windows are counted
	slots     int   // chunks that may be here at a time; 0: all
	pieces    []piece
	missing   int // of the chunks needed
	absent    int // of all chunks
	need      *bitset.BitSet
	duties    *bitset.BitSet // assigned and to be asked for first: others wait for them
	todo      *bitset.BitSet // assigned and to be asked for
	readers   map[int]int    // where each reader is
	positions []int          // the different ones of these, ascending
	bySum     map[Sum][]int  // chunks that were asked for
	peers     map[peer.ID]*contact
	inFlight  int
	turns     int          // chunks asked for, ever
	leased    map[Run]bool // runs that are being read from upstream; true: on a coordinator's orders
	early     Run          // what has become of the lease that was given before the size was known

	tie         tie
	coordinator peer.ID
	link        contact
	upstream    bool          // upstream may be asked
	offered     bool          // the coordinator was told so
	failed      bool          // upstream gave not all that it was asked for last
	apart       bool          // other coordinators were of no use: the node is its own
	returns     bool          // until upstream gives it something
	returned    bool          // it has been so once
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

// NewParticipant returns the part of node self in the plan of a blob whose size is not known yet.
func NewParticipant(cfg ParticipantConfig, self peer.ID) *Participant {
	return &Participant{
		cfg: cfg.withDefaults(), self: self, size: -1, readers: map[int]int{}, bySum: map[Sum][]int{},
		peers: map[peer.ID]*contact{}, leased: map[Run]bool{},
	}
}

// Close ends the part: nothing comes of later calls.
func (p *Participant) Close() { p.closed = true }

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
