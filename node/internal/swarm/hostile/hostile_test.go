package hostile_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/swarm/hostile"
)

type victim struct {
	*swarm.Swarm
	reg *prometheus.Registry
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Options{Path: t.TempDir(), Logger: log})
	require.NoError(t, err)
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	v := &victim{reg: prometheus.NewRegistry()}
	v.Swarm, err = swarm.New(swarm.Options{
		Identity: key, Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Open: true,
		Store: st, Logger: log, Registerer: v.reg,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, v.Close())
		require.NoError(t, st.Close())
	})
	<-v.Started()
	return v
}

func (v *victim) info() peer.AddrInfo { return peer.AddrInfo{ID: v.ID(), Addrs: v.Addrs()} }

// breaches is how often the metric says that p broke rules.
func (v *victim) breaches(t *testing.T, p peer.ID) (sum float64) {
	t.Helper()
	families, err := v.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "shoal_peer_breaches_total" && l.GetName() == "peer" && l.GetValue() == p.String() {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func newPeer(t *testing.T) *hostile.Peer {
	t.Helper()
	p, err := hostile.New(nil, "/shoal", "/ip4/127.0.0.1/tcp/0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// requireServes: a node that keeps to the rules is coordinated as ever.
func requireServes(t *testing.T, v *victim) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	session, err := v.Join(ctx, digest.FromString(t.Name()), schedule.Join{
		Upstream: true, Whole: true, Report: schedule.Report{Size: 5 << 20},
	})
	require.NoError(t, err)
	defer session.Close()
	for leased := false; !leased; {
		o, err := session.Next(ctx)
		require.NoError(t, err)
		leased = len(o.Leases) > 0
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peak is the most that the heap has grown to while f runs.
func peak(f func()) uint64 {
	before := heap()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	most := before
	for {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
		select {
		case <-done:
			return max(most, heap()) - before
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// The bounds are on the heap of the victim and the peer together, which are one process here, and on what the collector
// has not come to yet.
//
//nolint:paralleltest // what it counts is what the whole process allocates
func TestVictim_AnAttackCostsItLittleAndEndsWithTheBan(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		heap   uint64
		banned bool
	}{
		"hellos":     {heap: 48 * mib},
		"rooms":      {heap: 160 * mib},
		"frames":     {heap: 160 * mib, banned: true},
		"blocks":     {heap: 160 * mib, banned: true},
		"needs":      {heap: 64 * mib},
		"suspicions": {heap: 96 * mib},
		"claims":     {heap: 96 * mib, banned: true},
		"questions":  {heap: 96 * mib, banned: true},
		"records":    {heap: 160 * mib},
		"garbage":    {heap: 96 * mib, banned: true},
		"silence":    {heap: 160 * mib, banned: true},
	} {
		t.Run(name, func(t *testing.T) {
			v, p := newVictim(t), newPeer(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			grown := peak(func() { require.NoError(t, p.Run(ctx, name, v.info())) })
			t.Logf("heap grew by %d MiB, %.0f breaches", grown/mib, v.breaches(t, p.ID()))
			require.Less(t, grown, c.heap)
			if c.banned {
				if name != "claims" { // for which it is banned at once
					require.Positive(t, v.breaches(t, p.ID()), "it is named")
				}
				// On a machine that is busy a stream may not open in time, and the attack is over before the ban.
				for p.Network().Connectedness(v.ID()) == network.Connected {
					require.NoError(t, ctx.Err(), "it is banned")
					_ = p.Run(ctx, name, v.info()) // it may be banned by now
				}
				require.Eventually(t, func() bool {
					_ = p.Connect(ctx, v.info()) // the handshake may be over for it before it is refused
					_, err := p.NewStream(ctx, v.ID(), "/shoal/map/2.0.0")
					return err != nil
				}, time.Minute, 10*time.Millisecond, "and stays so")
			}
			requireServes(t, v)
		})
	}
}
