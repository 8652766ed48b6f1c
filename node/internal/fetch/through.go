package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// through reads straight from upstream and keeps nothing: what a node does whose store has no room, or that may not
// give what it has in the name of the caller's source.
type through struct {
	fr    *Fetcher
	req   content.Request
	begun time.Time
	size  int64
	pull  *bytesOf
	read  atomic.Int64 // bytes
}

// openThrough opens a blob so for a reason.
func (fr *Fetcher) openThrough(ctx context.Context, req content.Request, reason error) (content.Reader, error) {
	foreign := errors.Is(reason, errForeign)
	switch asked := !req.NoUpstream() && !fr.opts.PeersOnly(req.Repository); {
	case !asked && foreign:
		return nil, fmt.Errorf("open %s: %w: %w", req.Digest, content.ErrNotFound, reason)
	case !asked:
		return nil, fmt.Errorf("open %s: %w", req.Digest, content.ErrNoSpace)
	}
	req.Size = fr.sizeNamed(req)
	size, _, err := fr.opts.Upstream.Stat(ctx, req)
	if err != nil {
		return nil, err
	}
	level := slog.LevelWarn
	if foreign {
		level = slog.LevelInfo
	}
	fr.log.Log(ctx, level, "reading straight from upstream", "digest", req.Digest, "size", size, "reason", reason)
	return &through{fr: fr, req: req, begun: time.Now(), size: size, pull: fr.pulls.of(req.Repository)}, nil
}

// Arrived is nothing: nothing is kept.
func (t *through) Arrived() int64 { return 0 }

func (t *through) Size() int64  { return t.size }
func (t *through) Close() error { return nil }

func (t *through) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > t.size-n {
		return nil, fmt.Errorf("%s: range of %d bytes at %d is outside its %d bytes", t.req.Digest, n, off, t.size)
	}
	if n == 0 {
		return io.NopCloser(io.LimitReader(nil, 0)), nil
	}
	// Who reads up to the end, and not a part only, has the bytes before it from an earlier answer. All is read once
	// more where nobody else checks it: a runtime does, and one that reads side by side asks so for each of its parts.
	rest := off+n == t.size && !t.req.Part
	whole := n == t.size || rest && (t.req.File != "" || t.disputed())
	switch {
	case whole:
	case t.disputed():
		return nil, fmt.Errorf("%s: upstream says that it is of %d bytes, and the manifest of %d, so no part of it is "+
			"given: %w", t.req.Digest, t.size, t.req.Size, content.ErrUnavailable)
	case t.fr.opts.VerifiedRanges:
		return nil, fmt.Errorf("%s: no room for the whole, so a range of it cannot be verified: %w", t.req.Digest,
			content.ErrUnavailable)
	}
	from, count := off, n
	if whole {
		from, count = 0, -1
	}
	body, err := t.fr.opts.Upstream.Open(ctx, t.req, from, count)
	if err != nil {
		return nil, err
	}
	before := off - body.Offset // a registry that ignores Range sends all
	r := io.LimitReader(&passing{body, t}, before+n)
	if whole {
		r = t.judge(r)
	}
	part := &passage{r, body, t}
	if _, err := io.CopyN(io.Discard, r, before); err != nil {
		return nil, fmt.Errorf("read %s from upstream: %w", t.req.Digest, errors.Join(err, part.Close()))
	}
	return &counted{ReadCloser: part, m: t.fr.m, from: fromUpstream}, nil
}

// disputed reports whether upstream tells another size than the blob's manifest: a part may lie beyond its end.
func (t *through) disputed() bool { return t.req.Size > 0 && t.req.Size != t.size }

// judge reads the whole: all but the end goes out before the digest is known; the end does not, if it is wrong.
func (t *through) judge(r io.Reader) io.Reader {
	r = &judged{content.NewVerifier(r, t.req.Digest, t.size), t.size, t.matched,
		func(error) { t.fr.opts.Upstream.Distrust(t.req) }}
	if _, open := t.fr.doubts.passes(time.Now(), t.req.Digest); open {
		if sums, err := content.NewSummer(t.fr.doubts.grain(t.req.Digest).Cut(t.size)); err == nil {
			r = &weighed{Reader: r, t: t, sums: sums}
		}
	}
	return r
}

// passage is a range that passes through.
type passage struct {
	io.Reader
	io.Closer
	of *through
}

func (p *passage) Close() error {
	p.of.tell()
	return p.Closer.Close()
}

// matched notes that the source has given the whole.
func (t *through) matched() {
	t.fr.opts.Sources.Prove(t.req)
	t.fr.opts.Gave(t.req)
}

// judged reads what is checked against its digest, and tells whether that matches: with the last byte, for many a
// reader knows how many there are, and never asks for the end. right may be nil.
type judged struct {
	io.Reader
	left  int64
	right func()
	wrong func(error)
}

func (j *judged) Read(b []byte) (int, error) {
	n, err := j.Reader.Read(b)
	j.left -= int64(n)
	switch {
	case errors.Is(err, content.ErrDigestMismatch):
		j.wrong(err)
	case n > 0 && j.left == 0 && j.right != nil:
		j.right()
	}
	return n, err
}

// weighed reads a blob of which a window gave wrong bytes, and tells at its end, where it matches its digest, whose
// claims were wrong.
type weighed struct {
	io.Reader
	t    *through
	sums *content.Summer
	all  int64 // bytes so far
}

func (w *weighed) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	_, _ = w.sums.Write(b[:n]) // it never fails
	w.all += int64(n)
	if n > 0 && w.all == w.t.size {
		w.tell()
	}
	return n, err
}

func (w *weighed) tell() {
	fr, right := w.t.fr, w.sums.Map()
	fr.aside(func() {
		c := fr.doubts.take(w.t.req.Digest)
		if c.grain.Cut(w.t.size) != right.Cut() {
			return // another took its place since this began, and what it claims cannot be compared
		}
		fr.settle(&c, w.t.req.Repository.Registry, true, right.Len(),
			func(i int) schedule.Sum { return sumOf(right.CID(i)) })
	})
}

// passing counts what comes.
type passing struct {
	r  io.Reader
	to *through
}

func (p *passing) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.to.pull.add(int64(n))
	p.to.read.Add(int64(n))
	return n, err
}
