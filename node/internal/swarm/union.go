package swarm

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Two peers may plan one blob at the same time: a coordinator was too busy to answer somebody in time, or is back after
// a restart, or has come while others pull. Each plan then reads the blob from the registry once. So the peer that is
// farther from the digest gives up its room, and its participants join the nearer peer with what they have.

// compareEvery is how often a coordinator asks a nearer peer whether it plans the same blob. A node that has joined the
// nearer one in vain passes it over until then.
const compareEvery = shunned

// compareSoon is how often at most it asks one that looks for who holds the blob, as a peer does that begins to plan
// it.
const compareSoon = 200 * time.Millisecond

// errUnited: a nearer peer plans the blob as well. The participants join there.
var errUnited = errors.New("a nearer peer coordinates the blob")

// compare asks a nearer peer, if there is one, whether it plans the same blob, and gives up the room if it does. It
// asks no more often than every so long.
func (r *room) compare(ctx context.Context, now time.Time, every time.Duration) {
	r.mu.Lock()
	due := len(r.participants) > 0 && now.Sub(r.compared) >= every<<min(r.unions, 6)
	if due {
		r.compared = now
	}
	r.mu.Unlock()
	if !due {
		return
	}
	near, ok := r.swarm.nearerThanSelf(r.plan)
	if !ok {
		return
	}
	r.swarm.wg.Go(func() {
		if r.swarm.askPlans(ctx, near.ID, r.plan) {
			r.unite(near.ID)
		}
	})
}

// planned is told that p plans the blob as well, by what p answers to the search for holders. The nearest of all waits
// for those who pull by the other plan: they have what it lacks. Who is not sends its own there.
func (r *room) planned(p peer.ID) {
	near, nearer := r.swarm.nearerThanSelf(r.plan)
	r.mu.Lock()
	first, wait := r.unions == 0, r.bereaved.IsZero() && time.Since(r.begun) <= r.swarm.opts.slack(young)
	r.mu.Unlock()
	switch {
	case !nearer && wait:
		r.update(func(now time.Time) { r.await(now, successor) })
	case nearer && near.ID == p && first: // if they come back it is asked now and then, see compare
		r.unite(p)
	}
}

// searching is told that p looks for who holds the blob of a plan. A nearer peer that begins to plan it does so.
func (s *Swarm) searching(p peer.ID, plan Plan) {
	r := s.roomOf(plan)
	if r == nil {
		return // as a rule, so the peers are not looked through
	}
	if near, ok := s.nearerThanSelf(plan); ok && near.ID == p {
		r.compare(s.ctx, time.Now(), compareSoon)
	}
}

// roomOf is the room of a plan, nil where this node has none.
func (s *Swarm) roomOf(plan Plan) *room {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rooms[plan]
}

// unite sends all participants to a nearer peer. If they come back, that peer does not do what it says, and is asked
// again half as often.
func (r *room) unite(at peer.ID) {
	r.swarm.log.Info("a nearer peer has a plan as well: its participants join that", "plan", r.plan, "peer", at)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unions++
	r.united, r.unitedAt = at, time.Now()
	r.idle = r.unitedAt
	for id, who := range r.participants {
		who.out.close(errUnited)
		delete(r.participants, id)
		r.table.Leave(r.idle, id)
	}
}

// united reports whether the participants of a plan of this node were sent to p a moment ago, because it plans the
// blob.
func (s *Swarm) united(plan Plan, p peer.ID) bool {
	r := s.roomOf(plan)
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.united == p && time.Since(r.unitedAt) < compareEvery
}

// plans reports whether others pull by a plan of this node.
func (s *Swarm) plans(plan Plan) bool {
	r := s.roomOf(plan)
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.participants) > 0
}

// askPlans asks p whether others pull by a plan of its. No answer counts as no.
func (s *Swarm) askPlans(ctx context.Context, p peer.ID, plan Plan) bool {
	ctx, cancel := context.WithTimeout(ctx, s.opts.slack(mapTimeout))
	defer cancel()
	var head mapHead
	q := mapQuery{Digest: string(plan.Digest)}
	return s.query(ctx, p, inGrain("map", plan.Grain), q, maxShort, &head) == nil && head.Plans
}
