package plan_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
)

func settings(t *rapid.T) plan.Settings {
	return plan.Settings{
		Seed:  rapid.Uint64().Draw(t, "seed"),
		Nodes: rapid.IntRange(2, 12).Draw(t, "nodes"),
		Pulls: rapid.IntRange(0, 80).Draw(t, "pulls"),
		Only:  rapid.SliceOfN(rapid.SampledFrom(plan.Kinds()), 0, 4).Draw(t, "only"),
	}
}

func TestARoundIsTheSameWheneverItIsMade(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, number := settings(t), rapid.IntRange(0, 1000).Draw(t, "number")
		require.Equal(t, plan.MakeRound(s, number), plan.MakeRound(s, number))
	})
}

func TestARoundLeavesOneNodeAloneAndEndsInTime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := settings(t)
		r := plan.MakeRound(s, rapid.IntRange(0, 1000).Draw(t, "number"))
		harmed, ofRegistry := map[int]bool{}, 0
		for _, f := range r.Faults {
			require.Positive(t, f.For, f)
			require.LessOrEqual(t, f.At+f.For, plan.Span, f)
			if f.Kind.OfRegistry() {
				ofRegistry++
			}
			for _, node := range f.Nodes {
				require.False(t, harmed[node], "node %d fails in two ways", node)
				require.Less(t, node, s.Nodes)
				harmed[node] = true
			}
			if len(s.Only) > 0 {
				require.Contains(t, s.Only, f.Kind)
			}
		}
		require.LessOrEqual(t, ofRegistry, 1)
		require.Less(t, len(harmed), s.Nodes)
	})
}

func TestEveryNodePullsTheNewImageAndNoPullIsOfWhatWasNot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, number := settings(t), rapid.IntRange(0, 10).Draw(t, "number")
		r := plan.MakeRound(s, number)
		require.Len(t, r.Pulls, max(s.Nodes, s.Pulls))
		fresh := map[int]bool{}
		for _, p := range r.Pulls {
			require.LessOrEqual(t, p.Back, min(number, plan.Kept))
			require.LessOrEqual(t, p.At, plan.Span)
			if p.Back == 0 {
				fresh[p.Node] = true
			}
		}
		require.Len(t, fresh, s.Nodes)
		require.Positive(t, r.Image.Size())
	})
}

func TestSoManyRoundsFailInEveryWay(t *testing.T) {
	t.Parallel()
	seen := map[plan.Kind]int{}
	for number := range 200 {
		for _, f := range plan.MakeRound(plan.Settings{Seed: 1, Nodes: 8}, number).Faults {
			seen[f.Kind]++
		}
	}
	for _, kind := range plan.Kinds() {
		require.GreaterOrEqual(t, seen[kind], 3, kind)
	}
	require.True(t, slices.ContainsFunc(plan.Kinds(), plan.Kind.OfRegistry))
}
