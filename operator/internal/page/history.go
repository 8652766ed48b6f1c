package page

import (
	"sync"
	"time"

	"github.com/shoal-cache/shoal/operator/internal/survey"
)

const (
	// every is the time between two points, and kept their number: a day.
	every = 5 * time.Minute
	kept  = 24 * 12
)

// Point is the state of the counters at one time: sums over all nodes and all time.
type Point struct {
	At       time.Time `json:"at"`
	Hits     int64     `json:"hits"`
	Requests int64     `json:"requests"`
	Saved    int64     `json:"saved"`
	Upstream int64     `json:"fromUpstream"`
}

// history remembers points of the last day, since this operator started.
type history struct {
	mu     sync.Mutex
	points []Point
}

func (h *history) add(at time.Time, s survey.Sums) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.points = append(h.points, Point{At: at, Hits: s.Hits, Requests: s.Requests, Saved: s.Saved, Upstream: s.Upstream})
	h.points = h.points[max(0, len(h.points)-kept):]
}

func (h *history) list() []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Point(nil), h.points...)
}

// Step is what happened between two points.
type Step struct {
	From, To time.Time
	Requests int64
	// Hits are the part of Requests that a node's own disk answered.
	Hits            int64
	Saved, Upstream int64
}

// steps are what happened between points. A sum that has gone down, because a node has left, counts as nothing.
func steps(points []Point) []Step {
	var all []Step
	for i := 1; i < len(points); i++ {
		a, b := points[i-1], points[i]
		s := Step{From: a.At, To: b.At, Requests: max(0, b.Requests-a.Requests), Saved: max(0, b.Saved-a.Saved),
			Upstream: max(0, b.Upstream-a.Upstream)}
		s.Hits = min(s.Requests, max(0, b.Hits-a.Hits))
		all = append(all, s)
	}
	return all
}
