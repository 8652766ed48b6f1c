package swarm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

const (
	// discoverTimeout bounds the search for holders.
	discoverTimeout = 5 * time.Second
	// mapTimeout bounds one peer's answer to whether it holds a blob, but for one with whom this node exchanges much
	// meanwhile (see Swarm.patient). Dead providers cost no more than this.
	mapTimeout = time.Second
	// askedAtOnce is how many connected peers are asked whether they hold a blob, besides those the DHT names.
	askedAtOnce = 16
	// searchesAtOnce is for how many blobs holders are looked for at one time: a peer takes as many questions for a
	// map.
	searchesAtOnce = 64
	// claimsAtOnce bounds the claims that holders are sending, of all blobs: some 50 MiB.
	claimsAtOnce = 1 << 18
	// mapWork and signWork are what it costs to say whether a blob is here, and to sign a claim, in microseconds.
	mapWork, signWork = 200, 40
	// maxSigned is how many claims are kept once they are signed.
	maxSigned = 256 << 10
	// mapPage is how many claims an answer has in one frame: as many as are signed while a peer waits for one.
	mapPage = 256
	// enoughProviders is how many providers the DHT is asked for.
	enoughProviders = 20
)

// discover finds who holds the blob of a plan whole: this node, those whose provider records this node or the DHT has,
// and (where the DHT knows nothing, or is broken) whoever of the connected peers says so. It returns when all have
// answered or timed out.
func (s *Swarm) discover(ctx context.Context, plan Plan, to *room) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.slack(discoverTimeout))
	defer cancel()
	if s.searches.Acquire(ctx, 1) != nil {
		return
	}
	defer s.searches.Release(1)
	d := plan.Digest
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if claims, size, err := s.ownClaims(ctx, plan, to.promised); err == nil {
			to.addHolder(s.host.ID(), s.opts.Zone, size, claims)
		}
	})
	key, err := content.DigestCID(d)
	if err != nil {
		return
	}
	var mu sync.Mutex
	asked := map[peer.ID]bool{s.host.ID(): true}
	ask := func(p peer.ID) {
		mu.Lock()
		defer mu.Unlock()
		if asked[p] {
			return
		}
		asked[p] = true
		wg.Go(func() {
			size, zone, claims, err := s.askMap(ctx, p, plan, func(head mapHead) {
				if head.Plans {
					to.planned(p)
				}
				if head.Found {
					to.promised()
				}
			})
			if err == nil || errors.Is(err, content.ErrNotFound) {
				to.answered()
			}
			switch {
			case err == nil:
				to.addHolder(p, zone, size, claims)
			case !errors.Is(err, content.ErrNotFound):
				s.log.Debug("peer did not say whether it holds a blob", "digest", d, "peer", p, "error", err)
			}
		})
	}
	if local, err := s.dht.ProviderStore().GetProviders(ctx, key.Hash()); err == nil {
		for _, p := range local {
			ask(p.ID)
		}
	}
	for _, p := range s.around(kb.ConvertKey(string(key.Hash())), plan.Grain, candidates) {
		ask(p) // who may plan the blob as well, see planned
	}
	for i, p := range s.host.Network().Peers() {
		if i == askedAtOnce {
			break
		}
		ask(p)
	}
	s.findProviders(ctx, key, ask)
}

func (s *Swarm) findProviders(ctx context.Context, key cid.Cid, found func(peer.ID)) {
	if s.dht.RoutingTable().Size() == 0 {
		return
	}
	start := time.Now()
	for p := range s.dht.FindProvidersAsync(ctx, key, enoughProviders) {
		found(p.ID)
	}
	s.m.lookups.Observe(time.Since(start).Seconds())
}

// ownClaims are this node's own claims for a blob that its store has whole, and has checked against its digest. It
// calls held once it knows that.
func (s *Swarm) ownClaims(ctx context.Context, plan Plan, held func()) ([]schedule.Claim, int64, error) {
	m, err := s.opts.Store.ChunkMap(plan.Digest)
	if err != nil {
		return nil, 0, err
	}
	held()
	if claims, ok := s.signed.get(plan); ok {
		return claims, m.Size(), nil
	}
	if m, err = s.mapOf(ctx, s.host.ID(), plan, m); err != nil {
		return nil, 0, err
	}
	claims, err := s.sign(plan, m, 0, m.Len())
	if err == nil {
		s.signed.add(plan, claims)
	}
	return claims, m.Size(), err
}

