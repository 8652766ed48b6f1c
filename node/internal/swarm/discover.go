package swarm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

const (
	// discoverTimeout bounds the search for holders.
	discoverTimeout = 5 * time.Second
	// mapTimeout bounds one peer's answer to whether it holds a blob. Dead providers cost no more than this.
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
	// maxSigned is up to how many chunks the claims of a blob are kept: fewer than 64 blobs of them are.
	maxSigned = 4096
	// enoughProviders is how many providers the DHT is asked for.
	enoughProviders = 20
)

// finder is told who holds the blob that is looked for.
type finder interface {
	// answered: a peer says whether it does.
	answered()
	// promised: a peer says that it does, and its claims are to come.
	promised()
	// addHolder takes in a peer that does, with its claims for every chunk.
	addHolder(p peer.ID, zone string, size int64, claims []schedule.Claim)
}

// discover finds who holds d whole: this node, those whose provider records this node or the DHT has, and (where the
// DHT knows nothing, or is broken) whoever of the connected peers says so. It returns when all have answered or timed
// out.
func (s *Swarm) discover(ctx context.Context, d digest.Digest, to finder) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	if s.searches.Acquire(ctx, 1) != nil {
		return
	}
	defer s.searches.Release(1)
	if claims, size, err := s.ownClaims(d); err == nil {
		to.addHolder(s.host.ID(), s.opts.Zone, size, claims)
	}
	key, err := content.DigestCID(d)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
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
			size, zone, claims, err := s.askMap(ctx, p, d, to.promised)
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

// ownClaims are this node's own claims for a blob that its store has whole, and has checked against its digest.
func (s *Swarm) ownClaims(d digest.Digest) ([]schedule.Claim, int64, error) {
	m, err := s.opts.Store.ChunkMap(d)
	if err != nil {
		return nil, 0, err
	}
	claims, err := s.sign(d, m, 0, m.Len())
	return claims, m.Size(), err
}

// sign gives this node's claims for n chunks of a blob from first on. Those for all of it are kept.
func (s *Swarm) sign(d digest.Digest, m *content.ChunkMap, first, n int) ([]schedule.Claim, error) {
	if claims, ok := s.signed.Get(d); ok && len(claims) == m.Len() {
		return claims[first : first+n], nil
	}
	claims := make([]schedule.Claim, n)
	for k := range claims {
		h := m.CID(first + k).Hash()
		var err error
		if claims[k], err = s.Claim(d, first+k, schedule.Sum(h[len(h)-sha256.Size:])); err != nil {
			return nil, err
		}
	}
	if n == m.Len() && n <= maxSigned {
		s.signed.Add(d, claims)
	}
	return claims, nil
}

// HeldBy asks p whether it holds d whole, and for its claims then. It fails with content.ErrNotFound where p does not.
func (s *Swarm) HeldBy(ctx context.Context, p peer.ID, d digest.Digest) ([]schedule.Claim, error) {
	_, _, claims, err := s.askMap(ctx, p, d, func() {})
	return claims, err
}

// askMap asks p for its claims of d, and calls held once p says that it holds it. It fails with content.ErrNotFound
// where p does not.
func (s *Swarm) askMap(ctx context.Context, p peer.ID, d digest.Digest,
	held func()) (size int64, zone string, claims []schedule.Claim, err error) {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(discoverTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, mapTimeout)
	defer cancel()
	stream, err := s.host.NewStream(ctx, p, s.protocol("map"))
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = stream.Reset() }()
	deadline, _ := ctx.Deadline()
	_ = stream.SetDeadline(deadline)
	if err := writeFrame(stream, mapQuery{Digest: string(d)}); err != nil {
		return 0, "", nil, err
	}
	in := bufio.NewReader(stream)
	var head mapHead
	if err := readFrame(in, &head); err != nil {
		return 0, "", nil, err
	}
	if !head.Found {
		return 0, "", nil, content.ErrNotFound
	}
	if head.Size < 0 || head.Size > content.MaxSize {
		return 0, "", nil, fmt.Errorf("%w: a blob of %d bytes", errFrame, head.Size)
	}
	held()
	_ = stream.SetDeadline(earlier(time.Now().Add(mapTimeout), end)) // p has yet to sign
	want := content.Chunks(head.Size)
	defer func() { s.maps.Release(int64(len(claims))) }()
	for len(claims) < want {
		var part mapPart
		if err := readFrame(in, &part); err != nil {
			return 0, "", nil, err
		}
		n := len(part.Signatures)
		if n == 0 || len(part.Sums) != n*sha256.Size || len(claims)+n > want {
			return 0, "", nil, fmt.Errorf("%w: %d bytes of sums and %d signatures", errFrame, len(part.Sums), n)
		}
		if !s.maps.TryAcquire(int64(n)) {
			return 0, "", nil, fmt.Errorf("map of %d chunks of %s from %s: %w", want, d, p, errTooMuch)
		}
		for i, sig := range part.Signatures {
			sum := schedule.Sum(part.Sums[i*sha256.Size : (i+1)*sha256.Size])
			claims = append(claims, schedule.Claim{Index: len(claims), Sum: sum, By: p, Signature: sig})
		}
		// A large map may take longer than a small one, as long as it keeps coming, and not beyond the search.
		_ = stream.SetDeadline(earlier(time.Now().Add(mapTimeout), end))
	}
	return head.Size, head.Zone, claims, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// handleMap answers askMap. That the blob is here goes out before anything is signed: the coordinator waits longer then
// before it sends anyone upstream, and where all who hold a blob sign on few processors that takes long.
func (s *Swarm) handleMap(stream network.Stream) {
	if !s.guard.admit(stream, serviceMap) {
		return
	}
	defer func() { _ = stream.Close() }()
	p := stream.Conn().RemotePeer()
	d, err := s.mapQuestion(stream, p)
	if err != nil {
		s.guard.breach(p, err)
		_ = stream.Reset()
		return
	}
	_ = stream.SetWriteDeadline(time.Now().Add(discoverTimeout))
	m, err := s.opts.Store.ChunkMap(d)
	if err != nil {
		_ = writeFrame(stream, mapHead{Plans: s.plans(d)})
		return
	}
	err = writeFrame(stream, mapHead{Found: true, Size: m.Size(), Zone: s.opts.Zone, Plans: s.plans(d)})
	for first := 0; first < m.Len() && err == nil; first += maxList {
		err = s.writePart(stream, d, m, first)
	}
	if err != nil {
		_ = stream.Reset()
	}
}

// writePart writes this node's claims for as many chunks from first on as one part of a map has.
func (s *Swarm) writePart(to io.Writer, d digest.Digest, m *content.ChunkMap, first int) error {
	claims, err := s.sign(d, m, first, min(m.Len()-first, maxList))
	if err != nil {
		return err
	}
	part := mapPart{}
	for _, c := range claims {
		part.Sums = append(part.Sums, c.Sum[:]...)
		part.Signatures = append(part.Signatures, c.Signature)
	}
	return writeFrame(to, part)
}

// mapQuestion reads whose map a peer asks for, and charges it for the answer.
func (s *Swarm) mapQuestion(stream network.Stream, p peer.ID) (digest.Digest, error) {
	var q mapQuery
	if err := newInbound(stream).read(&q, maxShort, discoverTimeout); err != nil {
		return "", err
	}
	d, err := validDigest(q.Digest)
	if err != nil {
		return "", err
	}
	work := mapWork
	if m, err := s.opts.Store.ChunkMap(d); err == nil && !s.signed.Contains(d) {
		work += signWork * m.Len()
	}
	return d, s.guard.Charge(s.ctx, p, work)
}
