package upstream

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// maxLabels bounds the values of the label registry, because callers of the registry front choose the names.
const maxLabels = 64

// Counters are sums since the client was made.
type Counters struct {
	// Bytes of answers' bodies that were read from registries.
	Bytes int64
}

// Counters are the sums of now.
func (c *Client) Counters() Counters { return Counters{Bytes: c.metrics.read.Load()} }

// BytesFrom counts the bytes of answers that have been read from a registry. Registries beyond the first maxLabels are
// counted together.
func (c *Client) BytesFrom(registry string) int64 {
	return c.metrics.of(c.metrics.label(registry)).Load()
}

type metrics struct {
	read     atomic.Int64
	from     sync.Map // label to *atomic.Int64
	bytes    *prometheus.CounterVec
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec

	mu     sync.Mutex
	labels map[string]bool
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_bytes_total", Help: "Bytes of answers' bodies read from upstream registries.",
		}, []string{"registry"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_requests_total",
			Help: "Requests to upstream registries by HTTP method and status code; code 0: there was no answer.",
		}, []string{"registry", "method", "code"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_retries_total", Help: "Rounds of requests to upstream registries after a failed one.",
		}, []string{"registry"}),
		labels: make(map[string]bool),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.bytes), r.Register(m.requests), r.Register(m.retries))
}

func (m *metrics) request(registry, method string, code int) {
	registry = m.label(registry)
	m.requests.WithLabelValues(registry, method, strconv.Itoa(code)).Inc()
	m.retries.WithLabelValues(registry) // at 0, so that the first retry is an increase
}

// counter counts the bytes that are read from a registry.
func (m *metrics) counter(registry string) func(n int) {
	label := m.label(registry)
	of, from := m.bytes.WithLabelValues(label), m.of(label)
	return func(n int) {
		m.read.Add(int64(n))
		from.Add(int64(n))
		of.Add(float64(n))
	}
}

func (m *metrics) of(label string) *atomic.Int64 {
	n, _ := m.from.LoadOrStore(label, new(atomic.Int64))
	return n.(*atomic.Int64)
}

// label is the registry itself for the first of them, and "other" for the rest.
func (m *metrics) label(registry string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.labels[registry] {
		return registry
	}
	if len(m.labels) >= maxLabels {
		return "other"
	}
	m.labels[registry] = true
	return registry
}
