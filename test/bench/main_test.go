package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/netns"
)

func TestTheQuickProfileIsSmallAndYieldsToFlags(t *testing.T) {
	t.Parallel()
	full, err := parse(nil)
	require.NoError(t, err)
	require.Equal(t, 8, full.settings.Nodes)
	require.EqualValues(t, 132<<20, full.settings.Size)
	require.Equal(t, []int{2, 4, 8, 16}, full.settings.Scales)
	require.Equal(t, 100*netns.Mbit, full.settings.Rate)

	quick, err := parse([]string{"-quick", "-nodes", "6", "-scales", "3"})
	require.NoError(t, err)
	require.Equal(t, 6, quick.settings.Nodes)
	require.EqualValues(t, 32<<20, quick.settings.Size)
	require.Equal(t, []int{3}, quick.settings.Scales)
}

func TestWhatCannotBeMeantIsRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-scales", "2,x"}, {"-scales", "0"}, {"-nodes", "1"}, {"-rate", "0"}, {"cold"},
		{"-nosuch"}, {"-workload", "cold", "-peers", "https"}} {
		_, err := parse(args)
		require.Error(t, err, args)
	}
}

func TestANameThatThereIsNotIsToldWithThoseThatThereAre(t *testing.T) {
	t.Parallel()
	_, err := parse([]string{"-workload", "cold,nosuch*", "-scales", "3"})
	require.ErrorContains(t, err, `-workload: there is no "nosuch*"`)
	require.ErrorContains(t, err, "cold-double")
	require.ErrorContains(t, err, "nodes-3")
	_, err = parse([]string{"-peers", "nosuch"})
	require.ErrorContains(t, err, `-peers: there is no "nosuch"`)
	require.ErrorContains(t, err, "kraken")
	_, err = parse([]string{"-workload", "nodes-*,warm", "-peers", "shoal*"})
	require.NoError(t, err)
}

func TestNamesAreChosenWholeOrByTheirBeginning(t *testing.T) {
	t.Parallel()
	require.True(t, chosen("cold", nil))
	require.True(t, chosen("cold", []string{"warm", "cold"}))
	require.False(t, chosen("cold-double", []string{"cold"}))
	require.True(t, chosen("nodes-16", []string{"nodes-*"}))
	require.False(t, chosen("warm", []string{"nodes-*"}))
}
