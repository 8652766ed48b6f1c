package upstream

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

const (
	// maxBreaks is how often in a row a body may break off with less than enoughProgress in between; standing still
	// counts twice.
	maxBreaks      = 6
	enoughProgress = 256 << 10
)

// errResume: another answer of the registry does not go on where the first one ended.
var errResume = errors.New("the rest is of another body")

// resumed reads a blob's bytes to their end over as many answers as it takes. A connection that breaks, stands still or
// drips is no failure of the pull: the next answer is asked for from the byte at which the last one broke.
type resumed struct {
	client *Client
	ctx    context.Context
	req    content.Request
	owner  *Body // whose OnBreak hears of breaks
	body   io.ReadCloser
	from   *stream       // what body reads
	cause  error         // why the last answer broke off; nil while body is one that reads on
	pause  time.Duration // for which no other answer is asked for, since one dripped

	// in the blob: the first byte asked for, the one due, and the last; last is -1 for "to the end"
	start, next, last int64
	seen              maphash.Hash // of the bytes from start to next
	breaks            int          // in a row
	fresh             int64        // bytes since the last break
}

func (c *Client) resumable(ctx context.Context, req content.Request, body *Body, last int64) {
	body.ReadCloser = &resumed{
		client: c, ctx: ctx, req: req, owner: body, body: body.ReadCloser, from: body.ReadCloser.(*stream),
		start: body.Offset, next: body.Offset, last: last,
	}
}

func (r *resumed) Read(p []byte) (int, error) {
	for {
		if r.cause != nil {
			if err := r.reopen(); err != nil {
				return 0, err
			}
		} else if r.from.speed.drips {
			r.elsewhere()
		}
		n, err := r.body.Read(p)
		_, _ = r.seen.Write(p[:n]) // a hash never fails
		r.next += int64(n)
		if r.fresh += int64(n); r.fresh >= enoughProgress {
			r.breaks = 0
		}
		if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || r.ctx.Err() != nil {
			return n, err
		}
		r.client.Distrust(r.req) // whoever breaks off is not asked again without the registry's word
		if !brokenOff(r.ctx, err) {
			return n, err
		}
		_ = r.body.Close()
		if r.cause = err; errors.Is(err, errStalled) {
			r.breaks++ // it has cost its time
		}
		if n > 0 {
			return n, nil
		}
	}
}

// brokenOff tells a body that broke off, which may be read on, from one that is wrong, or not wanted any more.
func brokenOff(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, errLonger) && !errors.Is(err, content.ErrRateLimit) &&
		!errors.Is(err, room.ErrFull) && !errors.Is(err, room.ErrSlow)
}

// reopen asks for the rest, for as long as Timeouts.Resume.
func (r *resumed) reopen() error {
	if r.breaks++; r.breaks > maxBreaks {
		return fmt.Errorf("%w (broke off %d times)", r.cause, r.breaks)
	}
	defer r.breaking()()
	deadline := time.Now().Add(r.client.opts.Timeouts.Resume)
	bad := 0
	for round := 0; ; round++ {
		if again := r.breaks + round - 1; again > 0 { // at once where the last answer had been of use
			pause := backoff(again - 1)
			if time.Now().Add(pause).After(deadline) {
				return r.cause
			}
			if !content.Sleep(r.ctx, pause) {
				return fmt.Errorf("%w: %w", r.cause, context.Cause(r.ctx))
			}
		}
		body, err := r.ask(deadline)
		if err == nil {
			err = r.skip(body)
		}
		if err == nil {
			r.goOn(body, r.cause)
			return nil
		}
		if errors.Is(err, content.ErrBadAnswer) { // the first may be that of one machine of many
			bad++
		}
		if !judge(err).transient && bad != 1 || errors.Is(err, errResume) {
			return fmt.Errorf("%w; then %w", r.cause, err)
		}
	}
}

// elsewhere asks for the rest by another connection, and of another endpoint where there is one, because this answer
// drips. It stays with this one where the other does not come to the same place in time.
func (r *resumed) elsewhere() {
	defer r.breaking()()
	r.client.Distrust(r.req) // another machine may have it
	r.from.giveUp()
	deadline := time.Now().Add(tryFor)
	body, err := r.ask(deadline)
	if err == nil {
		late := time.AfterFunc(time.Until(deadline), func() { body.end(errNoHeader) })
		if err = r.skip(body); !late.Stop() && err == nil {
			err = errors.Join(errNoHeader, body.Close())
		}
	}
	if err == nil {
		_ = r.body.Close()
		r.goOn(body, errDrips)
		r.pause = min(max(2*r.pause, hurry), tryAgain)
	} else {
		r.pause = tryAgain
	}
	r.from.speed.patient = time.Now().Add(r.pause)
}

