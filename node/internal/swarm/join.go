package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	multistream "github.com/multiformats/go-multistream"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

const (
	// defaultJoinTimeout is twice what one candidate that hangs may cost.
	defaultJoinTimeout = 3 * time.Second
	// candidates is how many peers nearest to a digest are tried.
	candidates = 3
	// patience is how many times as long a candidate may take whose link to this node is busy, which busy bytes show.
	patience = 4
	busy     = 64 << 10
	// shunned is for how long a candidate that did not answer is passed over.
	shunned = 5 * time.Second
)

// Session is a fetch's tie to the coordinator of its blob.
type Session interface {
	// Next waits for orders. It fails when the coordinator is lost (then join anew) or ctx ends.
	Next(ctx context.Context) (schedule.Orders, error)
	// Send reports to the coordinator. It never blocks; reports are merged while the connection is busy.
	Send(r schedule.Report)
	// Close ends the session. The coordinator gives the rest of this node's work to others.
	Close()
	// Coordinator is the peer that coordinates; the node's own ID where it does so itself.
	Coordinator() peer.ID
	// Alone reports whether this node coordinates because it could not reach whoever should. Others may do without it,
	// so it is worth trying to join again soon.
	Alone() bool
}

type session struct {
	orders      *mailbox[schedule.Orders]
	send        func(schedule.Report)
	close       func()
	coordinator peer.ID
	alone       bool
}

func (s *session) Next(ctx context.Context) (schedule.Orders, error) { return s.orders.take(ctx) }
func (s *session) Send(r schedule.Report)                            { s.send(r) }
func (s *session) Close()                                            { s.close() }
func (s *session) Coordinator() peer.ID                              { return s.coordinator }
func (s *session) Alone() bool                                       { return s.alone }

// errDeclined: a peer does not coordinate the blob, or not with this participant.
var errDeclined = errors.New("declined")

// Join enters the fetch of a blob with its coordinator: the live peer nearest to the digest by the DHT's metric. Where
// none is found within Options.JoinTimeout, or the last one that was asked then does not answer, this node coordinates
// itself. It fails only when ctx ends, with ErrClosed, or with schedule.ErrSize by a room of this node's own.
func (s *Swarm) Join(ctx context.Context, d digest.Digest, j schedule.Join) (Session, error) {
	return orError(s.join(ctx, d, j))
}

