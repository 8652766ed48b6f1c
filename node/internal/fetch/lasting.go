package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// lasting is a reader whose answers outlast this node's disk, and the fetch they came from: where a chunk of the store
// turns out to be damaged, a chunk that arrives cannot be written, or the fetch gives way to another source, the caller
// is given the rest from elsewhere.
type lasting struct {
	content.Reader
	fr  *Fetcher
	req content.Request
}

// Held is that of the reader which the caller was given first.
func (l *lasting) Held() bool { return content.Held(l.Reader) }

// again opens the blob anew, if err is none of the blob's: straight from upstream where the disk takes nothing in, else
// as any blob that is not here.
func (l *lasting) again(ctx context.Context, err error) (content.Reader, error) {
	switch {
	case errors.Is(err, content.ErrNoSpace), errors.Is(err, content.ErrStorage):
		return l.fr.openThrough(ctx, l.req, err)
	case errors.Is(err, errForeign): // it may have given way to who only asks what peers hold, and be free again
		return l.fr.open(ctx, l.req)
	case errors.Is(err, content.ErrNotFound):
		if _, held := l.Reader.(*local); held { // what was here is damaged, and dropped
			return l.fr.open(ctx, l.req)
		}
	}
	return nil, err
}

func (l *lasting) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := l.Reader.Range(ctx, off, n)
	if errors.Is(err, content.ErrNoSpace) { // it passes through a window, which is of no use to this caller
		through, openErr := l.again(ctx, err)
		if openErr != nil {
			return nil, err
		}
		return through.Range(ctx, off, n)
	}
	if err != nil {
		return nil, err
	}
	return &lastingRange{ReadCloser: body, of: l, ctx: ctx, off: off, n: n}, nil
}

// lastingRange is a range of a lasting reader.
type lastingRange struct {
	io.ReadCloser // where the bytes come from now
	of            *lasting
	ctx           context.Context
	off, n, given int64
	next          content.Reader // nil before that failed
}

// readAgain is how many bytes that were given are read once more for the sake of another source. Beyond that a runtime
// had better read on by itself: it does not wait for ever.
const readAgain = 256 << 20

func (r *lastingRange) givenUp(err error) bool {
	return errors.Is(err, errForeign) && r.given > readAgain && r.of.req.File == ""
}

// replace goes over to another source after err. It fails with err where there is none.
func (r *lastingRange) replace(err error) error {
	if r.next != nil || r.given == r.n || r.givenUp(err) {
		return err
	}
	next, openErr := r.of.again(r.ctx, err)
	if openErr != nil {
		return err
	}
	body, openErr := r.reopen(next)
	if openErr != nil {
		return errors.Join(err, openErr, next.Close())
	}
	r.of.fr.log.Warn("an answer cannot be ended from where it began: the rest comes from elsewhere",
		"digest", r.of.req.Digest, "given", r.given, "error", err)
	_ = r.ReadCloser.Close() // it has failed
	r.next, r.ReadCloser = next, body
	return nil
}

// reopen gives the rest of the range, once what was given of it before is seen to be the same elsewhere, as far as that
// was peers' word. Of a whole blob all is read once more in any case: only so the end can wait for the digest.
func (r *lastingRange) reopen(next content.Reader) (io.ReadCloser, error) {
	size := next.Size()
	if size != r.of.Size() {
		return nil, fmt.Errorf("%s is of %d bytes elsewhere, want %d: %w", r.of.req.Digest, size, r.of.Size(),
			content.ErrDigestMismatch)
	}
	at, end := r.off+r.given, r.off+r.n
	claims, err := r.of.claims()
	if err != nil {
		return nil, err
	}
	if r.given == 0 || claims == nil && r.n < size {
		return next.Range(r.ctx, at, end-at)
	}
	cut := content.CutLeaves(size)
	if claims != nil {
		cut = claims.Cut()
	}
	first, last := cut.At(r.off), cut.At(at-1)
	start := cut.Start(first)
	body, err := next.Range(r.ctx, start, max(end, min(cut.Start(last+1), size))-start)
	if err != nil {
		return nil, err
	}
	var chunk []byte
	for i := first; i <= last; i++ {
		_, n := cut.Range(i)
		chunk = slices.Grow(chunk[:0], int(n))[:n]
		if _, err = io.ReadFull(body, chunk); err == nil && claims != nil && claims.CID(i) != content.ChunkCID(chunk) {
			err = fmt.Errorf("chunk %d is another elsewhere than was given: %w", i, content.ErrDigestMismatch)
		}
		if err != nil {
			return nil, errors.Join(err, body.Close())
		}
	}
	rest := io.MultiReader(bytes.NewReader(chunk[at-cut.Start(last):]), body)
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(rest, end-at), body}, nil
}

// claims are the chunks by the word of which a blob arrives; nil where what was given is known to be right.
func (l *lasting) claims() (*content.ChunkMap, error) {
	r, arriving := l.Reader.(*reader)
	if !arriving {
		return nil, nil
	}
	r.f.mu.Lock()
	ing, err := r.f.ing, r.f.err
	r.f.mu.Unlock()
	if ing == nil { // it did not match, and was dropped since
		return nil, err
	}
	return ing.Map(), nil
}

func (r *lastingRange) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.given += int64(n)
	if err == nil || err == io.EOF || r.replace(err) != nil {
		return n, err
	}
	return n, nil
}

// WriteTo keeps the way to sendfile open.
func (r *lastingRange) WriteTo(w io.Writer) (total int64, err error) {
	for {
		n, err := io.Copy(w, r.ReadCloser)
		r.given += n
		total += n
		if err == nil || r.replace(err) != nil {
			return total, err
		}
	}
}

func (r *lastingRange) Close() error {
	err := r.ReadCloser.Close()
	if r.next != nil {
		err = errors.Join(err, r.next.Close())
	}
	return err
}
