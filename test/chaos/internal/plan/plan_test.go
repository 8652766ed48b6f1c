package plan_test

import (
	"slices"
	"testing"
	"time"

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
		if r.Thieves == 0 {
			require.Len(t, fresh, s.Nodes)
		} else {
			require.Len(t, fresh, s.Nodes-1, "one is left to what a liar says")
		}
		require.Positive(t, r.Image.Size())
	})
}

func TestEverySixthRoundHasDeathsAloneAndInTheMiddle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := settings(t)
		s.Only = nil
		r := plan.MakeRound(s, 6*rapid.IntRange(0, 200).Draw(t, "number")+1)
		require.True(t, r.CopiesBounded())
		deaths, deaf := r.Deaths()
		require.Positive(t, deaths)
		require.Zero(t, deaf)
		coordinators := 0
		for _, f := range r.Faults {
			if f.Nodes[0] == r.Image.Coordinator {
				coordinators++
			}
		}
		require.Equal(t, 1, coordinators, "the coordinator dies")
		began := plan.Span
		for _, p := range r.Pulls {
			if p.Back == 0 {
				began = min(began, p.At)
			}
		}
		lasts := time.Duration(float64(r.Image.Size()) / float64(r.Rate*1e6/8) * float64(time.Second))
		for _, f := range r.Faults {
			require.Greater(t, f.At, began, f)
			require.Less(t, f.At, began+lasts, f)
		}
	})
}

func TestOthersLieWhileTheRegistryIsAwayAndCredentialsAreRevoked(t *testing.T) {
	t.Parallel()
	var lies, revocations int
	for number := range 120 {
		r := plan.MakeRound(plan.Settings{Seed: 1, Nodes: 5, Pulls: 12}, number)
		if r.Thieves > 0 {
			lies++
			require.True(t, r.Image.Private)
		}
		if r.Image.Asked && r.RevocationJudged() {
			revocations++
		}
	}
	require.Equal(t, 10, lies)
	require.GreaterOrEqual(t, revocations, 10)
}

func TestSoManyRoundsFailInEveryWay(t *testing.T) {
	t.Parallel()
	seen := map[plan.Kind]int{}
	for number := range 300 {
		for _, f := range plan.MakeRound(plan.Settings{Seed: 1, Nodes: 8}, number).Faults {
			seen[f.Kind]++
		}
	}
	for _, kind := range plan.Kinds() {
		require.GreaterOrEqual(t, seen[kind], 3, kind)
	}
	require.True(t, slices.ContainsFunc(plan.Kinds(), plan.Kind.OfRegistry))
}
