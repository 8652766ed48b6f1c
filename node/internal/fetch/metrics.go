package fetch

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	served   *prometheus.CounterVec
	fetches  *prometheus.CounterVec
	duration prometheus.Histogram
	stalls   prometheus.Counter
	reliefs  prometheus.Counter
	windows  prometheus.Counter
	ahead    prometheus.Counter
	wrong    *prometheus.CounterVec
}

// newMetrics makes the metrics. running is how many fetches run now.
func newMetrics(r prometheus.Registerer, running func() float64) *metrics {
	reg := promauto.With(r)
	m := &metrics{
		served: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_served_bytes_total",
			Help: "Bytes of blobs and manifests given to callers, by where this node had them from when it was asked.",
		}, []string{"source"}),
		fetches: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_fetches_total", Help: "Fetches of blobs that were not here, by outcome.",
		}, []string{"outcome"}),
		duration: reg.NewHistogram(prometheus.HistogramOpts{
			Name:    "shoal_fetch_duration_seconds",
			Help:    "Time from the first demand for a blob until its digest was checked.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10),
		}),
		ahead: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_fetches_ahead_total", Help: "Fetches of layers that began before they were asked for.",
		}),
		windows: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_fetch_windows_total",
			Help: "Fetches of blobs that had no room as a whole and were shared through a window.",
		}),
		reliefs: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_upstream_reliefs_total",
			Help: "Pieces that a caller waited for and nobody brought, so that this node read " +
				"them from upstream itself.",
		}),
		wrong: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_wrong_claims_total",
			Help: "Blobs of which a peer claimed a wrong chunk: one that it held, or one that it read from a registry.",
		}, []string{"chunk"}),
		stalls: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_peer_stalls_total", Help: "Chunks that a peer did not send in time or could not be asked for.",
		}),
	}
	for _, s := range []provenance{fromHere, fromPeer, fromUpstream} {
		m.served.WithLabelValues(string(s))
	}
	for _, chunk := range []string{"held", "read"} {
		m.wrong.WithLabelValues(chunk)
	}
	reg.NewGaugeFunc(prometheus.GaugeOpts{Name: "shoal_fetches_running", Help: "Fetches running now."},
		running)
	return m
}
