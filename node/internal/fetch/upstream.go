package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

const (
	// answerPatience bounds the wait for a registry's answer during which a lease is kept, and filePatience that for a
	// file of a hub.
	answerPatience, filePatience = 15 * time.Second, 40 * time.Second
	// anotherMachine is how long a relief waits for an answer with a file of a hub. Another may reach a machine that
	// does not hang.
	anotherMachine = 10 * time.Second
	// mostBadAnswers is how many answers of no use are taken. The first may be that of one machine of many. Where the
	// registry has given some of the blob, something in between may be in trouble for a moment: see blip.
	mostBadAnswers = 2
)

// blip is for how long a registry that has just given something is asked again when it cannot be reached: it is
// restarting, as a rule, or the network is. To give up would end the pulls of all nodes, for none of them reaches it.
// It is less than what a runtime is kept waiting for a first byte.
const blip = 8 * time.Second

var (
	errNoRange  = errors.New("upstream ignores Range requests")
	errReturned = errors.New("the size is known, and no more was wanted")
)

// readLease reads a run from upstream, and tells how that went.
func (f *fetch) readLease(r schedule.Run) {
	if !f.covers(r) {
		f.leaseEnded(r, f.readRun(r))
	}
}

// leaseEnded takes in how the reading of a run went.
func (f *fetch) leaseEnded(r schedule.Run, err error) {
	f.update(func(now time.Time) {
		trouble := troubleOf(err, f.tally.fromUpstream > 0)
		switch {
		case f.askers.outdated(err):
			trouble = schedule.Returned
		case trouble != 0 && trouble != schedule.Returned && f.ctx.Err() == nil:
			f.fr.log.Info("upstream failed", "digest", f.digest, "first", r.First, "chunks", r.Count, "error", err)
			f.upErr = err
		}
		f.part.LeaseEnded(now, r, trouble)
	})
}

// troubleOf is what the coordinator is told of a run that was not read. begun: the registry has given something before.
func troubleOf(err error, begun bool) schedule.Trouble {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReturned):
		return schedule.Returned
	case errors.Is(err, errNoRange):
		return schedule.NoRange
	case refused(err), errors.Is(err, content.ErrDigestMismatch), isBadAnswer(err) && !begun:
		return schedule.Refused
	}
	return schedule.Transient
}

// isBadAnswer tells an answer of no use from one that broke off, and was no use from there.
func isBadAnswer(err error) bool {
	_, opening := errors.AsType[*openError](err)
	return opening && errors.Is(err, content.ErrBadAnswer)
}

// readRun reads a leased run when it is its turn on this node.
func (f *fetch) readRun(r schedule.Run) error {
	f.mu.Lock()
	repo := f.req.Repository
	f.mu.Unlock()
	f.awaited.Add(1)
	ctx, leave, err := takeTurn(f.ctx, f.fr.turnsAt(repo))
	f.awaited.Add(-1)
	if err != nil {
		return err
	}
	defer leave()
	// What has come from elsewhere meanwhile is not read again.
	rest := r
	f.update(func(time.Time) { rest = f.part.Rest(r) })
	if rest.Count == 0 {
		return nil
	}
	return f.read(ctx, rest, false)
}

// read reads a run and claims its chunks as they come; own: of this node's own accord.
func (f *fetch) read(ctx context.Context, r schedule.Run, own bool) error {
	for {
		err := f.readOnce(ctx, r, own)
		if !refused(err) {
			return err
		}
		f.mu.Lock()
		a := f.askers.next() // one who has just come
		f.mu.Unlock()
		if a == nil || ctx.Err() != nil {
			return err
		}
	}
}

