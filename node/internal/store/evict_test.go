package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestPoliciesOrderVictims(t *testing.T) {
	t.Parallel()
	c := func(name string, used int64, hits uint32) candidate {
		return candidate{digest: digest.Digest(name), size: 10, lastUsed: used, hits: hits}
	}
	for name, tt := range map[string]struct {
		policy   policy
		capacity int64
		blobs    []candidate
		want     []digest.Digest
	}{
		"LRU goes by last use alone": {
			lru, 100, []candidate{c("c", 3, 0), c("a", 1, 9), c("b", 2, 0)}, []digest.Digest{"a", "b", "c"},
		},
		"SLRU takes what was used once before what was used again": {
			slru, 100, []candidate{c("daily", 1, 3), c("scan1", 5, 0), c("scan2", 6, 0)}, []digest.Digest{"scan1",
				"scan2", "daily"},
		},
		"SLRU protects four fifths of the capacity, the most recent first": {
			slru, 25, []candidate{c("old", 1, 1), c("older", 0, 1), c("new", 3, 1), c("newer", 4, 1), c("once", 2, 0)},
			[]digest.Digest{"older", "old", "once", "new", "newer"},
		},
		"SLRU without a capacity protects all that was used again": {
			slru, 0, []candidate{c("a", 1, 1), c("b", 2, 0), c("c", 3, 1)}, []digest.Digest{"b", "a", "c"},
		},
		"nothing to order": {slru, 10, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.policy(tt.blobs, tt.capacity)
			var got []digest.Digest
			for _, b := range tt.blobs {
				got = append(got, b.digest)
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// aged puts blobs of one chunk, an hour after one another.
func aged(t *testing.T, s *Store, n int) []sample {
	t.Helper()
	list := make([]sample, n)
	for i := range list {
		list[i] = newSample(uint64(500+i), chunkSize)
		put(t, s, list[i])
		time.Sleep(time.Hour) // in the bubble's time
	}
	return list
}

func requireHeld(t *testing.T, s *Store, blobs []sample, want ...bool) {
	t.Helper()
	got := make([]bool, len(blobs))
	for i, b := range blobs {
		_, err := s.Stat(b.digest)
		got[i] = err == nil
	}
	require.Equal(t, want, got)
}

const (
	held = true
	gone = false
)

func TestEviction(t *testing.T) {
	t.Parallel()
	limits := Limits{Capacity: 10 * chunkSize, High: 0.6, Low: 0.4}
	for name, tt := range map[string]struct {
		options Options
		prepare func(t *testing.T, s *Store, blobs []sample)
		want    []bool // of the six blobs that were there, once a seventh has come; four fit
	}{
		"takes the least recently used": {want: []bool{gone, gone, gone, held, held, held}},
		"spares what was read since": {
			prepare: func(t *testing.T, s *Store, blobs []sample) { requireHas(t, s, blobs[0]) },
			want:    []bool{held, gone, gone, gone, held, held},
		},
		"spares a blob of which peers read blocks": {
			prepare: func(t *testing.T, s *Store, blobs []sample) { requireBlocks(t, s, blobs[1]) },
			want:    []bool{gone, held, gone, gone, held, held},
		},
		"never takes what is pinned": {
			prepare: func(t *testing.T, s *Store, blobs []sample) {
				require.NoError(t, s.Pin("me", []digest.Digest{blobs[0].digest, blobs[2].digest}))
			},
			want: []bool{held, gone, held, gone, gone, held},
		},
		"takes what was unpinned": {
			prepare: func(t *testing.T, s *Store, blobs []sample) {
				require.NoError(t, s.Pin("me", []digest.Digest{blobs[0].digest, blobs[2].digest}))
				require.NoError(t, s.Pin("you", []digest.Digest{blobs[2].digest}))
				require.NoError(t, s.Unpin("me"))
			},
			want: []bool{gone, gone, held, gone, held, held},
		},
		"takes what others hold first": {
			options: Options{Holders: func(d digest.Digest) int {
				if d == newSample(504, chunkSize).digest || d == newSample(505, chunkSize).digest {
					return 2
				}
				return 0
			}},
			want: []bool{gone, held, held, held, gone, gone},
		},
		"of a scan-resistant store spares what was used again": {
			options: Options{Limits: Limits{Eviction: "slru"}},
			prepare: func(t *testing.T, s *Store, blobs []sample) {
				requireHas(t, s, blobs[0])
				requireHas(t, s, blobs[1])
				time.Sleep(time.Hour)
				for _, b := range blobs[2:] { // reads right after the commit are of the same pull
					require.NoError(t, s.Delete(b.digest))
					put(t, s, b)
					requireHas(t, s, b)
					time.Sleep(time.Second)
				}
			},
			want: []bool{held, held, gone, gone, gone, held},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := tt.options
				eviction := o.Limits.Eviction
				o.Limits = limits
				o.Limits.Eviction = eviction
				s := openTest(t, o)
				blobs := aged(t, s, 6)
				if tt.prepare != nil {
					tt.prepare(t, s, blobs)
				}
				time.Sleep(time.Hour)
				put(t, s, newSample(1, chunkSize))
				synctest.Wait()
				requireHeld(t, s, blobs, tt.want...)
				require.NoError(t, s.Close())
			})
		})
	}
}

// All nodes of a burst hold what they pull, and it would go at once for the sake of blobs that nobody else is known to
// hold.
func TestEvict_WhatAPullIsAtGoesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var others sync.Map
		s := openTest(t, Options{
			Limits: Limits{Capacity: 10 * chunkSize, High: 0.6, Low: 0.4},
			Holders: func(d digest.Digest) int {
				if _, held := others.Load(d); held {
					return 1
				}
				return 0
			},
		})
		blobs := aged(t, s, 4)
		for i := range uint64(3) {
			b := newSample(i, chunkSize)
			others.Store(b.digest, true)
			put(t, s, b)
			blobs = append(blobs, b)
		}
		synctest.Wait()
		requireHeld(t, s, blobs, gone, gone, gone, held, held, held, held)
		require.NoError(t, s.Close())
	})
}

