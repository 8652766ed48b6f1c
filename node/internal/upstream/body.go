package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// minProgress is how many bytes of a body must come within Timeouts.Stall of waiting, so that a registry which drips
// single bytes counts as one that stands still.
const minProgress = 4 << 10

var (
	errStalled = errors.New("body stalled")
	errLonger  = errors.New("body is longer than announced")
)

// stream is the body of an answer. It ends with io.EOF only after exactly the bytes that were due.
type stream struct {
	op     string
	body   io.ReadCloser
	ctx    context.Context // the request's own, to tell why a read failed
	cancel context.CancelCauseFunc
	count  func(n int)
	limit  *rate.Limiter // nil: none

	due int64 // bytes that must still come, -1 where it is not known

	stall    time.Duration
	patience time.Duration // what is left of stall
	fresh    int64         // bytes since patience was whole
	timer    *time.Timer

	by   *connection
	idle *time.Timer // runs while nobody reads; nil: connections have no bound

	from  *endpoint
	speed speed
}

func (c *Client) watch(ctx context.Context, cancel context.CancelCauseFunc, reg *registry, from *endpoint,
	limit *rate.Limiter, by *connection, resp *http.Response) *stream {
	s := &stream{
		op: describe(resp.Request), body: resp.Body, ctx: ctx, cancel: cancel,
		count: c.metrics.counter(reg.name), limit: limit,
		due: resp.ContentLength, stall: c.opts.Timeouts.Stall, patience: c.opts.Timeouts.Stall, by: by,
		from: from, speed: newSpeed(&reg.pace, c.metrics.of(reg.name).Load),
	}
	if resp.Request.Method == http.MethodHead {
		s.due = 0
	}
	s.timer = time.AfterFunc(s.stall, func() { cancel(errStalled) })
	s.timer.Stop()
	if by != nil {
		s.idle = time.AfterFunc(time.Hour, s.yield)
		s.idle.Reset(idleFor) // once yield can see it
	}
	return s
}

// yield gives the answer up, which nobody reads, where others wait for its connection.
func (s *stream) yield() {
	switch held, wanted := s.by.held(); {
	case wanted:
		s.cancel(errIdle)
		s.by.leave()
	case held:
		s.idle.Reset(idleFor)
	}
}

func (s *stream) Read(p []byte) (int, error) {
	if s.due == 0 {
		return 0, io.EOF
	}
	if s.limit != nil && len(p) > 0 {
		p = p[:min(len(p), max(s.limit.Burst(), 1))]
	}
	if s.idle != nil {
		s.idle.Stop()
	}
	// Only the time spent in here counts: a reader that takes its time is no fault of the registry's.
	start := time.Now()
	s.timer.Reset(s.patience)
	n, err := s.body.Read(p)
	s.timer.Stop()
	wait := time.Since(start)
	s.patience -= wait
	s.fresh += int64(n)
	if s.fresh >= minProgress {
		s.patience, s.fresh = s.stall, 0
	}
	s.patience = max(s.patience, 0)
	s.count(n)
	if err := s.pace(n); err != nil {
		return 0, fmt.Errorf("%s: %w: %w", s.op, content.ErrRateLimit, err)
	}

	if s.due >= 0 {
		if int64(n) > s.due {
			return 0, fmt.Errorf("%s: %w: %w", s.op, content.ErrUnavailable, errLonger)
		}
		s.due -= int64(n)
	}
	switch {
	case err == nil:
		s.speed.read(time.Now(), n, wait, s.due)
		if s.idle != nil {
			s.idle.Reset(idleFor)
		}
		return n, nil
	case !errors.Is(err, io.EOF):
		if cause := context.Cause(s.ctx); errors.Is(cause, errStalled) {
			return n, fmt.Errorf("%s: %w: less than %d bytes in %s of waiting: %w", s.op, content.ErrUnavailable,
				minProgress, s.stall, errStalled)
		} else if cause != nil {
			err = cause
		}
		return n, fmt.Errorf("%s: %w: body: %w", s.op, content.ErrUnavailable, err)
	case s.due > 0:
		return n, fmt.Errorf("%s: %w: body ended %d bytes early: %w", s.op, content.ErrUnavailable, s.due,
			io.ErrUnexpectedEOF)
	}
	s.speed.ended(time.Now(), n)
	s.by.leave()
	return n, io.EOF
}

// pace waits until n bytes are within the limit. It does so in pieces, because a policy may have made the burst smaller
// since they were asked for.
func (s *stream) pace(n int) error {
	if s.limit != nil {
		defer content.Apart(s.ctx)()
	}
	for s.limit != nil && n > 0 {
		piece := min(n, max(s.limit.Burst(), 1))
		if err := s.limit.WaitN(s.ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

func (s *stream) Close() error {
	s.timer.Stop()
	err := s.body.Close()
	s.cancel(nil)
	if s.idle != nil {
		s.idle.Stop()
	}
	s.by.leave()
	return err
}

// discard reads what is left of a short body, without which its connection could not be used again, and closes it.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, maxErrorDoc)
	_ = body.Close()
}

// giveUp notes that another answer is asked for, of other endpoints first, because this one drips.
func (s *stream) giveUp() {
	s.speed.tries = 0
	s.from.dripsUntil.set(time.Now().Add(dripsFor))
}

// hasty fails with errDrips where another answer is to be asked for.
type hasty struct{ *stream }

func (h hasty) Read(p []byte) (int, error) {
	n, err := h.stream.Read(p)
	if err == nil && h.speed.tries > 0 {
		h.giveUp()
		err = fmt.Errorf("%s: %w: %w", h.op, content.ErrUnavailable, errDrips)
	}
	return n, err
}

// Hasty reads the body of an answer of a registry that was asked in another way; see Reach. It fails where that drips
// and another is better asked for. due is how many bytes are to come, -1 where it is not known.
func (c *Client) Hasty(registry string, body io.Reader, due int64) io.Reader {
	reg, err := c.registry(registry)
	if err != nil {
		return body
	}
	p, read := &reg.pace, c.metrics.of(reg.name)
	return &paced{body, due, newSpeed(p, func() int64 { return read.Load() + p.apart.Load() })}
}

// paced is what Hasty gives.
type paced struct {
	body  io.Reader
	due   int64
	speed speed
}

func (p *paced) Read(b []byte) (int, error) {
	start := time.Now()
	n, err := p.body.Read(b)
	now := time.Now()
	p.speed.of.apart.Add(int64(n))
	if p.due >= 0 {
		p.due -= int64(n)
	}
	switch {
	case errors.Is(err, io.EOF):
		p.speed.ended(now, n)
	case err == nil:
		if p.speed.read(now, n, now.Sub(start), p.due); p.speed.tries > 0 {
			err = fmt.Errorf("%w: %w", content.ErrUnavailable, errDrips)
		}
	}
	return n, err
}

// readAll reads a body of at most manifest.MaxSize, as the lease of ctx has room for it. again: one that drips is
// better asked for anew.
func readAll(ctx context.Context, resp *http.Response, again bool) ([]byte, error) {
	var body io.Reader = resp.Body
	if s, ok := resp.Body.(*stream); ok && again {
		body = hasty{s}
	}
	data, err := room.ReadAll(ctx, body, resp.ContentLength, manifest.MaxSize, manifest.Times)
	if errors.Is(err, room.ErrTooLong) {
		return nil, fmt.Errorf("%s: %w: %w", describe(resp.Request), content.ErrBadAnswer, err)
	}
	return data, err
}