// orError makes sure that there is no session where there is an error.
func orError(s *session, err error) (Session, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Swarm) join(ctx context.Context, d digest.Digest, j schedule.Join) (*session, error) {
	plan := Plan{d, j.Grain}
	bounded, cancel := context.WithTimeout(ctx, s.opts.JoinTimeout)
	defer cancel()
	j.Orphan = s.isOrphan(d)
	tried := map[peer.ID]bool{}
	for _, p := range s.nearest(bounded, plan, candidates) {
		session, self := s.walk(ctx, bounded, p, plan, j, tried)
		switch {
		case session != nil:
			s.m.joins.WithLabelValues("remote").Inc()
			return session, nil
		case self:
			s.m.joins.WithLabelValues("self").Inc()
			return s.joinSelf(plan, j)
		}
		if bounded.Err() != nil {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.m.joins.WithLabelValues("alone").Inc()
	session, err := s.joinSelf(plan, j)
	if session != nil {
		session.alone = true
	}
	return session, err
}

// walk asks p to coordinate, then the nearer one that p names, and so on, as often as there are candidates. self: it is
// this node.
func (s *Swarm) walk(
	ctx, bounded context.Context, p peer.ID, plan Plan, j schedule.Join, tried map[peer.ID]bool,
) (joined *session, self bool) {
	var namedBy peer.ID
	// Who names one that is dead does not know it yet, and who names one that is not to be trusted never will: it is to
	// take the blob itself. Would this node go on alone instead, the registry would be asked twice.
	insist := func() (*session, bool) {
		if namedBy == "" || bounded.Err() != nil {
			return nil, false
		}
		session, _, err := s.joinRemote(ctx, namedBy, plan, j, true)
		s.unanswered(ctx, namedBy, plan, err)
		return session, false
	}
	for hop := 0; hop < candidates && bounded.Err() == nil; hop++ {
		switch {
		case p == s.host.ID():
			return nil, true
		case p == "" || tried[p] || s.isShunned(p) || !s.admission.admits(p):
			return insist()
		}
		tried[p] = true
		session, nearer, err := s.joinRemote(ctx, p, plan, j, hop == candidates-1)
		if session != nil {
			return session, false
		}
		if err != nil {
			s.unanswered(ctx, p, plan, err)
			return insist()
		}
		namedBy, p = p, nearer
	}
	return nil, false
}

// unanswered passes p over for a while if it did not answer.
func (s *Swarm) unanswered(ctx context.Context, p peer.ID, plan Plan, err error) {
	if err == nil {
		return
	}
	s.log.Debug("coordinator did not answer", "plan", plan, "peer", p, "error", err)
	_, older := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err) // it answers, and knows no pieces
	if ctx.Err() == nil && !older && !errors.Is(err, errDeclined) {
		s.shun(p)
	}
}

// orphaned is for how long it counts that a blob's coordinator was lost.
const orphaned = 30 * time.Second

// bereave notes that the coordinator of d was lost.
func (s *Swarm) bereave(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for other, at := range s.orphans {
		if now.Sub(at) > orphaned {
			delete(s.orphans, other)
		}
	}
	s.orphans[d] = now
}

func (s *Swarm) isOrphan(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, lost := s.orphans[d]
	return lost && time.Since(at) < orphaned
}

// JoinAlone makes a session that involves no one else: used where what peers say of the blob is not to be believed.
func (s *Swarm) JoinAlone(d digest.Digest, j schedule.Join) (Session, error) {
	return orError(s.joinAlone(Plan{d, j.Grain}, j))
}

func (s *Swarm) joinAlone(plan Plan, j schedule.Join) (*session, error) {
	r := newRoom(s, plan)
	session, err := s.enterRoom(r, j)
	if err != nil {
		return nil, err
	}
	r.update(r.table.Open)
	ctx, cancel := context.WithCancel(s.ctx)
	s.wg.Go(func() { r.keepTime(ctx) })
	leave := session.close
	session.close = func() { cancel(); leave() }
	return session, nil
}

// keepTime is for a room that nobody serves: without it a lease that failed would never be given again.
func (r *room) keepTime(ctx context.Context) {
	for content.Sleep(ctx, time.Second) {
		r.update(r.table.Tick)
	}
}

func (s *Swarm) joinSelf(plan Plan, j schedule.Join) (*session, error) {
	for {
		r, err := s.room(plan, s.host.ID())
		if err != nil {
			return s.joinAlone(plan, j) // it has enough to do for others
		}
		session, err := s.enterRoom(r, j)
		if !errors.Is(err, errLeft) {
			return session, err
		}
		if s.ctx.Err() != nil {
			return nil, content.ErrClosed
		}
	}
}

func (s *Swarm) enterRoom(r *room, j schedule.Join) (*session, error) {
	who := newParticipant(s.host.ID())
	load := s.loadOf(j)
	j.Load = load(j.Size)
	if err := r.join(s.ctx, who, j); err != nil {
		return nil, err
	}
	var complete atomic.Bool
	return &session{
		coordinator: s.host.ID(),
		orders:      who.out,
		send: func(rep schedule.Report) {
			if rep.Complete {
				complete.Store(true)
			}
			rep.Load = load(rep.Size)
			if err := r.report(s.ctx, who, rep); err != nil {
				who.out.close(err)
			}
		},
		close: func() { r.leave(who, complete.Load()); who.out.close(errLeft) },
	}, nil
}

// joinRemote asks p to coordinate. It returns a session, or a nearer peer to ask instead, or an error.
func (s *Swarm) joinRemote(ctx context.Context, p peer.ID, plan Plan, j schedule.Join,
	forced bool) (*session, peer.ID, error) {
	ctx, cancel := s.patient(ctx, p, s.opts.JoinTimeout/2)
	defer cancel()
	load := s.loadOf(j)
	j.Load = load(j.Size)
	stream, err := s.host.NewStream(ctx, p, s.planProtocol("coordinate", plan.Grain))
	if err != nil {
		return nil, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Reset() })
	in := newInbound(stream)
	w, err := greet(ctx, stream, in, plan.Digest, j, forced)
	if !stop() {
		return nil, "", fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
	if err != nil {
		s.guard.answered(in, err)
		_ = stream.Reset()
		return nil, "", err
	}
	switch {
	case w.Error != "":
		_ = stream.Reset()
		return nil, "", fmt.Errorf("%w: %s", errDeclined, w.Error)
	case len(w.Nearer) > 0:
		_ = stream.Reset()
		return nil, s.learn(w), nil
	}
	return s.remoteSession(p, plan.Digest, stream, in, load), "", nil
}

// loadOf tells coordinators what this node has to send, each in chunks of the blob that it coordinates, as it counts
// what it gives. The size is that of a report, which one of them told at least before anything was asked of this node.
func (s *Swarm) loadOf(j schedule.Join) func(size int64) int {
	known := new(atomic.Int64)
	return func(size int64) int {
		if size > 0 {
			known.Store(size)
		}
		return s.bitswap.owed.in(j.Grain.Cut(known.Load()).Chunk())
	}
}

// patient is ctx for as long as an answer of p may take: for a while, and as much again while much goes to and fro
// between p and this node, because the answer waits its turn among it. If others went on without a coordinator or a
// holder that is only busy, the registry would be asked twice.
func (s *Swarm) patient(ctx context.Context, p peer.ID, while time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, patience*while)
	s.wg.Go(func() {
		for before := s.exchanged(p); content.Sleep(ctx, while); {
			now := s.exchanged(p)
			if now-before < busy {
				cancel()
			}
			before = now
		}
	})
	return ctx, cancel
}