// What is read keeps its bytes on the disk though it is evicted, and for each chunk that arrives another would go.
func TestEvict_WhatSomebodyReadsGoesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, Options{Limits: Limits{Capacity: 3 * chunkSize, High: 1, Low: 1}})
		blobs := aged(t, s, 3)
		read, err := s.Get(blobs[0].digest)
		require.NoError(t, err)
		time.Sleep(2 * sameUse)
		put(t, s, newSample(1, chunkSize))
		requireHeld(t, s, blobs, held, gone, held)
		put(t, s, newSample(2, chunkSize))
		requireHeld(t, s, blobs, held, gone, gone)
		require.NoError(t, read.Close())
		require.Error(t, read.Close(), "a second time changes nothing")
		time.Sleep(2 * sameUse)
		put(t, s, newSample(3, chunkSize))
		requireHeld(t, s, blobs, gone, gone, gone)
		require.NoError(t, s.Close())
	})
}

func TestEvict_WhatCannotFitEvictsNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 10 * chunkSize}})
	pinned, other := newSample(1, 4*chunkSize), newSample(2, 3*chunkSize)
	put(t, s, pinned)
	put(t, s, other)
	require.NoError(t, s.Pin("me", []digest.Digest{pinned.digest}))
	_, err := s.Ingest(newSample(3, 0).digest, 7*chunkSize, Origin{})
	require.ErrorIs(t, err, content.ErrNoSpace)
	requireHas(t, s, pinned)
	requireHas(t, s, other)
	put(t, s, newSample(4, 6*chunkSize))
	requireHas(t, s, pinned)
	requireGone(t, s, other)
	require.Zero(t, s.reserved[Images])
}

// What comes waits for no more evictions than it needs; the maintainer sees to the watermarks.
func TestAnAdmissionEvictsNoMoreThanItMust(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 10 * chunkSize, High: 0.6, Low: 0.3}})
	s.cancel()
	s.workers.Wait() // no maintainer any more
	var list []sample
	for i := range uint64(10) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	requireHeld(t, s, list, held, held, held, held, held, held, held, held, held, held)
	put(t, s, newSample(100, 2*chunkSize))
	requireHeld(t, s, list, gone, gone, held, held, held, held, held, held, held, held)
	require.NoError(t, s.trim())
	require.LessOrEqual(t, s.Usage().Bytes, int64(3*chunkSize))
}

// A size is somebody's word until the digest has been checked, and the word of a liar must not cost the cache.
func TestEvict_OnlyBytesThatArriveMakeRoom(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 10 * chunkSize, High: 1, Low: 1}})
	var list []sample
	for i := range uint64(6) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	liar := ingest(t, s, newSample(100, 10*chunkSize))
	requireHeld(t, s, list, held, held, held, held, held, held)
	b := newSample(101, 6*chunkSize)
	g := ingest(t, s, b)
	require.Equal(t, int64(6*chunkSize), s.Usage().Bytes)
	write(t, g, b, 0, 1, 2, 3)
	requireHeld(t, s, list, held, held, held, held, held, held)
	write(t, g, b, 4)
	requireHeld(t, s, list, gone, held, held, held, held, held)
	write(t, g, b, 5)
	requireHeld(t, s, list, gone, gone, held, held, held, held)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, b)
	require.NoError(t, liar.Discard())
}

