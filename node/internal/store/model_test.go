package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// modelBlobs are what the state machine puts and gets.
var modelBlobs = func() []sample {
	var list []sample
	for i, size := range []int{0, 1, 5000, 70_000, chunkSize, chunkSize + 1, 2*chunkSize + 9, 3 * chunkSize} {
		list = append(list, newSample(uint64(9000+i), size))
	}
	return list
}()

// model is what a store must be like from outside: it holds what was committed and not said to be removed.
type model struct {
	t      *rapid.T
	path   string
	store  *Store
	limits Limits
	events recorder
	seen   int // events
	held   map[digest.Digest]sample
	open   map[digest.Digest]*Ingest
	pins   map[string][]digest.Digest
	// whole are the blobs that were read to their end since they were committed and the store was opened.
	whole map[digest.Digest]bool
	// read is what was read last. It is used again: the race detector makes memory that is copied and let go of dear.
	read []byte
}

func (m *model) reopen() {
	s, err := Open(context.Background(), quiet(Options{Path: m.path, Limits: m.limits, OnEvent: m.events.add}))
	require.NoError(m.t, err)
	<-s.finished
	m.store = s
	clear(m.open)
	clear(m.whole)
}

// learn follows the events: a removal is only right for what is not pinned.
func (m *model) learn() {
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	for _, ev := range m.events.list[m.seen:] {
		d := ev.Info.Digest
		delete(m.whole, d)
		if ev.Type == Committed {
			m.held[d] = modelBlobs[slices.IndexFunc(modelBlobs, func(b sample) bool { return b.digest == d })]
			continue
		}
		for owner, ds := range m.pins {
			require.NotContains(m.t, ds, d, "pinned by %s and removed", owner)
		}
		delete(m.held, d)
	}
	m.seen = len(m.events.list)
}

func blob(t *rapid.T) sample { return modelBlobs[rapid.IntRange(0, len(modelBlobs)-1).Draw(t, "blob")] }

// Put puts a blob whole.
func (m *model) Put(t *rapid.T) {
	b := blob(t)
	err := m.store.Put(t.Context(), b.digest, bytes.NewReader(b.data), b.size())
	switch {
	case errors.Is(err, content.ErrNoSpace):
	case errors.Is(err, ErrBusy):
		require.Contains(t, m.open, b.digest)
	default:
		require.NoError(t, err)
	}
}

// Ingest opens an ingest, or goes on with one.
func (m *model) Ingest(t *rapid.T) {
	b := blob(t)
	g := m.open[b.digest]
	if g == nil {
		var err error
		g, err = m.store.Ingest(b.digest, b.size(), Origin{})
		if errors.Is(err, content.ErrNoSpace) {
			return
		}
		if errors.Is(err, ErrExists) {
			require.True(t, m.has(b.digest))
			return
		}
		require.NoError(t, err)
		m.open[b.digest] = g
	}
	i := rapid.IntRange(0, b.chunks()-1).Draw(t, "chunk")
	// open ingests may hold all that there is since the limit was set
	require.NoError(t, ignoreNoSpace(g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i))))
}

// settle waits for evictions that are under way, whose events come when they are done.
func (m *model) settle() {
	require.NoError(m.t, ignoreNoSpace(m.store.trim()))
	m.learn()
}

func (m *model) has(d digest.Digest) bool {
	m.settle()
	_, ok := m.held[d]
	return ok
}

// ignoreNoSpace passes over that too much is pinned for the limits.
func ignoreNoSpace(err error) error {
	if errors.Is(err, content.ErrNoSpace) {
		return nil
	}
	return err
}

// End commits, closes or discards an open ingest.
func (m *model) End(t *rapid.T) {
	b := blob(t)
	g := m.open[b.digest]
	if g == nil {
		t.Skip("not open")
	}
	switch rapid.SampledFrom([]string{"commit", "close", "discard"}).Draw(t, "how") {
	case "commit":
		if err := g.Commit(t.Context(), ""); err != nil {
			require.ErrorIs(t, err, ErrIncomplete)
			return
		}
		require.NoError(t, g.Close())
	case "close":
		require.NoError(t, g.Close())
	case "discard":
		require.NoError(t, g.Discard())
	}
	delete(m.open, b.digest)
}

