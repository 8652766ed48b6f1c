package swarm

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// reprovideEvery is how often every held blob is provided anew, so that new nodes near its key learn of it and
	// records of nodes that are gone are outnumbered by fresh ones before they expire.
	reprovideEvery = 30 * time.Minute
	// provideValidity outlives one round that fails. Records of blobs that were evicted, and of nodes that are gone, do
	// not last longer: there are only so many that a search finds.
	provideValidity = 3 * reprovideEvery
	provideTimeout  = 10 * time.Second
	provideWorkers  = 4
)

// provider publishes provider records in the DHT: at once for a blob that was committed, and for all again and again.
type provider struct {
	s      *Swarm
	mu     sync.Mutex
	queued map[digest.Digest]bool
	queue  []digest.Digest
	wake   chan struct{}
}

func newProvider(s *Swarm) *provider {
	return &provider{s: s, queued: map[digest.Digest]bool{}, wake: make(chan struct{}, 1)}
}

// Provide makes known that this node holds the blob whole. It returns at once.
func (s *Swarm) Provide(d digest.Digest) { s.provider.add(d) }

// Holders is how many other nodes hold a blob, by the provider records that this node keeps for the DHT: those of the
// blobs that are near it, which in a small swarm are all.
func (s *Swarm) Holders(d digest.Digest) int {
	key, err := content.DigestCID(d)
	if err != nil {
		return 0
	}
	known, err := s.dht.ProviderStore().GetProviders(s.ctx, key.Hash())
	if err != nil {
		return 0
	}
	return len(slices.DeleteFunc(known, func(p peer.AddrInfo) bool { return p.ID == s.host.ID() }))
}

func (p *provider) add(d digest.Digest) {
	p.mu.Lock()
	if !p.queued[d] {
		p.queued[d] = true
		p.queue = append(p.queue, d)
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *provider) next() (digest.Digest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return "", false
	}
	d := p.queue[0]
	p.queue = p.queue[1:]
	delete(p.queued, d)
	return d, true
}

func (p *provider) run(ctx context.Context) {
	slots := make(chan struct{}, provideWorkers)
	var wg sync.WaitGroup
	defer wg.Wait()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		if p.s.dht.RoutingTable().Size() > 0 {
			for d, ok := p.next(); ok && ctx.Err() == nil; d, ok = p.next() {
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					p.provide(ctx, d)
				})
			}
		}
		select {
		case <-p.wake:
		case <-again.C:
			p.addAll(ctx)
			again.Reset(reprovideEvery + rand.N(reprovideEvery/4))
		case <-p.s.newPeer: // the first peer to tell, as a rule
		case <-ctx.Done():
			return
		}
	}
}

func (p *provider) addAll(ctx context.Context) {
	digests, err := p.s.opts.Store.Digests(ctx)
	if err != nil {
		p.s.log.Warn("blobs to provide not listed", "error", err)
	}
	for _, d := range digests {
		p.add(d)
	}
}

func (p *provider) provide(ctx context.Context, d digest.Digest) {
	key, err := content.DigestCID(d)
	if err != nil {
		return // a digest that no CID can name is not found by the DHT; the coordinator asks peers directly
	}
	ctx, cancel := context.WithTimeout(ctx, provideTimeout)
	defer cancel()
	if err := p.s.dht.Provide(ctx, key, true); err != nil {
		p.s.m.provides.WithLabelValues("failed").Inc()
		p.s.log.Debug("blob not provided", "digest", d, "error", err)
		return
	}
	p.s.m.provides.WithLabelValues("ok").Inc()
}
