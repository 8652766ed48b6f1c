package registry

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	firstByte *prometheus.HistogramVec
	stale     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_registry_requests_total",
			Help: `Requests to the registry front by kind and status code; "aborted": the answer began and could not be ended.`,
		}, []string{"kind", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shoal_registry_request_duration_seconds",
			Help:    "Time from a request to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"kind", "code"}),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shoal_registry_first_byte_seconds",
			Help:    "Time from a request to the header of its answer, which goes out with the first byte.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 3, 10),
		}, []string{"kind", "code"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_tags_stale_total",
			Help: "Tags answered from memory because the registry could not be asked.",
		}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.requests), r.Register(m.duration), r.Register(m.firstByte), r.Register(m.stale))
}

func (m *metrics) observe(x *exchange, code string, took time.Duration) {
	kind := string(x.route.endpoint)
	m.requests.WithLabelValues(kind, code).Inc()
	m.duration.WithLabelValues(kind, code).Observe(took.Seconds())
	if x.status != 0 {
		m.firstByte.WithLabelValues(kind, code).Observe(x.firstByte.Seconds())
	}
}
