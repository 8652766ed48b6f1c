package fetch

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// sampling is how long the registry has to give a sample, the wait for its turn included.
const sampling = 5 * time.Second

// inherit has the fetch resume what is kept of the blob in another name: of the repository, where the fetch is of one
// caller apart or the other way round, or of all. After a kill a client may ask for the blob alone, of which the
// gate knows nothing any more. First the registry must give the caller himself a part of what is kept, at a place that
// nobody foretells. So who only claims to have the content is given none of it.
func (f *fetch) inherit() {
	f.mu.Lock()
	req, again := f.req, f.try != firstTry
	f.mu.Unlock()
	if again || req.Kind != content.Blob || req.NoUpstream() || f.fr.opts.PeersOnly(req.Repository) ||
		f.fr.opts.Store.SizeOf(f.digest, f.keptOf) > 0 {
		return
	}
	marks := []store.Source{source(req.Repository.String()).mark(), f.fr.apart(req).mark(), source("").mark()}
	i := slices.IndexFunc(marks, func(of store.Source) bool { return of != f.keptOf && f.givesTheSame(req, of) })
	if i < 0 {
		return
	}
	f.making.Lock()
	defer f.making.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut.Size() < 0 { // else there is room for it already, in the other name
		f.keptOf = marks[i]
	}
}

// givesTheSame reports whether the registry gives the caller of a request a part of what is kept of a source. Nothing
// of it is changed for who may not be given it.
func (f *fetch) givesTheSame(req content.Request, of store.Source) bool {
	left, err := f.fr.opts.Store.Left(f.digest, of)
	if err != nil {
		return false
	}
	off, own := sample(left, content.Places(f.fr.secret, f.digest))
	if content.Variety(own) < content.Varied {
		return false
	}
	ctx, cancel := context.WithTimeout(f.ctx, sampling)
	defer cancel()
	ctx, leave, err := takeTurn(ctx, f.fr.turnsAt(req.Repository))
	if err != nil {
		return false
	}
	defer leave()
	body, err := f.fr.opts.Upstream.Open(ctx, req, off, int64(len(own)))
	if err != nil {
		return false
	}
	defer func() { _ = body.Close() }()
	theirs := make([]byte, len(own))
	if body.Offset != off || body.Size != left.Cut().Size() {
		return false
	}
	_, err = io.ReadFull(body, theirs)
	return err == nil && bytes.Equal(own, theirs)
}

// sample is a part of what is kept, nil where there is none.
func sample(left *store.Left, places *rand.Rand) (off int64, data []byte) {
	kept := left.Chunks()
	off, data, _ = content.Sample(func(int) (int64, []byte, error) { // it never fails
		if len(kept) == 0 {
			return 0, nil, nil
		}
		i := kept[places.IntN(len(kept))]
		start, n := left.Cut().Range(i)
		at := places.Int64N(max(n-content.SampleWindow, 0) + 1)
		all, err := left.Read(i)
		if err != nil {
			return 0, nil, nil //nolint:nilerr // a loss of power took it, and there are others
		}
		return start + at, all[at:min(at+content.SampleWindow, n)], nil
	})
	return off, data
}
