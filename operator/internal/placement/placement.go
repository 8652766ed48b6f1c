// Package placement chooses which nodes keep a copy: rendezvous hashing within each domain, and the domains in turn.
//
// Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) gives each pair
// of key and node a score, and takes the nodes of highest score. So a node that leaves moves only the copies that it
// held, one that joins takes only the copies that are now its own, and every computation comes to the same choice
// without anything being stored.
package placement

import (
	"cmp"
	"slices"
)

// Candidate is a node that may keep a copy.
type Candidate struct {
	// Domain is the node's failure domain.
	Domain string
	// Hash is Hash of the node's name.
	Hash uint64
}

// Hash is FNV-1a over the string. It is part of what decides where copies lie, and so must never change.
func Hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// score mixes two hashes by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
func score(key, node uint64) uint64 {
	z := key ^ (node + 0x9e3779b97f4a7c15)
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// Fleet is a set of candidates, grouped once for the many keys that choose among them. It is not modified by use.
type Fleet struct {
	domains []group
}

type group struct {
	hash       uint64
	candidates []ranked
}

// ranked is a candidate and its place in the list.
type ranked struct {
	hash  uint64
	index int
}

// NewFleet groups candidates by domain.
func NewFleet(candidates []Candidate) *Fleet {
	f, byName := &Fleet{}, map[string]int{}
	for i, c := range candidates {
		d, ok := byName[c.Domain]
		if !ok {
			d = len(f.domains)
			byName[c.Domain] = d
			f.domains = append(f.domains, group{hash: Hash(c.Domain)})
		}
		f.domains[d].candidates = append(f.domains[d].candidates, ranked{c.Hash, i})
	}
	return f
}

// Pick chooses up to n of the candidates for a key and returns their indexes in order of preference. The domains, in an
// order of the key's own, take turns; in its turn a domain gives the candidate of its highest score that accept takes.
// So the numbers of any two domains differ by one at most, unless one of them has no more to give. accept is asked at
// most once about each candidate.
func (f *Fleet) Pick(key string, n int, accept func(i int) bool) []int {
	k := Hash(key)
	turns := make([]turn, len(f.domains))
	for i := range f.domains {
		turns[i] = turn{key: k, score: score(k, f.domains[i].hash), candidates: f.domains[i].candidates}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(b.score, a.score) })
	var chosen []int
	for len(chosen) < n && len(turns) > 0 {
		left := turns[:0]
		for _, t := range turns {
			if len(chosen) == n {
				break
			}
			if i, ok := t.next(accept); ok {
				chosen = append(chosen, i)
				left = append(left, t)
			}
		}
		turns = left
	}
	return chosen
}

// scans is how many times a turn looks at each of its candidates for the best that is left. That is less than to sort
// them where few are asked for, and nothing is allocated.
const scans = 8

// turn is a domain's place in one Pick.
type turn struct {
	key, score uint64
	candidates []ranked
	scanned    int
	last       ranked   // what the last scan found
	rest       []ranked // all that follow it, in their order, once one of them is asked for
}

// next gives the best candidate that is left and that accept takes. Mostly that is one of the first. Where a zone is
// lost accept refuses them all, so the others are sorted once.
func (t *turn) next(accept func(int) bool) (int, bool) {
	for t.scanned < min(scans, len(t.candidates)) {
		t.last = t.best()
		if t.scanned++; accept(t.last.index) {
			return t.last.index, true
		}
	}
	if t.scanned == len(t.candidates) {
		return 0, false
	}
	if t.rest == nil {
		t.rest = slices.SortedFunc(slices.Values(t.candidates), t.compare)[scans:]
	}
	for i, c := range t.rest {
		if accept(c.index) {
			t.rest = t.rest[i+1:]
			return c.index, true
		}
	}
	return 0, false
}

// best is the first of those that follow the last one.
func (t *turn) best() ranked {
	var best ranked
	var bestScore uint64
	found, lastScore := false, score(t.key, t.last.hash)
	for _, c := range t.candidates { // in the order of their indexes
		s := score(t.key, c.hash)
		if t.scanned > 0 && (s > lastScore || s == lastScore && c.index <= t.last.index) {
			continue
		}
		if !found || s > bestScore {
			best, bestScore, found = c, s, true
		}
	}
	return best
}

// compare puts the higher score first, and of equal ones the earlier candidate.
func (t *turn) compare(a, b ranked) int {
	if c := cmp.Compare(score(t.key, b.hash), score(t.key, a.hash)); c != 0 {
		return c
	}
	return cmp.Compare(a.index, b.index)
}
