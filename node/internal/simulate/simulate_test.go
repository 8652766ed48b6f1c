package simulate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

const mib = 1 << 20

// burst is a small swarm, over links that make an image of 64 MiB take about half a second.
func burst(t *testing.T, change func(*Config)) *Result {
	t.Helper()
	cfg := Config{Nodes: 24, Blobs: []int64{64 * mib}, NodeRate: 1e9, RegistryRate: 1e9,
		Schedule: schedule.Config{GroupSize: 8}, Seed: 1}
	if change != nil {
		change(&cfg)
	}
	r, err := Run(cfg)
	require.NoError(t, err)
	r.TableCPU = 0 // it is measured, and never the same
	return r
}

func TestBurstTakesEachByteFromTheRegistryOnce(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"one node":       func(c *Config) { c.Nodes = 1 },
		"one group":      func(c *Config) { c.Nodes = 8 },
		"several groups": nil,
		"four layers": func(c *Config) {
			c.Blobs = []int64{16 * mib, 16 * mib, 16 * mib, 16*mib - 5}
		},
		"a fast registry":             func(c *Config) { c.RegistryRate = 4e9 },
		"three zones":                 func(c *Config) { c.Zones = 3 },
		"started one after the other": func(c *Config) { c.Stagger = 2 * time.Second },
		"layers one after the other": func(c *Config) {
			c.Blobs = []int64{32 * mib, 16 * mib, 16 * mib}
			c.Parallel = 1
		},
		"shared links":                  func(c *Config) { c.Nodes, c.Shared, c.Queue = 8, true, 5*time.Millisecond },
		"a coordinator that takes time": func(c *Config) { c.MessageCost = 50 * time.Microsecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := burst(t, change)
			require.InDelta(t, 1.0, r.RegistryCopies, 0)
			require.Zero(t, r.Duplicates)
			require.GreaterOrEqual(t, r.OverIdeal(r.First), 1.0, "no link carries more than it can")
			if name != "started one after the other" { // there the first to be complete serves those who come next
				require.LessOrEqual(t, r.BusiestCopies, 2.0)
				require.LessOrEqual(t, r.OverIdeal(r.Last), 2.0)
			}
		})
	}
}

// A layer of few chunks shares every link with large ones. It used to come last, and its readers were sent away.
func TestBurst_SmallLayersOfManyNodesAreNotStarved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		nodes      int
		rate       float64
		firstBytes time.Duration
		last       float64
	}{
		"8 nodes, 100 Mbit/s": {8, 100e6, 3 * time.Second, 1.3},
		"16 nodes, 50 Mbit/s": {16, 50e6, 6 * time.Second, 1.35},
		"16 nodes, 25 Mbit/s": {16, 25e6, 12 * time.Second, 1.35},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := Run(Config{
				Nodes: c.nodes, Blobs: []int64{4 * mib, 32 * mib, 96 * mib}, NodeRate: c.rate, RegistryRate: c.rate,
				Shared:  true,
				Stagger: 60 * time.Millisecond, Seed: 1,
			})
			require.NoError(t, err)
			require.LessOrEqual(t, r.RegistryCopies, 1.02)
			require.LessOrEqual(t, r.OverIdeal(r.Last), c.last)
			for layer, wait := range r.FirstByte {
				require.LessOrEqual(t, wait, c.firstBytes, "first byte of layer %d", layer)
			}
		})
	}
}

func TestShared_MessagesThatWaitForAllOfAChunkHoldUpTheBurst(t *testing.T) {
	t.Parallel()
	last := func(behind int64) time.Duration {
		r, err := Run(Config{
			Nodes: 8, Blobs: []int64{4 * mib, 32 * mib}, NodeRate: 100e6, RegistryRate: 100e6, Shared: true,
			Behind: behind, Seed: 1,
		})
		require.NoError(t, err)
		require.InDelta(t, 1.0, r.RegistryCopies, 0)
		return r.Last
	}
	require.Greater(t, last(1*mib), last(32<<10))
}

func TestWhatSharesALinkTakesItsTimeTogether(t *testing.T) {
	t.Parallel()
	es := &events{}
	net := &fabric{events: es}
	up := newUplink(es, 4)
	up.fabric, up.slots, up.perLine = net, senders, 2
	idle, full := downlink{rate: 100}, downlink{rate: 1}
	var order []string
	at := map[string]time.Duration{}
	offer := func(name string, key int, to *downlink) {
		up.offer(key, parcel{size: 4, to: to, arrived: func(time.Duration) {
			order = append(order, name)
			at[name] = es.now.Round(time.Millisecond)
		}})
	}
	offer("slow", 0, &full) // has 1 byte/s of the receiver's; the others share the 3 that are left
	offer("a", 1, &idle)
	offer("b", 2, &idle)
	offer("after a", 1, &idle) // shares a's connection
	for es.step() {
	}
	require.Equal(t, "b", order[0])
	require.Equal(t, map[string]time.Duration{
		"b":       2667 * time.Millisecond, // half of 3
		"a":       4 * time.Second,         // a quarter of 3 till then, half of 3 from then on, as has "after a"
		"after a": 4 * time.Second,
		"slow":    4 * time.Second,
	}, at)
}

