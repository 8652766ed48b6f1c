package upstream

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

const (
	// maxBreaks is how often in a row a body may break off with less than enoughProgress in between; standing still
	// counts twice.
	maxBreaks      = 6
	enoughProgress = 256 << 10
	// An answer that drips or stands still may be followed by more of its kind. Each nextTry another connection is
	// tried beside the last, maxTries in all. The first is read on that has brought enoughProgress of the rest, or all
	// of it. Where none has within tryFor, tryBytes will do, or as much as the old one would have brought.
	nextTry  = time.Second
	maxTries = 4
	// fewTries is how many where nothing shows that the registry gives more to anyone.
	fewTries = 2
	tryBytes = 32 << 10
	// moreTries is how many tries of one registry there are at one time beyond each reader's first. Where its link is
	// full, they take from each other; where half of its machines are bad, fewer would not do.
	moreTries = 8
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
	anew   atomic.Bool   // the registry was seen to ignore Range, and sends all that came before once more

	// in the blob: the first byte asked for, the one due, and the last; last is -1 for "to the end"
	start, next, last int64
	seen              maphash.Hash // of the bytes from start to next
	breaks            int          // in a row
	fresh             int64        // bytes since the last break
}

func (c *Client) resumable(ctx context.Context, req content.Request, body *Body, last int64) {
	req.Size = body.Size
	body.ReadCloser = &resumed{
		client: c, ctx: ctx, req: req, owner: body, body: body.ReadCloser, from: body.ReadCloser.(*stream),
		start: body.Offset, next: body.Offset, last: last,
	}
}

