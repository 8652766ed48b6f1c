package workload

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/test/bench/internal/contender"
	"github.com/shoal-cache/shoal/test/internal/netns"
)

func TestTheIdealOfTheReferenceWorkload(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 11.07, transfer(132*mib, 100*netns.Mbit).Seconds(), 0.01)
	require.Zero(t, transfer(132*mib, 0), "an unshaped link has no ideal")
	require.Equal(t, 50*netns.Mbit, layout{rate: 100 * netns.Mbit, zones: 2, thin: 50 * netns.Mbit}.narrowest())
	require.Equal(t, 100*netns.Mbit, layout{rate: 100 * netns.Mbit}.narrowest())
}

func TestPartsAddUpToTheWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<40).Draw(t, "size")
		parts := rapid.SliceOfN(rapid.Int64Range(1, 10), 1, 100).Draw(t, "parts")
		total := int64(0)
		for _, part := range split(size, parts...) {
			require.GreaterOrEqual(t, part, int64(0))
			total += part
		}
		require.Equal(t, size, total)
	})
}

func TestEveryWorkloadHasANameOfItsOwnAndTheContendersItNeeds(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, w := range All(Settings{Nodes: 8, Rate: netns.Mbit, Size: 132 * mib, Huge: mib, Warm: mib,
		Scales: []int{2, 16}}) {
		require.False(t, names[w.Name], w.Name)
		names[w.Name] = true
		require.True(t, w.Has(contender.Shoal{}), w.Name)
		require.Equal(t, w.Name == "warm", w.Has(contender.HTTPS{}), w.Name)
		require.Equal(t, w.Name == "warm", w.Has(contender.Shoal{StoreOnly: true}), w.Name)
		require.GreaterOrEqual(t, w.layout.nodes, 2, w.Name)
	}
	require.True(t, names["nodes-16"])
}

func TestAContenderThatIsMissingIsSkippedWithTheReason(t *testing.T) {
	t.Parallel()
	for _, w := range All(Settings{Nodes: 2, Rate: netns.Mbit, Size: mib, Huge: mib, Warm: mib}) {
		run := w.Run(t.Context(), Settings{}, contender.Launched{Peer: "kraken"})
		require.Equal(t, "kraken", run.Contender)
		require.Contains(t, run.Skipped, "no binary was given")
		require.False(t, run.Measured())
	}
}

func TestSizesReadAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	require.Equal(t, "132 MiB", sizeName(132*mib))
	require.Equal(t, "10 MB", sizeName(10e6))
	require.EqualValues(t, 256*mib, doubled(132*mib))
	require.EqualValues(t, 64*mib, doubled(32*mib))
}