func TestZonesAreEnteredOnce(t *testing.T) {
	t.Parallel()
	r := burst(t, func(c *Config) { c.Zones = 3 })
	require.LessOrEqual(t, r.CrossingCopies, 1.0)
	require.Greater(t, r.CrossingCopies, 0.5, "most chunks were read from the registry in another zone")
}

// What one zone has read the other takes from it. Of that each node used to take two pieces at a time, which left a
// third of the link between them idle.
func TestZones_ThinLinksBetweenThemAreKeptBusy(t *testing.T) {
	t.Parallel()
	r := burst(t, func(c *Config) {
		c.Nodes, c.Zones, c.Blobs = 8, 2, []int64{80 * mib, 40 * mib, 12 * mib}
		c.NodeRate, c.RegistryRate, c.BorderRate, c.Shared = 100e6, 100e6, 50e6, true
		c.Behind, c.Schedule = 256<<10, schedule.Config{Grain: content.Pieces}
	})
	require.InDelta(t, 1.0, r.RegistryCopies, 0)
	require.GreaterOrEqual(t, r.OverIdeal(r.First), 1.0, "no link carries more than it can")
	require.LessOrEqual(t, r.OverIdeal(r.Last), 1.1)
	require.LessOrEqual(t, r.CrossingCopies, 1.0)
}

func TestSameSeedGivesTheSameRun(t *testing.T) {
	t.Parallel()
	change := func(c *Config) { c.Zones, c.Stagger, c.Deaths = 2, time.Second, 0.2 }
	require.Equal(t, burst(t, change), burst(t, change))
	require.NotEqual(t, burst(t, change), burst(t, func(c *Config) { change(c); c.Seed = 2 }))
}

func TestTheOthersFinishWhenNodesDie(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]bool{"with their connections reset": false, "silently": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := burst(t, func(c *Config) { c.Nodes, c.Deaths, c.SilentDeaths = 40, 0.2, silent })
			require.Positive(t, r.Died)
			require.EqualValues(t, r.Nodes-r.Died, r.Delivered/(64*mib))
			require.LessOrEqual(t, r.RegistryCopies, 1.3, "only what was lost with them is read again")
		})
	}
}

func TestNodesThatFallSilentMakeNobodyWaitForOneWhoWaits(t *testing.T) {
	t.Parallel()
	r := burst(t, func(c *Config) {
		c.Nodes, c.Blobs, c.NodeRate, c.RegistryRate, c.Schedule = 100, []int64{1 << 30}, 10e9, 10e9, schedule.Config{}
		c.Deaths, c.SilentDeaths = 0.02, true
	})
	require.Equal(t, 2, r.Died)
	require.Less(t, r.Last, 30*time.Second)
}

func TestUnfinishedBurstIsAnError(t *testing.T) {
	t.Parallel()
	_, err := Run(Config{Nodes: 4, Blobs: []int64{64 * mib}, NodeRate: 1e6, Limit: time.Second})
	require.ErrorIs(t, err, ErrUnfinished)
}

func TestLinkIsSharedFairlyAndIsNeverFasterThanItsRate(t *testing.T) {
	t.Parallel()
	var es events
	const rate = 1000.0
	up := newUplink(&es, rate)
	slow, fast := &downlink{rate: rate / 4}, &downlink{rate: rate * 4}
	var at []time.Duration
	var fastAt []time.Duration
	for range 2 {
		up.offer(1, parcel{size: 1000, latency: time.Second, to: slow, arrived: func(time.Duration) {
			at = append(at, es.now)
		}})
		up.offer(2, parcel{size: 1000, to: fast, arrived: func(time.Duration) { fastAt = append(fastAt, es.now) }})
	}
	for es.step() {
	}
	require.Equal(t, []time.Duration{5 * time.Second, 9 * time.Second}, at,
		"4 s each, one after the other, after a latency")
	require.Equal(t, []time.Duration{2 * time.Second, 4 * time.Second}, fastAt, "every other turn")
}

func TestRecordsOnPaper(t *testing.T) {
	t.Parallel()
	p := OnPaper(5000, 100)
	require.Equal(t, 2000, p.MeanRecords, "20 of 5,000 nodes keep a record for each of 5,000 holders of 100 blobs")
	require.Equal(t, 5000, p.MostRecords)
	require.Less(t, OnPaper(10, 100).ProvideBytes, p.ProvideBytes)
}
