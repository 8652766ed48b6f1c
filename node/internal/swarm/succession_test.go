package swarm

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// puller is a participant that does what it is told. What it takes from peers it takes from their memory.
type puller struct {
	*testSwarm
	d      digest.Digest
	chunks int
	all    map[peer.ID]*puller
	read   func(i int) // from upstream

	mu     sync.Mutex
	finish func() // once all is there
	ended  chan struct{}
	have   map[int]schedule.Claim
	leased map[schedule.Run]bool
}

func (p *puller) has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.have[i]
	return ok
}

func (p *puller) put(c schedule.Claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have[c.Index] = c
	if len(p.have) == p.chunks {
		p.finish()
	}
}

func (p *puller) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.have) == p.chunks
}

// join is all that it has and does.
func (p *puller) join() schedule.Join {
	p.mu.Lock()
	defer p.mu.Unlock()
	j := schedule.Join{
		Upstream: true, Whole: true, Leased: slices.Collect(maps.Keys(p.leased)),
		Report: schedule.Report{Size: int64(p.chunks) * content.ChunkSize},
	}
	for _, i := range slices.Sorted(maps.Keys(p.have)) {
		j.Have = append(j.Have, i)
		j.Claims = append(j.Claims, p.have[i])
	}
	return j
}

// run pulls until all is there, from one coordinator after the other.
func (p *puller) run(ctx context.Context) {
	for ctx.Err() == nil && !p.done() {
		session, err := p.Join(ctx, p.d, p.join())
		if err != nil {
			return
		}
		p.follow(ctx, session)
		session.Close()
	}
}

func (p *puller) follow(ctx context.Context, s Session) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		select {
		case <-p.ended:
			s.Send(schedule.Report{Have: upTo(p.chunks), Complete: true})
			cancel()
		case <-ctx.Done():
		}
	})
	for {
		o, err := s.Next(ctx)
		if err != nil {
			return
		}
		for _, r := range o.Leases {
			p.mu.Lock()
			p.leased[r] = true
			p.mu.Unlock()
			work.Go(func() { p.lease(s, r) })
		}
		for _, a := range o.Chunks {
			work.Go(func() { p.fetch(ctx, s, a) })
		}
	}
}

func (p *puller) lease(s Session, r schedule.Run) {
	for i := r.First; i < r.End(); i++ {
		if p.has(i) || p.ctx.Err() != nil {
			continue
		}
		p.read(i)
		c, err := p.Claim(leaves(p.d), i, schedule.Sum{byte(i)})
		if err != nil {
			return
		}
		p.put(c)
		s.Send(schedule.Report{Claims: []schedule.Claim{c}})
	}
	p.mu.Lock()
	delete(p.leased, r)
	p.mu.Unlock()
}