func greet(ctx context.Context, stream network.Stream, in *inbound, d digest.Digest, j schedule.Join,
	forced bool) (welcome, error) {
	h := hello{
		Digest: string(d), Size: j.Size, Zone: j.Zone, Upstream: j.Upstream, Whole: j.Whole, Forced: forced,
		Orphan: j.Orphan, Held: j.Held, Again: j.Again, Trace: trace.Parent(ctx),
	}
	if err := writeFrame(stream, h); err != nil {
		return welcome{}, err
	}
	for _, f := range toReports(j.Report, j.Leased) {
		if err := writeFrame(stream, f); err != nil {
			return welcome{}, err
		}
	}
	var w welcome
	return w, in.read(&w, maxShort, sessionIdle) // ctx ends before that
}

// learn takes in the address of a peer that another named. One that has just answered that other is passed over no
// more.
func (s *Swarm) learn(w welcome) peer.ID {
	p := peer.ID(w.Nearer)
	if p.Validate() != nil {
		return ""
	}
	for _, raw := range w.Addrs {
		if a, err := ma.NewMultiaddrBytes(raw); err == nil {
			s.host.Peerstore().AddAddr(p, a, 10*time.Minute)
		}
	}
	if w.Plans {
		s.mu.Lock()
		delete(s.shunnedUntil, p)
		s.mu.Unlock()
	}
	return p
}

// remoteSession is a session with a coordinator that has let this node in on a stream.
func (s *Swarm) remoteSession(p peer.ID, d digest.Digest, stream network.Stream, in *inbound,
	load func(size int64) int) *session {
	ctx, cancel := context.WithCancel(s.ctx)
	orders := newParticipant(p).out
	reports := newMailbox(func(have *schedule.Report, later schedule.Report) { have.Merge(later) })
	lost := func(err error) {
		if ctx.Err() == nil && s.host.Network().Connectedness(p) != network.Connected {
			s.bereave(d) // before anyone joins anew
		}
		orders.close(fmt.Errorf("coordinator %s: %w", p, err))
		_ = stream.Reset()
	}
	s.wg.Go(func() {
		defer cancel()
		err := s.takeOrders(ctx, p, in, orders)
		s.guard.breach(p, err)
		lost(err)
	})
	s.wg.Go(func() {
		if err := s.giveReports(ctx, stream, reports, load); err != nil {
			lost(err)
		}
	})
	return &session{
		coordinator: p,
		orders:      orders,
		send:        reports.put,
		close:       func() { reports.close(errLeft); orders.close(errLeft) },
	}
}

// takeOrders puts what a coordinator orders into the mailbox, until it fails. What is said faster than it can be done
// is not read.
func (s *Swarm) takeOrders(ctx context.Context, p peer.ID, in *inbound, to *mailbox[schedule.Orders]) error {
	for {
		o, err := s.readOrders(ctx, p, in)
		if err != nil {
			return err
		}
		err = to.space(ctx, func(o schedule.Orders) bool { return len(o.Chunks)+len(o.Leases) > maxPending })
		if err != nil {
			return err
		}
		to.put(o)
	}
}

// giveReports sends the coordinator what is put into the mailbox, until that is closed or ctx ends.
func (s *Swarm) giveReports(ctx context.Context, stream network.Stream, from *mailbox[schedule.Report],
	load func(size int64) int) error {
	for {
		rep, err := from.take(ctx)
		if err != nil {
			// What was reported is on its way: end the stream cleanly, so that it arrives. The coordinator then ends
			// its side, which whoever takes its orders sees.
			_ = stream.CloseWrite()
			if content.Sleep(ctx, writeTimeout) {
				_ = stream.Reset()
			}
			return nil
		}
		rep.Load = load(rep.Size)
		for _, f := range toReports(rep, nil) {
			_ = stream.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err := writeFrame(stream, f); err != nil {
				return err
			}
		}
	}
}

