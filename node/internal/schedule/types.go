package schedule

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Sum is the SHA-256 of a chunk, the digest inside its CID.
type Sum = [sha256.Size]byte

// Claim is a peer's word that a chunk of the blob has a certain hash.
type Claim struct {
	Index int
	Sum   Sum
	// By is who claims it; Signature proves that to whoever is misled (see the swarm package for what is signed).
	By        peer.ID
	Signature []byte
}

// Run is Count chunks from chunk First on.
type Run struct {
	First, Count int
}

// End is the index of the first chunk after the run.
func (r Run) End() int { return r.First + r.Count }

// unsized is a lease of a blob whose size is not known, and so neither is how it is cut. What is read is firstLeaf.
var unsized = Run{First: 0, Count: 1}

func firstLeaf(cut content.Cut) Run { return Run{First: 0, Count: min(cut.PerLeaf(), cut.Len())} }

// Assignment tells a participant whom to ask for a chunk.
type Assignment struct {
	Claim
	From peer.ID
	// Home is set where the participant is the chunk's home in its group: its progress with it is awaited.
	Home bool
	// Held: From has the chunk already. Otherwise it is about to get it, and answers then.
	Held bool
}

// Orders are what a participant is told. Orders accumulate: later ones add to earlier ones, and a later Assignment of a
// chunk replaces an earlier one.
type Orders struct {
	// Size of the blob in bytes, 0 where it is not known yet.
	Size int64
	// Leases are runs to read from upstream, to be claimed chunk by chunk.
	Leases []Run
	Chunks []Assignment
	// Hopeless: no participant can ask upstream, and no holder is known.
	Hopeless bool
	// Awaited: who reads from upstream what the participant needs is alive, and nothing has come for a while. It is
	// said again for as long as that is so.
	Awaited bool
}

// Empty reports whether the orders say nothing.
func (o *Orders) Empty() bool {
	return o.Size == 0 && len(o.Leases) == 0 && len(o.Chunks) == 0 && !o.Hopeless && !o.Awaited
}

// Merge adds later orders to o.
func (o *Orders) Merge(later Orders) {
	if later.Size != 0 {
		o.Size = later.Size
	}
	o.Leases = append(o.Leases, later.Leases...)
	o.Chunks = append(o.Chunks, later.Chunks...)
	o.Hopeless = o.Hopeless || later.Hopeless
	o.Awaited = o.Awaited || later.Awaited
}

// Trouble says why a participant gives a lease back.
type Trouble uint8

// The troubles.
const (
	// Transient: upstream failed in a way that may pass. The participant is leased nothing for a while, unless more of
	// another lease comes.
	Transient Trouble = iota + 1
	// Refused: upstream refuses this participant's credentials or does not have the blob. It is leased nothing more.
	Refused
	// NoRange: upstream ignores Range requests; the participant reads the whole blob, and alone.
	NoRange
	// Returned: nothing is wrong; what the lease was for is known without it.
	Returned
)

// Failure gives back a lease.
type Failure struct {
	Run     Run
	Trouble Trouble
}

// Suspicion reports that a peer did not deliver a chunk that it was to supply.
type Suspicion struct {
	Index int
	From  peer.ID
}

// Report is what a participant tells. Each field that is not empty counts; reports may be merged.
type Report struct {
	// Size of the blob in bytes, once upstream has told it.
	Size int64
	// Slots is how many chunks the participant can hold at a time. 0: all of them, or it does not say.
	Slots int
	// Claims of chunks that the participant has read from upstream. They imply Have.
	Claims []Claim
	// Have are chunks that the participant has and has checked against their claims.
	Have []int
	// Gone are chunks that it had and has let go of, for want of room. It needs them no more, unless Need names them.
	Gone []int
	// Need are further runs that its readers want.
	Need     []Run
	Failed   []Failure
	Suspects []Suspicion
	// MayRead: a caller has come in whose name the registry can be asked. It had refused all before, or there was none.
	MayRead bool
	// Reading: bytes of its leases are coming, if slowly, or it is about to ask for them. It keeps them.
	Reading bool
	// Load is how much, of all blobs, others have asked the node for and not got yet, in chunks of this blob. 0:
	// nothing, or it does not say.
	Load int
	// Complete: it has the whole blob and the digest is right.
	Complete bool
}

