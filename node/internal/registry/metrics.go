package registry

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

// Counters are sums since the front was made.
type Counters struct {
	// Answered are the manifests and blobs, or ranges of them, that callers were given. A refusal, such as of a
	// client's first request without credentials, is none.
	Answered int64
}

// Counters are the sums of now.
func (f *Front) Counters() Counters { return Counters{Answered: f.metrics.answered.Load()} }

type metrics struct {
	answered atomic.Int64
	*reply.Metrics
	stale prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	answers, err := reply.NewMetrics(r, "registry", "kind")
	m := &metrics{Metrics: answers, stale: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "shoal_tags_stale_total",
		Help: "Tags answered from memory because the registry could not be asked.",
	})}
	if r == nil {
		return m, err
	}
	return m, errors.Join(err, r.Register(m.stale))
}

// count counts an exchange that has ended.
func (m *metrics) count(x *exchange) {
	m.Observe(&x.Exchange, string(x.route.endpoint))
	if code := x.Code(); code != "200" && code != "206" {
		return
	}
	switch x.route.endpoint {
	case endManifest, endBlob:
		m.answered.Add(1)
	}
}
