package bootstrap_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/operator/internal/bootstrap"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func peer(i int, zone string, live bool) bootstrap.Peer {
	return bootstrap.Peer{Name: fmt.Sprintf("node-%03d", i), Zone: zone,
		Created: epoch.Add(time.Duration(i) * time.Hour), Live: live}
}

func drawPeers(t *rapid.T) []bootstrap.Peer {
	peers := make([]bootstrap.Peer, rapid.IntRange(0, 30).Draw(t, "peers"))
	for i := range peers {
		peers[i] = peer(i, fmt.Sprint("zone-", rapid.IntRange(0, 3).Draw(t, "zone")), rapid.Bool().Draw(t, "live"))
	}
	return peers
}

func TestTheSetIsLiveFullAndSpread(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		peers, n := drawPeers(t), rapid.IntRange(1, 8).Draw(t, "n")
		before := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("node-%03d", rapid.IntRange(0, 40).Draw(t, "member"))
		}), 0, 8).Draw(t, "before")
		set := bootstrap.Choose(peers, before, n)

		live, took := map[string]int{}, map[string]int{}
		total := 0
		for _, p := range peers {
			if slices.Contains(set, p.Name) {
				require.True(t, p.Live, p.Name)
				took[p.Zone]++
			}
			if p.Live {
				live[p.Zone]++
				total++
			}
		}
		require.Len(t, set, min(n, total))
		for a := range live {
			for b := range live {
				require.False(t, took[a] > took[b]+1 && took[b] < live[b], "%s has %d, %s has %d of %d", a, took[a], b,
					took[b], live[b])
			}
		}
	})
}

func TestChurnOfOthersChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		peers, n := drawPeers(t), rapid.IntRange(1, 8).Draw(t, "n")
		set := bootstrap.Choose(peers, nil, n)
		require.Equal(t, set, bootstrap.Choose(peers, set, n), "the choice is its own successor")

		others := slices.DeleteFunc(slices.Clone(peers), func(p bootstrap.Peer) bool {
			return !slices.Contains(set, p.Name) && rapid.Bool().Draw(t, "leaves")
		})
		require.Equal(t, set, bootstrap.Choose(others, set, n))
	})
}

func TestAMemberThatLeavesIsReplacedAndTheOthersStay(t *testing.T) {
	t.Parallel()
	var peers []bootstrap.Peer
	for i := range 30 {
		peers = append(peers, peer(i, "one", true))
	}
	set := bootstrap.Choose(peers, nil, 5)
	for _, gone := range set {
		rest := slices.DeleteFunc(slices.Clone(peers), func(p bootstrap.Peer) bool { return p.Name == gone })
		next := bootstrap.Choose(rest, set, 5)
		require.Len(t, next, 5)
		for _, stays := range set {
			if stays != gone {
				require.Contains(t, next, stays)
			}
		}
	}
}

func TestTheSetIsOfAllAges(t *testing.T) {
	t.Parallel()
	var peers []bootstrap.Peer
	for i := range 50 {
		peers = append(peers, peer(i, "one", true))
	}
	set := bootstrap.Choose(peers, nil, 5)
	t.Log("replacing the older half of the fleet leaves some of the set standing, and so does the younger")
	for _, half := range [][]bootstrap.Peer{peers[:25], peers[25:]} {
		require.GreaterOrEqual(t, len(slices.DeleteFunc(slices.Clone(set), func(name string) bool {
			return !slices.ContainsFunc(half, func(p bootstrap.Peer) bool { return p.Name == name })
		})), 2)
	}
}
