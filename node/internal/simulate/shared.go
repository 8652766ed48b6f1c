package simulate

import (
	"math"
	"slices"
	"time"
)

// Bounds of Bitswap in the swarm package: how many blocks a node sends at one time, in all and to one peer.
const (
	senders        = 16
	sendersPerPeer = 1
)

// fabric is the network where Config.Shared is set: whatever is under way shares the links it goes over, as TCP has
// it, so that what begins together ends together. Connections share a link evenly (max-min), and what goes over the
// same connection shares that. Its cost grows with the square of the nodes, so it is for rigs and not for thousands of
// nodes.
type fabric struct {
	events *events
	flows  []*flow
	since  time.Duration // when the flows' bytes were last counted
	plan   int           // of the rates, counted on: an end that was foreseen by an older one does not come
}

// flow is a parcel under way.
type flow struct {
	parcel
	from *uplink
	line *line
	left float64 // bytes
	rate float64 // bytes per second

	borders []*pipe // that it crosses
}

// border is the link of a zone to all that is outside.
type border struct{ out, in pipe }

// pipe is one way of it.
type pipe struct {
	rate     float64 // bytes per second
	underWay int
}

// crossed lists what of the borders is on the way from one zone to another.
func crossed(from, to *border) (pipes []*pipe) {
	if from == to {
		return nil
	}
	if from != nil {
		pipes = append(pipes, &from.out)
	}
	if to != nil {
		pipes = append(pipes, &to.in)
	}
	return pipes
}

// path names the links that a flow goes over, and their rates.
func (f *flow) path(over func(link any, rate float64)) {
	over(f.from, f.from.rate)
	over(f.to, f.to.rate)
	if f.from.lineRate > 0 {
		over(f.line, f.from.lineRate)
	}
	for _, p := range f.borders {
		over(p, p.rate)
	}
}

// count adds to how much is under way.
func (f *flow) count(more int) {
	f.line.underWay += more
	f.from.underWay += more
	f.to.underWay += more
	for _, p := range f.borders {
		p.underWay += more
	}
}

// send starts as many parcels of u as may be under way at one time.
func (n *fabric) send(u *uplink) {
	started := false
	for u.underWay < u.slots {
		l := u.shortest()
		if l == nil {
			break
		}
		p := l.take()
		if p.to.closed {
			l.ended(p.what)
			continue
		}
		if !started {
			n.count()
			started = true
		}
		f := &flow{
			parcel: p, from: u, line: l, left: float64(p.size), borders: crossed(u.border, p.to.border),
		}
		f.count(1)
		n.flows = append(n.flows, f)
	}
	if started {
		n.share()
	}
}

// part is how many bytes have gone of what is under way in a line.
func (n *fabric) part(l *line) int64 {
	gone := 0.0
	for _, f := range n.flows {
		if f.line == l {
			gone += float64(f.size) - f.left + f.rate*(n.events.now-n.since).Seconds()
		}
	}
	return int64(gone)
}

// left is how long what is under way in a line takes, of which no more than the given bytes count.
func (n *fabric) left(l *line, most int64) (longest time.Duration) {
	for _, f := range n.flows {
		if f.line == l && f.rate > 0 {
			left := min(f.left-f.rate*(n.events.now-n.since).Seconds(), float64(most))
			longest = max(longest, time.Duration(left/f.rate*float64(time.Second)))
		}
	}
	return longest
}

// shortest is the line with the least under way of those that may send one more, and of those the one with the most to
// send: boxo's order of peers.
func (u *uplink) shortest() (best *line) {
	for _, l := range u.turn {
		if len(l.parcels) == 0 || l.underWay >= u.perLine {
			continue
		}
		if best == nil || l.underWay < best.underWay || l.underWay == best.underWay &&
			len(l.parcels) > len(best.parcels) {
			best = l
		}
	}
	return best
}

// count takes note of what has been sent at the rates so far.
func (n *fabric) count() {
	d := (n.events.now - n.since).Seconds()
	n.since = n.events.now
	for _, f := range n.flows {
		f.left -= f.rate * d
	}
}

// share divides the links among the flows: the connection on the fullest link gets its even part first, and so on.
func (n *fabric) share() {
	type load struct {
		rate  float64 // what is left of the link
		lines int     // connections without a rate
	}
	links, over := map[any]*load{}, map[*line][]*load{}
	open := map[*line][]*flow{}
	var order []*line
	for _, f := range n.flows {
		if open[f.line] == nil {
			order = append(order, f.line)
			f.path(func(link any, rate float64) {
				if links[link] == nil {
					links[link] = &load{rate: rate}
				}
				links[link].lines++
				over[f.line] = append(over[f.line], links[link])
			})
		}
		open[f.line] = append(open[f.line], f)
	}
	for len(order) > 0 {
		best, least := 0, math.Inf(1)
		for i, l := range order {
			for _, k := range over[l] {
				if part := k.rate / float64(k.lines); part < least {
					best, least = i, part
				}
			}
		}
		flows := open[order[best]]
		for _, f := range flows {
			f.rate = least / float64(len(flows))
		}
		for _, k := range over[order[best]] {
			k.rate = max(k.rate-least, 0)
			k.lines--
		}
		order = slices.Delete(order, best, best+1)
	}
	n.plan++
	plan, next := n.plan, math.Inf(1)
	for _, f := range n.flows {
		next = min(next, f.left/f.rate)
	}
	if !math.IsInf(next, 1) {
		n.events.after(time.Duration(max(next, 0)*1e9)+1, func() {
			if plan == n.plan {
				n.land()
			}
		})
	}
}

// land ends the flows that have sent all, and lets what waits behind them go.
func (n *fabric) land() {
	n.count()
	var done []*flow
	n.flows = slices.DeleteFunc(n.flows, func(f *flow) bool {
		if f.left > 1 {
			return false
		}
		done = append(done, f)
		return true
	})
	n.share()
	for _, f := range done {
		f.count(-1)
		f.line.ended(f.what)
		f.from.sent += f.size
		sent := n.events.now
		n.events.after(f.latency, func() { f.arrived(sent) })
		n.send(f.from)
	}
}
