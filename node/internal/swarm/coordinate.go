package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

const (
	// helloTimeout bounds the first question and answer on a coordinator stream.
	helloTimeout = 2 * time.Second
	// writeTimeout bounds each write on it: a participant that takes no orders for so long has left.
	writeTimeout = 10 * time.Second
	// sessionIdle is for how long a participant may say nothing at all.
	sessionIdle = 10 * time.Minute
	// verifyWork is what it costs to verify a claim, in microseconds.
	verifyWork = 60
	// maxRooms bounds the blobs that are coordinated at one time, those that no one takes part in any more among them.
	maxRooms = 4096
	// roomLinger is for how long a room remembers what it knows after the last participant has gone.
	roomLinger = 5 * time.Minute
	// emptyLinger is for how long a room stays that knows nothing.
	emptyLinger = 5 * time.Second
	// succession is how long a new coordinator waits for the participants of the one before it to come. With each that
	// comes it waits for another successor, up to longSuccession in all. It waits for a successor too where another
	// peer, which answers, plans the blob and is to send its participants.
	succession, successor, longSuccession = 2 * time.Second, time.Second, 5 * time.Second
	// young is for how long after its beginning a room takes those who come from a lost coordinator for the first of
	// several.
	young = 5 * time.Second
	// searchAgain is how often holders are looked for again while none is known and participants come.
	searchAgain = 10 * time.Second
)

var errLeft = errors.New("left")

// room is this node's work as the coordinator of one blob: the table, and the way to its participants.
type room struct {
	swarm *Swarm
	plan  Plan

	mu           sync.Mutex
	table        *schedule.Plans
	participants map[peer.ID]*participant
	begun        time.Time // when the first came, or the first after all had gone
	idle         time.Time // since when no one takes part
	bereaved     time.Time // since when those are waited for who pull by another plan
	openAt       time.Time // no one is sent upstream before
	searched     time.Time // when holders were looked for last
	compared     time.Time // when a nearer peer was last asked whether it plans the same blob
	unions       int       // how often one did, and all were sent there
	united       peer.ID   // which one did last
	unitedAt     time.Time
	search       chan struct{}
	heard        bool // a peer has answered the search, or all have been waited for
	awaited      bool // a peer says that it holds the blob, and what its claims are is still to come
	held         bool // a participant has heard of a holder, which this search may find
	closed       bool
}

func newRoom(s *Swarm, plan Plan) *room {
	cfg := s.opts.Schedule
	cfg.Blob, cfg.Grain = string(plan.Digest), plan.Grain
	return &room{
		swarm: s, plan: plan, table: schedule.NewPlans(cfg), participants: map[peer.ID]*participant{}, idle: time.Now(),
		search: make(chan struct{}, 1),
	}
}

// participant is a participant's place in a room: its mailbox of orders.
type participant struct {
	id  peer.ID
	out *mailbox[schedule.Orders]
}

func newParticipant(id peer.ID) *participant {
	merge := func(have *schedule.Orders, later schedule.Orders) { have.Merge(later) }
	return &participant{id: id, out: newMailbox(merge)}
}

// room returns the room of a plan, and makes it for a peer where there is none.
func (s *Swarm) room(plan Plan, by peer.ID) (*room, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rooms[plan]; r != nil {
		return r, nil
	}
	if len(s.rooms) >= maxRooms {
		s.rooms.forgetOne()
	}
	if len(s.rooms) >= maxRooms || !s.guard.mayOpenRoom(by) {
		return nil, fmt.Errorf("coordinate %s: %w", plan, errTooMuch)
	}
	r := newRoom(s, plan)
	s.rooms[plan] = r
	s.wg.Go(func() { r.serve(s.ctx) })
	return r, nil
}

// rooms are those of the blobs that this node coordinates.
type rooms map[Plan]*room

// forgetOne closes the room that no one has been in for the longest time.
func (all rooms) forgetOne() {
	var oldest *room
	for _, r := range all {
		r.mu.Lock()
		if len(r.participants) == 0 && (oldest == nil || r.idle.Before(oldest.idle)) {
			oldest = r
		}
		r.mu.Unlock()
	}
	if oldest == nil {
		return
	}
	oldest.mu.Lock()
	defer oldest.mu.Unlock()
	if len(oldest.participants) == 0 {
		oldest.closed = true
		delete(all, oldest.plan)
	}
}

func (s *Swarm) roomCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rooms)
}

