package registry

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// headerBy is when, at the latest, a header goes out or a refusal: containerd from 2.3 on goes to the next host
	// when it has waited 30 s for one. Before, a refusal is the better answer, since the runtime asks the next host at
	// once; when an answer that has begun is cut off, it asks this one again first.
	headerBy = 25 * time.Second
	// hardEnd bounds the wait for a blob of which nothing comes, though much else of the same pull does.
	hardEnd = 60 * time.Second
	// longest bounds the wait for a whole chunk of it while bytes do come: nothing goes out before. It is below
	// containerd's own limit of 5 min without a byte, after which it asks no other host. A blob that comes at less than
	// slowest bytes in a second is waited for less long, the slower the less.
	longest = 4 * time.Minute
	slowest = 4 << 10
	// looks is how often progress is looked at within the limit.
	looks = 10
)

// patience ends a context with what slow gives when an answer does not come. What decides is progress: while bytes of
// the pull arrive at this node the caller waits, and where nothing moves at all it is sent on when the limit is over.
type patience struct {
	cancel context.CancelCauseFunc
	limit  time.Duration
	header chan struct{} // closed when the header must not wait any more
	start  time.Time

	mu        sync.Mutex
	timer     *time.Timer
	overdue   bool // header is closed
	stopped   bool
	mayHeader bool
	arrivals
}

// arrivals is what was seen to come of a blob and of its pull.
type arrivals struct {
	came      progress
	blob      int64        // bytes of the blob that were seen to arrive,
	pull      int64        // and of the pull
	moved     time.Time    // when any were last
	whole     func() int64 // bytes of the blob's whole chunks; nil while nobody knows its size
	wholeSeen int64
	wholeAt   time.Time // when a chunk was last seen to be whole
	begun     int64     // bytes of the blob since then
	until     time.Time // when the blob is given up: each of its bytes puts that off, up to hardEnd from now
}

// progress counts the bytes that have arrived of a blob, and of all of its pull.
type progress func() (blob, pull int64)

// newPatience bounds what is done with the returned context until stop is called. The context itself lasts until end.
func newPatience(ctx context.Context, limit time.Duration, came progress) (context.Context, *patience) {
	ctx, cancel := context.WithCancelCause(ctx)
	now := time.Now()
	p := &patience{
		cancel: cancel, limit: limit, header: make(chan struct{}), start: now,
		arrivals: arrivals{moved: now, wholeAt: now, until: now.Add(max(hardEnd, limit))},
	}
	p.follow(came)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(limit/looks, p.look)
	return ctx, p
}

// watch takes in how many bytes of the blob's whole chunks have arrived. Its size is known from now on; header reports
// whether that is enough for the answer's header.
func (p *patience) watch(whole func() int64, header bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.whole, p.wholeSeen, p.mayHeader = whole, whole(), header
}

// follow counts the bytes that arrive by the given function from now on.
func (p *patience) follow(came progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = came
	p.blob, p.pull = came()
}

func (p *patience) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := time.Now()
	p.see(now, now.Add(max(hardEnd, p.limit)))
	late := now.Sub(p.start) >= max(headerBy, p.limit)
	switch {
	case now.Sub(p.moved) >= p.limit, !now.Before(p.until), now.Sub(p.wholeAt) >= max(longest, p.limit),
		late && !p.mayHeader:
		p.cancel(p.slow(now))
		return
	case late && !p.overdue:
		p.overdue = true
		close(p.header)
	}
	p.timer.Reset(p.limit / looks)
}

// see takes in what has arrived. The blob is given up at the end, at the latest, if nothing else comes.
func (p *arrivals) see(now, end time.Time) {
	blob, pull := p.came()
	if blob != p.blob || pull != p.pull {
		more := max(0, blob-p.blob) // a fetch that begins anew counts anew
		p.blob, p.pull, p.moved = blob, pull, now
		p.begun += more
		p.until = p.until.Add(time.Duration(min(more, content.ChunkSize)) * time.Second / slowest)
		if p.until.After(end) {
			p.until = end
		}
	}
	if p.whole == nil {
		return
	}
	if n := p.whole(); n != p.wholeSeen {
		p.wholeSeen, p.wholeAt, p.moved, p.until, p.begun = n, now, now, end, 0
	}
}

// slow is the error of a blob that is given up.
func (p *arrivals) slow(now time.Time) error {
	if p.begun == 0 {
		return errSlow
	}
	return fmt.Errorf("no whole chunk came within %s, though %d bytes did: %w", now.Sub(p.wholeAt).Round(time.Second),
		p.begun, content.ErrUnavailable)
}

// stop ends the limit: unless the context has ended before, it will not for want of time.
func (p *patience) stop() {
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
}

func (p *patience) end() {
	p.stop()
	p.cancel(nil)
}
