package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

const (
	maxHearings = 16 << 10

	// windowsOfChunk bounds the search for a sample in one chunk that others bring.
	windowsOfChunk = 4
	// hearingTTL is how long the other nodes' word is not asked for again, and wordTTL how long where it is about who
	// may read: a registry that is away is asked by none of them meanwhile.
	hearingTTL = 5 * time.Second
	wordTTL    = 5 * time.Minute
	// swornTTL is how long their word for what a source has is gone by. It is in memory alone, so that what a node says
	// falsely does not outlast by long that it is put out.
	swornTTL = time.Hour
	// peersTimeout bounds the search for content at other nodes that may not be there, and bringTimeout how long
	// nothing of it may come that they say to have.
	peersTimeout = 2 * time.Second
	bringTimeout = 3 * time.Second
	// startAgain is after how long a source that gave some content from its start only is asked for another part again:
	// it may have been a cache in between.
	startAgain = 10 * time.Minute
)

// errPeers is that other nodes do not bring what they say to have, or something else. So it is as if they had none.
var errPeers = fmt.Errorf("what other nodes claim to hold proves nothing: %w", content.ErrNotFound)

// errStart is that a source gives no part of some content but from its start, which proves nothing: much of what is
// private begins as something public does. What is given in its name is its own, until all of it has matched.
var errStart = fmt.Errorf("its registry gives it from the start only: %w", content.ErrNotFound)

// hearing is one question to the other nodes.
type hearing struct {
	at   time.Time
	done chan struct{}

	// After done:
	testimony    Testimony
	proven, held map[digest.Digest]bool
}

// Learn remembers that a source gave a manifest, and asks the other nodes ahead of the callers about what the manifest
// lists. What is listed is claimed by the source as far as it had to have it when it took the manifest. Such are not
// the manifests of an index, which may be sparse, layers that are to be had elsewhere, and the subject.
func (g *Gate) Learn(ctx context.Context, source Source, m *manifest.Manifest) {
	listed := make([]digest.Digest, 0, len(m.Manifests)+len(m.Layers)+1)
	for _, d := range m.Blobs() {
		if len(d.URLs) == 0 && manifest.Distributable(d) {
			g.claimed.Add(source.Owner(), g.thing(source, d.Digest), d.Size)
		}
		listed = append(listed, d.Digest)
	}
	for _, d := range m.Manifests {
		listed = append(listed, d.Digest)
	}
	g.begin(ctx, source, listed)
}

// proved reports whether the source has the content, as it has proved to this node, or to another not long ago.
func (g *Gate) proved(source Source, d digest.Digest) bool {
	at, ok := g.sworn.Get(source.Owner(), g.thing(source, d))
	return ok && time.Since(at) < swornTTL || g.provedHere(source, d)
}

func (g *Gate) provedHere(source Source, d digest.Digest) bool {
	_, ok := g.proven.Get(source.Owner(), g.thing(source, d))
	return ok
}

// enroll remembers that the source has the content.
func (g *Gate) enroll(source Source, d digest.Digest) {
	g.proven.Add(source.Owner(), g.thing(source, d), struct{}{})
	g.saveSoon()
}

// knows reports whether this node or another has proof that the source has the content.
func (g *Gate) knows(ctx context.Context, req Request) bool {
	if g.proved(req.Source, req.Digest) {
		return true
	}
	h := g.hear(ctx, req.Source, req.Digest)
	if h.proven[req.Digest] {
		g.sworn.Add(req.Source.Owner(), g.thing(req.Source, req.Digest), h.at)
		return true
	}
	return false
}

