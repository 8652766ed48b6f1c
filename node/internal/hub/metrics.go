package hub

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

type metrics struct {
	*reply.Metrics
	questions *prometheus.CounterVec
	stale     prometheus.Counter
	noRoom    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	answers, err := reply.NewMetrics(r, "hub", "action")
	m := &metrics{
		Metrics: answers,
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_hub_questions_total",
			Help: "Requests that this node sent to the hub itself, but for ranges of large files, by method and " +
				"status code (0: no answer).",
		}, []string{"method", "code"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_hub_stale_total",
			Help: "Answers out of memory because the hub could not be asked.",
		}),
		noRoom: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_hub_no_room_total",
			Help: "Answers with a file that the cache has no room to keep.",
		}),
	}
	if r == nil {
		return m, err
	}
	return m, errors.Join(err, r.Register(m.questions), r.Register(m.stale), r.Register(m.noRoom))
}

func (m *metrics) asked(method string, code int) {
	m.questions.WithLabelValues(method, strconv.Itoa(code)).Inc()
}