func TestEvict_AWindowMakesRoomForWhatArrivesAlone(t *testing.T) {
	t.Parallel()
	const blobs = 3 * leastWindow
	s := openTest(t, Options{Limits: Limits{Capacity: blobs * chunkSize, High: 1, Low: 1}})
	var list []sample
	for i := range uint64(blobs) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	all := make([]bool, blobs)
	for i := range all {
		all[i] = held
	}
	var windows []*Ingest
	b := newSample(100, (blobs+1)*chunkSize)
	for i := range uint64(5) { // of blobs that are announced to be larger than all there is
		d := b.digest
		if i > 0 {
			d = digest.FromString(fmt.Sprint(i))
		}
		g, err := s.Window(d, b.size(), Origin{})
		if err != nil {
			require.ErrorIs(t, err, content.ErrNoSpace)
			break
		}
		windows = append(windows, g)
	}
	require.Greater(t, len(windows), 1)
	require.LessOrEqual(t, len(windows), blobs/leastWindow, "together they hold no more than there may be")
	require.NoError(t, s.trim())
	requireHeld(t, s, list, all...)
	for i := range leastWindow + 3 { // the last of which use slots that others had
		if i >= leastWindow {
			windows[0].Drop(i - leastWindow)
		}
		write(t, windows[0], b, i)
		all[min(i, leastWindow-1)] = gone
		requireHeld(t, s, list, all...)
	}
	for _, g := range windows {
		require.NoError(t, g.Close())
	}
}

// What others have taken meanwhile is missing for who only announced to need it, and for nobody else.
func TestWindow_ASlotThatFindsNoRoomFailsAlone(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: leastWindow * chunkSize, High: 1, Low: 1}})
	b, other := newSample(1, 2*leastWindow*chunkSize), newSample(2, 4*chunkSize)
	h := ingest(t, s, other)
	g, err := s.Window(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	write(t, g, b, 0, 1)
	require.NoError(t, s.Pin("me", []digest.Digest{other.digest}))
	require.NoError(t, h.fill(t.Context(), bytes.NewReader(other.data)))
	require.NoError(t, h.Commit(t.Context(), ""))
	for i := 2; i < leastWindow-4; i++ {
		write(t, g, b, i)
	}
	i := leastWindow - 4
	require.ErrorIs(t, g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)), content.ErrNoSpace)
	requireHas(t, s, other)
	require.True(t, g.Drop(0))
	write(t, g, b, i)
	require.NoError(t, g.Close())
}

// A window has few slots filled at first. What comes after it is let in beside all that it may hold, and what is there
// stays.
func TestWindow_HasItsSlotsWhateverComesAfterIt(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 2 * leastWindow * chunkSize, High: 1, Low: 1}})
	old, b := newSample(1, 2*leastWindow*chunkSize), newSample(2, 3*leastWindow*chunkSize)
	put(t, s, old)
	g, err := s.Window(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	large, fits := newSample(3, (2*leastWindow-2)*chunkSize), newSample(4, leastWindow*chunkSize)
	_, err = s.Ingest(large.digest, large.size(), Origin{})
	require.ErrorIs(t, err, content.ErrNoSpace)
	h := ingest(t, s, fits)
	requireHas(t, s, old)
	write(t, g, b, 0, 1)
	require.NoError(t, h.fill(t.Context(), bytes.NewReader(fits.data)))
	for i := 2; i < g.Slots(); i++ {
		write(t, g, b, i)
	}
	require.NoError(t, h.Commit(t.Context(), ""))
	require.NoError(t, g.Close())
}

func TestEvict_TheChunkThatFindsNoRoomFailsAlone(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 4 * chunkSize, High: 1, Low: 1}})
	x, y := newSample(1, 3*chunkSize), newSample(2, 3*chunkSize)
	g, h := ingest(t, s, x), ingest(t, s, y)
	write(t, g, x, 0, 1)
	write(t, h, y, 0, 1)
	require.ErrorIs(t, h.WriteChunk(2, content.ChunkCID(y.chunk(2)), y.chunk(2)), content.ErrNoSpace)
	require.NoError(t, h.Discard())
	write(t, g, x, 2)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, x)
}