// prove returns nil once the content may be given in the name of its source. A sample that proves nothing leaves the
// caller with the answer that he would have if nobody held the content, which tells him nothing of who does. A source
// that did not answer, or throttles, would give none, and is not asked for it.
func (g *Gate) prove(ctx context.Context, rule policy.Rule, req Request) error {
	if g.knows(ctx, req) {
		return nil
	}
	err := g.sample(ctx, req)
	switch {
	case err == nil:
		return nil
	case !content.Denied(err) && g.claimed.Contains(g.thing(req.Source, req.Digest)):
		return nil // it comes from the source, or not at all
	case content.Throttled(err):
		return g.Throttled(ctx, rule, req.Source, req.Credentials, err)
	case Unanswered(err) && !errors.Is(err, content.ErrBadAnswer) && !errors.Is(err, errPeers):
		return err
	}
	return g.ask(ctx, rule, req)
}

// sample has the source give a part of what is held elsewhere. Who comes while that goes on waits for the same, so the
// content is open for the question itself, and not for the caller with whom it began.
func (g *Gate) sample(ctx context.Context, req Request) error {
	return g.await(ctx, "sample", req, func(ctx context.Context) error {
		r, fromPeers, err := g.elsewhere(ctx, req)
		if err != nil {
			return err
		}
		if fromPeers {
			r = brought{r}
		}
		defer func() { _ = r.Close() }()
		err = g.question(ctx, req.Upstream, func(ctx context.Context) error {
			return g.compare(ctx, req, r, fromPeers)
		})
		switch {
		case errors.Is(err, errPeers), errors.Is(err, errStart):
		case Unanswered(err):
			g.Unheard(ctx, req.Source, req.Credentials)
		case err != nil:
			g.Refused(req.Source, req.Credentials, err)
		}
		return err
	})
}

// brought reads content that other nodes bring, and fails with errPeers where they do not, or bring something else.
type brought struct{ content.Reader }

func (b brought) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	body, err := b.Reader.Range(ctx, off, n)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("%w: %w", errPeers, err)
	}
	go func() {
		for before := b.Arrived(); content.Sleep(ctx, bringTimeout); {
			now := b.Arrived()
			if now == before {
				cancel(errPeers)
				return
			}
			before = now
		}
	}()
	return &awaited{body, cancel}, nil
}

// awaited is a body that is read as long as it comes.
type awaited struct {
	io.ReadCloser
	end context.CancelCauseFunc
}

func (a *awaited) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", errPeers, err)
	}
	return n, err
}

func (a *awaited) Close() error {
	a.end(nil)
	return a.ReadCloser.Close()
}