// serve finds out who has the blob, opens the way upstream, and keeps the table's time until no one needs the room.
func (r *room) serve(ctx context.Context) {
	grace := time.NewTimer(r.swarm.opts.DiscoveryGrace)
	defer grace.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var found chan struct{}
	search := func() {
		if found != nil {
			return // one is under way
		}
		done := make(chan struct{})
		found = done
		r.mu.Lock()
		r.heard, r.awaited = false, false
		r.mu.Unlock()
		grace.Reset(r.swarm.opts.DiscoveryGrace)
		r.swarm.wg.Go(func() {
			defer close(done)
			r.swarm.discover(ctx, r.plan, r)
		})
	}
	open := func() {
		r.update(func(now time.Time) {
			if wait := r.openAt.Sub(now); wait > 0 {
				grace.Reset(wait)
				return
			}
			r.table.Open(now)
		})
	}
	for {
		select {
		case <-ctx.Done():
			r.close(content.ErrClosed)
			return
		case <-r.search:
			search()
		case <-found:
			found = nil
			r.mu.Lock()
			r.held = false // who is to be found has been
			r.mu.Unlock()
			open()
		case <-grace.C:
			switch longer, wait := r.afterGrace(found != nil); {
			case wait > 0:
				grace.Reset(wait)
			case !longer:
				open()
			}
		case now := <-tick.C:
			if r.expired(now) {
				return
			}
			r.update(r.table.Tick)
			r.compare(ctx, now, compareEvery)
		}
	}
}

// afterGrace reports whether holders are waited for beyond the grace, and for how long, where not until the search
// ends.
func (r *room) afterGrace(searching bool) (longer bool, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !searching:
		return false, 0
	case !r.table.Upstream(): // then a holder is the only hope
		return true, 0
	case r.held && r.table.Holders() == 0: // whose answer waits behind what else it sends, as a rule
		return true, 0
	case r.awaited: // once: it may not keep its word
		r.heard, r.awaited = true, false
		return true, r.swarm.opts.slack(mapTimeout)
	case !r.heard: // once too: this machine is slow, or theirs, and nothing is known yet
		r.heard = true
		return true, r.swarm.opts.slack(mapTimeout)
	}
	return false, 0
}

func (r *room) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = true
}

func (r *room) promised() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard, r.awaited = true, true
}

// expired closes the room when no one has been in it for long.
func (r *room) expired(now time.Time) bool {
	r.swarm.mu.Lock()
	defer r.swarm.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.participants) > 0 {
		r.idle = now
		return false
	}
	if r.closed {
		return true
	}
	linger := roomLinger
	if r.table.Holders() == 0 && !r.table.Informed() {
		linger = emptyLinger
	}
	if now.Sub(r.idle) < linger {
		return false
	}
	r.closed = true
	delete(r.swarm.rooms, r.plan)
	return true
}

func (r *room) close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, who := range r.participants {
		who.out.close(err)
	}
}

