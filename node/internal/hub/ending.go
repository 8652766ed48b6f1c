package hub

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// endSize is how many bytes of a file wait, at least, until its digest matches.
const endSize = 64

// lastChunk is where the last chunk of a file of size bytes begins.
func lastChunk(size int64) int64 {
	cut := content.CutLeaves(size)
	return cut.Start(cut.Len() - 1)
}

// ending reads what lies in a file's last chunk, up to its end. That chunk waits until the digest of the whole matches,
// so that a client who asks for nothing else, as for the footer of a table, would get nothing for long, and give up. It
// is given all but the very end at once. The end comes once the digest matches and what was given before is seen to be
// the same in the file that does: so no answer ends well with a wrong byte in it.
type ending struct {
	content.Reader                                // does not wait for the digest
	whole          func() (content.Reader, error) // opens what does
	given          *early
}

// early is what one answer has given of a file that was not known to match its digest. The answer may have been opened
// anew since. What is given again is told from it by a hash whose seed nobody knows.
type early struct {
	off, n int64
	sum    maphash.Hash
}

func (e *early) Write(b []byte) (int, error) {
	e.n += int64(len(b))
	return e.sum.Write(b)
}

// follows notes that bytes from off on are given next. It fails where they do not follow those before.
func (e *early) follows(off int64) error {
	if e.n == 0 {
		e.off = off
	}
	if off != e.off+e.n {
		return fmt.Errorf("the answer goes on at byte %d, and %d were given from %d: %w", off, e.n, e.off,
			content.ErrDigestMismatch)
	}
	return nil
}

// check reads as many bytes as were given from a body that begins where they did, and compares them.
func (e *early) check(body io.Reader) error {
	var sum maphash.Hash
	sum.SetSeed(e.sum.Seed())
	if _, err := io.CopyN(&sum, body, e.n); err != nil {
		return err
	}
	if sum.Sum64() != e.sum.Sum64() {
		return fmt.Errorf("%d bytes from %d were given before the digest was known, and others match it: %w", e.n,
			e.off, content.ErrDigestMismatch)
	}
	return nil
}

func (e *ending) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := e.given.follows(off); err != nil {
		return nil, err
	}
	held := min(n, endSize)
	start, err := e.Reader.Range(ctx, off, n-held)
	if err != nil {
		return nil, err
	}
	end := &heldEnd{open: func() (io.ReadCloser, error) { return e.end(ctx, off+n) }}
	return &joined{io.MultiReader(io.TeeReader(start, e.given), end), []io.Closer{start, end}}, nil
}

// end opens what is left up to a byte, once the digest of the file matches.
func (e *ending) end(ctx context.Context, to int64) (io.ReadCloser, error) {
	whole, err := e.whole()
	if err != nil {
		return nil, err
	}
	body, err := whole.Range(ctx, e.given.off, to-e.given.off)
	if err != nil {
		_ = whole.Close()
		return nil, err
	}
	end := &joined{body, []io.Closer{body, whole}}
	if err := e.given.check(body); err != nil {
		_ = end.Close()
		return nil, err
	}
	return end, nil
}

// heldEnd is opened when what is before it was read, so that nothing else of the file is on its way before that.
type heldEnd struct {
	open func() (io.ReadCloser, error)
	body io.ReadCloser
}

func (h *heldEnd) Read(p []byte) (n int, err error) {
	if h.body == nil {
		if h.body, err = h.open(); err != nil {
			h.body = nil
			return 0, err
		}
	}
	return h.body.Read(p)
}

func (h *heldEnd) Close() error {
	if h.body == nil {
		return nil
	}
	return h.body.Close()
}

// joined closes all that it is made of.
type joined struct {
	io.Reader
	parts []io.Closer
}

func (j *joined) Close() (err error) {
	for _, p := range j.parts {
		if failed := p.Close(); err == nil {
			err = failed
		}
	}
	return err
}