func (p *puller) fetch(ctx context.Context, s Session, a schedule.Assignment) {
	for ctx.Err() == nil && !p.has(a.Index) {
		from := p.all[a.From]
		if from.ctx.Err() != nil {
			s.Send(schedule.Report{Suspects: []schedule.Suspicion{{Index: a.Index, From: a.From}}})
			return
		}
		if from.has(a.Index) {
			p.put(a.Claim)
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if p.has(a.Index) {
		s.Send(schedule.Report{Have: []int{a.Index}})
	}
}

// What the dead had read and not passed on, and what it was reading, is read again, and nothing else.
func TestSuccession_ACoordinatorsDeathCostsWhatItHadUnderWay(t *testing.T) {
	t.Parallel()
	const chunks, n = 60, 5
	for _, after := range []int{3, 15, 40} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			d := digest.FromString(t.Name())
			nodes := newMesh(t, d, n, func(o *Options) {
				o.Slack, o.Schedule.LeaseTimeout = 4, 2*time.Minute // nobody is late but the dead
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			var mu sync.Mutex
			reads := map[int]int{}
			by := map[peer.ID]int{}
			enough := make(chan struct{})
			all := map[peer.ID]*puller{}
			for _, s := range nodes {
				p := &puller{testSwarm: s, d: d, chunks: chunks, all: all, have: map[int]schedule.Claim{},
					leased: map[schedule.Run]bool{}}
				p.ended = make(chan struct{})
				p.finish = sync.OnceFunc(func() { close(p.ended) })
				p.read = func(i int) {
					time.Sleep(20 * time.Millisecond) // a registry has to be slower than the plan
					mu.Lock()
					defer mu.Unlock()
					reads[i]++
					by[p.ID()]++
					if total(reads) == after {
						close(enough)
					}
				}
				all[s.ID()] = p
			}
			var wg sync.WaitGroup
			for _, p := range all {
				wg.Go(func() { p.run(ctx) })
			}
			<-enough
			dead := nodes[0]
			require.NoError(t, dead.Close())
			mu.Lock()
			lost := by[dead.ID()]
			mu.Unlock()
			wg.Wait()
			for _, s := range nodes[1:] {
				require.True(t, all[s.ID()].done(), "a survivor has everything")
			}
			mu.Lock()
			defer mu.Unlock()
			const underWay = 2 * 16 // leases of one participant
			require.LessOrEqual(t, total(reads), chunks+lost+underWay)
			t.Logf("%d chunks were read %d times; the coordinator had read %d", chunks, total(reads), lost)
			again := 0
			for _, k := range reads {
				again += k - 1
			}
			require.LessOrEqual(t, again, lost+underWay)
		})
	}
}

func total(reads map[int]int) (sum int) {
	for _, n := range reads {
		sum += n
	}
	return sum
}

// The survivors of a coordinator wait at its successor when it is back, and somebody comes who knows nothing of them.
func TestSuccession_OneThatIsBackBeginsNoSecondPlan(t *testing.T) {
	t.Parallel()
	const have, chunks = 6, 16
	d := digest.FromString("x")
	nodes := newMesh(t, d, 3)
	dead, survivor, newcomer := nodes[0], nodes[1], nodes[2]
	require.NoError(t, dead.Close())
	eventually(t, "it is missed", func() bool { return len(survivor.Peers()) == 1 && len(newcomer.Peers()) == 1 })
	join := func(s *testSwarm, r schedule.Report) Session {
		r.Size = chunks * content.ChunkSize
		session, err := s.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true, Report: r})
		require.NoError(t, err)
		t.Cleanup(session.Close)
		return session
	}
	var kept schedule.Report
	for i := range have {
		c, err := survivor.Claim(leaves(d), i, schedule.Sum{byte(i)})
		require.NoError(t, err)
		kept.Have, kept.Claims = append(kept.Have, i), append(kept.Claims, c)
	}
	left := join(survivor, kept)
	require.Equal(t, survivor.ID(), left.Coordinator())

	back := newTestSwarm(t, under(dead), startingFrom(survivor, newcomer))
	for _, s := range nodes[1:] {
		eventually(t, "it is back", func() bool {
			near, ok := s.nearerThanSelf(leaves(d))
			return ok && near.ID == back.ID()
		})
	}
	fresh := join(newcomer, schedule.Report{})
	require.Equal(t, back.ID(), fresh.Coordinator())
	var sentAway error
	for sentAway == nil {
		_, sentAway = left.Next(t.Context())
	}
	left.Close()
	require.Equal(t, back.ID(), join(survivor, kept).Coordinator())
	told := map[int]bool{}
	for len(told) < have {
		o, err := fresh.Next(t.Context())
		require.NoError(t, err)
		for _, r := range o.Leases {
			require.GreaterOrEqual(t, r.First, have, "it reads again what the survivor has")
		}
		for _, a := range o.Chunks {
			require.Equal(t, survivor.ID(), a.From)
			told[a.Index] = true
		}
	}
}

// The one who is asked does not know yet that the nearest is dead. Would the one who asks go on alone, the registry
// would be asked twice.
func TestJoin_OneThatNamesADeadCoordinatorTakesItsPlace(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 4)
	dead := nodes[0]
	// It looks alive, and takes no stream.
	dead.host.SetStreamHandler(dead.protocol("coordinate"), func(s network.Stream) { _ = s.Reset() })
	requireCoordinator(t, nodes[1].ID(), nodes[2:], d)
}

// A room in which nobody found anything must not answer for ever what was true once.
func TestRoom_HoldersAreLookedForAgainAfterAVainAttempt(t *testing.T) {
	t.Parallel()
	s := newTestSwarm(t)
	<-s.Started()
	data := make([]byte, 100)
	d := digest.FromBytes(data)
	join := func() Session {
		session, err := s.Join(t.Context(), d, schedule.Join{Whole: true, Report: schedule.Report{Size: 100}})
		require.NoError(t, err)
		t.Cleanup(session.Close)
		return session
	}
	vain := join()
	for hopeless := false; !hopeless; {
		o, err := vain.Next(t.Context())
		require.NoError(t, err)
		hopeless = o.Hopeless
	}
	vain.Close()

	other := newTestSwarm(t, startingFrom(s))
	ing, err := other.store.Ingest(d, 100, store.Origin{})
	require.NoError(t, err)
	require.NoError(t, ing.WriteChunk(0, content.ChunkCID(data), data))
	require.NoError(t, ing.Verify(t.Context()))
	require.NoError(t, ing.Commit(t.Context(), ""))
	eventually(t, "connected", func() bool { return len(s.Peers()) == 1 })
	again := join()
	for from := peer.ID(""); from == ""; {
		o, err := again.Next(t.Context())
		require.NoError(t, err)
		require.False(t, o.Hopeless, "it was not looked for again")
		for _, a := range o.Chunks {
			from = a.From
			require.Equal(t, other.ID(), from)
		}
	}
}
