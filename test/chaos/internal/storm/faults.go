package storm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/netns"
)

// suffer lets one thing go wrong for its time, and mends it. m is the round's image. It returns what the machinery
// itself could not do.
func (s *Storm) suffer(ctx context.Context, f plan.Fault, m *badregistry.Image) error {
	if f.Kind.OfRegistry() {
		s.rig.Registry.SetMode(badregistry.Mode(f.Kind))
		sleep(ctx, f.For)
		s.rig.Registry.SetMode(badregistry.Good)
		return nil
	}
	switch f.Kind {
	case plan.Rolling:
		for _, node := range f.Nodes {
			s.remember(ctx, node)
			s.rig.Nodes[node].Stop()
			if err := s.rig.Nodes[node].Start(ctx); err != nil {
				return err
			}
			sleep(ctx, f.For/time.Duration(len(f.Nodes)))
		}
		return nil
	case plan.Partition:
		return s.partition(ctx, f)
	case plan.Mallory, plan.Liar:
		return s.rig.Mallory(ctx, f.For, s.digests(), f.Kind == plan.Liar)
	case plan.Revoke:
		s.revoke(m, true)
		sleep(ctx, f.For)
		s.revoke(m, false)
		return nil
	}
	var errs []error
	for _, node := range f.Nodes {
		errs = append(errs, s.harm(ctx, node, f))
	}
	return errors.Join(errs...)
}

// revoke has the registry refuse whoever could read an image before, or let them in again.
func (s *Storm) revoke(m *badregistry.Image, revoked bool) {
	s.mu.Lock()
	s.revoked, s.revokedImage = time.Time{}, m
	s.mu.Unlock()
	s.rig.Registry.Revoke(m.Repository, revoked)
	s.mu.Lock()
	defer s.mu.Unlock()
	if revoked {
		s.revoked = time.Now()
	}
}

// stop and run are for how long, in turn, an agent that stutters stands still and goes on.
const stop, run = 150 * time.Millisecond, 50 * time.Millisecond

// harm is what happens to one node.
func (s *Storm) harm(ctx context.Context, node int, f plan.Fault) error {
	n := s.rig.Nodes[node]
	switch f.Kind {
	case plan.Kill:
		s.remember(ctx, node)
		n.Kill()
		sleep(ctx, f.For)
		return n.Start(ctx)
	case plan.Freeze:
		n.Signal(syscall.SIGSTOP)
		sleep(ctx, f.For)
		n.Signal(syscall.SIGCONT)
	case plan.Stutter:
		for end := time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
			n.Signal(syscall.SIGSTOP)
			sleep(ctx, stop)
			n.Signal(syscall.SIGCONT)
			sleep(ctx, run)
		}
	case plan.Restart:
		s.remember(ctx, node)
		n.Stop()
		return n.Start(ctx)
	case plan.Unplug:
		err := s.rig.Unplug(ctx, node)
		sleep(ctx, f.For)
		return errors.Join(err, s.rig.Plug(ctx, node))
	case plan.Deaf:
		var cut []netip.Addr
		for _, other := range s.rig.Nodes {
			if other != n {
				cut = append(cut, other.Host.Addr)
			}
		}
		return s.during(ctx, f, node, netns.Fault{Cut: cut})
	case plan.Loss:
		return s.during(ctx, f, node, netns.Fault{Loss: f.Amount})
	case plan.Slow:
		return s.during(ctx, f, node, netns.Fault{Rate: netns.Rate(f.Amount) * netns.Mbit})
	case plan.Full:
		err := n.FillDisk()
		sleep(ctx, f.For)
		return errors.Join(err, n.FreeDisk())
	case plan.ReadOnly:
		s.remember(ctx, node)
		err := n.FailDisk(ctx)
		sleep(ctx, f.For)
		n.Kill()
		return errors.Join(err, n.MendDisk(ctx), n.Start(ctx))
	case plan.Rot:
		_, err := n.Rot(f.Seed, s.known)
		return err
	default:
		return fmt.Errorf("no fault is called %s", f.Kind)
	}
	return nil
}

// digests are those of the images that are pulled.
func (s *Storm) digests() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.images {
		for _, b := range m.Blobs {
			all = append(all, b.Digest.String())
		}
	}
	return all
}

func (s *Storm) during(ctx context.Context, f plan.Fault, node int, fault netns.Fault) error {
	err := s.rig.SetFault(ctx, node, fault)
	sleep(ctx, f.For)
	return errors.Join(err, s.rig.SetFault(ctx, node, netns.Fault{}))
}

// partition has the nodes of a fault and all others not hear each other.
func (s *Storm) partition(ctx context.Context, f plan.Fault) error {
	var sides [2][]int
	for i := range s.rig.Nodes {
		if slices.Contains(f.Nodes, i) {
			sides[0] = append(sides[0], i)
		} else {
			sides[1] = append(sides[1], i)
		}
	}
	// One side is deaf to the other. TCP needs both directions, and the other side may have a fault of its own.
	var cut []netip.Addr
	for _, node := range sides[1] {
		cut = append(cut, s.rig.Nodes[node].Host.Addr)
	}
	var errs []error
	for _, node := range sides[0] {
		errs = append(errs, s.rig.SetFault(ctx, node, netns.Fault{Cut: cut}))
	}
	sleep(ctx, f.For)
	for _, node := range sides[0] {
		errs = append(errs, s.rig.SetFault(ctx, node, netns.Fault{}))
	}
	return errors.Join(errs...)
}

// remember notes what a node holds before it may lose it.
func (s *Storm) remember(ctx context.Context, node int) {
	at := time.Now()
	blobs, err := s.rig.Nodes[node].Held(ctx)
	if err != nil {
		return // it is not up yet, so it holds what it held when it went down
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[node] = holding{at: at, blobs: blobs}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
