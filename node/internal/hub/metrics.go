package hub

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

type metrics struct {
	*reply.Metrics
	questions *prometheus.CounterVec
	stale     prometheus.Counter
	noRoom    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	reg := promauto.With(r)
	return &metrics{
		Metrics: reply.NewMetrics(r, "hub", "action"),
		questions: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_hub_questions_total",
			Help: "Requests that this node sent to the hub itself, but for ranges of large files, by method and " +
				"status code (0: no answer).",
		}, []string{"method", "code"}),
		stale: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_hub_stale_total",
			Help: "Answers out of memory because the hub could not be asked.",
		}),
		noRoom: reg.NewCounter(prometheus.CounterOpts{
			Name: "shoal_hub_no_room_total",
			Help: "Answers with a file that the cache has no room to keep.",
		}),
	}
}

func (m *metrics) asked(method string, code int) {
	m.questions.WithLabelValues(method, strconv.Itoa(code)).Inc()
}
