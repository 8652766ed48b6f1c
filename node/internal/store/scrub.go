package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const defaultScrubRate = 64 << 20

// ScrubReport is what a scrub found.
type ScrubReport struct {
	Blobs   int   // read whole
	Bytes   int64 // read
	Damaged []digest.Digest
	// Repaired counts chunk maps that were damaged and made again from good bytes.
	Repaired int
	Took     time.Duration
}

// Scrub reads every blob of the store's own, at the bounded rate, and drops those that do not match their digest. Blobs
// of the runtime whose chunk map is known are read too; a damaged one is not used any more. When ctx ends it returns
// what it has found so far, with ctx's error. With Options.ScrubInterval the store does it by itself.
func (s *Store) Scrub(ctx context.Context) (ScrubReport, error) {
	start := time.Now()
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return ScrubReport{}, fmt.Errorf("scrub: %w", content.ErrClosed)
	}
	list := make([]*entry, 0, len(s.blobs))
	for _, e := range s.blobs {
		list = append(list, e)
	}
	s.mu.RUnlock()
	// Least recently used first: what is in use was read, and so checked by a peer, of late.
	slices.SortFunc(list, func(a, b *entry) int { return int(min(max(a.lastUsed.Load()-b.lastUsed.Load(), -1), 1)) })

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	var report ScrubReport
	for _, e := range list {
		if err := s.scrubBlob(ctx, e, &report); err != nil {
			report.Took = time.Since(start)
			return report, fmt.Errorf("scrub: %w", err)
		}
	}
	report.Took = time.Since(start)
	return report, nil
}

// scrubBlob checks one blob. Only the end of ctx is an error.
func (s *Store) scrubBlob(ctx context.Context, e *entry, report *ScrubReport) error {
	f, err := s.openEntry(e)
	if err != nil {
		if errors.Is(err, errDamaged) {
			report.Damaged = append(report.Damaged, e.digest)
		}
		return ctx.Err()
	}
	defer func() { _ = f.Close() }() // read only
	st, err := stampOf(f)
	if err != nil {
		return ctx.Err()
	}
	damaged := func(reason string) {
		_ = s.newChecker(e.digest, e.size, e).damaged(f, reason)
		report.Damaged = append(report.Damaged, e.digest)
	}
	h := e.digest.Algorithm().Hash()
	cut := content.CutLeaves(e.size)
	for i := range cut.Len() {
		off, n := cut.Range(i)
		if err := s.scrubbing.WaitN(ctx, int(n)); err != nil {
			return err
		}
		err := hashRange(h, f, off, n)
		if exhausted(err) {
			return ctx.Err()
		}
		if err != nil {
			damaged(err.Error())
			return nil
		}
		report.Bytes += n
	}
	report.Blobs++
	if got := digest.NewDigest(e.digest.Algorithm(), h); got != e.digest {
		damaged("its bytes are those of " + got.String())
		return nil
	}
	e.checks.note(st, e.size, 0, cut.Len()-1)
	if _, err := readMeta(s.mapPath(e), e.digest); err != nil && !e.runtime {
		if _, err := s.repairMap(ctx, e); err == nil {
			report.Repaired++
		}
	}
	return nil
}

const (
	scrubMemory = "scrub" // the bucket in which lastScrub stands
	lastScrub   = "last"
	// scrubPause keeps a node that has just started, and has pulls to serve, from reading its whole disk at once.
	scrubPause = 10 * time.Minute
)

// scrubAgain scrubs once in every interval until ctx ends. When it last did so outlives a restart, or a node that
// restarts often would never come to it.
func (s *Store) scrubAgain(ctx context.Context, every time.Duration) {
	memory := s.KV(scrubMemory)
	last, ok := recallTime(memory, lastScrub)
	if !ok {
		last = s.scrubbed(memory)
	}
	due := time.NewTimer(max(time.Until(last.Add(every)), min(every, scrubPause)))
	defer due.Stop()
	for {
		select {
		case <-due.C:
		case <-ctx.Done():
			return
		}
		report, err := s.Scrub(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("scrub ended early", "error", err)
		default:
			s.log.Info("scrubbed", "report", report)
		}
		s.scrubbed(memory)
		due.Reset(every)
	}
}

// scrubbed notes that the store was checked now.
func (s *Store) scrubbed(memory KV) time.Time {
	now := time.Now()
	raw, err := now.MarshalText()
	if err == nil {
		err = memory.Put(lastScrub, raw)
	}
	if err != nil {
		s.log.Warn("time of the scrub not remembered", "error", err)
	}
	return now
}

// recallTime reads a time that is not in the future, as one is after a clock was set back.
func recallTime(memory KV, key string) (t time.Time, ok bool) {
	raw, ok := memory.Get(key)
	if !ok || t.UnmarshalText(raw) != nil || t.After(time.Now()) {
		return time.Time{}, false
	}
	return t, true
}
