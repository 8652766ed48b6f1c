package schedule

import (
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrMoved: others have a plan for the size that the participant has just learned. It joins anew with what it has.
var ErrMoved = errors.New("others know the blob's size already")

// wordPatience is how long, once in all, those who do not know the size wait for one who says it to show a chunk of the
// blob. It has just begun to read, as a rule, and what others read meanwhile would be read twice.
const wordPatience = 5 * time.Second

// maxPlans bounds the sizes that are planned for at one time.
const maxPlans = 8

// Plans are the plans for one blob: a Table for each size that participants name, for only the digest proves which of
// them is right. One that names a wrong size plans with those that believe the same, and holds up nobody else. It is
// not safe for concurrent use.
type Plans struct {
	cfg    Config
	open   bool
	tables []*Table
	until  time.Time // those who do not know the size are sent upstream; zero: nobody has had to wait yet
	of     map[peer.ID]*Table
}

// NewPlans makes the plans of a blob. No one is sent upstream before Open.
func NewPlans(cfg Config) *Plans { return &Plans{cfg: cfg, of: map[peer.ID]*Table{}} }

// Open lets participants be sent upstream.
func (p *Plans) Open(now time.Time) {
	p.open = true
	p.openUp(now)
}

// openUp opens the tables but for that of those who wait for a word to be shown.
func (p *Plans) openUp(now time.Time) {
	for _, t := range p.tables {
		if !t.open && (t.size >= 0 || !p.awaitWord(now)) {
			t.Open(now)
		}
	}
}

// awaitWord begins, at the first call, the wait for a participant that says the size and has yet to show that it has
// any of the blob. It reports whether the wait goes on.
func (p *Plans) awaitWord(now time.Time) bool {
	if p.believed(false) != nil || p.believed(true) == nil {
		return false
	}
	if p.until.IsZero() {
		p.until = now.Add(wordPatience)
	}
	return now.Before(p.until)
}

// Hold gives no more leases before Open. Those that were given stay.
func (p *Plans) Hold() {
	p.open = false
	for _, t := range p.tables {
		t.open = false
	}
}

// Join lets a participant in; one that is in already starts anew. It fails with ErrSize where too many sizes are named.
func (p *Plans) Join(now time.Time, id peer.ID, j Join) error {
	sized := j.Size > 0 || j.Complete
	t := p.undecided()
	switch {
	case sized:
		t = p.sized(now, j.Size, len(j.Claims) > 0)
	case t == nil || t.Active() == 0 || !j.Upstream:
		if best := p.believed(!j.Upstream); best != nil {
			t = best
		}
	}
	if t == nil {
		if t = p.add(now, true); t == nil {
			return ErrSize
		}
	}
	if before := p.of[id]; before != nil && before != t {
		before.Leave(now, id)
	}
	if err := t.Join(now, id, j); err != nil {
		return err
	}
	p.of[id] = t
	return nil
}

// AddHolder makes known a peer that has the whole blob, of the size that it says. One that takes part knows best.
func (p *Plans) AddHolder(now time.Time, id peer.ID, zone string, size int64, claims []Claim) error {
	if t := p.of[id]; t != nil && t.participates(id) {
		return nil
	}
	return p.Join(now, id, Join{Zone: zone, Report: Report{Size: size, Claims: claims, Complete: true}})
}

// Report takes in what a participant tells. It fails with ErrSize and ErrMoved, and for one that has not joined.
func (p *Plans) Report(now time.Time, id peer.ID, r Report) error {
	t := p.of[id]
	if t == nil {
		return errStranger(id)
	}
	if r.Size > 0 && t.size < 0 && slices.ContainsFunc(p.tables, func(x *Table) bool { return x.size == r.Size }) {
		return ErrMoved
	}
	return t.Report(now, id, r)
}

// Strays are the participants that wait to learn the size though others are believed to know it now. They had better
// join anew.
func (p *Plans) Strays() []peer.ID {
	t := p.undecided()
	if t == nil || t.Active() == 0 || p.believed(false) == nil {
		return nil
	}
	var out []peer.ID
	for _, x := range t.active {
		out = append(out, x.id)
	}
	return out
}

// Leave takes a participant or holder out; what it was to bring is given to others.
func (p *Plans) Leave(now time.Time, id peer.ID) {
	t := p.of[id]
	if t == nil {
		return
	}
	delete(p.of, id)
	t.Leave(now, id)
	if len(t.parties) == 0 { // nobody has what was claimed, and it may have been wrong
		p.tables = slices.DeleteFunc(p.tables, func(x *Table) bool { return x == t })
	}
}

// Tick takes back leases without progress. It wants to be called about every second.
func (p *Plans) Tick(now time.Time) {
	if p.open {
		p.openUp(now)
	}
	for _, t := range p.tables {
		t.Tick(now)
	}
}

// Take returns, and forgets, the orders that have come up since the last call.
func (p *Plans) Take(give func(to peer.ID, o Orders)) {
	for _, t := range p.tables {
		t.Take(give)
	}
}

// Known reports whether a chunk's hash is known to be what c says to id, or to those that name a size, so that c tells
// nothing new.
func (p *Plans) Known(id peer.ID, size int64, c Claim) bool {
	t := p.of[id]
	if size > 0 {
		k := slices.IndexFunc(p.tables, func(x *Table) bool { return x.size == size })
		if k < 0 {
			return false
		}
		t = p.tables[k]
	}
	return t != nil && t.Known(c)
}

// Holders is the number of peers known to have the whole blob.
func (p *Plans) Holders() (n int) {
	for _, t := range p.tables {
		n += t.Holders()
	}
	return n
}

// Upstream reports whether any participant can be sent upstream.
func (p *Plans) Upstream() bool {
	return slices.ContainsFunc(p.tables, func(t *Table) bool {
		return slices.ContainsFunc(t.active, func(x *party) bool { return x.upstream })
	})
}

// Informed reports whether the hash of any chunk is known.
func (p *Plans) Informed() bool {
	return slices.ContainsFunc(p.tables, func(t *Table) bool { return t.known.size > 0 })
}

// sized is the table of a size. Those that do not know the size yet are in it where it is new and its first word comes
// with claims, for which someone has to answer.
func (p *Plans) sized(now time.Time, size int64, claimed bool) *Table {
	for _, t := range p.tables {
		if t.size == size {
			return t
		}
	}
	if t := p.undecided(); t != nil && (claimed || t.Active() == 0) {
		return t
	}
	return p.add(now, false)
}

// undecided is the table of those that do not know the size.
func (p *Plans) undecided() *Table {
	for _, t := range p.tables {
		if t.size < 0 {
			return t
		}
	}
	return nil
}

// believed is the table of a size that one who knows none may take for right: there are claims of chunks, a holder, or
// two participants say so. Of several it is the one with the most. Where a participant cannot ask upstream, any word is
// enough.
func (p *Plans) believed(anyone bool) (best *Table) {
	for _, t := range p.tables {
		told := t.known.size > 0 || len(t.holders) > 0 || len(t.active) > 1 || anyone && len(t.active) > 0
		if t.size >= 0 && told && (best == nil || len(t.parties) > len(best.parties)) {
			best = t
		}
	}
	return best
}

// add makes a table, for those who do not know the size or for those who do. Where there are too many, one gives way
// that nobody is in, or of whose size no more than one participant has the least to show: whoever names a size has
// proved nothing by that. One that is sent away so may join anew.
func (p *Plans) add(now time.Time, unsized bool) *Table {
	if len(p.tables) >= maxPlans {
		gone := p.least()
		if gone == nil {
			return nil
		}
		for id, t := range p.of {
			if t == gone {
				delete(p.of, id)
			}
		}
		p.tables = slices.DeleteFunc(p.tables, func(t *Table) bool { return t == gone })
	}
	t := New(p.cfg)
	if p.open && !(unsized && p.awaitWord(now)) {
		t.Open(now)
	}
	p.tables = append(p.tables, t)
	return t
}

// least is the table that may give way to another, the oldest of several. nil: more than one stand by each.
func (p *Plans) least() (least *Table) {
	for _, t := range p.tables {
		switch {
		case len(t.active) == 0:
			return t
		case len(t.active) == 1 && len(t.holders) == 0 && t.size >= 0 &&
			(least == nil || t.known.size < least.known.size):
			least = t
		}
	}
	return least
}

// participates reports whether id needs chunks.
func (t *Table) participates(id peer.ID) bool {
	x := t.parties[id]
	return x != nil && !x.complete && x.group != nil
}