func TestAPinHoldsBeforeItsBlobArrivesAndAfterARestart(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	o := Options{Path: path, Limits: Limits{Capacity: 10 * chunkSize}}
	s := openTest(t, o)
	b := newSample(1, 4*chunkSize)
	require.NoError(t, s.Pin("me", []digest.Digest{b.digest, b.digest}))
	put(t, s, b)
	info, err := s.Stat(b.digest)
	require.NoError(t, err)
	require.True(t, info.Pinned)
	require.ErrorIs(t, s.Delete(b.digest), ErrPinned)
	kill(s)

	s = openTest(t, o)
	require.Equal(t, map[string][]digest.Digest{"me": {b.digest}}, s.Pins())
	put(t, s, newSample(2, 5*chunkSize))
	put(t, s, newSample(3, 5*chunkSize))
	requireHas(t, s, b)
	require.Equal(t, b.size(), s.Usage().PinnedBytes)
	require.NoError(t, s.Unpin("me"))
	require.NoError(t, s.Unpin("nobody"))
	require.Empty(t, s.Pins())
	require.NoError(t, s.Delete(b.digest))
}

func TestStalePartialsGoFirstAndFreshOnesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, Options{Limits: Limits{Capacity: 10 * chunkSize, High: 0.9, Low: 0.9}})
		leave := func(seed uint64) sample {
			b := newSample(seed, 2*chunkSize)
			g := ingest(t, s, b)
			write(t, g, b, 0, 1)
			require.NoError(t, g.Close())
			return b
		}
		stale := leave(1)
		time.Sleep(2 * time.Hour)
		blob := newSample(2, 3*chunkSize)
		put(t, s, blob)
		fresh := leave(3)

		put(t, s, newSample(4, 4*chunkSize)) // two chunks must go
		require.Equal(t, bits(0, 1), ingestAndClose(t, s, fresh))
		requireHas(t, s, blob)
		require.NotContains(t, s.partials, partialID{digest: stale.digest})
		put(t, s, newSample(5, 2*chunkSize))
		requireGone(t, s, blob)
		require.Contains(t, s.partials, partialID{digest: fresh.digest})
		require.NoError(t, s.Close())
	})
}

// A machine often learns the time when its agent runs already. What was used or left by then would stay for as long as
// its clock was ahead, and whatever comes later would go in its place.
func TestEvict_WhatWasUsedByAClockThatWasAheadGrowsOldOnceThatIsSetBack(t *testing.T) {
	t.Parallel()
	o := Options{Path: t.TempDir(), Limits: Limits{Capacity: 4 * chunkSize, High: 1, Low: 1}}
	early := []sample{newSample(1, chunkSize), newSample(2, chunkSize)}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(365 * 24 * time.Hour)
		s := openTest(t, o)
		for _, b := range early {
			put(t, s, b)
		}
		require.NoError(t, s.Close())
	})
	synctest.Test(t, func(t *testing.T) { // whose clock begins where that of the first did
		s := openTest(t, o)
		requireHeld(t, s, early, held, held)
		later := aged(t, s, 7)
		synctest.Wait()
		requireHeld(t, s, early, gone, gone)
		requireHeld(t, s, later, gone, gone, gone, held, held, held, held)
		require.NoError(t, s.Close())
	})
}

func TestEvict_APartialThatWasLeftByAClockThatWasAheadGoesStaleOnceThatIsSetBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // by whose clock files are of times to come
		o := Options{Path: t.TempDir(), Limits: Limits{Capacity: 10 * chunkSize, High: 0.9, Low: 0.9}}
		s := openTest(t, o)
		left := newSample(1, 3*chunkSize)
		g := ingest(t, s, left)
		write(t, g, left, 0, 1)
		require.NoError(t, g.Close())
		require.NoError(t, s.Close())
		s = openTest(t, o)
		require.Contains(t, s.partials, partialID{digest: left.digest})
		time.Sleep(2 * time.Hour)
		blob := newSample(2, 5*chunkSize)
		put(t, s, blob)
		put(t, s, newSample(3, 4*chunkSize)) // two chunks must go
		synctest.Wait()
		requireHas(t, s, blob)
		require.NotContains(t, s.partials, partialID{digest: left.digest})
		require.NoError(t, s.Close())
	})
}

func ingestAndClose(t *testing.T, s *Store, b sample) []byte {
	t.Helper()
	g := ingest(t, s, b)
	defer func() { require.NoError(t, g.Close()) }()
	return presentIn(g)
}

func TestTheDiskFloorIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var own, others atomic.Int64 // bytes
		s := openTest(t, Options{
			Limits:    Limits{MinFree: 10 * chunkSize},
			FreeSpace: func(string) (int64, error) { return 100*chunkSize - own.Load() - others.Load(), nil },
			OnEvent: func(ev Event) {
				if ev.Type == Committed {
					own.Add(ev.Info.Size)
				} else {
					own.Add(-ev.Info.Size)
				}
			},
		})
		blobs := aged(t, s, 4)
		others.Store(88 * chunkSize)
		time.Sleep(2 * maintainEvery)
		synctest.Wait()
		requireHeld(t, s, blobs, gone, gone, held, held)
		_, err := s.Ingest(newSample(1, 0).digest, 3*chunkSize, Origin{})
		require.ErrorIs(t, err, content.ErrNoSpace)
		requireHeld(t, s, blobs, gone, gone, held, held)
		put(t, s, newSample(1, chunkSize))
		requireHeld(t, s, blobs, gone, gone, gone, held)
		others.Store(0)
		put(t, s, newSample(2, 20*chunkSize))
		requireHeld(t, s, blobs, gone, gone, gone, held)
		require.NoError(t, s.Close())
	})
}

// A listener may wait for a disk or for a lock of its own. What others pull must come in meanwhile.
func TestEviction_AListenerKeepsNobodyFromWriting(t *testing.T) {
	t.Parallel()
	arriving := newSample(9, leastWindow*chunkSize)
	for name, evict := range map[string]func(t *testing.T, s *Store){
		"a chunk evicts": func(t *testing.T, s *Store) { put(t, s, newSample(8, 2*chunkSize)) },
		"a window evicts": func(t *testing.T, s *Store) {
			b := newSample(8, 40*chunkSize)
			g, err := s.Window(b.digest, b.size(), Origin{})
			require.NoError(t, err)
			write(t, g, b, 0, 1)
			require.NoError(t, g.Close())
		},
		"new limits evict": func(t *testing.T, s *Store) {
			require.NoError(t, s.SetLimits(Limits{Capacity: (leastWindow + 1) * chunkSize}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			removed, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			s := openTest(t, Options{
				Limits: Limits{Capacity: (2*leastWindow + 1) * chunkSize, High: 1, Low: 1},
				OnEvent: func(ev Event) {
					if ev.Type == Removed {
						once.Do(func() { close(removed); <-goOn })
					}
				},
			})
			for i := range uint64(leastWindow) {
				put(t, s, newSample(100+i, 2*chunkSize))
			}
			g := ingest(t, s, arriving)
			done := make(chan struct{})
			go func() {
				defer close(done)
				evict(t, s)
			}()
			<-removed
			write(t, g, arriving, 0) // it waits for ever where the listener has a lock
			close(goOn)
			<-done
			require.NoError(t, g.Close())
		})
	}
}

func TestUnknownFreeSpaceStopsNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{FreeSpace: func(string) (int64, error) { return 0, errors.New("no statfs") }})
	put(t, s, newSample(1, 10))
	require.Equal(t, int64(-1), s.Usage().FreeDisk)
}

func TestSetLimitsEvictsAtOnce(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	var list []sample
	for i := range uint64(5) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	require.Error(t, s.SetLimits(Limits{Eviction: "none such"}))
	require.NoError(t, s.SetLimits(Limits{Capacity: 4 * chunkSize, High: 0.75, Low: 0.5}))
	requireHeld(t, s, list, gone, gone, gone, held, held)
	require.Equal(t, int64(4*chunkSize), s.Usage().Capacity)
}

func TestEvictionPrefersWhatTheRuntimeHoldsToo(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	s := openTest(t, Options{RuntimePath: rt})
	var list []sample
	for i := range uint64(4) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	runtimeHolds(t, rt, list[3])
	require.NoError(t, s.SetLimits(Limits{Capacity: 4 * chunkSize, High: 0.75, Low: 0.75}))
	info, err := s.Stat(list[3].digest)
	require.NoError(t, err)
	require.True(t, info.FromRuntime)
	requireHeld(t, s, list, held, held, held, held)
	requireHas(t, s, list[3])
}

// runtimeHolds puts a blob where containerd's content store keeps it.
func runtimeHolds(t testing.TB, root string, blobs ...sample) {
	t.Helper()
	for _, b := range blobs {
		path := flat(filepath.Join(root, "blobs"), b.digest)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.MkdirAll(filepath.Join(root, "ingest"), 0o755))
		require.NoError(t, os.WriteFile(path, b.data, 0o444))
	}
}

func TestABlobLargerThanTheHighWatermarkButNotTheCapacityFits(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 4 * chunkSize}})
	b := newSample(1, 4*chunkSize)
	g := ingest(t, s, b)
	require.NoError(t, g.fill(t.Context(), bytes.NewReader(b.data)))
	require.NoError(t, g.Commit(t.Context(), ""))
}