// Delete deletes a blob.
func (m *model) Delete(t *rapid.T) {
	b := blob(t)
	err := m.store.Delete(b.digest)
	switch {
	case errors.Is(err, ErrPinned):
		require.True(t, slices.ContainsFunc(slices.Collect(valuesOf(m.pins)), func(ds []digest.Digest) bool {
			return slices.Contains(ds, b.digest)
		}))
	case errors.Is(err, ErrBusy):
		require.Contains(t, m.open, b.digest)
	default:
		require.NoError(t, err)
		require.False(t, m.has(b.digest))
	}
}

func valuesOf(m map[string][]digest.Digest) func(func([]digest.Digest) bool) {
	return func(yield func([]digest.Digest) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// Pin pins a blob for one of two owners, or drops an owner's pins.
func (m *model) Pin(t *rapid.T) {
	owner := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "owner")
	m.learn()
	if rapid.Bool().Draw(t, "unpin") {
		require.NoError(t, m.store.Unpin(owner))
		delete(m.pins, owner)
		return
	}
	ds := []digest.Digest{blob(t).digest}
	require.NoError(t, m.store.Pin(owner, ds))
	delete(m.pins, owner) // what the owner pinned before may go by now
	m.settle()            // and so may have what went before the new pin held, or was going
	m.pins[owner] = ds
}

// Limit changes the limits.
func (m *model) Limit(t *rapid.T) {
	m.limits = Limits{
		Capacity: rapid.SampledFrom([]int64{0, 3, 6, 12}).Draw(t, "capacity") * chunkSize,
		Eviction: rapid.SampledFrom([]string{"LRU", "SLRU"}).Draw(t, "eviction"),
	}
	require.NoError(t, m.store.SetLimits(m.limits))
}

// Reopen closes the store and opens it again.
func (m *model) Reopen(t *rapid.T) {
	require.NoError(t, m.store.Close())
	m.reopen()
}

// Crash lets go of the store without closing it, sometimes loses the index, and opens it again.
func (m *model) Crash(t *rapid.T) {
	kill(m.store)
	if rapid.Bool().Draw(t, "lose index") {
		require.NoError(t, os.Remove(m.store.dir("index.db")))
	}
	m.reopen()
}

// Check compares the store with the model. Eviction in the background may remove more at any time, and says so. A blob
// is read to its end once after each commit and each start, and then a part of it, or the reading would be nearly all
// that the test does.
func (m *model) Check(t *rapid.T) {
	m.learn()
	require.Equal(t, m.pins, m.store.Pins())
	for _, b := range modelBlobs {
		_, want := m.held[b.digest]
		got, err := m.store.Get(b.digest)
		if err != nil {
			require.ErrorIs(t, err, content.ErrNotFound)
			if want {
				require.False(t, m.has(b.digest), "%s was committed and is lost", b.digest)
			}
			continue
		}
		off, n := int64(0), b.size()
		if m.whole[b.digest] {
			off = rapid.Int64Range(0, b.size()).Draw(t, "offset")
			n = min(b.size()-off, 5000)
		}
		r, err := got.Range(context.Background(), off, n)
		require.NoError(t, err)
		_, err = io.ReadFull(r, m.read[:n])
		require.NoError(t, err)
		_, err = r.Read(m.read[n:])
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, r.Close())
		require.True(t, bytes.Equal(b.data[off:off+n], m.read[:n]))
		require.NoError(t, got.Close())
		m.whole[b.digest] = true
	}
	m.settle()
	if c := m.limits.Capacity; c > 0 && len(m.open) == 0 {
		u := m.store.Usage()
		require.LessOrEqual(t, u.Bytes, max(c, u.PinnedBytes))
	}
}

func TestTheStoreBehavesAsItsModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		path, err := os.MkdirTemp("", "shoal-store-model") //nolint:usetesting // rapid runs this often in one test, which would keep every directory until its end
		require.NoError(t, err)
		defer func() { require.NoError(t, os.RemoveAll(path)) }()
		m := &model{
			t: t, path: path, held: make(map[digest.Digest]sample),
			open: make(map[digest.Digest]*Ingest), pins: make(map[string][]digest.Digest),
			whole: make(map[digest.Digest]bool), read: make([]byte, 3*chunkSize+1),
		}
		m.reopen()
		defer func() { _ = m.store.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"put": m.Put, "ingest": m.Ingest, "end": m.End, "delete": m.Delete, "pin": m.Pin,
			"limit": m.Limit, "reopen": m.Reopen, "crash": m.Crash, "": m.Check,
		})
	})
}
