package swarm

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Counters are sums since the swarm started.
type Counters struct {
	// Received and Sent are bytes of blocks, from and to peers.
	Received, Sent int64
}

// Counters are the sums of now.
func (s *Swarm) Counters() Counters {
	return Counters{Received: s.m.received.Load(), Sent: s.m.sent.Load()}
}

type metrics struct {
	received, sent atomic.Int64
	unwanted       prometheus.Counter
	joins          *prometheus.CounterVec
	bans, breaches *prometheus.CounterVec
	provides       *prometheus.CounterVec
	lookups        prometheus.Histogram
	tagRecalls     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, s *Swarm) *metrics {
	f := promauto.With(r)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_swarm_peers", Help: "Peers connected now.",
	}, func() float64 { return float64(len(s.host.Network().Peers())) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_dht_routing_table_peers", Help: "Peers in the DHT's routing table.",
	}, func() float64 { return float64(s.dht.RoutingTable().Size()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_coordinated_blobs", Help: "Blobs that this node coordinates now.",
	}, func() float64 { return float64(s.roomCount()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_swarm_identity_shared",
		Help: "1 while another process uses this node's identity, as after its disk was copied; else 0.",
	}, func() float64 {
		if s.twins.there() {
			return 1
		}
		return 0
	})
	m := &metrics{
		unwanted: f.NewCounter(prometheus.CounterOpts{
			Name: "shoal_peer_unwanted_bytes_total",
			Help: "Bytes of received blocks that no one waited for: duplicates, or unasked for.",
		}),
		joins: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_coordinator_joins_total",
			Help: "Fetches that joined a coordinator, by who it was: " +
				"remote, self, or alone where none answered in time.",
		}, []string{"coordinator"}),
		bans: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_peer_bans_total", Help: "Peers banned, by what they did.",
		}, []string{"reason"}),
		breaches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_peer_breaches_total",
			Help: "Rules that peers broke, by rule and peer. One that breaks many is banned for a while.",
		}, []string{"rule", "peer"}),
		provides: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_dht_provides_total", Help: "Provider records published in the DHT, by outcome.",
		}, []string{"outcome"}),
		lookups: f.NewHistogram(prometheus.HistogramOpts{
			Name: "shoal_dht_find_providers_seconds", Help: "Time of finding a blob's providers in the DHT.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}),
		tagRecalls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_tag_recalls_total", Help: "Tags asked of the swarm because upstream could not be, by outcome.",
		}, []string{"outcome"}),
	}
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "shoal_peer_received_bytes_total", Help: "Bytes of blocks received from peers.",
	}, func() float64 { return float64(m.received.Load()) })
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "shoal_peer_sent_bytes_total", Help: "Bytes of blocks sent to peers.",
	}, func() float64 { return float64(m.sent.Load()) })
	return m
}
