package registry

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

type metrics struct {
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
