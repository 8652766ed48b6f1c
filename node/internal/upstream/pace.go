package upstream

import (
	"errors"
	"sync"
	"time"
)

// An answer drips that brings less than enoughProgress in hurry of waiting: a chunk would take a good part of the time
// after which its reader is sent away. Where the registry and its link give no more to anyone it is read on, for to ask
// for the same once more would only cost them more. But it may be one machine of many, or one flow of a path, and
// another connection meets another.
const (
	hurry = 5 * time.Second
	// muchFaster is how many times as fast another answer is that shows that it is not the registry or its link.
	muchFaster = 8
	// alikeFor is for how long it is not tried again whether another connection is faster. It doubles up to
	// longestAlike while none is.
	alikeFor, longestAlike = 30 * time.Second, 10 * time.Minute
	// tryFor is how long another answer may take to come to where the first one is.
	tryFor = 10 * time.Second
	// tryAgain is after how long, at the most, one body is asked for anew once more.
	tryAgain = 30 * time.Second
	// dripsFor is for how long an endpoint whose answer dripped is tried after the others.
	dripsFor = time.Minute
)

var errDrips = errors.New("body drips")

// pace is how fast the answers of a registry come. The zero value knows of none.
type pace struct {
	mu    sync.Mutex
	best  float64 // bytes per second of the fastest of late
	at    time.Time
	alike time.Time     // until then another connection is held to be as slow
	pause time.Duration // how long that was for
	than  float64       // what was given up for being slow
}

// came notes how fast one answer comes.
func (p *pace) came(now time.Time, rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rate >= p.best || now.Sub(p.at) > hurry {
		p.best, p.at = rate, now
	}
	if rate >= muchFaster*p.than {
		p.alike, p.pause = time.Time{}, 0
	}
}

// another reports whether one that drips since a time is to be asked for anew: another has come much faster meanwhile,
// or it is worth a try, since all that the registry gives to this node is as little.
func (p *pace) another(since, now time.Time, rate float64, all int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.After(since) && p.best >= muchFaster*rate {
		return true
	}
	if now.Before(p.alike) || perSecond(all, now.Sub(since)) >= perSecond(enoughProgress, hurry) {
		return false
	}
	p.pause = min(max(2*p.pause, alikeFor), longestAlike)
	p.alike, p.than = now.Add(p.pause), rate
	return true
}

func perSecond(bytes int64, d time.Duration) float64 {
	return float64(bytes) / max(d, time.Microsecond).Seconds()
}

// speed is how fast one answer comes.
type speed struct {
	of    *pace
	given func() int64 // bytes of all answers of the registry

	patient time.Time // not before it another is asked for
	drips   bool      // another is to be

	// of what is looked at now
	since  time.Time
	before int64 // given by then
	bytes  int64
	waited time.Duration
}

func newSpeed(of *pace, given func() int64) speed {
	s := speed{of: of, given: given}
	s.begin(time.Now())
	return s
}

func (s *speed) begin(now time.Time) { s.since, s.before, s.bytes, s.waited = now, s.given(), 0, 0 }

// read notes that n bytes came after a wait, and that so many are still due; -1: it is not known how many. A single
// wait, however long, is none of one that drips: whoever thinks for a while may send the rest at once.
func (s *speed) read(now time.Time, n int, wait time.Duration, due int64) {
	s.bytes += int64(n)
	s.waited += min(wait, hurry/2)
	rate := perSecond(s.bytes, s.waited)
	switch {
	case s.bytes >= enoughProgress:
		s.of.came(now, perSecond(s.bytes, now.Sub(s.since)))
	case s.waited < hurry:
		return
	case due >= 0 && float64(due) < rate*hurry.Seconds(): // it ends soon
	case !now.Before(s.patient):
		s.drips = s.of.another(s.since, now, rate, s.given()-s.before)
	}
	s.begin(now)
}