// elsewhere opens content that this node or another holds. It fails with content.ErrNotFound where none does, or where
// the source would give no sample.
func (g *Gate) elsewhere(ctx context.Context, req Request) (r content.Reader, fromPeers bool, err error) {
	defer content.Apart(ctx)()
	if r, err = g.opts.Cache.Held(req.Digest); err == nil { // a disk that fails is as good as one without it
		return r, false, nil
	}
	err = fmt.Errorf("%w: %w", content.ErrNotFound, err)
	if g.startOnly(req) {
		return nil, false, errStart // and peers are asked for nothing that cannot be compared
	}
	if !g.proved(req.Source, req.Digest) { // else others are not heard about it
		h := g.hear(ctx, req.Source, req.Digest)
		if !h.held[req.Digest] && h.testimony.Everyone {
			return nil, false, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, peersTimeout)
	defer cancel()
	if r, err = g.opts.Cache.FromPeers(ctx, req.Digest); err != nil {
		err = fmt.Errorf("%w: %w", errPeers, err)
	}
	return r, true, err
}

// startOnly reports whether the source, by what it did a while ago, gives no sample of the content.
func (g *Gate) startOnly(req Request) bool {
	at, seen := g.starts.Get(req.Source)
	listed, _ := g.claimed.Get(req.Source.Owner(), g.thing(req.Source, req.Digest))
	whole := req.Upstream.Whole() || listed > 0 && listed <= content.SampleWindow // which begins at the start
	return seen && time.Since(at) < startAgain && !whole
}

// compare has the source give a part of the content, and compares that with what r gives.
func (g *Gate) compare(ctx context.Context, req Request, r content.Reader, fromPeers bool) error {
	off, n := int64(0), r.Size()
	switch {
	case !req.Upstream.Whole():
		var err error
		if off, n, err = choose(ctx, r, content.Places(g.secret, req.Digest), fromPeers); err != nil {
			return err
		}
	case fromPeers: // what can be checked is, before the source is asked for the same
		if err := check(ctx, req.Digest, r); err != nil {
			return err
		}
	case n > manifest.MaxSize:
		return fmt.Errorf("%s of %d bytes is no manifest: %w", req.Digest, n, content.ErrNotFound)
	}
	err := g.match(ctx, req, r, off, n)
	if err != nil && fromPeers && !req.Upstream.Whole() && ctx.Err() == nil && !settles(err) {
		// It may be they who are wrong, of the size or of bytes. What is given in the source's name is its own then.
		return fmt.Errorf("%w: %w", errPeers, err)
	}
	return err
}

// match has the source give n bytes of the content from off, and fails where they are not those that r gives.
func (g *Gate) match(ctx context.Context, req Request, r content.Reader, off, n int64) error {
	theirs, at, err := req.Upstream.Sample(ctx, off, n)
	if err != nil {
		return err
	}
	switch {
	case at != off: // it does not know Range
		g.starts.Add(req.Source, time.Now())
		return fmt.Errorf("%s of %s: %w", req.Digest, req.Source, errStart)
	case int64(len(theirs)) != n:
		return fmt.Errorf("%s gave %d bytes of %s from %d, not %d: %w", req.Source, len(theirs), req.Digest, off, n,
			content.ErrBadAnswer)
	}
	own, err := read(ctx, r, off, n)
	if err != nil {
		return err
	}
	if !bytes.Equal(own, theirs) {
		return fmt.Errorf("%s claims %s, and gives other bytes of it: %w", req.Source, req.Digest,
			content.ErrDigestMismatch)
	}
	g.enroll(req.Source, req.Digest)
	return nil
}

// settles reports whether an error is the source's word on the caller, the content or the rate of requests, or that it
// gives none, whatever was asked for.
func settles(err error) bool {
	return content.Denied(err) || errors.Is(err, content.ErrNotFound) || content.Throttled(err) ||
		Unanswered(err) && !errors.Is(err, content.ErrBadAnswer)
}

// check fails with errPeers where what other nodes have is not the manifest.
func check(ctx context.Context, d digest.Digest, r content.Reader) error {
	if r.Size() > manifest.MaxSize {
		return fmt.Errorf("%s of %d bytes is no manifest: %w", d, r.Size(), errPeers)
	}
	data, err := read(ctx, r, 0, r.Size())
	if err == nil && d.Algorithm().FromBytes(data) != d {
		err = fmt.Errorf("%s: %w", d, errPeers)
	}
	return err
}

// choose picks what a source must give: the whole of what is small, else a part at a random place that is hard to
// guess. Of what other nodes hold a few places of one chunk are looked at, for it has to come first, and then of
// another.
func choose(ctx context.Context, r content.Reader, places *rand.Rand, fromPeers bool) (off, n int64, err error) {
	if r.Size() <= content.SampleWindow {
		return 0, r.Size(), nil
	}
	first, span := int64(0), r.Size()
	off, _, err = content.Sample(func(try int) (int64, []byte, error) {
		if fromPeers && try%windowsOfChunk == 0 {
			first = places.Int64N(r.Size()-content.SampleWindow+1) / content.ChunkSize * content.ChunkSize
			span = min(r.Size()-first, content.ChunkSize)
		}
		start := first + places.Int64N(span-content.SampleWindow+1)
		data, err := read(ctx, r, start, content.SampleWindow)
		return start, data, err
	})
	return off, content.SampleSize, err
}

// read reads what this node holds, or what others bring.
func read(ctx context.Context, r content.Reader, off, n int64) ([]byte, error) {
	defer content.Apart(ctx)()
	body, err := r.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	data := make([]byte, n)
	_, err = io.ReadFull(body, data)
	return data, err
}

// hear returns what other nodes say of one content of a source, or of the source alone where d is empty.
func (g *Gate) hear(ctx context.Context, source Source, d digest.Digest) *hearing {
	h := g.begin(ctx, source, []digest.Digest{d})[0]
	select {
	case <-h.done:
		return h
	case <-ctx.Done():
		return &hearing{}
	}
}

// begin asks other nodes about contents of a source, in one question, but for those that were asked about a moment ago
// or are proved. It returns the hearing of each, and does not wait for it.
func (g *Gate) begin(ctx context.Context, source Source, contents []digest.Digest) []*hearing {
	if g.opts.Witness == nil {
		return slices.Repeat([]*hearing{alone}, len(contents))
	}
	fresh := &hearing{at: time.Now(), done: make(chan struct{})}
	all := make([]*hearing, len(contents))
	var ask []digest.Digest
	for i, d := range contents {
		thing := g.thing(source, d)
		if h, ok := g.hearings.Get(thing); ok && time.Since(h.at) < h.lasts(d) {
			all[i] = h
			continue
		}
		if g.proven.Contains(thing) {
			all[i] = alone
			continue
		}
		all[i] = fresh
		g.hearings.Add(thing, fresh)
		if d != "" {
			ask = append(ask, d)
		}
	}
	if !slices.Contains(all, fresh) {
		return all
	}
	ctx, cancel := g.own(ctx, g.opts.Timeout)
	go func() {
		defer cancel()
		defer close(fresh.done)
		fresh.take(g.opts.Witness.Hear(ctx, source, ask))
	}()
	return all
}

// lasts is for how long what was heard of d is not asked for again.
func (h *hearing) lasts(d digest.Digest) time.Duration {
	select {
	case <-h.done:
		if d == "" && len(h.testimony.Public)+len(h.testimony.Refused) > 0 {
			return wordTTL
		}
	default:
	}
	return hearingTTL
}

// opens reports whether anyone may read a source. yes and no are when it last said so to this node; see HeardPublic.
func (h *hearing) opens(yes, no time.Time) bool {
	for _, ago := range h.testimony.Refused {
		if at := h.at.Add(-ago); at.After(no) {
			no = at
		}
	}
	later := 0 // how many others have seen that it was open since
	for _, ago := range h.testimony.Public {
		if !h.at.Add(-ago).Before(no) {
			later++
		}
	}
	switch {
	case !yes.IsZero() && !yes.Before(no):
		return true
	case no.IsZero():
		return later > 0
	}
	return later >= corroborated
}

// corroborated is how many nodes have to say what other knowledge speaks against.
const corroborated = 2

// alone is the hearing of a node that knows no other.
var alone = func() *hearing {
	h := &hearing{done: make(chan struct{})}
	h.take(Testimony{Everyone: true})
	close(h.done)
	return h
}()

func (h *hearing) take(t Testimony) {
	h.testimony, h.proven, h.held = t, set(t.Proven), set(t.Held)
}

func set(all []digest.Digest) map[digest.Digest]bool {
	m := make(map[digest.Digest]bool, len(all))
	for _, d := range all {
		m[d] = true
	}
	return m
}

// maxTold is the most contents of one question of another node's that are answered.
const maxTold = 512

// Testify is this node's answer to another node that hears it.
func (g *Gate) Testify(source Source, contents []digest.Digest) Testimony {
	// What it has only heard itself is not passed on: nobody would ever take it back.
	var t Testimony
	if at := g.publicAt(source); g.Public(source) {
		t.Public = []time.Duration{time.Since(at)}
	}
	if at := g.refusedAt(source); !at.IsZero() {
		t.Refused = []time.Duration{time.Since(at)}
	}
	for _, d := range contents[:min(len(contents), maxTold)] {
		if g.provedHere(source, d) {
			t.Proven = append(t.Proven, d)
		}
		if _, held := g.opts.Cache.Has(d); held {
			t.Held = append(t.Held, d)
		}
	}
	return t
}
