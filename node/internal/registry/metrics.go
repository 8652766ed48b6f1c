package registry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

// Counters are sums since the front was made.
type Counters struct {
	// Hits and Misses are the requests for manifests and blobs, or ranges of them, that were answered. Of a hit this
	// node held the whole. A refusal, such as of a client's first request without credentials, is neither, nor is the
	// question for a blob's size. What pins and models take counts for nothing: no runtime has waited for it.
	Hits, Misses int64
}

// Counters are the sums of now.
func (f *Front) Counters() Counters {
	return Counters{Hits: f.metrics.hits.Load(), Misses: f.metrics.misses.Load()}
}

type metrics struct {
	hits, misses atomic.Int64
	*reply.Metrics
	stale prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	reg := promauto.With(r)
	m := &metrics{Metrics: reply.NewMetrics(r, "registry", "kind"), stale: reg.NewCounter(prometheus.CounterOpts{
		Name: "shoal_tags_stale_total",
		Help: "Tags answered from memory because the registry could not be asked.",
	})}
	// What Counters tells, so that a query and kubectl shoal status mean the same.
	for source, n := range map[string]*atomic.Int64{"local": &m.hits, "elsewhere": &m.misses} {
		reg.NewCounterFunc(prometheus.CounterOpts{
			Name: "shoal_registry_answers_total",
			Help: "Requests for manifests and blobs, or ranges of them, that were answered: from this node's disk " +
				"(local), or with bytes that peers or a registry sent (elsewhere).",
			ConstLabels: prometheus.Labels{"source": source},
		}, func() float64 { return float64(n.Load()) })
	}
	return m
}

// count counts an exchange that has ended.
func (m *metrics) count(x *exchange) {
	m.Observe(&x.Exchange, string(x.route.endpoint))
	if code := x.Code(); code != "200" && code != "206" {
		return
	}
	switch x.given {
	case givenHeld:
		m.hits.Add(1)
	case givenOther:
		m.misses.Add(1)
	}
}
