package main

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/hub"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// newGate makes the gate over the store, the peers and the other nodes' word.
func (n *node) newGate() (*gate.Gate, error) {
	others := &otherNodes{}
	g, err := gate.New(gate.Options{
		Timeout: gate.Timeout(n.config.Registry.FirstByteTimeout),
		Cache:   cache{n.store, func() *fetch.Fetcher { return n.fetcher }},
		Memory:  n.store.Notes("gate"), Witness: others, Logger: n.log.With("part", "gate"),
	})
	if err != nil {
		return nil, err
	}
	others.witness = swarm.NewWitness(n.swarm, func(source string, contents []digest.Digest) swarm.Testimony {
		return swarm.Testimony(g.Testify(gate.Source(source), contents))
	})
	return g, nil
}

// cache is what the gate sees of store and peers.
type cache struct {
	store   *store.Store
	fetcher func() *fetch.Fetcher // made after the gate
}

func (c cache) Held(d digest.Digest) (content.Reader, error) { return c.store.Get(d) }

func (c cache) Has(d digest.Digest) (size int64, ok bool) {
	info, err := c.store.Stat(d)
	return info.Size, err == nil
}

func (c cache) FromPeers(ctx context.Context, d digest.Digest) (content.Reader, error) {
	return c.fetcher().Open(ctx, content.Request{Digest: d})
}

// sources is what the fetcher sees of the gate, and of the hub's front for the hub's own repositories.
type sources struct {
	*gate.Gate
	policy *policy.Live
	hub    string               // the registry that stands for the hub itself
	front  func() fetch.Sources // made after the fetcher
}

// Proved implements fetch.Sources. Whom the policy exempts is given whatever is here.
func (s sources) Proved(req content.Request) bool {
	return s.policy.Load().For(req.Repository).Authorization.Mode == policy.Exempt || s.of(req).Proved(req)
}

// Doubted implements fetch.Sources. Whom the repository accepts may read what it gives to others whom it accepts: after
// a restart no manifest may be known that says what his yes was about, and what is here of the blob is his to go on
// with.
func (s sources) Doubted(req content.Request) bool {
	return s.of(req).Doubted(req) &&
		!s.Accepts(s.policy.Load().For(req.Repository), gate.Repository(req.Repository), req.Authorization)
}

// Prove implements fetch.Sources.
func (s sources) Prove(req content.Request) { s.of(req).Prove(req) }

// of is where it is known what a repository has proved. A host of hub.urls proves it to the gate, as a registry does.
func (s sources) of(req content.Request) fetch.Sources {
	if req.File != "" && req.Repository.Registry == s.hub && !hub.IsURL(req.Repository) {
		return s.front()
	}
	return s.Gate
}

// otherNodes is the swarm as the gate's witness.
type otherNodes struct{ witness *swarm.Witness }

func (o *otherNodes) Hear(ctx context.Context, source gate.Source, contents []digest.Digest) gate.Testimony {
	return gate.Testimony(o.witness.Hear(ctx, string(source), contents))
}

// pinGate is the gate as pins see it.
type pinGate struct {
	gate     *gate.Gate
	upstream *upstream.Client
	policy   *policy.Live
}

// Admit implements pin.Gate.
func (p pinGate) Admit(ctx context.Context, req content.Request) error {
	return p.gate.Admit(ctx, p.policy.Load().For(req.Repository), gate.Blob(p.upstream, req))
}
