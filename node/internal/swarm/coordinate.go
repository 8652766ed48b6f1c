package swarm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

const (
	// helloTimeout bounds the first exchange on a coordinator stream.
	helloTimeout = 2 * time.Second
	// writeTimeout bounds each write on it: a participant that takes no orders for so long has left.
	writeTimeout = 10 * time.Second
	// roomLinger is for how long a room remembers who is complete after the last participant has gone.
	roomLinger = 5 * time.Minute
	// succession is how long a new coordinator waits for the participants of the one before it to come.
	succession = 2 * time.Second
)

var errLeft = errors.New("left")

// room is this node's work as the coordinator of one blob: the table, and the way to its participants.
type room struct {
	swarm  *Swarm
	digest digest.Digest

	mu      sync.Mutex
	table   *schedule.Table
	members map[peer.ID]*member
	idle    time.Time // since when no one takes part
	openAt  time.Time // no one is sent upstream before
	closed  bool
}

// member is a participant's mailbox of orders.
type member struct {
	id  peer.ID
	out *mailbox[schedule.Orders]
}

func newMember(id peer.ID) *member {
	return &member{id: id, out: newMailbox(func(have *schedule.Orders, later schedule.Orders) { have.Merge(later) })}
}

// room returns the room of d, and makes it where there is none.
func (s *Swarm) room(d digest.Digest) *room {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rooms[d]; r != nil {
		return r
	}
	r := &room{
		swarm: s, digest: d, table: schedule.New(s.opts.Schedule), members: map[peer.ID]*member{}, idle: time.Now(),
	}
	s.rooms[d] = r
	s.wg.Go(func() { r.serve(s.ctx) })
	return r
}

func (s *Swarm) roomCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rooms)
}

// serve finds out who has the blob, opens the way upstream, and keeps the table's time until no one needs the room.
func (r *room) serve(ctx context.Context) {
	found := make(chan struct{})
	r.swarm.wg.Go(func() {
		defer close(found)
		r.swarm.discover(ctx, r.digest, r.addHolder)
	})
	grace := time.NewTimer(r.swarm.opts.DiscoveryGrace)
	defer grace.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	open := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if wait := time.Until(r.openAt); wait > 0 {
			grace.Reset(wait)
			return
		}
		r.table.Open(time.Now())
		r.deliver()
	}
	for {
		select {
		case <-ctx.Done():
			r.close(content.ErrClosed)
			return
		case <-found:
			found = nil
			open()
		case <-grace.C:
			open()
		case now := <-tick.C:
			if r.expired(now) {
				return
			}
			r.mu.Lock()
			r.table.Tick(now)
			r.deliver()
			r.mu.Unlock()
		}
	}
}

// expired closes the room when no one has been in it for long.
func (r *room) expired(now time.Time) bool {
	r.swarm.mu.Lock()
	defer r.swarm.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.members) > 0 {
		r.idle = now
		return false
	}
	if now.Sub(r.idle) < roomLinger {
		return false
	}
	r.closed = true
	delete(r.swarm.rooms, r.digest)
	return true
}

func (r *room) close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, m := range r.members {
		m.out.close(err)
	}
}

// vouch drops claims that the peers they name have not signed: to pass them on is to be blamed for them. What is known is
// not passed on, and not looked at. It fails where from itself is named, who then says what it does not want to be held to.
func (r *room) vouch(from peer.ID, claims []schedule.Claim) ([]schedule.Claim, error) {
	own := r.swarm.host.ID()
	if from == own && !slices.ContainsFunc(claims, func(c schedule.Claim) bool { return c.By != own }) {
		return claims, nil
	}
	r.mu.Lock()
	fresh := slices.DeleteFunc(slices.Clone(claims), func(c schedule.Claim) bool { return r.table.Known(c.Index) })
	r.mu.Unlock()
	forged := map[int]bool{}
	for _, c := range fresh {
		if c.By == own && from == own {
			continue
		}
		err := VerifyClaim(r.digest, c)
		if err != nil && c.By == from {
			r.swarm.Ban(from, "forged-claim")
			return nil, err
		}
		forged[c.Index] = err != nil
	}
	return slices.DeleteFunc(slices.Clone(claims), func(c schedule.Claim) bool { return forged[c.Index] }), nil
}

