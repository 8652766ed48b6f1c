package schedule

import (
	"errors"
	"fmt"
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
	per  int   // chunks of a leaf, in which runs and windows are counted
	open bool  // upstream may be asked
	// refused is when upstream last refused a participant.
	refused time.Time

	chunks      map[int]*chunk // whose hash is known or that someone reads from upstream
	parties     map[peer.ID]*party
	active      []*party // those that need chunks, in the order in which they joined
	holders     []*party // those that have the whole blob
	turn        int      // round robin over holders
	firstGroup  int      // round robin over groups
	zoneHolders map[string]int
	zoneActive  map[string]int // participants in need
	groups      []*group
	zones       map[string]map[int]*party // zone -> for each chunk the first group home that brings it into the zone

	known    set           // chunks whose hash is known
	leased   int           // runs being read from upstream
	began    time.Time     // when the oldest of them was leased while none was
	claimed  time.Time     // when a chunk of one was last claimed
	pace     time.Duration // what a chunk from upstream takes, of late
	fresh    int           // chunks whose hash is not known and that no one reads from upstream
	streamer *party        // who alone reads from upstream, where one is to
	noRange  bool          // upstream has no Range, and the streamer reads the whole blob at one time
	again    bool          // when the last one joined, most of those who took part said so; see Join.Again
	elected  time.Time     // when the streamer came to be it

	out      map[peer.ID]*Orders
	outOrder []peer.ID
	ticked   time.Time // when Tick was last called
	lack     []*party  // memory that spread uses again
}

type chunk struct {
	claim  Claim
	known  bool
	lessee *party // who reads it from upstream now
}

// New makes the plan of a blob whose size is not known yet. No one is sent upstream before Open.
func New(cfg Config) *Table {
	return &Table{
		cfg: cfg.withDefaults(), size: -1, per: 1, chunks: map[int]*chunk{}, parties: map[peer.ID]*party{},
		zones: map[string]map[int]*party{}, zoneHolders: map[string]int{}, zoneActive: map[string]int{},
		out: map[peer.ID]*Orders{},
	}
}

// Open lets participants be sent upstream: those who may hold the blob already have been looked for.
func (t *Table) Open(now time.Time) {
	t.now, t.open = now, true
	t.plan()
}

// Join lets a participant in; one that is in already starts anew. It fails with ErrSize.
func (t *Table) Join(now time.Time, id peer.ID, j Join) error {
	t.now = now
	if j.Size > 0 || j.Complete {
		if err := t.setSize(j.Size); err != nil {
			return err
		}
	}
	if t.parties[id] != nil {
		t.remove(id)
	}
	p := &party{
		id: id, zone: j.Zone, upstream: j.Upstream, whole: j.Whole, rank: t.rank(id), tried: map[int][]peer.ID{},
		heard: now, again: j.Again,
	}
	t.parties[id] = p
	t.initParty(p)
	if t.size >= 0 {
		t.tell(p).Size = t.size
	}
	if !j.Complete {
		t.enter(p)
		t.again = t.mostSayAgain()
	}
	stream := t.noRange || slices.ContainsFunc(j.Failed, func(f Failure) bool { return f.Trouble == NoRange })
	for _, r := range j.Leased {
		t.resume(p, r, stream)
	}
	t.apply(p, j.Report)
	t.plan()
	return nil
}

// Report takes in what a participant tells. It fails with ErrSize, and for one that has not joined.
func (t *Table) Report(now time.Time, id peer.ID, r Report) error {
	t.now = now
	p := t.parties[id]
	if p == nil {
		return errStranger(id)
	}
	if r.Size > 0 {
		if err := t.setSize(r.Size); err != nil {
			return err
		}
	}
	if p.lost { // nothing of what it kept came to it, or it would have said so: that does not make it slow
		for k := range p.runs {
			p.runs[k].claimed = now
		}
	}
	p.heard, p.lost = now, false
	t.apply(p, r)
	t.plan()
	return nil
}

func errStranger(id peer.ID) error { return fmt.Errorf("report of %s, which is no participant", id) }

// Leave takes a participant or holder out; what it was to bring is given to others.
func (t *Table) Leave(now time.Time, id peer.ID) {
	t.now = now
	t.remove(id)
	t.plan()
}

