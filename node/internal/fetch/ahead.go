package fetch

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// knownLayers bounds for how many layers it is known what comes after them.
	knownLayers = 1 << 14
	// maxLayers bounds the layers of a manifest that is read ahead of, far above what images have.
	maxLayers = 1 << 10
	// mostAhead bounds the layers that are begun at one time: how large they are is the manifest's word.
	mostAhead = 16
)

// place is where a layer stands in the manifest of its repository that named it last.
type place struct {
	layers []layer // each once
	index  int
}

// layer is what is kept of a descriptor, which may hold much else.
type layer struct {
	digest digest.Digest
	size   int64
}

// learnOrder remembers in which order a manifest of a repository lists its layers. Another repository's says nothing of
// what a caller is going to ask this one for.
func (fr *Fetcher) learnOrder(repo content.Repository, layers []ocispec.Descriptor) {
	if len(layers) > maxLayers {
		return
	}
	seen := make(map[digest.Digest]bool, len(layers))
	once := make([]layer, 0, len(layers))
	for _, l := range layers {
		if l.Size > 0 && l.Digest.Validate() == nil && !seen[l.Digest] {
			seen[l.Digest] = true
			once = append(once, layer{l.Digest, l.Size})
		}
	}
	for i, l := range once {
		fr.places.Add(hint{repo, l.digest}, place{once, i})
	}
}

// ReadAhead begins to fetch the layers that come after one in its manifest, as far as Options.ReadAhead bytes go, for
// who has just asked for the whole of that one: runtimes download three layers at a time, in order, and once they miss
// one they miss those on top of it. So the swarm has enough to share where layers are small, and the next are here or
// on their way when they are asked for. It returns at once, and does nothing for what is no layer of a manifest that
// has come by lately.
func (fr *Fetcher) ReadAhead(req content.Request) {
	at, ok := fr.places.Get(hint{req.Repository, req.Digest})
	if fr.opts.ReadAhead > 0 && ok {
		fr.aside(func() { fr.beginAll(req, at.layers[at.index+1:]) })
	}
}

// beginAll begins to fetch what is not here of some layers, for who has asked for another.
func (fr *Fetcher) beginAll(req content.Request, layers []layer) {
	left, begun := fr.opts.ReadAhead, 0
	for _, next := range layers {
		if _, err := fr.opts.Store.Stat(next.digest); err == nil {
			continue
		}
		begun++
		if left -= next.size; left < 0 || begun > mostAhead {
			return
		}
		req.Kind, req.Digest, req.Size = content.Blob, next.digest, next.size
		fr.begin(req)
	}
}

// begin starts the fetch of a whole blob, unless it runs already. As one whose callers have gone it ends after a while.
func (fr *Fetcher) begin(req content.Request) {
	from := fr.sourceOf(req)
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.fetches[req.Digest] != nil || fr.ctx.Err() != nil {
		return
	}
	f := startFetch(fr.ctx, fr, req, from, true, nil)
	fr.fetches[req.Digest] = f
	fr.m.ahead.Inc()
	fr.wg.Go(func() {
		r := &reader{f: f}
		defer func() { _ = r.Close() }()
		ctx, cancel := context.WithTimeout(fr.ctx, fr.opts.Linger)
		defer cancel()
		err := f.awaitSize(ctx, time.Time{})
		if err == nil {
			err = r.ensure(ctx)
		}
		if err != nil { // who asks for the blob is told
			fr.log.Debug("not read ahead", "digest", req.Digest, "error", err)
		}
	})
}
