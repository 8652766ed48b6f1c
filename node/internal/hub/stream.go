package hub

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
)

const (
	// headerWait is how long the first byte is waited for before the header goes out without it. What fails at once is
	// so told by its status, and a client that waits 10 s for a header and again for a byte waits for neither in vain.
	headerWait = 500 * time.Millisecond
	// steadyFor is how long reading is tried again and again without a byte more. The client is kept waiting for as
	// long by what the answer has kept back of its bytes.
	steadyFor   = 2 * time.Minute
	steadyPause = 200 * time.Millisecond
	maxPause    = 2 * time.Second
)

// stream writes n bytes of a file. The header goes out at once, because the size is known. From then on a failure is a
// connection that is cut, never an answer that ends too early.
func (x *exchange) stream(status int, body *steady, n int64, peek peeker) error {
	var drip *reply.Drip
	header := func() {
		body.promised.Store(true)
		x.WriteHeader(status)
		drip = reply.NewDrip(x.W)
		x.W = drip
	}
	due := make(chan struct{})
	defer time.AfterFunc(headerWait, func() { close(due) }).Stop()
	early, off := &foretaste{slack: x.slack}, body.pos
	first, err := x.First(body, n, due, func() {
		header()
		early.begin(drip, peek, x.held, off, n)
	})
	if drip != nil {
		defer drip.Stop()
	}
	if early.end(); err == nil {
		first, err = early.after(first, body)
	}
	if err != nil {
		return err
	}
	if drip == nil {
		header()
		defer drip.Stop()
	}
	if err := x.Stream(first, body, n-int64(len(early.given))); err != nil {
		return err
	}
	return drip.End()
}

// steady reads a part of a file, and reads on from where it was when that fails: most clients begin anew, or give up,
// when an answer is cut.
type steady struct {
	ctx       context.Context // of the request
	open      opener
	pos, left int64
	// promised: the header of the answer is out, so that there is no other way any more to tell of a failure than to
	// cut it.
	promised atomic.Bool

	given  early // see rest
	reader content.Reader
	part   io.ReadCloser
	since  time.Time // when reading came to a halt; zero: it goes on
	pause  time.Duration
}

// next opens the rest of the part, where it is not open. io.EOF: there is none.
func (s *steady) next() (err error) {
	if s.part != nil {
		return nil
	}
	if s.reader == nil {
		if s.reader, err = s.open(s.pos, s.left, &s.given); err != nil {
			return err
		}
	}
	s.part, err = s.rest()
	return err
}

// rest reads the rest of the part. Of one that holds the end of a file that is still on its way it is noted what is
// given. If it breaks off then, what comes in its place need not be of the same bytes, and is compared before the end.
// So it goes by copies, and not by sendfile. By BenchmarkArriving that is lost in what an arriving byte costs besides,
// which is some seven times as much as one that is here.
func (s *steady) rest() (io.ReadCloser, error) {
	_, compares := s.reader.(*ending)
	toEnd, arrived := s.pos+s.left == s.reader.Size(), s.reader.Arrived() == s.reader.Size()
	switch {
	case compares || !toEnd || arrived && s.given.n == 0:
		return s.reader.Range(s.ctx, s.pos, s.left)
	case s.given.n > 0:
		n := s.pos + s.left - s.given.off
		whole := func() (content.Reader, error) { return s.open(s.given.off, n, nil) }
		return (&ending{s.reader, whole, &s.given}).Range(s.ctx, s.pos, s.left)
	}
	part, err := s.reader.Range(s.ctx, s.pos, s.left)
	if err != nil {
		return nil, err
	}
	s.given.off = s.pos
	return &joined{io.TeeReader(part, &s.given), []io.Closer{part}}, nil
}

// again decides what comes of an error: nil if it is worth another try, after a pause.
func (s *steady) again(err error) error {
	s.drop()
	lasting := errors.Is(err, content.ErrDigestMismatch) || denied(err) || content.Denied(err)
	if err == nil || lasting || s.ctx.Err() != nil || !s.promised.Load() {
		return err
	}
	if s.since.IsZero() {
		s.since, s.pause = time.Now(), steadyPause
	}
	if time.Since(s.since) > steadyFor {
		return err
	}
	if !content.Sleep(s.ctx, s.pause) {
		return err
	}
	s.pause = min(2*s.pause, maxPause)
	return nil
}

// advance notes that n bytes were given on, and what ended that.
func (s *steady) advance(n int64, err error) error {
	s.pos, s.left = s.pos+n, s.left-n
	if n > 0 {
		s.since = time.Time{}
	}
	if s.left > 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil || s.left == 0 && errors.Is(err, io.EOF) {
		return err
	}
	return s.again(err)
}

func (s *steady) Read(p []byte) (int, error) {
	for s.left > 0 && len(p) > 0 {
		if err := s.next(); err != nil {
			if err = s.again(err); err != nil {
				return 0, err
			}
			continue
		}
		n, err := s.part.Read(p)
		if err = s.advance(int64(n), err); n > 0 || err != nil {
			return n, err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, io.EOF
}

// WriteTo keeps the way to sendfile open.
func (s *steady) WriteTo(w io.Writer) (total int64, err error) {
	for s.left > 0 {
		if err := s.next(); err != nil {
			if err = s.again(err); err != nil {
				return total, err
			}
			continue
		}
		n, err := io.Copy(w, s.part)
		total += n
		if err == nil && n < s.left {
			err = io.ErrUnexpectedEOF
		}
		if err = s.advance(n, err); err != nil {
			return total, err
		}
	}
	return total, nil
}

func (s *steady) drop() {
	if s.part != nil {
		_ = s.part.Close()
	}
	if s.reader != nil {
		_ = s.reader.Close()
	}
	s.part, s.reader = nil, nil
}

// Close ends the reading.
func (s *steady) Close() error {
	s.drop()
	return nil
}
