package schedule

import (
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// cpu is the processor time of this thread. Others may keep the machine busy.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_THREAD, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A frame says as much as fits into 64 KiB. What the table does about 20 of them is no more than what any pull makes it
// do.
func TestTable_AFrameCostsItsLengthAndNotWhatItNames(t *testing.T) {
	t.Parallel()
	const list, n = 4096, 1 << 20
	reports := map[string]func(k int) Report{
		"needs of everything": func(int) (r Report) {
			for range list {
				r.Need = append(r.Need, Run{First: 0, Count: n})
			}
			return r
		},
		"needs from the end on": func(k int) (r Report) {
			for i := range list {
				r.Need = append(r.Need, Run{First: n - 1 - i - k*list, Count: n})
			}
			return r
		},
		"needs with gaps": func(k int) (r Report) {
			for i := range list {
				r.Need = append(r.Need, Run{First: 2 * (i + k*list), Count: 1})
			}
			return r
		},
		"suspicions of strangers": func(k int) (r Report) {
			for i := range list {
				r.Suspects = append(r.Suspects, Suspicion{Index: i, From: peer.ID(rune(i + k*list))})
			}
			return r
		},
		"chunks far apart": func(k int) (r Report) {
			for i := range list {
				r.Have = append(r.Have, (i*251+k)%n)
			}
			return r
		},
	}
	for name, report := range reports {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewPlans(Config{})
			p.Open(epoch)
			for _, id := range []peer.ID{"honest", "hostile"} {
				require.NoError(t, p.Join(epoch, id, Join{Upstream: true, Report: Report{Size: content.MaxSize}}))
			}
			all := make([]Report, 20)
			for k := range all {
				all[k] = report(k)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := cpu(t)
			for _, r := range all {
				require.NoError(t, p.Report(epoch, "hostile", r))
			}
			require.Less(t, cpu(t)-before, 3*time.Second)
		})
	}
}

// BenchmarkTable_ABurst is what the plan of a burst costs: 64 nodes bring a blob of 256 chunks in, and take it from each
// other.
func BenchmarkTable_ABurst(b *testing.B) {
	const nodes, chunks = 64, 256
	for b.Loop() {
		table := New(Config{})
		table.Open(epoch)
		for k := range nodes {
			require.NoError(b, table.Join(epoch, id(k), Join{Upstream: true, Whole: true,
				Report: Report{Size: chunks * content.ChunkSize}}))
		}
		given := map[peer.ID][]int{}
		take := func() {
			table.Take(func(to peer.ID, o Orders) {
				for _, a := range o.Chunks {
					given[to] = append(given[to], a.Index)
				}
			})
		}
		for i := range chunks {
			home := id(i % nodes)
			require.NoError(b, table.Report(epoch, home, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: home}}}))
			take()
			for k := range nodes {
				if got := given[id(k)]; len(got) >= batch {
					require.NoError(b, table.Report(epoch, id(k), Report{Have: got}))
					given[id(k)] = nil
				}
			}
			take()
		}
	}
}
