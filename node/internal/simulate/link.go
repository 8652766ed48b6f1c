package simulate

import (
	"slices"
	"time"
)

// uplink sends one chunk at a time, to those that wait in turn.
type uplink struct {
	events *events
	rate   float64 // bytes per second
	lines  map[int]*line
	turn   []*line
	busy   bool
	debt   time.Duration // time that messages took, by which the next chunk starts later
	sent   int64         // bytes of chunks
	closed bool          // the sender is dead

	// Where links are shared:
	fabric   *fabric
	border   *border // of the sender's zone; nil: none
	lineRate float64 // of each line, in bytes per second; 0: that of the link
	// how many chunks may be under way at one time, in all and in a line, and how many are
	slots, perLine, underWay int
}

// line is what waits for one receiver, and what is under way to it.
type line struct {
	parcels  []parcel
	sending  []bit
	underWay int
}

// part is how many bytes have gone of the chunks that are under way to a receiver; 0 where links are not shared.
func (u *uplink) part(key int) int64 {
	l := u.lines[key]
	if u.fabric == nil || l == nil || l.underWay == 0 {
		return 0
	}
	return u.fabric.part(l)
}

// raise gives a chunk for a receiver that waits here already the higher of both priorities. It reports whether the
// chunk waits, or is under way.
func (u *uplink) raise(key int, what bit, priority int32) bool {
	l := u.lines[key]
	if l == nil {
		return false
	}
	for k := range l.parcels {
		if p := &l.parcels[k]; p.what == what {
			p.priority = max(p.priority, priority)
			return true
		}
	}
	return slices.Contains(l.sending, what)
}

// ended: a chunk has been sent.
func (l *line) ended(what bit) {
	if k := slices.Index(l.sending, what); k >= 0 {
		l.sending = slices.Delete(l.sending, k, k+1)
	}
}

// take takes out the parcel with the highest priority.
func (l *line) take() parcel {
	best := 0
	for i := range l.parcels {
		if l.parcels[i].priority > l.parcels[best].priority {
			best = i
		}
	}
	p := l.parcels[best]
	l.parcels = slices.Delete(l.parcels, best, best+1)
	l.sending = append(l.sending, p.what)
	return p
}

// parcel is a chunk on its way. The one with the highest priority in its line goes first.
type parcel struct {
	what     bit
	size     int64
	priority int32
	latency  time.Duration
	to       *downlink
	// arrived is called when the last byte is there, with the time at which it was sent.
	arrived func(sent time.Duration)
}

// downlink takes chunks in the order in which they were sent.
type downlink struct {
	rate   float64       // bytes per second
	free   time.Duration // when it has taken all that was sent to it so far
	closed bool          // the receiver is dead, and no one sends to it any more

	// Where links are shared:
	underWay int
	border   *border // of the receiver's zone; nil: none
}

func newUplink(es *events, rate float64) *uplink {
	return &uplink{events: es, rate: rate, lines: map[int]*line{}}
}

// offer queues a chunk for the receiver that key names.
func (u *uplink) offer(key int, p parcel) {
	l := u.lines[key]
	if l == nil {
		l = &line{}
		u.lines[key] = l
		u.turn = append(u.turn, l)
	} else if len(l.parcels) == 0 && u.fabric == nil {
		u.turn = append(u.turn, l)
	}
	l.parcels = append(l.parcels, p)
	if u.fabric != nil {
		u.fabric.send(u)
		return
	}
	if !u.busy {
		u.debt = 0 // messages went while there was nothing else to send
		u.serve()
	}
}

func (u *uplink) serve() {
	p, l, ok := u.next()
	u.busy = ok
	if !ok {
		return
	}
	// The receiver gets the first byte one latency after the sender sends it, and can be faster than neither link.
	start := u.events.now + u.debt
	u.debt = 0
	sent := start + transfer(p.size, u.rate)
	begin := max(start+p.latency, p.to.free)
	arrived := max(begin+transfer(p.size, p.to.rate), sent+p.latency)
	p.to.free = arrived
	u.sent += p.size
	u.events.at(sent, func() {
		l.ended(p.what)
		u.serve()
	})
	u.events.at(arrived, func() { p.arrived(sent) })
}

// next takes the parcel that is to go next: of the line whose turn it is the one of the highest priority.
func (u *uplink) next() (parcel, *line, bool) {
	for !u.closed && len(u.turn) > 0 {
		l := u.turn[0]
		u.turn = u.turn[1:]
		p := l.take()
		if len(l.parcels) > 0 {
			u.turn = append(u.turn, l)
		}
		if !p.to.closed {
			return p, l, true
		}
		l.ended(p.what)
	}
	return parcel{}, nil, false
}

// message sends some bytes ahead of chunks, and returns how long they take.
func (u *uplink) message(size int64) time.Duration {
	d := transfer(size, u.rate)
	u.debt += d
	return d
}

func transfer(size int64, rate float64) time.Duration {
	return time.Duration(float64(size) / rate * float64(time.Second))
}
