package swarm

import (
	"context"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Witness asks the other nodes what they know of who may read what. Admitted peers are nodes of the cluster, so the
// word of one is enough.
type Witness struct {
	swarm *Swarm
	known func(source string, contents []digest.Digest) Testimony
}

// Testimony is what nodes know of a source of content and of contents.
type Testimony struct {
	// Public: the source has let anyone read.
	Public bool
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
	all := Testimony{Everyone: len(contents) <= maxWitnessed}
	for _, t := range heard {
		all.Public = all.Public || t.Public
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
		t.Public = t.Public || a.Public
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
	a := witnessAnswer{Public: t.Public}
	for _, d := range t.Proven {
		a.Proven = append(a.Proven, place[d])
	}
	for _, d := range t.Held {
		a.Held = append(a.Held, place[d])
	}
	return a
}
