package storm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/chaos/internal/rig"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
)

// rest checks that all is as before: every agent runs and is ready, holds what it held, and gives the image whole.
func (s *Storm) rest(ctx context.Context, r plan.Round, m *badregistry.Image) {
	for _, n := range s.rig.Nodes {
		if died := n.Died(); died != nil {
			s.violate(r.Number, "the agent of node %d ended by itself: %v", n.Index, died)
			if err := n.Start(ctx); err != nil {
				s.log.Error("not started again", "node", n.Index, "error", err)
			}
		}
	}
	if err := s.rig.AwaitReady(ctx, healBound); err != nil {
		s.violate(r.Number, "when all was healed: %v", err)
		return
	}
	s.judgeHeld(ctx, r.Number)
	s.judgePins(ctx, r.Number)
	s.judgeWhole(ctx, r.Number)
	s.everywhere(func(node int) { s.verify(ctx, r.Number, node, m, healBound) })
	if m.Private {
		s.everywhere(func(node int) { _ = puller.Lists(ctx, s.alone(node, m)) }) // so that there is more to steal
	}
	if r.Number%offlineEvery == offlineEvery-1 {
		s.offline(ctx, r.Number, m)
	}
	if r.Number%shareEvery == 1 {
		s.share(ctx, r.Number)
	}
}

func (s *Storm) everywhere(do func(node int)) {
	var group sync.WaitGroup
	for node := range s.rig.Nodes {
		group.Go(func() { do(node) })
	}
	group.Wait()
}

// holding is what a node held at a time: digests.
type holding struct {
	at    time.Time
	blobs map[string]bool
}

// judgeHeld compares what the nodes hold with what they held before they were ended.
func (s *Storm) judgeHeld(ctx context.Context, round int) {
	for node, before := range s.held {
		n := s.rig.Nodes[node]
		now, err := n.Held(ctx)
		if err != nil {
			s.violate(round, "when all was healed: %v", err)
			continue
		}
		evicted, err := n.Evicted(before.at)
		if err != nil {
			s.violate(round, "what node %d has evicted is not known: %v", node, err)
			continue
		}
		for digest := range before.blobs {
			if !now[digest] && s.known(digest) && !n.Rotten(digest) && !evicted[digest] {
				s.violate(round, "node %d held %s before it was ended, and not after", node, digest)
			}
		}
	}
}

// verify has a node's mirror, and it alone, give the image within a time.
func (s *Storm) verify(ctx context.Context, round, node int, m *badregistry.Image, within time.Duration) {
	spec := s.alone(node, m)
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		got := puller.Pull(bounded, spec)
		s.mu.Lock()
		aborted := s.Figures.Aborted
		s.mu.Unlock()
		s.judgeVerified(round, node, got)
		switch {
		case got.Err == nil || ctx.Err() != nil:
			return
		case bounded.Err() != nil:
			s.violate(round, "when all was healed: %s could not be had from node %d within %s: %v", m.Repository, node,
				within, got.Err)
			return
		}
		s.log.Debug("not yet", "round", round, "node", node, "error", got.Err, "aborted", aborted)
		sleep(bounded, 500*time.Millisecond)
	}
}

func (s *Storm) judgeVerified(round, node int, got puller.Result) {
	for _, bad := range got.Bad {
		if bad.Clean {
			s.violate(round, "when all was healed: node %d gave %s and ended it as if all were well (rotten "+
				"there: %v)", node, bad, s.rig.Nodes[node].Rotten(bad.Digest.String()))
		}
		s.mu.Lock()
		if bad.Clean {
			s.Figures.Clean++
		} else {
			s.Figures.Aborted++
		}
		s.mu.Unlock()
	}
}