// vouch drops claims that the peers they name have not signed: to pass them on is to be blamed for them. What is known
// is not passed on, and not looked at. It fails where from itself is named, who then says what it does not want to be
// held to.
func (r *room) vouch(
	ctx context.Context, from peer.ID, size int64, claims []schedule.Claim,
) ([]schedule.Claim, error) {
	own := r.swarm.host.ID()
	if from == own && !slices.ContainsFunc(claims, func(c schedule.Claim) bool { return c.By != own }) {
		return claims, nil
	}
	r.mu.Lock()
	fresh := slices.DeleteFunc(slices.Clone(claims), func(c schedule.Claim) bool {
		return r.table.Known(from, size, c)
	})
	r.mu.Unlock()
	forged := map[int]bool{}
	for _, c := range fresh {
		if c.By == own && from == own {
			continue
		}
		if err := r.swarm.guard.Charge(ctx, from, verifyWork); err != nil {
			return nil, err
		}
		err := VerifyClaim(r.plan, c)
		if err != nil && c.By == from {
			r.swarm.Ban(from, "forged-claim")
			return nil, err
		}
		if err != nil { // whatever else is claimed of the chunk
			forged[c.Index] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(claims), func(c schedule.Claim) bool { return forged[c.Index] }), nil
}

func (r *room) addHolder(p peer.ID, zone string, size int64, claims []schedule.Claim) {
	claims, err := r.vouch(r.swarm.ctx, p, size, claims)
	if err != nil {
		r.swarm.log.Warn("holder not used", "plan", r.plan, "peer", p, "error", err)
		return
	}
	r.update(func(now time.Time) {
		r.awaited = false
		if err := r.table.AddHolder(now, p, zone, size, claims); err != nil {
			r.swarm.log.Warn("holder not used", "plan", r.plan, "peer", p, "error", err)
		}
	})
}

// join lets a participant in. It fails with schedule.ErrSize, and with errLeft for a room that has just closed.
func (r *room) join(ctx context.Context, who *participant, j schedule.Join) error {
	var err error
	if j.Claims, err = r.vouch(ctx, who.id, j.Size, j.Claims); err != nil {
		return err
	}
	r.update(func(now time.Time) {
		if r.closed {
			err = errLeft
			return
		}
		r.prepare(now, j)
		if err = r.table.Join(now, who.id, j); err != nil {
			return
		}
		if old := r.participants[who.id]; old != nil {
			old.out.close(errLeft)
		}
		r.participants[who.id] = who
		r.idle = now
	})
	return err
}

// prepare looks for holders again where none is known, and waits for the others where a participant comes from a
// coordinator that was lost: they have what it lacks. The caller holds r.mu.
func (r *room) prepare(now time.Time, j schedule.Join) {
	first := len(r.participants) == 0
	r.held = r.held || j.Held
	if first {
		r.begun, r.bereaved = now, time.Time{}
	}
	if r.table.Holders() == 0 && (first || now.Sub(r.searched) > searchAgain) {
		r.searched = now
		if first { // there is nothing to hold up, and what was hopeless before may not be so any more
			r.table.Hold()
		}
		select {
		case r.search <- struct{}{}:
		default:
		}
	}
	// One that has chunks and neither claims for them nor a coordinator that it lost goes on with what it kept on disk.
	if !(j.Orphan || len(j.Claims) > 0 || len(j.Leased) > 0) || now.Sub(r.begun) > r.swarm.opts.slack(young) {
		return
	}
	wait := successor
	if r.bereaved.IsZero() {
		wait = succession
	}
	r.await(now, wait)
}

// await sends no one upstream for a while, so that those come first who pull by a plan that is lost or given up. The
// caller holds r.mu.
func (r *room) await(now time.Time, wait time.Duration) {
	o := &r.swarm.opts
	if r.bereaved.IsZero() {
		r.bereaved = now
	}
	until := now.Add(o.slack(wait))
	if last := r.bereaved.Add(o.slack(longSuccession)); until.After(last) {
		until = last
	}
	if until.After(r.openAt) {
		r.openAt = until
		r.table.Hold()
		select {
		case r.search <- struct{}{}: // which opens the way again
		default:
		}
	}
}

func (r *room) report(ctx context.Context, who *participant, rep schedule.Report) error {
	var err error
	if rep.Claims, err = r.vouch(ctx, who.id, 0, rep.Claims); err != nil {
		return err
	}
	r.update(func(now time.Time) {
		if err = errLeft; r.participants[who.id] == who {
			err = r.table.Report(now, who.id, rep)
		}
	})
	return err
}

// leave ends a participant's part. One that is complete stays known as a holder until its connection ends.
func (r *room) leave(who *participant, complete bool) {
	r.update(func(now time.Time) {
		if r.participants[who.id] != who {
			return
		}
		delete(r.participants, who.id)
		r.idle = now
		if !complete {
			r.table.Leave(now, who.id)
		}
	})
}

// gone: the connection to a peer has ended.
func (r *room) gone(p peer.ID) {
	r.update(func(now time.Time) {
		if who := r.participants[p]; who != nil {
			who.out.close(errLeft)
			delete(r.participants, p)
		}
		r.table.Leave(now, p)
	})
}

// update changes the table, and puts what it orders then into the mailboxes.
func (r *room) update(change func(now time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(time.Now())
	for _, id := range r.table.Strays() {
		if who := r.participants[id]; who != nil {
			who.out.close(schedule.ErrMoved)
		}
	}
	r.table.Take(func(to peer.ID, o schedule.Orders) {
		if who := r.participants[to]; who != nil {
			who.out.put(o)
		}
	})
}

// handleCoordinate serves a participant that takes this node for the coordinator.
func (s *Swarm) handleCoordinate(g content.Grain) network.StreamHandler {
	return func(stream network.Stream) {
		remote := stream.Conn().RemotePeer()
		if !s.guard.admit(stream, serviceCoordinate) {
			return
		}
		if err := s.coordinate(stream, remote, g); err != nil {
			s.guard.breach(remote, err)
			s.log.Debug("participant left", "peer", remote, "error", err)
			_ = stream.Reset()
			return
		}
		_ = stream.Close()
	}
}

// coordinate serves one participant until it leaves.
func (s *Swarm) coordinate(stream network.Stream, remote peer.ID, g content.Grain) error {
	in := newInbound(stream)
	var h hello
	if err := in.read(&h, maxShort, s.opts.slack(helloTimeout)); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	var first report
	if err := in.read(&first, maxFrame, s.opts.slack(helloTimeout)); err != nil {
		return fmt.Errorf("first report: %w", err)
	}
	d, err := validDigest(h.Digest)
	if err != nil {
		return err
	}
	plan := Plan{d, g}
	// Whoever is to be sent on pays as well: for what was read, and for the search among all who are connected.
	cost := queryWork + len(s.host.Network().Peers()) + in.work() + first.work()
	if err := s.guard.Charge(s.ctx, remote, cost); err != nil {
		return err
	}
	_ = stream.SetWriteDeadline(time.Now().Add(s.opts.slack(helloTimeout)))
	if !h.Forced {
		if near, ok := s.nearerThanSelf(plan); ok && near.ID != remote {
			return writeFrame(stream, sendOn(near, s.united(plan, near.ID)))
		}
	}
	rep, err := first.decode()
	if err != nil {
		return err
	}
	rep.Size = h.Size
	who := newParticipant(remote)
	r, err := s.letIn(plan, who, schedule.Join{
		Zone: h.Zone, Grain: g, Upstream: h.Upstream, Whole: h.Whole, Orphan: h.Orphan, Held: h.Held, Again: h.Again,
		Leased: fromRuns(first.Leased), Report: rep,
	})
	if err != nil {
		return errors.Join(err, writeFrame(stream, welcome{Error: err.Error()}))
	}
	complete := false
	defer func() { r.leave(who, complete) }()
	if len(h.Trace) > 0 {
		_, span := s.opts.Tracer.Start(trace.WithParent(s.ctx, h.Trace), "coordinate")
		span.Text("shoal.digest", string(d))
		span.Text("shoal.participant", remote.String())
		defer span.End(nil)
	}
	if err := writeFrame(stream, welcome{}); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.wg.Go(func() {
		defer cancel()
		s.giveOrders(ctx, stream, who)
	})
	complete, err = s.takeReports(ctx, in, r, who)
	return err
}

// sendOn is the answer to a participant for which another coordinator is nearer to the blob. plans: that one has just
// said that it plans it.
func sendOn(near peer.AddrInfo, plans bool) welcome {
	w := welcome{Nearer: []byte(near.ID), Plans: plans}
	for _, a := range near.Addrs {
		w.Addrs = append(w.Addrs, a.Bytes())
	}
	return w
}

// letIn lets a participant into the room of a plan.
func (s *Swarm) letIn(plan Plan, who *participant, j schedule.Join) (*room, error) {
	r, err := s.room(plan, who.id)
	if err != nil {
		return nil, err
	}
	return r, r.join(s.ctx, who, j)
}

// giveOrders sends a participant what the table orders, and ends the stream when there will be no more.
func (s *Swarm) giveOrders(ctx context.Context, stream network.Stream, who *participant) {
	s.log.Debug("orders ended", "peer", who.id, "error", writeOrders(ctx, stream, who.out))
	// Whoever is to join anew must read what was written until now, the welcome at least. A reset would take it away,
	// and so look like a coordinator that does not answer.
	if ctx.Err() == nil && stream.CloseWrite() == nil {
		_ = stream.SetReadDeadline(time.Now().Add(s.opts.slack(helloTimeout)))
		return
	}
	_ = stream.Reset() // so that takeReports ends too
}

// takeReports hands a participant's reports to the room until it leaves, and reports whether it has the whole blob.
func (s *Swarm) takeReports(ctx context.Context, in *inbound, r *room, who *participant) (complete bool, err error) {
	for {
		var f report
		if err := in.read(&f, maxFrame, sessionIdle); err != nil {
			if complete {
				return true, nil
			}
			return false, err
		}
		rep, err := f.decode()
		if err != nil {
			return complete, err
		}
		// The table is everyone's: who says much in a short time waits, and what one who has gone said is dropped.
		if err := s.guard.Charge(ctx, who.id, f.work()+in.work()); err != nil {
			return complete, err
		}
		complete = complete || rep.Complete
		if err := r.report(ctx, who, rep); err != nil {
			return complete, err
		}
	}
}

func writeOrders(ctx context.Context, stream network.Stream, box *mailbox[schedule.Orders]) error {
	for {
		o, err := box.take(ctx)
		if err != nil {
			return err
		}
		for _, f := range toOrders(o) {
			_ = stream.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err := writeFrame(stream, f); err != nil {
				return err
			}
		}
	}
}