func (r *resumed) Read(p []byte) (int, error) {
	for {
		var err error
		if r.cause != nil {
			err = r.reopen()
		} else if r.from.speed.tries > 0 {
			err = r.elsewhere(r.from.speed.tries)
		}
		if err != nil {
			return 0, err
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

// reopen asks for the rest, for as long as Timeouts.Resume, as soon as it has a connection.
func (r *resumed) reopen() error {
	// It is no fault of the registry's that this node gave the answer up. But one without Range sends all once more.
	if own := errors.Is(r.cause, errIdle) || errors.Is(r.cause, errDrips); !own || r.anew.Load() {
		r.breaks++
	}
	if r.breaks > maxBreaks {
		return fmt.Errorf("%w (broke off %d times)", r.cause, r.breaks)
	}
	defer r.breaking()()
	deadline := time.Now().Add(r.client.opts.Timeouts.Resume)
	bad, wish := 0, time.Duration(0)
	for round := 0; ; round++ {
		if again := r.breaks + round - 1; again > 0 { // at once where the last answer had been of use
			pause := max(wish, backoff(again-1))
			if time.Now().Add(pause).After(deadline) {
				return r.cause
			}
			if !content.Sleep(r.ctx, pause) {
				return fmt.Errorf("%w: %w", r.cause, context.Cause(r.ctx))
			}
		}
		asked := time.Now()
		by, err := r.client.connect(r.ctx, r.req.Repository)
		if err != nil {
			return fmt.Errorf("%w: %w", r.cause, err)
		}
		deadline = deadline.Add(time.Since(asked))
		tries, until := 0, deadline
		if soon := time.Now().Add(tryFor); errors.Is(r.cause, errStalled) && !r.anew.Load() && soon.Before(deadline) {
			tries, until = maxTries, soon
		}
		body, err := r.open(by, until, tries, 0)
		if err == nil {
			r.goOn(body, r.cause)
			return nil
		}
		if errors.Is(err, content.ErrBadAnswer) { // the first may be that of one machine of many
			bad++
		}
		f := judge(err)
		if wish = f.retryAfter; !f.transient && bad != 1 || errors.Is(err, errResume) {
			return fmt.Errorf("%w; then %w", r.cause, err)
		}
	}
}

// elsewhere asks for the rest by other connections, and of another endpoint where there is one, because this answer
// drips. It stays with this one where no other does better in time. Where there is no connection beside this one,
// another takes its place, unless that would bring all once more. It fails where none does.
func (r *resumed) elsewhere(tries int) error {
	defer r.breaking()()
	r.client.Distrust(r.req) // another machine may have it
	rate := r.from.speed.dripped
	r.from.giveUp()
	by, free := r.client.another(r.req.Repository)
	var body *rest
	var err error
	switch {
	case free:
		if body, err = r.open(by, time.Now().Add(tryFor), tries, rate); err == nil {
			_ = r.body.Close()
			r.goOn(body, errDrips)
		}
	case !r.anew.Load():
		_ = r.body.Close()
		r.cause = errDrips
		if err = r.reopen(); err != nil {
			return err
		}
	}
	if r.pause = min(max(2*r.pause, hurry), tryAgain); answered(err) {
		r.pause = tryAgain
	}
	r.from.speed.patient = time.Now().Add(r.pause)
	return nil
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
	r.from.speed.tries = 0 // how it began was good enough
}

// rest is an answer to who asks for the rest.
type rest struct {
	*Body
	from *stream
	end  context.CancelCauseFunc
	head []byte // of it, which has come already
}

// Read implements io.Reader.
func (b *rest) Read(p []byte) (int, error) {
	if len(b.head) == 0 {
		return b.Body.Read(p)
	}
	n := copy(p, b.head)
	b.head = b.head[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *rest) Close() error {
	defer b.end(nil)
	return b.Body.Close()
}

// begin waits until so much has come that it seems to be no bad one. soon is until when much is hoped for, and least
// how many bytes will do from then on.
func (b *rest) begin(soon time.Time, least int) error {
	for buf := make([]byte, tryBytes); len(b.head) < enoughProgress; {
		if len(b.head) >= least && !time.Now().Before(soon) {
			return nil
		}
		n, err := b.Body.Read(buf)
		b.head = append(b.head, buf[:n]...)
		if err == io.EOF { //nolint:errorlint // of an answer that broke off it is wrapped
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// came are the bytes that came before. By them it is seen that a whole answer is of the same blob.
type came struct {
	seed maphash.Seed
	sum  uint64
	next int64 // the byte that is due
}

// open opens the answer that goes on at the byte that is due, whose header comes before the deadline. It may be no
// better than the last, which brought rate bytes per second, and is tried by so many connections for tryFor then; see
// nextTry. 0: whatever comes is taken. The first has a connection, and the others are made where there is one.
func (r *resumed) open(by *connection, deadline time.Time, tries int, rate float64) (*rest, error) {
	before := came{r.seen.Seed(), r.seen.Sum64(), r.next}
	if tries == 0 {
		return r.try(r.ctx, by, deadline, before, 0)
	}
	ctx, cancel := context.WithTimeoutCause(r.ctx, tryFor+nextTry, errNoHeader) // what comes shows that before
	defer cancel()
	least := max(tryBytes, int(rate*tryFor.Seconds()))
	type outcome struct {
		body *rest
		err  error
	}
	outcomes := make(chan outcome)
	next := time.NewTimer(0)
	defer next.Stop()
	asked, failed, turns := 0, 0, r.from.speed.of.more
	defer func() {
		turns.Release(int64(max(asked-1, 0)))
		if asked == 0 {
			by.leave()
		}
	}()
	for {
		select {
		case <-next.C:
			if asked > 0 && r.anew.Load() { // which costs more the more it has brought
				continue
			}
			free := asked == 0
			if !free && turns.TryAcquire(1) {
				if by, free = r.client.another(r.req.Repository); !free {
					turns.Release(1)
				}
			}
			if free {
				asked++
				go func(by *connection) {
					body, err := r.try(ctx, by, deadline, before, least)
					select {
					case outcomes <- outcome{body, err}:
					case <-ctx.Done():
						if err == nil {
							_ = body.Close()
						}
					}
				}(by)
			}
			if asked < tries {
				next.Reset(nextTry)
			}
		case o := <-outcomes:
			if failed++; o.err == nil || failed == asked {
				return o.body, o.err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", content.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// try opens an answer as open does, while ctx lasts, and waits until it has brought enough; see rest.begin. 0: it does
// not wait.
func (r *resumed) try(
	ctx context.Context, by *connection, deadline time.Time, before came, least int,
) (*rest, error) {
	own, end := context.WithCancelCause(r.ctx)
	stay := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	// Where it is not called below, or each that fails is held until ctx ends.
	defer stay()
	body, err := r.ask(own, end, by, deadline, before.next) //nolint:contextcheck // what is read on outlasts the trying
	if err == nil {
		if err = r.skip(body, before); err == nil && least > 0 {
			err = body.begin(deadline, least)
		}
		if !stay() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			err = errors.Join(err, body.Close())
		}
	}
	if err != nil {
		end(nil)
		return nil, err
	}
	return body, nil
}

// ask opens the answer that goes on at the byte that is due, and that end ends.
func (r *resumed) ask(ctx context.Context, end context.CancelCauseFunc, by *connection, deadline time.Time,
	next int64) (*rest, error) {
	timer := time.AfterFunc(time.Until(deadline), func() { end(errNoHeader) })
	body, err := r.client.openRange(ctx, r.req, next, r.last, true, by)
	if !timer.Stop() && err == nil {
		err = errors.Join(errNoHeader, body.Close())
	}
	if err == nil && body.Size != r.owner.Size {
		err = errors.Join(fmt.Errorf("%w: the blob is of %d bytes, then of %d", errResume, r.owner.Size, body.Size),
			body.Close())
	}
	if err != nil {
		by.leave()
		return nil, err
	}
	return &rest{Body: body, from: body.ReadCloser.(*stream), end: end}, nil
}

// skip reads past what has come before, where the registry ignores Range, and checks that it is the same.
func (r *resumed) skip(body *rest, before came) error {
	if body.Offset == before.next {
		return nil
	}
	r.anew.Store(true)
	var again maphash.Hash
	again.SetSeed(before.seed)
	_, err := io.CopyN(io.Discard, body, r.start-body.Offset)
	if err == nil {
		_, err = io.CopyN(&again, body, before.next-r.start)
	}
	if err == nil && again.Sum64() != before.sum {
		err = fmt.Errorf("%w: its first %d bytes differ", errResume, before.next)
	}
	return err
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
		if !content.Sleep(ctx, backoff(breaks)) {
			return nil, nil, err
		}
	}
}

// openRange opens one answer to a GET of the bytes of a blob from off to last, or to the end where last is -1. once: it
// is the caller who asks again, and has a connection for it.
func (c *Client) openRange(
	ctx context.Context, req content.Request, off, last int64, once bool, by *connection,
) (*Body, error) {
	call := blobCall(http.MethodGet, req)
	call.remember, call.once, call.by = true, once, by
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
		_ = resp.Body.Close() // there may be no connection beside this one
		size, _, statErr := c.Stat(ctx, req)
		if statErr == nil && size > 0 {
			req.Size = size
			return c.openRange(ctx, req, off, last, once, by)
		}
		if statErr != nil {
			kind, err = content.ErrUnavailable, statErr
		}
	}
	if err != nil {
		_ = resp.Body.Close()
		c.distrust(call.blob())
		return nil, fmt.Errorf("%s: %w: %w", describe(resp.Request), kind, err)
	}
	return body, nil
}
