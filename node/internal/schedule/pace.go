package schedule

import "time"

// span is what a table knows of a participant that holds few chunks at a time. What it has read and others have not yet
// taken is lost with the slot, and is read from upstream once more. So a participant that is ahead waits a little for
// those that follow.
type span struct {
	slots  int
	reach  int       // the end of what it has needed so far
	last   int       // the end of what it has come to need last
	spread bool      // it reads at several places
	moved  time.Time // when it last got a chunk
	joined time.Time
	since  time.Time     // since when others have waited for it; zero: they do not
	waited time.Duration // how long they did, in all
}

const (
	// paceMargin is how many chunks may be under way past those that others still have to take.
	paceMargin = 2
	// paceFor is how long one that gets nothing is waited for, and for how long all are, beside half of the time: so a
	// slow participant makes no other more than half as slow.
	paceFor = 2 * time.Second
)

// window notes how many chunks p can hold at a time.
func (t *Table) window(p *party, slots int) {
	if slots > 0 && p.window.slots == 0 {
		p.window.slots, p.window.joined, p.window.moved = slots, t.now, t.now
	}
}

// needs notes what p has come to need. What is needed at several places at once, as by a client that loads parts of a
// file side by side, has no front that others could follow: all such read as they come.
func (t *Table) needs(p *party, run Run) {
	w := &p.window
	if w.slots > 0 && w.reach > 0 {
		w.spread = w.spread || run.First > w.last+w.slots || run.End() < w.last-2*w.slots
	}
	p.need.addRun(run)
	w.last, w.reach = run.End(), max(w.reach, run.End())
}

// moved notes that p got a chunk.
func (t *Table) moved(p *party) {
	w := &p.window
	w.moved = t.now
	if !w.since.IsZero() {
		w.waited += t.now.Sub(w.since)
		w.since = time.Time{}
	}
}

// paceOf is the first chunk that p may not read from upstream yet: one whose slot it would need before those that
// follow have taken what is in it.
func (t *Table) paceOf(p *party) (end int) {
	end = t.n
	if p.window.slots == 0 || p.window.spread {
		return end
	}
	var last *party
	for _, q := range t.active {
		if q == p || !t.follows(q) {
			continue
		}
		if e := t.front(q) + max(p.window.slots-paceMargin, 1); e < end {
			end, last = e, q
		}
	}
	if last != nil && last.window.since.IsZero() {
		last.window.since = t.now
	}
	return end
}

// follows reports whether others are to wait for q: it holds few chunks too, reads them in order, gets some, has not
// been waited for too long, and what it needs next is not lost already.
func (t *Table) follows(q *party) bool {
	w := &q.window
	if w.slots == 0 || w.spread || t.now.Sub(w.moved) > paceFor || w.waited > paceFor+t.now.Sub(w.joined)/2 {
		return false
	}
	at := t.front(q)
	return !t.known.has(at) || q.group.homes[at] != nil || t.lessee(at) != nil
}

// front is the first chunk that q needs and has not.
func (t *Table) front(q *party) int {
	if i, ok := q.need.nextWithout(0, &q.have); ok {
		return i
	}
	return q.window.reach
}
