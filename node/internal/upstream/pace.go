package upstream

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// An answer drips that brings less than enoughProgress in hurry of waiting: a chunk would take a good part of the time
// after which its reader is sent away. Where the registry and its link give no more to anyone it is read on, for to ask
// for the same once more would only cost them more. But it may be one machine of many, or one flow of a path, and
// another connection meets another.
const (
	hurry = 5 * time.Second
	// muchFaster is how many times as fast other answers are that show that it is not the registry or its link. The
	// flows of a full link differ by up to ten times.
	muchFaster = 16
	// longestAlike is for how long, at the most, it is not tried again whether another connection is faster. At first
	// it is for as long as hurry, and twice as long after each try while none is.
	longestAlike = 10 * time.Minute
	// compared is how many of the last answers are remembered, and comparedFor for how long one that has ended is.
	compared    = 16
	comparedFor = time.Minute
	// tryFor is how long others may take to come to where the first one is, and a little further.
	tryFor = 5 * time.Second
	// tryAgain is after how long, at the most, one body is asked for anew once more.
	tryAgain = 30 * time.Second
	// dripsFor is for how long an endpoint whose answer dripped is tried after the others.
	dripsFor = time.Minute
)

var errDrips = errors.New("body drips")

// pace is how fast the answers of a registry come. At first it knows of none.
type pace struct {
	mu    sync.Mutex
	came  arrivals            // of late
	slow  arrivals            // those that dripped, of late, apart: they must not push out what they are compared with
	alike time.Time           // until then another connection is held to be as slow
	pause time.Duration       // how long that was for
	than  float64             // what was given up for being slow
	apart atomic.Int64        // bytes of answers that are counted nowhere else
	more  *semaphore.Weighted // of moreTries
}

// arrival is how fast an answer, or a part of it, came.
type arrival struct {
	at    time.Time
	rate  float64 // bytes per second
	whole bool    // that was all of it
}

// arrivals are the last ones.
type arrivals struct {
	of     [compared]arrival
	oldest int
}

func (s *arrivals) add(a arrival) { s.of[s.oldest], s.oldest = a, (s.oldest+1)%compared }

// note takes note of an arrival.
func (p *pace) note(a arrival) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came.add(a)
	if a.rate >= muchFaster*p.than {
		p.alike, p.pause = time.Time{}, 0
	}
}

// drips takes note of an answer that drips.
func (p *pace) drips(a arrival) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow.add(a)
}

// another is by how many connections one is to be asked for anew that drips since a time: half of what came of late was
// much faster, or it is worth a try, since all that the registry gives to this node is as little. One that was faster
// shows nothing alone: of a full link some flow always gets many times what another does. How fast one came that has
// not ended shows nothing after a while: it may drip as well.
func (p *pace) another(since, now time.Time, rate float64, all int64) (tries int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	faster, slower := 0, 0
	for _, a := range slices.Concat(p.came.of[:], p.slow.of[:]) {
		switch {
		case !a.at.After(now.Add(-hurry/2)) && !(a.whole && a.at.After(now.Add(-comparedFor))):
		case a.rate >= muchFaster*rate:
			faster++
		default:
			slower++
		}
	}
	if faster >= max(slower, 1) {
		return maxTries
	}
	if now.Before(p.alike) || perSecond(all, now.Sub(since)) >= perSecond(enoughProgress, hurry) {
		return 0
	}
	p.pause = min(max(2*p.pause, hurry), longestAlike)
	p.alike, p.than = now.Add(p.pause), rate
	return fewTries
}

func perSecond(bytes int64, d time.Duration) float64 {
	return float64(bytes) / max(d, time.Microsecond).Seconds()
}

// speed is how fast one answer comes.
type speed struct {
	of    *pace
	given func() int64 // bytes of all answers of the registry

	began   time.Time
	all     int64     // bytes
	patient time.Time // not before it another is asked for
	tries   int       // by how many connections another is to be, because this one drips
	dripped float64   // bytes per second, when it did

	// of what is looked at now
	since  time.Time
	before int64 // given by then
	bytes  int64
	waited time.Duration
}

func newSpeed(of *pace, given func() int64) speed {
	s := speed{of: of, given: given, began: time.Now()}
	s.begin(s.began)
	return s
}

func (s *speed) begin(now time.Time) { s.since, s.before, s.bytes, s.waited = now, s.given(), 0, 0 }

// read notes that n bytes came after a wait, and that so many are still due; -1: it is not known how many. A single
// wait, however long, is none of one that drips: whoever thinks for a while may send the rest at once.
func (s *speed) read(now time.Time, n int, wait time.Duration, due int64) {
	s.all += int64(n)
	s.bytes += int64(n)
	s.waited += min(wait, hurry/2)
	rate := perSecond(s.bytes, s.waited)
	switch {
	case s.bytes >= enoughProgress:
		s.of.note(arrival{now, perSecond(s.bytes, now.Sub(s.since)), false})
	case s.waited < hurry:
		return
	default:
		s.of.drips(arrival{now, rate, false})
		if ending := due >= 0 && float64(due) < rate*hurry.Seconds(); !ending && !now.Before(s.patient) {
			s.dripped = rate
			s.tries = s.of.another(s.since, now, rate, s.given()-s.before)
		}
	}
	s.begin(now)
}

// ended notes that the last n bytes came.
func (s *speed) ended(now time.Time, n int) {
	if s.all += int64(n); s.all >= enoughProgress {
		s.of.note(arrival{now, perSecond(s.all, now.Sub(s.began)), true})
	}
}