// breaking tells who waits that the rest is asked for, until the returned function is called.
func (r *resumed) breaking() (ended func()) {
	if r.owner.OnBreak == nil {
		return func() {}
	}
	r.owner.OnBreak(true)
	return func() { r.owner.OnBreak(false) }
}

// goOn reads the rest from another answer.
func (r *resumed) goOn(with *rest, cause error) {
	r.client.log.Info("the rest of an answer is read from another", "registry", r.req.Repository.Registry,
		"digest", r.req.Digest, "at", r.next, "cause", cause)
	r.body, r.from, r.cause, r.fresh = with, with.from, nil, 0
}

// rest is an answer to who asks for the rest.
type rest struct {
	*Body
	from *stream
	end  context.CancelCauseFunc
}

// Close implements io.Closer.
func (b *rest) Close() error {
	defer b.end(nil)
	return b.Body.Close()
}

// ask opens the answer that goes on at the byte that is due.
func (r *resumed) ask(deadline time.Time) (*rest, error) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	timer := time.AfterFunc(time.Until(deadline), func() { cancel(errNoHeader) })
	body, err := r.client.openRange(ctx, r.req, r.next, r.last)
	if !timer.Stop() && err == nil {
		err = errors.Join(errNoHeader, body.Close())
	}
	if err == nil && body.Size != r.owner.Size {
		err = errors.Join(fmt.Errorf("%w: the blob is of %d bytes, then of %d", errResume, r.owner.Size, body.Size),
			body.Close())
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return &rest{body, body.ReadCloser.(*stream), cancel}, nil
}

// skip reads past what has come before, where the registry ignores Range, and checks that it is the same.
func (r *resumed) skip(body *rest) error {
	if body.Offset == r.next {
		return nil
	}
	var again maphash.Hash
	again.SetSeed(r.seen.Seed())
	_, err := io.CopyN(io.Discard, body, r.start-body.Offset)
	if err == nil {
		_, err = io.CopyN(&again, body, r.next-r.start)
	}
	if err == nil && again.Sum64() != r.seen.Sum64() {
		err = fmt.Errorf("%w: its first %d bytes differ", errResume, r.next)
	}
	if err != nil {
		return errors.Join(err, body.Close())
	}
	return nil
}

func (r *resumed) Close() error {
	if r.cause != nil {
		return nil // the answer that broke off was closed then
	}
	return r.body.Close()
}

// readAgain reads an answer that is short enough to be asked for anew as a whole where it breaks off.
func (c *Client) readAgain(ctx context.Context, call call) (*http.Response, []byte, error) {
	for breaks := 0; ; breaks++ {
		resp, err := c.send(ctx, call)
		if err != nil {
			return nil, nil, err
		}
		data, err := readAll(ctx, resp, breaks == 0)
		_ = resp.Body.Close()
		if err == nil || breaks == maxBreaks || errors.Is(err, room.ErrTooLong) || !brokenOff(ctx, err) {
			return resp, data, err
		}
		select {
		case <-time.After(backoff(breaks)):
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}

// openRange opens one answer to a GET of the bytes of a blob from off to last, or to the end where last is -1.
func (c *Client) openRange(ctx context.Context, req content.Request, off, last int64) (*Body, error) {
	call := blobCall(http.MethodGet, req)
	call.remember = true
	switch {
	case last >= 0:
		call.byteRange = fmt.Sprintf("bytes=%d-%d", off, last)
	case off > 0 || req.File != "": // there are hosts of large files that answer nothing else
		call.byteRange = fmt.Sprintf("bytes=%d-", off)
	}
	resp, err := c.send(ctx, call)
	if err != nil {
		return nil, err
	}
	body, err := newBody(resp, req, off, last)
	kind := content.ErrBadAnswer
	if errors.Is(err, errNoSize) {
		if req.Size, _, err = c.Stat(ctx, req); err == nil {
			body, err = newBody(resp, req, off, last)
		} else {
			kind = content.ErrUnavailable
		}
	}
	if err != nil {
		_ = resp.Body.Close()
		c.distrust(call.blob())
		return nil, fmt.Errorf("%s: %w: %w", describe(resp.Request), kind, err)
	}
	return body, nil
}
