package fetch

import (
	"io"
	"maps"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
)

const (
	// knownPulls bounds of how many repositories it is known how many bytes have come.
	knownPulls = 1 << 10
	// A peer that is alive says a little now and then. What it says counts as bytes of a blob where at least
	// enoughHeard comes within hearing.
	hearing     = 2 * time.Second
	enoughHeard = 16 << 10
)

// pulls counts the bytes that arrive, by the repository for which they do: the blobs of one image come together, and
// share a link.
type pulls struct {
	byRepository *lru.Fair[content.Repository, *bytesOf]
}

// bytesOf is what has come of one pull.
type bytesOf struct {
	all atomic.Int64
	own atomic.Int64              // those of reliefs, see relief.go
	at  atomic.Pointer[time.Time] // when the last came; nil: none has
}

func newPulls() pulls { return pulls{lru.NewFair[content.Repository, *bytesOf](knownPulls)} }

// add counts n bytes.
func (b *bytesOf) add(n int64) {
	now := time.Now()
	b.at.Store(&now)
	b.all.Add(n)
}

// still is for how long nothing has come for a caller that came at a time.
func (b *bytesOf) still(now, came time.Time) time.Duration {
	if last := b.at.Load(); last != nil && last.After(came) {
		came = *last
	}
	return max(0, now.Sub(came))
}

// of is what something that is fetched counts for.
func (p pulls) of(repo content.Repository) *bytesOf {
	return p.byRepository.GetOrAdd(lru.OwnerOf(repo.Registry), repo, new(bytesOf))
}

// soFar is how many bytes have come of a pull. Of one that is only asked about nothing is remembered: it may be a name
// that somebody made up.
func (p pulls) soFar(repo content.Repository) int64 {
	if b, ok := p.byRepository.Get(lru.OwnerOf(repo.Registry), repo); ok {
		return b.all.Load()
	}
	return 0
}

// Progress is how many bytes have arrived at this node of what req is for, by the fetch of it that runs, and of all
// from its repository, parts of chunks among them. It changes for as long as a pull is slow and not stuck.
func (fr *Fetcher) Progress(req content.Request) (blob, pull int64) {
	fr.mu.Lock()
	f := fr.fetches[req.Digest]
	fr.mu.Unlock()
	if f != nil {
		blob = f.came.Load()
	}
	return blob, fr.pulls.soFar(req.Repository)
}

// countBytes counts bytes that came for the fetch.
func (f *fetch) countBytes(n int64) {
	f.came.Add(n)
	f.cameAt.Store(int64(time.Since(f.start)))
	f.pull.add(n)
}

// tally is where the chunks came from that are here. The fetch's lock guards it.
type tally struct {
	cameFrom []provenance
	// Bytes; kept are those of an earlier try, which arrived has not.
	arrived, fromPeers, fromUpstream, kept int64
	lost                                   int // chunks of these that the store has lost, as far as is known here
}

// credit notes that chunk i has come.
func (t *tally) credit(i int, from provenance, n int64) {
	t.cameFrom[i] = from
	switch from {
	case fromHere:
		t.kept += n
		return
	case fromPeer:
		t.fromPeers += n
	case fromUpstream:
		t.fromUpstream += n
	}
	t.arrived += n
}

// here is how many bytes of chunks are here.
func (t *tally) here() int64 { return t.kept + t.arrived }

// missLost has the chunks fetched that the store has found to have been lost since they were written.
func (t *tally) missLost(now time.Time, part *schedule.Participant, ing *store.Ingest) {
	if ing == nil || ing.Lost() == t.lost {
		return
	}
	t.lost = ing.Lost()
	for i := range ing.Len() {
		if part.Has(i) && !ing.Has(i) {
			_, n := ing.Cut().Range(i)
			t.kept -= n
			part.Lose(now, i)
		}
	}
}

// upstreamBytes counts what is read from upstream.
type upstreamBytes struct {
	r   io.Reader
	f   *fetch
	own bool // not on a lease
}

func (u *upstreamBytes) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	if n > 0 {
		u.f.countBytes(int64(n))
		if u.own {
			u.f.pull.own.Add(int64(n))
		} else {
			u.f.moved.Store(true)
		}
	}
	return n, err
}

// ears count what comes from peers that were asked for chunks: a chunk takes long on a slow link, and counts when it
// has begun.
type ears map[peer.ID]ear

type ear struct {
	bytes int64 // of any kind, when since was
	since time.Time
}

// hear tells how many bytes, of those that were heard, may be the beginnings of chunks.
func (all ears) hear(now time.Time, asked func(peer.ID) bool, heard map[peer.ID]int64) (begun int64) {
	maps.DeleteFunc(all, func(p peer.ID, _ ear) bool { return !asked(p) })
	for p, bytes := range heard {
		if !asked(p) {
			continue
		}
		e, known := all[p]
		much := known && bytes-e.bytes >= enoughHeard
		if much {
			begun += bytes - e.bytes
		}
		if !known || much || now.Sub(e.since) > hearing {
			all[p] = ear{bytes, now}
		}
	}
	return begun
}
