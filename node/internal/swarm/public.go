package swarm

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Witness asks the other nodes what they know of who may read what.
type Witness struct {
	swarm *Swarm
	known func(source string, contents []digest.Digest) Testimony
}

// Testimony is what nodes know of a source of content and of contents.
type Testimony struct {
	// Public and Refused are how long ago the source let anyone read, and refused whoever comes: of each node that has
	// itself seen so, and last of each.
	Public, Refused []time.Duration
	// Proven are the contents of which a node has proof that the source has them, and Held those that a node holds
	// whole.
	Proven, Held []digest.Digest
	// Everyone: all nodes have answered.
	Everyone bool
}

// NewWitness returns the other nodes as a witness, and answers them by known.
func NewWitness(s *Swarm, known func(source string, contents []digest.Digest) Testimony) *Witness {
	w := &Witness{swarm: s, known: known}
	answer(s, "witness", w.answer)
	return w
}

const (
	// witnessed is how many contents one question is about, so that a peer takes it.
	witnessed = 64
	// maxWitnessed is how many contents peers are asked about at one time. Nothing is heard of those beyond.
	maxWitnessed = 1024
)

// Hear asks connected peers about a source and at most maxWitnessed contents. It takes at most about a second.
func (w *Witness) Hear(ctx context.Context, source string, contents []digest.Digest) Testimony {
	parts := slices.Collect(slices.Chunk(first(maxWitnessed, contents), witnessed))
	if len(parts) == 0 {
		parts = [][]digest.Digest{nil} // it may be public all the same
	}
	heard := make([]Testimony, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() { heard[i] = w.hear(ctx, source, part) })
	}
	wg.Wait()
	// Each part was asked of the same nodes, and a node is to be counted once.
	all := Testimony{Everyone: len(contents) <= maxWitnessed, Public: heard[0].Public, Refused: heard[0].Refused}
	for _, t := range heard {
		all.Everyone = all.Everyone && t.Everyone
		all.Proven = append(all.Proven, t.Proven...)
		all.Held = append(all.Held, t.Held...)
	}
	return all
}

// hear asks connected peers one question.
func (w *Witness) hear(ctx context.Context, source string, contents []digest.Digest) (t Testimony) {
	q := witnessQuery{Source: source, Contents: make([]string, len(contents))}
	for i, d := range contents {
		q.Contents[i] = string(d)
	}
	proven, held := make([]bool, len(contents)), make([]bool, len(contents))
	answered := 0
	askPeers(ctx, w.swarm, "witness", q, func(a witnessAnswer) bool {
		answered++
		if a.Public {
			t.Public = append(t.Public, toldAge(a.PublicAge))
		}
		if a.RefusedAge > 0 {
			t.Refused = append(t.Refused, toldAge(a.RefusedAge))
		}
		tick(proven, a.Proven)
		tick(held, a.Held)
		return false // another may know more
	})
	for i, d := range contents {
		if proven[i] {
			t.Proven = append(t.Proven, d)
		}
		if held[i] {
			t.Held = append(t.Held, d)
		}
	}
	t.Everyone = answered >= len(w.swarm.host.Network().Peers())
	return t
}

// tick sets what a peer names by its place in the question.
func tick(set []bool, places []int) {
	for _, i := range places {
		if i >= 0 && i < len(set) {
			set[i] = true
		}
	}
}

func (w *Witness) answer(q witnessQuery) witnessAnswer {
	contents := make([]digest.Digest, 0, len(q.Contents))
	place := make(map[digest.Digest]int, len(q.Contents))
	for i, s := range q.Contents {
		if d := digest.Digest(s); d.Validate() == nil {
			contents = append(contents, d)
			place[d] = i
		}
	}
	t := w.known(q.Source, contents)
	a := witnessAnswer{Public: len(t.Public) > 0, PublicAge: tellAge(t.Public), RefusedAge: tellAge(t.Refused)}
	for _, d := range t.Proven {
		a.Proven = append(a.Proven, place[d])
	}
	for _, d := range t.Held {
		a.Held = append(a.Held, place[d])
	}
	return a
}

// tellAge is the first age in milliseconds, at least 1, or 0 where there is none.
func tellAge(ages []time.Duration) int64 {
	if len(ages) == 0 {
		return 0
	}
	return max(1, ages[0].Milliseconds())
}

// toldAge is an age that a peer names. Of what an agent of before says the age is not known: it may be any.
func toldAge(ms int64) time.Duration {
	const most = math.MaxInt64
	if ms <= 0 || ms > most/int64(time.Millisecond) {
		return most
	}
	return time.Duration(ms) * time.Millisecond
}
