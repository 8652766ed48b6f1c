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

const (
	// sampleSize is how many bytes of what is kept the registry must give, and sampleTries how many places are looked
	// at for such as nobody guesses.
	sampleSize, sampleTries = 4 << 10, 16
	// sampling is how long the registry has for it.
	sampling = 5 * time.Second
)

// inherit has the fetch resume what is kept of the blob in another name: of the repository, where the fetch is of one
// caller apart or the other way round, or of all. After a kill a client may ask for the blob alone, of which the
// gate knows nothing any more. First the registry must give the caller himself a part of what is kept, at a place that
// nobody foretells. So who only claims to have the content is given none of it.
func (f *fetch) inherit() {
	f.making.Lock() // what is compared is open meanwhile
	defer f.making.Unlock()
	f.mu.Lock()
	req, late := f.req, f.alone || f.cut.Size() >= 0
	f.mu.Unlock()
	if late || req.Kind != content.Blob || req.NoUpstream() || f.fr.opts.PeersOnly(req.Repository) ||
		f.fr.opts.Store.SizeOf(f.digest, f.keptOf) > 0 {
		return
	}
	marks := []store.Source{source(req.Repository.String()).mark(), f.fr.apart(req).mark(), source("").mark()}
	i := slices.IndexFunc(marks, func(of store.Source) bool { return of != f.keptOf && f.givesTheSame(req, of) })
	if i >= 0 {
		f.mu.Lock()
		f.keptOf = marks[i]
		f.mu.Unlock()
	}
}

// givesTheSame reports whether the registry gives the caller of a request a part of what is kept of a source.
func (f *fetch) givesTheSame(req content.Request, of store.Source) bool {
	size := f.fr.opts.Store.SizeOf(f.digest, of)
	if size == 0 {
		return false
	}
	ing, err := f.fr.ingest(f.digest, size, store.Origin{Source: of, Pool: store.PoolOf(req), Grain: f.grain})
	if err != nil {
		return false // whoever makes room for the blob is told why
	}
	defer func() { _ = ing.Close() }()
	ctx, cancel := context.WithTimeout(f.ctx, sampling)
	defer cancel()
	off, own := sample(ctx, ing, content.Places(f.fr.secret, f.digest))
	if own == nil {
		return false
	}
	body, err := f.fr.opts.Upstream.Open(ctx, req, off, sampleSize)
	if err != nil {
		return false
	}
	defer func() { _ = body.Close() }()
	theirs := make([]byte, sampleSize)
	if body.Offset != off || body.Size != size {
		return false
	}
	_, err = io.ReadFull(body, theirs)
	return err == nil && bytes.Equal(own, theirs)
}

// sample is a part of what is kept that nobody guesses; nil: there is none.
func sample(ctx context.Context, ing *store.Ingest, places *rand.Rand) (off int64, data []byte) {
	var kept []int
	for i := range ing.Len() {
		if _, n := ing.Cut().Range(i); n >= sampleSize && ing.Has(i) {
			kept = append(kept, i)
		}
	}
	for try := 0; try < sampleTries && len(kept) > 0; try++ {
		i := kept[places.IntN(len(kept))]
		start, n := ing.Cut().Range(i)
		at := places.Int64N(n - sampleSize + 1)
		part, err := ing.SectionWriterTo(ctx, i, at, sampleSize)
		if err != nil {
			continue // a loss of power took it
		}
		data, err := io.ReadAll(part)
		if _ = part.Close(); err == nil && content.Variety(data) >= content.Varied {
			return start + at, data
		}
	}
	return 0, nil
}