func (r *room) addHolder(p peer.ID, zone string, size int64, claims []schedule.Claim) {
	if _, err := r.vouch(p, claims); err != nil {
		r.swarm.log.Warn("holder not used", "digest", r.digest, "peer", p, "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.table.AddHolder(time.Now(), p, zone, size, claims); err != nil {
		r.swarm.log.Warn("holder not used", "digest", r.digest, "peer", p, "error", err)
	}
	r.deliver()
}

// join lets a participant in. It fails with schedule.ErrSize, and with errLeft for a room that has just closed.
func (r *room) join(m *member, j schedule.Join) error {
	var err error
	if j.Claims, err = r.vouch(m.id, j.Claims); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errLeft
	}
	if err := r.table.Join(time.Now(), m.id, j); err != nil {
		return err
	}
	if old := r.members[m.id]; old != nil {
		old.out.close(errLeft)
	}
	r.members[m.id] = m
	r.idle = time.Now()
	if r.openAt.IsZero() && (len(j.Claims) > 0 || len(j.Leased) > 0) {
		// It comes from a coordinator that was lost, and so will others, who have what it lacks. (One that has chunks and no
		// claims for them goes on with what it kept on disk.)
		r.openAt = r.idle.Add(succession)
	}
	r.deliver()
	return nil
}

func (r *room) report(m *member, rep schedule.Report) error {
	var err error
	if rep.Claims, err = r.vouch(m.id, rep.Claims); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members[m.id] != m {
		return errLeft
	}
	err = r.table.Report(time.Now(), m.id, rep)
	r.deliver()
	return err
}

// leave ends m's part. One that is complete stays known as a holder until its connection ends.
func (r *room) leave(m *member, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members[m.id] != m {
		return
	}
	delete(r.members, m.id)
	r.idle = time.Now()
	if !complete {
		r.table.Leave(time.Now(), m.id)
	}
	r.deliver()
}

// gone: the connection to a peer has ended.
func (r *room) gone(p peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.members[p]; m != nil {
		m.out.close(errLeft)
		delete(r.members, p)
	}
	r.table.Leave(time.Now(), p)
	r.deliver()
}

// deliver puts the table's orders into the mailboxes. The caller holds r.mu.
func (r *room) deliver() {
	r.table.Take(func(to peer.ID, o schedule.Orders) {
		if m := r.members[to]; m != nil {
			m.out.put(o)
		}
	})
}

// handleCoordinate serves a participant that takes this node for the coordinator.
func (s *Swarm) handleCoordinate(stream network.Stream) {
	remote := stream.Conn().RemotePeer()
	if err := s.coordinate(stream, remote); err != nil {
		s.log.Debug("participant left", "peer", remote, "error", err)
		_ = stream.Reset()
		return
	}
	_ = stream.Close()
}

func (s *Swarm) coordinate(stream network.Stream, remote peer.ID) error {
	_ = stream.SetReadDeadline(time.Now().Add(helloTimeout))
	in := bufio.NewReader(stream)
	var h hello
	if err := readFrame(in, &h); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	var first report
	if err := readFrame(in, &first); err != nil {
		return fmt.Errorf("first report: %w", err)
	}
	d, err := validDigest(h.Digest)
	if err != nil {
		return err
	}
	_ = stream.SetWriteDeadline(time.Now().Add(helloTimeout))
	if !h.Forced {
		if near, ok := s.nearerThanSelf(d); ok && near.ID != remote {
			w := welcome{Nearer: []byte(near.ID)}
			for _, a := range near.Addrs {
				w.Addrs = append(w.Addrs, a.Bytes())
			}
			return writeFrame(stream, w)
		}
	}
	rep, err := first.decode()
	if err != nil {
		return err
	}
	rep.Size = h.Size
	m := newMember(remote)
	r := s.room(d)
	err = r.join(m, schedule.Join{Zone: h.Zone, Upstream: h.Upstream, Whole: h.Whole, Leased: fromRuns(first.Leased), Report: rep})
	if err != nil {
		return errors.Join(err, writeFrame(stream, welcome{Error: err.Error()}))
	}
	complete := false
	defer func() { r.leave(m, complete) }()
	if err := writeFrame(stream, welcome{}); err != nil {
		return err
	}
	_ = stream.SetReadDeadline(time.Time{})

	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.wg.Go(func() {
		defer cancel()
		s.log.Debug("orders end", "peer", remote, "error", writeOrders(ctx, stream, m.out))
		_ = stream.Reset() // so that the reader below ends too
	})
	for {
		var f report
		if err := readFrame(in, &f); err != nil {
			if complete {
				return nil
			}
			return err
		}
		rep, err := f.decode()
		if err != nil {
			return err
		}
		complete = complete || rep.Complete
		if err := r.report(m, rep); err != nil {
			return err
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
