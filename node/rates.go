package main

import (
	"fmt"
	"sync"

	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// rates gives each rule of the policy in force its limits of what is asked of registries.
type rates struct {
	policy *policy.Live
	mu     sync.Mutex
	by     map[string]upstream.Limits
}

func newRates(p *policy.Live) *rates { return &rates{policy: p, by: map[string]upstream.Limits{}} }

func (r *rates) of(repo content.Repository) upstream.Limits {
	rule := r.policy.Load().For(repo)
	key := fmt.Sprint(rule.Match)
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.by[key]
	l.Requests = bounded(l.Requests, rule.RateLimit.RequestsPerSecond, max(1, int(rule.RateLimit.RequestsPerSecond)))
	bytes := rule.RateLimit.BytesPerSecond.Bytes
	l.Bytes = bounded(l.Bytes, float64(bytes), int(max(minBurst, bytes/10)))
	if most := rule.RateLimit.Connections; l.Connections != nil {
		l.Connections.SetMost(most)
	} else if most > 0 {
		l.Connections = upstream.NewConnections(most)
	}
	if l != (upstream.Limits{}) {
		r.by[key] = l
	}
	return l
}

// minBurst is the least number of bytes that are read from a registry at a time where that is limited.
const minBurst = 64 << 10

// bounded gives l a rate, in place, for those who are using it as well. A rate of 0 is no limit.
func bounded(l *rate.Limiter, perSecond float64, burst int) *rate.Limiter {
	limit := rate.Limit(perSecond)
	switch {
	case perSecond <= 0 && l == nil:
		return nil
	case perSecond <= 0:
		limit = rate.Inf
	case l == nil:
		return rate.NewLimiter(limit, burst)
	}
	if l.Limit() != limit {
		l.SetLimit(limit)
		l.SetBurst(burst)
	}
	return l
}