func (f *fetch) readOnce(ctx context.Context, r schedule.Run, own bool) error {
	f.awaited.Add(1)
	f.unanswered.Add(1)
	answered := sync.OnceFunc(func() { f.awaited.Add(-1); f.unanswered.Add(-1) })
	defer answered()
	// While the registry's answer is awaited the lease is kept, within reason: to give it to another would only have
	// the registry do the work twice.
	f.mu.Lock()
	isFile := f.req.File != ""
	f.mu.Unlock()
	patience := answerPatience
	if isFile {
		patience = filePatience
	}
	defer time.AfterFunc(patience, answered).Stop()
	off, n, sizeOnly := f.extent(r, own)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := f.answerBefore(ctx, cancel, own && isFile, off, n)
	if err != nil {
		return err
	}
	answered()
	body.OnBreak = func(broken bool) { // the lease is kept while the rest is asked for
		if broken {
			f.awaited.Add(1)
		} else {
			f.awaited.Add(-1)
		}
	}
	defer func() { _ = body.Close() }()
	if err := f.sized(body.Body); err != nil {
		return err
	}
	if sizeOnly && !body.Whole {
		return errReturned
	}
	if n > 0 { // how the blob is cut may not have been known when it was asked for
		first := f.cut.At(off)
		r = schedule.Run{First: first, Count: f.cut.At(off+n-1) + 1 - first}
	}
	in := &upstreamBytes{r: body, f: f, own: own}
	switch {
	case own: // what comes before is wanted as well
		first := f.cut.At(body.Offset)
		r = schedule.Run{First: first, Count: r.End() - first}
	case off == 0 && body.Whole && f.lengthOf(r) < body.Size:
		return f.stream(in, r, n > 0 && body.kind == content.Blob, body.registry)
	case body.Offset == off:
	default:
		if err := f.passOver(in, body, r, off); err != nil {
			return err
		}
	}
	return f.readChunks(in, r)
}

// passOver reads up to off of a whole blob that the registry sends. A lease of all the rest is the coordinator's answer
// to having been told; one that was given before may reach to the end by chance.
func (f *fetch) passOver(in io.Reader, body *answer, r schedule.Run, off int64) error {
	if body.kind == content.Blob { // a manifest comes whole from any registry
		f.fr.noRange.Add(body.registry, time.Now())
	} else {
		body.knew = true
	}
	if !body.knew || f.lengthOf(r) < body.Size-off {
		return errNoRange
	}
	if _, err := io.CopyN(io.Discard, in, off-body.Offset); err != nil {
		return fmt.Errorf("read %s from upstream: %w", f.digest, err)
	}
	return nil
}

// extent is what the registry is asked for to read a run: n bytes from offset off, or all from there where n is -1.
// sizeOnly: the answer is to tell the size.
func (f *fetch) extent(r schedule.Run, own bool) (off, n int64, sizeOnly bool) {
	f.mu.Lock()
	size, whole, cut := f.cut.Size(), false, f.cut
	f.mu.Unlock()
	off, n = cut.Start(r.First), cut.Start(r.Count)
	if size > 0 {
		n = min(n, size-off)
		whole = off == 0 && n == size
	}
	partOnly, small := f.sizeOnly()
	switch {
	case partOnly && !own:
		return off, 1, true // the answer to any byte tells the size, and which chunks are wanted is known after
	case whole || small:
		n = -1 // a plain GET, which every registry and every cache in front of one understands
	}
	return off, n, false
}

// answerBefore opens as outlast does; brief: and cancels where a machine of many may hang.
func (f *fetch) answerBefore(ctx context.Context, cancel func(), brief bool, off, n int64) (*answer, error) {
	if !brief {
		return f.outlast(ctx, off, n)
	}
	hangs := time.AfterFunc(anotherMachine, cancel)
	a, err := f.outlast(ctx, off, n)
	if late := !hangs.Stop(); late {
		if err == nil {
			_ = a.Close()
		}
		return nil, fmt.Errorf("read %s: no answer within %s: %w", f.digest, anotherMachine, content.ErrUnavailable)
	}
	return a, err
}

