// Package bootstrap chooses the few peers that new agents start from.
package bootstrap

import (
	"cmp"
	"slices"
	"time"
)

// Peer is an admitted peer.
type Peer struct {
	Name    string
	Zone    string
	Created time.Time
	// Live: its node is Ready and its agent reports.
	Live bool
}

// Choose returns up to n live peers, by name in order.
//
// A peer that was chosen before stays as long as it is live, unless its zone has more than its even share while a zone
// with less has a peer to give: agents remember the set, and the less it changes the more of what they remember holds.
// Vacancies go to the zone with the fewest chosen and there to the age group with the fewest: the peers, ordered by
// age, are cut into n groups, so that replacing nodes oldest first, or all new ones at once, leaves most of the set
// standing.
func Choose(peers []Peer, before []string, n int) []string {
	live := slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return !p.Live })
	slices.SortFunc(live, func(a, b Peer) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	c := choice{live: live, n: n, zones: map[string]int{}, ages: map[int]int{}, chosen: map[int]bool{}}
	for i, p := range live {
		if slices.Contains(before, p.Name) && len(c.chosen) < n {
			c.take(i)
		}
	}
	for len(c.chosen) < min(n, len(live)) {
		c.take(c.best())
	}
	c.balance()

	names := make([]string, 0, len(c.chosen))
	for i := range c.chosen {
		names = append(names, live[i].Name)
	}
	slices.Sort(names)
	return names
}

type choice struct {
	live   []Peer // by age
	n      int
	chosen map[int]bool
	zones  map[string]int // chosen peers by zone
	ages   map[int]int    // chosen peers by age group
}

func (c *choice) ageGroup(i int) int { return i * c.n / len(c.live) }

func (c *choice) take(i int) {
	c.chosen[i] = true
	c.zones[c.live[i].Zone]++
	c.ages[c.ageGroup(i)]++
}

func (c *choice) drop(i int) {
	delete(c.chosen, i)
	c.zones[c.live[i].Zone]--
	c.ages[c.ageGroup(i)]--
}

// best is the peer not chosen yet that serves the spread best; -1 if all are chosen.
func (c *choice) best() int {
	best := -1
	for i := range c.live {
		if c.chosen[i] {
			continue
		}
		if best < 0 || cmp.Or(
			cmp.Compare(c.zones[c.live[i].Zone], c.zones[c.live[best].Zone]),
			cmp.Compare(c.ages[c.ageGroup(i)], c.ages[c.ageGroup(best)])) < 0 {
			best = i
		}
	}
	return best
}

// balance moves peers from zones with too many to zones with too few, one at a time.
func (c *choice) balance() {
	for range c.n {
		in := c.best()
		if in < 0 {
			return
		}
		out := -1
		for i := range c.live {
			if c.chosen[i] && (out < 0 || c.zones[c.live[i].Zone] > c.zones[c.live[out].Zone]) {
				out = i
			}
		}
		if out < 0 || c.zones[c.live[out].Zone] <= c.zones[c.live[in].Zone]+1 {
			return
		}
		c.drop(out)
		c.take(in)
	}
}