const (
	// maxLeases is more leases than a coordinator gives one participant at one time.
	maxLeases = 64
	// maxPending is how many orders may wait to be taken.
	maxPending = 4 * maxList
	// orderWork is what taking in an order costs, in microseconds, and vainWork what one costs that leads nowhere. A
	// fetch wakes for it all the same, and no coordinator has reason to send many.
	orderWork = 10
	vainWork  = 1000
)

func costOf(o schedule.Orders) int {
	if n := len(o.Chunks) + len(o.Leases); n > 0 {
		return orderWork * (1 + n)
	}
	return vainWork
}

func (s *Swarm) readOrders(ctx context.Context, p peer.ID, in *inbound) (schedule.Orders, error) {
	var f orders
	if err := in.read(&f, maxFrame, sessionIdle); err != nil {
		return schedule.Orders{}, err
	}
	if len(f.Leases) > maxLeases {
		return schedule.Orders{}, fmt.Errorf("%w: %d leases, of which %d are allowed", errFrame, len(f.Leases),
			maxLeases)
	}
	o, err := f.decode()
	if err != nil {
		return o, err
	}
	return o, s.guard.Charge(ctx, p, costOf(o)+in.work())
}

// nearest returns the n peers nearest to a plan's digest that may take part, this node among them if it is one. In a
// swarm that fits into the routing table no one is asked.
func (s *Swarm) nearest(ctx context.Context, plan Plan, n int) []peer.ID {
	c, err := content.DigestCID(plan.Digest)
	if err != nil {
		return nil
	}
	key := string(c.Hash())
	var peers []peer.ID
	if !s.knowsAll() {
		// Half of the time is for asking those who are found.
		ctx, cancel := context.WithTimeout(ctx, s.opts.JoinTimeout/2)
		defer cancel()
		if found, err := s.dht.GetClosestPeers(ctx, key); err == nil {
			peers = found
		}
	}
	target := kb.ConvertKey(key)
	if len(peers) == 0 {
		peers = s.around(target, plan.Grain, n)
	}
	peers = slices.DeleteFunc(peers, func(p peer.ID) bool {
		return s.isShunned(p) || !s.admission.admits(p) || !s.mayPlan(p, plan.Grain)
	})
	peers = kb.SortClosestPeers(append(peers, s.host.ID()), target)
	return peers[:min(n, len(peers))]
}

// knowsAll reports whether the DHT can name no one that this node does not know: a routing table leaves somebody out
// only where one of its buckets is full.
func (s *Swarm) knowsAll() bool {
	table, left := s.dht.RoutingTable(), s.dht.RoutingTable().Size()
	for cpl := uint(0); left > 0 && cpl < 256; cpl++ {
		in := table.NPeersForCpl(cpl)
		if in >= s.dht.BucketSize() {
			return false
		}
		left -= in
	}
	return true
}

// around returns the n connected agents nearest to target that may take part in plans of a grain, but for those
// shunned. The routing table is not asked: a peer that has just come is connected before the table takes it in, and one
// that is gone stays in it for long after.
func (s *Swarm) around(target kb.ID, g content.Grain, n int) []peer.ID {
	var peers []peer.ID
	for _, p := range s.host.Network().Peers() {
		if s.mayPlan(p, g) && !s.isShunned(p) {
			peers = append(peers, p)
		}
	}
	peers = kb.SortClosestPeers(peers, target)
	return peers[:min(n, len(peers))]
}

// nearerThanSelf returns the connected peer that is nearer to a plan's digest than this node, if there is one: it is
// the coordinator.
func (s *Swarm) nearerThanSelf(plan Plan) (peer.AddrInfo, bool) {
	c, err := content.DigestCID(plan.Digest)
	if err != nil {
		return peer.AddrInfo{}, false
	}
	target := kb.ConvertKey(string(c.Hash()))
	for _, p := range kb.SortClosestPeers(append(s.around(target, plan.Grain, candidates), s.host.ID()), target) {
		switch {
		case p == s.host.ID():
			return peer.AddrInfo{}, false
		case s.host.Network().Connectedness(p) == network.Connected && !s.isShunned(p):
			return s.host.Peerstore().PeerInfo(p), true
		}
	}
	return peer.AddrInfo{}, false
}

func (s *Swarm) shun(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shunnedUntil[p] = time.Now().Add(shunned)
}

func (s *Swarm) isShunned(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.shunnedUntil[p]
	if ok && time.Now().After(until) {
		delete(s.shunnedUntil, p)
		return false
	}
	return ok
}