// mapOf is the map of a blob as a plan cuts it, where leaves is that of its leaves. It may have to read the blob, which
// p is charged for where that begins with it.
func (s *Swarm) mapOf(ctx context.Context, p peer.ID, plan Plan, leaves *content.ChunkMap) (*content.ChunkMap, error) {
	if plan.Grain != content.Pieces {
		return leaves, nil
	}
	if pieces := leaves.Pieces(); pieces != nil {
		return pieces, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.slack(discoverTimeout)) // who asked waits no longer
	defer cancel()
	return s.opts.Store.PieceMap(ctx, plan.Digest, func(ctx context.Context, bytes int64) error {
		return s.guard.chargeRead(ctx, p, bytes)
	})
}

// whileAsked is ctx until the peer at the other end of a stream has gone, or stop is called.
func whileAsked(ctx context.Context, stream network.Stream) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	_ = stream.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// It has said all that it has to say; that it says no more is no reason to think that it does not listen.
		if _, err := io.Copy(io.Discard, io.LimitReader(stream, maxShort)); err != nil {
			cancel()
		}
	}()
	return ctx, func() {
		_ = stream.SetReadDeadline(time.Now())
		<-ended
		cancel()
	}
}

// sign makes this node's claims for the chunks of a plan from first to end, which is not among them.
func (s *Swarm) sign(plan Plan, m *content.ChunkMap, first, end int) ([]schedule.Claim, error) {
	claims := make([]schedule.Claim, 0, end-first)
	for i := first; i < end; i++ {
		h := m.CID(i).Hash()
		c, err := s.Claim(plan, i, schedule.Sum(h[len(h)-sha256.Size:]))
		if err != nil {
			return nil, err
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// signedClaims are claims that were signed, of the blobs that were asked for last.
type signedClaims struct {
	mu     sync.Mutex
	recent *lru.Cache[Plan, []schedule.Claim]
	count  int
}

func newSignedClaims() *signedClaims {
	s := &signedClaims{}
	s.recent = lru.NewWithEvict(maxSigned, func(_ Plan, c []schedule.Claim) { s.count -= len(c) })
	return s
}

func (s *signedClaims) get(p Plan) ([]schedule.Claim, bool) { return s.recent.Get(p) }

func (s *signedClaims) add(p Plan, claims []schedule.Claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(claims) > maxSigned || s.recent.Contains(p) {
		return
	}
	s.recent.Add(p, claims)
	for s.count += len(claims); s.count > maxSigned; {
		s.recent.RemoveOldest()
	}
}

// HeldBy asks p whether it holds a plan's blob whole, and for its claims then. It fails with content.ErrNotFound where
// p does not.
func (s *Swarm) HeldBy(ctx context.Context, p peer.ID, plan Plan) ([]schedule.Claim, error) {
	_, _, claims, err := s.askMap(ctx, p, plan, func(mapHead) {})
	return claims, err
}

// askMap asks p for its claims of a plan, and calls told once p says whether it holds it. It fails with
// content.ErrNotFound where p does not.
func (s *Swarm) askMap(ctx context.Context, p peer.ID, plan Plan,
	told func(mapHead)) (size int64, zone string, claims []schedule.Claim, err error) {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(s.opts.slack(discoverTimeout))
	}
	patient, cancel := s.patient(ctx, p, s.opts.slack(mapTimeout))
	defer cancel()
	stream, err := s.host.NewStream(patient, p, s.planProtocol("map", plan.Grain))
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = stream.Reset() }()
	defer context.AfterFunc(ctx, func() { _ = stream.Reset() })() // so that p works for nobody who has gone
	stop := context.AfterFunc(patient, func() { _ = stream.Reset() })
	in, wait := newInbound(stream), s.opts.slack(discoverTimeout)
	defer func() { s.guard.answered(in, err) }()
	var head mapHead
	if err = writeQuestion(stream, mapQuery{Digest: string(plan.Digest)}); err == nil {
		err = in.read(&head, maxShort, wait) // patient ends before that
	}
	if !stop() {
		err = context.Cause(patient)
	}
	if err != nil {
		return 0, "", nil, err
	}
	if head.Size < 0 || head.Size > content.MaxSize {
		return 0, "", nil, fmt.Errorf("%w: a blob of %d bytes", errFrame, head.Size)
	}
	told(head)
	if !head.Found {
		return 0, "", nil, content.ErrNotFound
	}
	want := plan.Grain.Cut(head.Size).Len()
	taken := int64(0)
	defer func() { s.maps.Release(taken) }()
	for len(claims) < want {
		var part mapPart
		// Before the first p has yet to sign, and may have to read the blob for its pieces.
		if err := in.read(&part, maxFrame, min(wait, time.Until(end))); err != nil {
			return 0, "", nil, err
		}
		n := len(part.Signatures)
		if n == 0 || len(part.Sums) != n*sha256.Size || len(claims)+n > want {
			return 0, "", nil, fmt.Errorf("%w: %d bytes of sums and %d signatures", errFrame, len(part.Sums), n)
		}
		if !s.maps.TryAcquire(int64(n)) {
			return 0, "", nil, fmt.Errorf("map of the %d %s from %s: %w", want, plan, p, errTooMuch)
		}
		taken += int64(n)
		for i, sig := range part.Signatures {
			if len(sig) > maxSignature {
				return 0, "", nil, fmt.Errorf("%w: a signature of %d bytes", errFrame, len(sig))
			}
			sum := schedule.Sum(part.Sums[i*sha256.Size : (i+1)*sha256.Size])
			claims = append(claims, schedule.Claim{Index: len(claims), Sum: sum, By: p, Signature: sig})
		}
		// A large map may take longer than a small one, as long as it keeps coming, and not beyond the search.
		wait = s.opts.slack(mapTimeout)
	}
	return head.Size, head.Zone, claims, nil
}

// handleMap answers askMap.
func (s *Swarm) handleMap(g content.Grain) network.StreamHandler {
	return func(stream network.Stream) {
		if !s.guard.admit(stream, serviceMap) {
			return
		}
		defer func() { _ = stream.Close() }()
		p := stream.Conn().RemotePeer()
		d, err := s.mapQuestion(stream, p)
		if err == nil {
			plan := Plan{d, g}
			s.searching(p, plan)
			err = s.sendMap(stream, p, plan)
		}
		if err != nil {
			s.guard.breach(p, err)
			_ = stream.Reset()
		}
	}
}

// mapQuestion reads whose map a peer asks for, and charges it for the answer but for what must be signed.
func (s *Swarm) mapQuestion(stream network.Stream, p peer.ID) (digest.Digest, error) {
	var q mapQuery
	if err := newInbound(stream).read(&q, maxShort, s.opts.slack(discoverTimeout)); err != nil {
		return "", err
	}
	d, err := validDigest(q.Digest)
	if err != nil {
		return "", err
	}
	return d, s.guard.Charge(s.ctx, p, mapWork)
}

// sendMap says whether this node holds a plan's blob, and then sends its claims as it signs them. Once the coordinator
// has heard that, it waits longer before it sends anyone upstream: where all who hold a blob sign on few processors the
// signing takes long, and so do pieces that are not known yet. p is charged for the claims that it waits for, and for
// what is read of a blob of the runtime, of which nothing is known before.
func (s *Swarm) sendMap(stream network.Stream, p peer.ID, plan Plan) error {
	patient, cancel := context.WithTimeout(s.ctx, s.opts.slack(discoverTimeout)) // who asked waits no longer
	defer cancel()
	if err := s.guard.chargeRead(patient, p, s.opts.Store.Unmapped(plan.Digest)); err != nil {
		return err
	}
	_ = stream.SetWriteDeadline(time.Now().Add(s.opts.slack(discoverTimeout)))
	m, err := s.opts.Store.ChunkMap(plan.Digest)
	if err != nil {
		return writeFrame(stream, mapHead{Plans: s.plans(plan)})
	}
	err = writeFrame(stream, mapHead{Found: true, Size: m.Size(), Zone: s.opts.Zone, Plans: s.plans(plan)})
	if err != nil {
		return err
	}
	claims, known := s.signed.get(plan)
	if !known {
		asked, stop := whileAsked(s.ctx, stream)
		m, err = s.mapOf(asked, p, plan, m)
		if stop(); err != nil {
			return err
		}
	}
	count := plan.Grain.Cut(m.Size()).Len()
	for sent := 0; sent < count; {
		end := min(sent+mapPage, count)
		if !known {
			if err := s.guard.Charge(s.ctx, p, signWork*(end-sent)); err != nil {
				return err
			}
			signed, err := s.sign(plan, m, sent, end)
			if err != nil {
				return err
			}
			if claims = append(claims, signed...); end == count {
				s.signed.add(plan, claims)
			}
		}
		_ = stream.SetWriteDeadline(time.Now().Add(s.opts.slack(discoverTimeout)))
		if err := writeFrame(stream, toMapPart(claims[sent:end])); err != nil {
			return err
		}
		sent = end
	}
	return nil
}

func toMapPart(claims []schedule.Claim) mapPart {
	var part mapPart
	for _, c := range claims {
		part.Sums = append(part.Sums, c.Sum[:]...)
		part.Signatures = append(part.Signatures, c.Signature)
	}
	return part
}
