package placement_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/operator/internal/placement"
)

type fleet struct {
	names      []string
	candidates []placement.Candidate
}

func newFleet(zones int, names ...string) fleet {
	f := fleet{names: names}
	for _, name := range names {
		f.candidates = append(f.candidates, placement.Candidate{
			Domain: fmt.Sprint("zone", placement.Hash("z"+name)%uint64(zones)), Hash: placement.Hash(name)})
	}
	return f
}

func (f fleet) without(i int) fleet {
	return fleet{slices.Delete(slices.Clone(f.names), i, i+1), slices.Delete(slices.Clone(f.candidates), i, i+1)}
}

func (f fleet) pick(key string, n int) []string {
	var names []string
	for _, i := range placement.NewFleet(f.candidates).Pick(key, n, func(int) bool { return true }) {
		names = append(names, f.names[i])
	}
	return names
}

func drawFleet(t *rapid.T) fleet {
	return newFleet(rapid.IntRange(1, 5).Draw(t, "zones"),
		rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{1,8}`), 1, 40, rapid.ID[string]).Draw(t, "names")...)
}

func TestPickGivesSoManyDistinctNodesInBalancedDomains(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f, n := drawFleet(t), rapid.IntRange(0, 45).Draw(t, "n")
		chosen := f.pick("key", n)
		require.Len(t, chosen, min(n, len(f.names)))
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(chosen))), len(chosen), "distinct")

		has, took := map[string]int{}, map[string]int{}
		for i, c := range f.candidates {
			has[c.Domain]++
			if slices.Contains(chosen, f.names[i]) {
				took[c.Domain]++
			}
		}
		for a := range has {
			for b := range has {
				require.False(t, took[a] > took[b]+1 && took[b] < has[b], "%s has %d while %s has %d of %d", a, took[a],
					b, took[b], has[b])
			}
		}
	})
}

func TestANodeThatLeavesMovesLittle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f, n := drawFleet(t), rapid.IntRange(1, 10).Draw(t, "n")
		before := f.pick("key", n)
		gone := rapid.IntRange(0, len(f.names)-1).Draw(t, "gone")
		after := f.without(gone).pick("key", n)

		for _, name := range before {
			if name != f.names[gone] {
				require.Contains(t, after, name, "%s left, and the copy of %s moved", f.names[gone], name)
			}
		}
	})
}

func TestPick_WhoIsRefusedCountsAsAbsent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f, n := drawFleet(t), rapid.IntRange(0, 12).Draw(t, "n")
		refused := rapid.SliceOfN(rapid.Bool(), len(f.names), len(f.names)).Draw(t, "refused")
		asked := map[int]int{}
		var got []string
		for _, i := range placement.NewFleet(f.candidates).Pick("key", n, func(i int) bool {
			asked[i]++
			return !refused[i]
		}) {
			got = append(got, f.names[i])
		}
		for i := range slices.Backward(f.names) {
			require.LessOrEqual(t, asked[i], 1, "asked about %s", f.names[i])
			if refused[i] {
				f = f.without(i)
			}
		}
		require.ElementsMatch(t, f.pick("key", n), got)
	})
}

func TestPickDoesNotDependOnTheOrderOfNodes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := drawFleet(t)
		other := fleet{slices.Clone(f.names), slices.Clone(f.candidates)}
		slices.Reverse(other.names)
		slices.Reverse(other.candidates)
		require.Equal(t, f.pick("key", 5), other.pick("key", 5))
	})
}

func TestKeysSpreadOverNodes(t *testing.T) {
	t.Parallel()
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("node-", i)
	}
	f, load := newFleet(3, names...), map[string]int{}
	const keys = 10_000
	for k := range keys {
		for _, name := range f.pick(fmt.Sprint("pin-", k), 3) {
			load[name]++
		}
	}
	// Each of three zones takes 10,000 copies; a zone of 33 nodes gives each 303, within five standard deviations of
	// 17, and the zones are not of quite the same size.
	for name, n := range load {
		require.InDelta(t, 300, n, 130, name)
	}
}

func TestAcceptSkipsWithinTheDomain(t *testing.T) {
	t.Parallel()
	f := fleet{names: []string{"a1", "a2", "b1", "b2"}}
	for _, name := range f.names {
		f.candidates = append(f.candidates, placement.Candidate{Domain: name[:1], Hash: placement.Hash(name)})
	}
	for _, refused := range f.names {
		var domains []string
		for _, i := range placement.NewFleet(f.candidates).Pick("key", 2, func(i int) bool {
			return f.names[i] != refused
		}) {
			require.NotEqual(t, refused, f.names[i])
			domains = append(domains, f.candidates[i].Domain)
		}
		require.ElementsMatch(t, []string{"a", "b"}, domains)
	}
}