// outlast opens as open does, over a blip of the registry.
func (f *fetch) outlast(ctx context.Context, off, n int64) (*answer, error) {
	bad := 0
	var began time.Time // of the trouble
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		asked := time.Now()
		a, err := f.open(ctx, off, n)
		if isBadAnswer(err) {
			bad++
		}
		failed, ok := f.mayAskAgain(err, bad)
		if began.IsZero() {
			began = time.Now()
		}
		if !ok || time.Since(began) >= blip || !f.rest(ctx, failed, asked, bad, pause) {
			return a, err
		}
	}
}

// rest waits after a registry has failed a read, which asked it at the time asked, and reports whether the read is to
// ask it again. Of the reads that a registry has failed one at a time waits to ask, at the pace that the registry
// wishes; the others wait for that one. Where the registry has given something since, the trouble is that of one blob,
// and no reason to hold up another.
func (f *fetch) rest(ctx context.Context, failed *openError, asked time.Time, bad int, pause time.Duration) bool {
	turn := f.fr.again.at(failed.registry, 1)
	for !turn.TryAcquire(1) {
		if !content.Sleep(ctx, 50*time.Millisecond) {
			return false
		}
		if at, _ := f.fr.gave.Get(failed.registry); at.After(asked) {
			return content.Sleep(ctx, pause)
		}
	}
	defer turn.Release(1)
	if _, ok := f.mayAskAgain(failed, bad); !ok { // the others have waited long enough
		return false
	}
	return content.Sleep(ctx, f.fr.pace(failed, pause, bad))
}

// mayAskAgain reports whether the registry is to be asked again after an error of open, of which there have been so
// many bad answers.
func (f *fetch) mayAskAgain(err error, bad int) (failed *openError, ok bool) {
	switch {
	case !errors.As(err, &failed):
		return nil, false
	case isBadAnswer(err) && bad < mostBadAnswers:
		return failed, true
	case isBadAnswer(err) && !f.hasReadSome():
		return failed, false
	}
	return failed, f.fr.mayBeBlip(err)
}

// pace is how long a registry is left alone before it is asked again: as long as it wishes, but for once at the end of
// what may be a blip.
func (fr *Fetcher) pace(failed *openError, pause time.Duration, bad int) time.Duration {
	if bad > 1 {
		pause = time.Second
	}
	at, _ := fr.gave.Get(failed.registry)
	up, ok := errors.AsType[*content.UpstreamError](failed.err)
	if !ok {
		return pause
	}
	return max(pause, min(up.RetryAfter, blip-time.Since(at)))
}

// hasReadSome reports whether upstream has given some of the blob.
func (f *fetch) hasReadSome() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tally.fromUpstream > 0
}

// mayBeBlip tells of an error of open whether the registry may be back in a moment: it gave something a moment ago.
func (fr *Fetcher) mayBeBlip(err error) bool {
	var failed *openError
	if !errors.As(err, &failed) || !errors.Is(err, content.ErrUnavailable) || content.Throttled(err) {
		return false
	}
	at, ok := fr.gave.Get(failed.registry)
	return ok && time.Since(at) < blip
}

// stream reads on to the end of the blob, where the registry sends all of it to who asked for its first run: to close
// the connection would have it send the same again. What the coordinator leases of it meanwhile is being read already.
func (f *fetch) stream(in io.Reader, r schedule.Run, ignored bool, registry string) error {
	if ignored {
		f.fr.noRange.Add(registry, time.Now())
	}
	f.update(func(now time.Time) {
		f.streaming = true
		f.part.LeaseEnded(now, r, schedule.NoRange)
	})
	err := f.readChunks(in, schedule.Run{Count: f.cut.Len()})
	f.update(func(now time.Time) {
		f.streaming = false
		for _, c := range f.covered {
			f.part.LeaseEnded(now, c, troubleOf(err, f.tally.fromUpstream > 0))
		}
		f.covered = nil
	})
	return err
}

// covers reports whether a run that was leased is being read already.
func (f *fetch) covers(r schedule.Run) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.streaming {
		f.covered = append(f.covered, r)
	}
	return f.streaming
}

