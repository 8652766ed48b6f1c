package storm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
)

// shareEvery is how often, in rounds, a burst is measured when all is healed.
const shareEvery = 4

// Pin has every node hold an image that is pinned there, which must survive whatever comes. program is what pins.
func (s *Storm) Pin(ctx context.Context, program string) error {
	m, err := badregistry.NewImage("pinned/image", false, s.settings.Seed, 2<<20, 700<<10)
	if err != nil {
		return err
	}
	s.rig.Registry.Add(m)
	digests := []string{m.Digest.String()}
	for _, b := range m.Blobs {
		digests = append(digests, b.Digest.String())
	}
	for node, n := range s.rig.Nodes {
		if got := puller.Pull(ctx, s.alone(node, m)); got.Err != nil {
			return fmt.Errorf("pull what is to be pinned: %w", got.Err)
		}
		if err := n.Pin(ctx, program, digests); err != nil {
			return err
		}
	}
	s.pinned, s.pins = m, digests
	return s.rig.AwaitReady(ctx, healBound)
}

// alone has a client that asks the node's mirror and nobody else.
func (s *Storm) alone(node int, m *badregistry.Image) puller.Spec {
	spec := s.spec(node, m)
	spec.Registry, spec.Tries = "", 1
	return spec
}

// judgePins looks whether every node still holds what is pinned on it. What has rotted is there again soon after it was
// asked for: who asks is given what comes from elsewhere, and the node keeps that meanwhile.
func (s *Storm) judgePins(ctx context.Context, round int) {
	s.everywhere(func(node int) {
		within := time.Duration(0)
		if s.pinned != nil && slices.ContainsFunc(s.pins, s.rig.Nodes[node].Rotten) {
			s.verify(ctx, round, node, s.pinned, healBound)
			within = healBound
		}
		for deadline := time.Now().Add(within); ; sleep(ctx, 100*time.Millisecond) {
			held, err := s.rig.Nodes[node].Held(ctx)
			if err != nil {
				s.violate(round, "when all was healed: %v", err)
				return
			}
			missing := slices.DeleteFunc(slices.Clone(s.pins), func(digest string) bool { return held[digest] })
			if len(missing) == 0 || ctx.Err() != nil {
				return
			}
			if !time.Now().Before(deadline) {
				s.violate(round, "node %d does not hold %s any more, which is pinned there", node, missing)
				return
			}
		}
	})
}

// judgeWhole looks whether each agent is connected with all others again.
func (s *Storm) judgeWhole(ctx context.Context, round int) {
	deadline := time.Now().Add(healBound)
	for {
		states, err := s.Calm(ctx)
		for node, state := range states {
			if others := len(s.rig.Nodes) - 1; state.Peers < others {
				err = errors.Join(err, fmt.Errorf("node %d is connected with %d of %d others", node, state.Peers,
					others))
			}
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Now().After(deadline) {
			s.violate(round, "%s after all was healed: %v", healBound, err)
			return
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// share measures what a burst costs when all is healed.
func (s *Storm) share(ctx context.Context, round int) {
	m, err := badregistry.NewImage(fmt.Sprintf("healed/round-%d", round), false, s.settings.Seed+uint64(round), 3<<20,
		1<<20+5)
	if err != nil {
		s.violate(round, "when all was healed: %v", err)
		return
	}
	s.rig.Registry.Add(m)
	s.everywhere(func(node int) { s.verify(ctx, round, node, m, healBound) })
	s.Figures.Healed.add(m, s.rig.Registry.Sent(m), 0)
	s.rig.Registry.Remove(m.Repository)
}
