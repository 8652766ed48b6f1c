package agent

import (
	"context"
	"log/slog"
	"sync"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// totals are the counters of the node over restarts of its agent.
type totals struct {
	memory content.Memory
	log    *slog.Logger

	mu      sync.Mutex
	before  Counters // of earlier agents
	written Counters // what is remembered
}

func newTotals(m content.Memory, log *slog.Logger) *totals {
	known, _ := recall[Counters](m, log, keyTotals)
	return &totals{memory: m, log: log, before: known, written: known}
}

// sum adds what this agent counted, and remembers it.
func (t *totals) sum(now Counters) Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.before.plus(now)
	if all != t.written {
		remember(t.memory, t.log, keyTotals, all)
		t.written = all
	}
	return all
}

func (c Counters) plus(d Counters) Counters {
	return Counters{
		Hits: c.Hits + d.Hits, Misses: c.Misses + d.Misses, PeerBytes: c.PeerBytes + d.PeerBytes,
		UpstreamBytes: c.UpstreamBytes + d.UpstreamBytes,
		UploadedBytes: c.UploadedBytes + d.UploadedBytes, SavedBytes: c.SavedBytes + d.SavedBytes,
	}
}

// watchCounters has the counters reported soon after they have moved, until ctx ends. The writer bounds how often.
func (a *Agent) watchCounters(ctx context.Context) {
	for last := a.opts.Counters(); content.Sleep(ctx, v1alpha1.ReportInterval); {
		if now := a.opts.Counters(); now != last {
			last = now
			a.report.moved.raise()
		}
	}
	a.totals.sum(a.opts.Counters()) // for the next agent
}

// calm passes on what client-go says at info and above. What it says at debug of each watch is for its own authors.
type calm struct{ slog.Handler }

func (c calm) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo && c.Handler.Enabled(ctx, level)
}

func (c calm) WithAttrs(attrs []slog.Attr) slog.Handler { return calm{c.Handler.WithAttrs(attrs)} }
func (c calm) WithGroup(name string) slog.Handler       { return calm{c.Handler.WithGroup(name)} }