// sizeOnly tells, of a blob whose size is not known, whether that is all to be learned of it now; and whether it is of
// one chunk by what its manifest says.
func (f *fetch) sizeOnly() (only, small bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	small = f.req.Size > 0 && f.req.Size <= content.ChunkSize
	return f.cut.Size() < 0 && f.partOnly && !small, f.cut.Size() < 0 && small
}

// lengthOf is the number of bytes of a run.
func (f *fetch) lengthOf(r schedule.Run) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return min(f.cut.Start(r.Count), f.cut.Size()-f.cut.Start(r.First))
}

// sized learns the blob's size and type from an answer. Where that is not the size that others named, one of the two is
// wrong, and the digest is to tell which.
func (f *fetch) sized(body *upstream.Body) error {
	f.makeRoom(body.Size, ofUpstream)
	f.mu.Lock()
	if body.MediaType != "" {
		f.mediaType = body.MediaType
	}
	size, told, err := f.cut.Size(), f.sizeTold, f.err
	f.sizeTold = told && size != body.Size
	f.mu.Unlock()
	switch {
	case err != nil:
		return err
	case size == body.Size:
		return nil
	}
	err = fmt.Errorf("%s is of %d bytes upstream, want %d: %w", f.digest, body.Size, size, content.ErrDigestMismatch)
	if _, proved := f.fr.sizes.Get(f.digest); told || !proved {
		f.wrongSize(err)
	}
	return err
}

// confirming is how long upstream has to tell a size.
const confirming = 2 * time.Second

// confirmSize asks upstream for the size where peers tell another than the request or a manifest does. The header of an
// answer goes out with it, and a client that is told a wrong size gives up. Where upstream is silent the peers' word
// stands, for all callers: each of them waiting in turn would have no end.
func (f *fetch) confirmSize(ctx context.Context, req content.Request) error {
	f.sizing.Lock()
	defer f.sizing.Unlock()
	size := f.knownSize()
	if f.sizeAsked || f.confirmedSize() >= 0 || req.Size <= 0 || size == req.Size || req.NoUpstream() ||
		f.fr.opts.PeersOnly(req.Repository) {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, confirming)
	defer cancel()
	known, _, err := f.fr.opts.Upstream.Stat(within, req)
	f.sizeAsked = ctx.Err() == nil // else the caller has left
	if err != nil || f.confirmedSize() >= 0 {
		return nil //nolint:nilerr // as above
	}
	f.mu.Lock()
	f.sizeTold, f.sizeWrong = known != size, known != size
	f.mu.Unlock()
	if known == size {
		return nil
	}
	f.mismatch(fmt.Errorf("%s is of %d bytes upstream, want %d: %w", f.digest, known, size, content.ErrDigestMismatch))
	return f.ended()
}

func (f *fetch) readChunks(body io.Reader, r schedule.Run) error {
	buf, done := f.buffer()
	defer done()
	for i := r.First; i < min(r.End(), f.cut.Len()); i++ {
		_, n := f.cut.Range(i)
		data := buf[:n]
		if _, err := io.ReadFull(body, data); err != nil {
			return fmt.Errorf("read chunk %d of %s from upstream: %w", i, f.digest, err)
		}
		c := content.ChunkCID(data)
		claim, err := f.fr.opts.Swarm.Claim(f.plan(), i, sumOf(c))
		if err != nil {
			return err
		}
		f.land(i, c, data, fromUpstream, func(now time.Time) { f.part.Claimed(now, claim) })
		if err := f.ended(); err != nil {
			return err
		}
	}
	return nil
}

// buffer is memory for any chunk, until done is called. As many small documents may be read as there is room for, so
// that of a small one is no larger than itself.
func (f *fetch) buffer() (buf []byte, done func()) {
	if size := f.knownSize(); size < content.ChunkSize {
		return make([]byte, size), func() {}
	}
	b := f.fr.buffers.Get().(*[]byte)
	return *b, func() { f.fr.buffers.Put(b) }
}

// ended is why the fetch has ended, nil while it has not.
func (f *fetch) ended() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