// tickEvery is how often Tick wants to be called.
const tickEvery = time.Second

// Tick takes back leases without progress where another may read them. It wants to be called every tickEvery.
func (t *Table) Tick(now time.Time) {
	t.now = now
	if late := now.Sub(t.ticked) - tickEvery; !t.ticked.IsZero() && late > 0 {
		for _, p := range t.active { // what they said meanwhile waits to be taken in
			p.heard = p.heard.Add(late)
		}
	}
	t.ticked = now
	for _, p := range t.active {
		p.lost = p.lost || slices.ContainsFunc(p.runs, func(l lease) bool { return now.After(l.expires) })
	}
	for _, p := range slices.Clone(t.active) {
		for _, l := range slices.Clone(p.runs) {
			switch {
			case now.After(l.expires):
				if t.another(p) { // else nobody does better meanwhile, and what still comes of it is welcome
					t.fail(p, Failure{Run: l.run, Trouble: Transient})
					p.taken = append(p.taken, l.run)
				}
			case t.drips(p, l):
				t.fail(p, Failure{Run: l.run, Trouble: Transient})
				p.barred = now.Add(slowPenalties * penalty) // it would only hold up the others again
			}
		}
	}
	t.reassure()
	t.plan()
}

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

func (t *Table) tell(p *party) *Orders {
	o := t.out[p.id]
	if o == nil {
		o = &Orders{}
		t.out[p.id] = o
		t.outOrder = append(t.outOrder, p.id)
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
	cut := t.cfg.Grain.Cut(size)
	t.size, t.n, t.per = size, cut.Len(), cut.PerLeaf()
	t.fresh = t.n
	for _, p := range t.active {
		t.initParty(p)
		t.tell(p).Size = size
		if len(p.runs) > 0 { // the one lease that was given before the size was known
			p.runs = nil
			t.leased--
			t.book(p, firstLeaf(cut))
		}
	}
	return nil
}

// apply takes in one report of p.
func (t *Table) apply(p *party, r Report) {
	n := t.n
	var gone map[int]bool // few reports have any
	if len(r.Gone) > 0 {
		gone = make(map[int]bool, len(r.Gone))
		for _, i := range r.Gone {
			gone[i] = true
		}
		for _, c := range r.Claims { // what was read and let go of before either was told
			if gone[c.Index] && c.Index >= 0 && c.Index < n {
				t.claim(p, c)
			}
		}
	}
	for _, i := range r.Gone {
		if i >= 0 && i < n {
			t.gone(p, i)
		}
	}
	t.window(p, r.Slots)
	if need := united(r.Need, n); len(need) > 0 {
		for _, run := range need {
			t.needs(p, run)
		}
		if p.group != nil {
			t.refill(p)
		}
	}
	for _, c := range r.Claims {
		if c.Index >= 0 && c.Index < n && !gone[c.Index] {
			if (r.Complete || p.complete) && c.By == p.id {
				t.overrule(c)
			}
			t.claim(p, c)
		}
	}
	for _, i := range r.Have {
		if i >= 0 && i < n {
			t.have(p, i)
		}
	}
	p.elsewhere = min(max(r.Load-p.serving, 0), maxElsewhere)
	if r.Reading {
		t.regain(p)
		for k := range p.runs {
			p.runs[k].expires = t.now.Add(t.cfg.LeaseTimeout)
		}
	}
	for _, f := range r.Failed {
		t.fail(p, f)
	}
	p.upstream = p.upstream || r.MayRead
	for _, s := range r.Suspects {
		if s.Index >= 0 && s.Index < n {
			t.suspect(p, s)
		}
	}
	if r.Complete && !p.complete {
		t.complete(p)
	}
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

// Known reports whether a chunk's hash is known to be what c says, so that c tells nothing new.
func (t *Table) Known(c Claim) bool {
	return c.Index >= 0 && t.known.has(c.Index) && t.chunk(c.Index).claim.Sum == c.Sum
}

// Active is the number of participants that need chunks.
func (t *Table) Active() int { return len(t.active) }

// Holders is the number of peers known to have the whole blob.
func (t *Table) Holders() int { return len(t.holders) }
