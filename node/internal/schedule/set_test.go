package schedule

import (
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSet_HoldsWhatWasPutIn(t *testing.T) {
	t.Parallel()
	const n = 200_000
	rapid.Check(t, func(t *rapid.T) {
		var s, other set
		want, without := map[int]bool{}, map[int]bool{}
		index := rapid.OneOf(rapid.IntRange(0, n-1), rapid.IntRange(1_020, 1_030), rapid.IntRange(0, 40))
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			i := index.Draw(t, "i")
			switch rapid.SampledFrom([]string{"add", "remove", "run", "other"}).Draw(t, "step") {
			case "add":
				s.add(i)
				want[i] = true
			case "remove":
				s.remove(i)
				delete(want, i)
			case "run":
				r := Run{First: i, Count: rapid.IntRange(1, 3000).Draw(t, "count")}
				s.addRun(r)
				for k := r.First; k < r.End(); k++ {
					want[k] = true
				}
			case "other":
				other.addRun(Run{First: i, Count: 3})
				without[i], without[i+1], without[i+2] = true, true, true
			}
			require.Equal(t, len(want), s.size)
		}
		from := index.Draw(t, "from")
		first := func(ok func(i int) bool) (int, bool) {
			for i := from; i < n+100; i++ {
				if ok(i) {
					return i, true
				}
			}
			return 0, false
		}
		for name, c := range map[string]struct {
			next func() (int, bool)
			want func(i int) bool
		}{
			"neither set": {func() (int, bool) {
				return s.nextWithout(from, &other, &other)
			}, func(i int) bool { return want[i] && !without[i] }},
			"one set": {func() (int, bool) { return s.nextWithout(from) }, func(i int) bool { return want[i] }},
			"both sets": {func() (int, bool) {
				return s.nextIn(from, &other)
			}, func(i int) bool { return want[i] && without[i] }},
			"a copy of one": {func() (int, bool) {
				c := s.clone()
				if want[from] {
					s.remove(from)
				}
				defer func() {
					if want[from] {
						s.add(from)
					}
				}()
				return c.nextWithout(from + 1)
			}, func(i int) bool { return want[i] && i != from }},
		} {
			wantNext, wantOK := first(c.want)
			next, ok := c.next()
			require.Equal(t, wantOK, ok, name)
			require.Equal(t, wantNext, next, name)
		}
		size := s.size
		s.addAll(&other)
		for i := range without {
			if !want[i] {
				size++
			}
			require.True(t, s.has(i))
		}
		require.Equal(t, size, s.size)
	})
}

var epoch = time.Unix(1e9, 0)

// What it counts is what the whole process allocates.
//
//nolint:paralleltest // hence
func TestTable_ASizeThatIsOnlySaidCostsNothing(t *testing.T) {
	id := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tables := make([]*Table, 30)
	for k := range tables {
		tables[k] = New(Config{})
		tables[k].Open(epoch)
		for _, p := range id {
			j := Join{Upstream: true, Whole: true, Leased: []Run{{First: 0, Count: 1 << 20}},
				Report: Report{Size: 1 << 40}}
			require.NoError(t, tables[k].Join(epoch, peer.ID(p), j))
		}
		tables[k].Tick(epoch)
		tables[k].Take(func(peer.ID, Orders) {})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20),
		"bytes for 240 participants of 30 blobs of 1 TiB")
	runtime.KeepAlive(tables)
}
