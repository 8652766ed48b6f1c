package hub

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	questions *prometheus.CounterVec
	stale     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_hub_requests_total",
			Help: `Requests to the hub front by action and status code; "aborted": the answer began and could not be ended.`,
		}, []string{"action", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "shoal_hub_request_duration_seconds",
			Help:    "Time from a request to the hub front to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"action"}),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_hub_questions_total",
			Help: "Requests that this node sent to the hub itself, but for ranges of large files, by method and status code (0: no answer).",
		}, []string{"method", "code"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_hub_stale_total",
			Help: "Answers out of memory because the hub could not be asked.",
		}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.requests), r.Register(m.duration), r.Register(m.questions), r.Register(m.stale))
}

func (m *metrics) observe(x *exchange, code string) {
	action := string(x.route.action)
	m.requests.WithLabelValues(action, code).Inc()
	m.duration.WithLabelValues(action).Observe(x.since().Seconds())
	if x.stale {
		m.stale.Inc()
	}
}

func (m *metrics) asked(method string, code int) {
	m.questions.WithLabelValues(method, fmt.Sprint(code)).Inc()
}
