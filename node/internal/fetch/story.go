package fetch

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
)

// Story is how a fetch went, told when it has ended. Times are since Started, and 0 where it did not come to that;
// sizes are in bytes.
type Story struct {
	Digest                              digest.Digest
	Started                             time.Time
	Discovery, Plan, FirstChunk, Took   time.Duration
	Size, Kept, FromPeers, FromUpstream int64
	ByPeer                              map[peer.ID]int64
	Outcome                             string
	Err                                 error
}

// The outcomes of fetches.
const (
	outcomeComplete  = "complete"
	outcomeFailed    = "failed"
	outcomeAbandoned = "abandoned"
	outcomeThrough   = "passed through"
)

// steps is when a fetch came how far, guarded by its lock.
type steps struct {
	discovery, plan, first time.Duration
	byPeer                 map[peer.ID]int64
}

// reach notes when a step was reached first.
func (f *fetch) reach(step *time.Duration, now time.Time) {
	if *step == 0 {
		*step = max(1, now.Sub(f.start))
	}
}

// tell tells of the fetch, whose lock is not held.
func (f *fetch) tell(outcome string, err error) {
	if f.fr.opts.Ended == nil {
		return
	}
	if outcome == outcomeComplete || errors.Is(err, context.Canceled) {
		err = nil
	}
	f.mu.Lock()
	s := Story{
		Digest: f.digest, Started: f.start, Discovery: f.steps.discovery, Plan: f.steps.plan,
		FirstChunk: f.steps.first, Took: time.Since(f.start), Size: f.cut.Size(), Kept: f.tally.kept,
		FromPeers: f.tally.fromPeers, FromUpstream: f.tally.fromUpstream, ByPeer: maps.Clone(f.steps.byPeer),
		Outcome: outcome, Err: err,
	}
	f.mu.Unlock()
	f.fr.opts.Ended(s)
}

// trace tells the fetch's span what came from where. The lock is not held.
func (f *fetch) trace(outcome string, err error) {
	if !f.span.On() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.span.Text("shoal.digest", string(f.digest))
	f.span.Text("shoal.repository", f.req.Repository.String())
	f.span.Text("shoal.outcome", outcome)
	f.span.Number("shoal.size", f.cut.Size())
	f.span.Number("shoal.from_peers", f.tally.fromPeers)
	f.span.Number("shoal.from_registry", f.tally.fromUpstream)
	f.span.Number("shoal.discovery_ms", f.steps.discovery.Milliseconds())
	f.span.Number("shoal.plan_ms", f.steps.plan.Milliseconds())
	f.span.Number("shoal.first_chunk_ms", f.steps.first.Milliseconds())
	for p, bytes := range f.steps.byPeer {
		f.span.Number("shoal.from."+p.String(), bytes)
	}
	if outcome != outcomeFailed {
		err = nil
	}
	f.span.End(err)
}

// tell tells what has been read of the blob so far, past the store.
func (t *through) tell() {
	if read := t.read.Load(); read > 0 && t.fr.opts.Ended != nil {
		t.fr.opts.Ended(Story{
			Digest: t.req.Digest, Started: t.begun, Took: time.Since(t.begun), Size: t.size, FromUpstream: read,
			Outcome: outcomeThrough,
		})
	}
}