// Empty reports whether the report says nothing but Load.
func (r *Report) Empty() bool {
	return r.Size == 0 && r.Slots == 0 && len(r.Claims) == 0 && len(r.Have) == 0 && len(r.Gone) == 0 &&
		len(r.Need) == 0 && len(r.Failed) == 0 && len(r.Suspects) == 0 && !r.MayRead && !r.Reading && !r.Complete
}

// Merge adds a later report to r.
func (r *Report) Merge(later Report) {
	if later.Size != 0 {
		r.Size = later.Size
	}
	if later.Slots != 0 {
		r.Slots = later.Slots
	}
	r.Claims = append(r.Claims, later.Claims...)
	r.Have = append(r.Have, later.Have...)
	r.Gone = append(r.Gone, later.Gone...)
	r.Need = append(r.Need, later.Need...)
	r.Failed = append(r.Failed, later.Failed...)
	r.Suspects = append(r.Suspects, later.Suspects...)
	refused := slices.ContainsFunc(later.Failed, func(f Failure) bool { return f.Trouble == Refused })
	r.MayRead = r.MayRead && !refused || later.MayRead
	r.Reading = r.Reading || later.Reading
	r.Complete = r.Complete || later.Complete
	r.Load = later.Load
}

// Join is how a participant enters.
type Join struct {
	Zone string
	// Grain is how finely the participant cuts the blob. All of a table cut it alike.
	Grain content.Grain
	// Upstream: it can ask the registry.
	Upstream bool
	// Whole: it needs every chunk. Otherwise Report.Need tells what it needs.
	Whole bool
	// Orphan: the coordinator that it took part with was lost just now, so that others may be about to come.
	Orphan bool
	// Held: it has heard of a holder, so that it is worth while to wait for it.
	Held bool
	// Again: what was gathered of the blob before did not match its digest. One participant reads all of it now, so
	// that one that the registry misleads, or that lies, spoils it only where that one is elected. The others have what
	// they gathered, and of whom they are told they ask only for what differs.
	Again bool
	// Leased are runs that it is reading from upstream already, on orders of an earlier coordinator.
	Leased []Run
	// Report is what it brings: size, claims, chunks it has.
	Report
}

// Config bounds a table's decisions. The zero value means the defaults.
type Config struct {
	// Blob tells blobs apart: which participants begin, and which pass chunks on, is another order for each.
	Blob string
	// Grain is how finely the blob is cut.
	Grain content.Grain
	// GroupSize is the most participants of a group; default 64.
	GroupSize int
	// UpstreamRuns is the least number of runs that may be leased at one time, over all participants; default 4, as
	// many requests as a single client opens for an image's layers. See Table.runsLeft.
	UpstreamRuns int
	// Window is how many leaves a participant is told to bring into its group from peers at one time; default 16.
	Window int
	// LeaseTimeout is after how long without a claim or a report of reading a lease is given to another, if there is
	// one who may read; default 5 s.
	LeaseTimeout time.Duration
	// ChunkTimeout is after how long without a claim a lease is given to another though its reader says that bytes
	// come; default 30 s. Where chunks from upstream take long for all, up to four times as long.
	ChunkTimeout time.Duration
}

const (
	// penalty is how long a participant that failed is given nothing to bring.
	penalty = 15 * time.Second
	// peerRuns is how many runs are leased to one participant at one time, once it has read a chunk. While there are
	// few participants each gets its part of Config.UpstreamRuns.
	peerRuns = 2
	// maxRun is the most leaves of a run.
	maxRun = 16
	// directWindow is how many leaves a participant is told to take from complete holders at one time.
	directWindow = 24
	// mostTold is how many leaves with a home a participant is told to ask for at one time.
	mostTold = 32
)

func (c Config) withDefaults() Config {
	c.GroupSize = cmp.Or(c.GroupSize, 64)
	c.UpstreamRuns = cmp.Or(c.UpstreamRuns, 4)
	c.Window = cmp.Or(c.Window, 16)
	c.LeaseTimeout = cmp.Or(c.LeaseTimeout, 5*time.Second)
	c.ChunkTimeout = cmp.Or(c.ChunkTimeout, 30*time.Second)
	return c
}