// offline takes the registry away and has every node that holds the image give it, while a peer lies about what it is.
func (s *Storm) offline(ctx context.Context, round int, m *badregistry.Image) {
	s.rig.Registry.SetMode(badregistry.Down)
	defer s.rig.Registry.SetMode(badregistry.Good)
	beside, cancel := context.WithCancel(ctx)
	var liar sync.WaitGroup
	defer liar.Wait()
	defer cancel()
	liar.Go(func() {
		if err := s.rig.Mallory(beside, healBound, s.digests(), true); err != nil {
			s.violate(round, "with the registry down: %v", err)
		}
	})
	s.rig.AwaitPeers(beside, len(s.rig.Nodes), 5*time.Second)
	s.everywhere(func(node int) {
		held, err := s.rig.Nodes[node].Held(ctx)
		if err != nil {
			s.violate(round, "with the registry down: %v", err)
			return
		}
		whole := held[m.Digest.String()]
		for _, b := range m.Blobs {
			whole = whole && held[b.Digest.String()]
		}
		if whole {
			s.verify(ctx, round, node, m, healBound/3)
		}
		if s.pinned != nil {
			s.verify(ctx, round, node, s.pinned, healBound/3)
		}
	})
}

// Calm reads what every agent uses, when it has had the time to be done with what it did.
func (s *Storm) Calm(ctx context.Context) ([]rig.State, error) {
	states := make([]rig.State, len(s.rig.Nodes))
	errs := make([]error, len(s.rig.Nodes))
	s.everywhere(func(node int) { states[node], errs[node] = s.rig.Nodes[node].State(ctx) })
	return states, errors.Join(errs...)
}

// JudgeMemory notes agents that have taken more than the chart gives them at any time.
func (s *Storm) JudgeMemory(round int, states []rig.State) {
	for node, state := range states {
		s.Figures.Peak = max(s.Figures.Peak, state.Peak)
		if state.Peak > maxRSS {
			s.violate(round, "node %d has taken %d MiB of memory, and the chart gives it %d", node, state.Peak>>20,
				maxRSS>>20)
		}
	}
}

// maxIdle is the part of a core that an agent may take to which nothing happens.
const maxIdle = 0.25

// judgeIdle measures what the agents do when there is nothing to do, for which they have some time to come to rest.
func (s *Storm) judgeIdle(ctx context.Context) {
	const looked = 2 * time.Second
	for deadline := time.Now().Add(healBound); ; {
		before, err1 := s.Calm(ctx)
		began := time.Now()
		sleep(ctx, looked)
		after, err2 := s.Calm(ctx)
		if err := errors.Join(err1, err2); err != nil || ctx.Err() != nil {
			return // it is told by others
		}
		busy, most := 0, 0.0
		for node := range after {
			if part := (after[node].CPU - before[node].CPU).Seconds() / time.Since(began).Seconds(); part > most {
				busy, most = node, part
			}
		}
		s.Figures.Idle = most
		if most <= maxIdle {
			return
		}
		if time.Now().After(deadline) {
			s.violate(-1, "%s after all was healed: node %d, to which nothing happens, takes %.0f %% of a core",
				healBound, busy, 100*most)
			return
		}
	}
}

// JudgeRest compares what the agents use with what they used before, and gives them time to come down.
func (s *Storm) JudgeRest(ctx context.Context, before []rig.State) {
	deadline := time.Now().Add(healBound)
	for {
		now, err := s.Calm(ctx)
		problem := err
		for node, state := range now {
			problem = errors.Join(problem, grown(node, before[node], state))
		}
		if problem == nil || ctx.Err() != nil {
			s.judgeIdle(ctx)
			return
		}
		if time.Now().After(deadline) {
			s.violate(-1, "%s after all was healed: %v", healBound, problem)
			for node := range now {
				if stacks, err := s.rig.Nodes[node].Goroutines(ctx); err == nil {
					s.log.Info("goroutines", "node", node, "stacks", stacks[:min(len(stacks), 4000)])
				}
			}
			return
		}
		sleep(ctx, 2*time.Second)
	}
}

// grown is an error where an agent uses clearly more than it did.
func grown(node int, before, now rig.State) error {
	var errs []error
	if limit := before.Goroutines*3/2 + 150; now.Goroutines > limit {
		errs = append(errs, fmt.Errorf("node %d has %d goroutines, and had %d", node, now.Goroutines,
			before.Goroutines))
	}
	if limit := before.Files*3/2 + 50; now.Files > limit {
		errs = append(errs, fmt.Errorf("node %d has %d open files, and had %d", node, now.Files, before.Files))
	}
	return errors.Join(errs...)
}
