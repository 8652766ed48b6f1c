package upstream

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// maxLabels bounds the values of the label registry, because callers of the registry front choose the names.
	maxLabels = 64
	// maxCounted bounds of how many registries it is known how much has come.
	maxCounted = 1024
)

// Counters are sums since the client was made.
type Counters struct {
	// Bytes of answers' bodies that were read from registries.
	Bytes int64
}

// Counters are the sums of now.
func (c *Client) Counters() Counters { return Counters{Bytes: c.metrics.read.Load()} }

// BytesFrom counts the bytes of answers that have been read from a registry of late.
func (c *Client) BytesFrom(registry string) int64 { return c.metrics.of(registry).Load() }

type metrics struct {
	read     atomic.Int64
	from     *lru.Cache[string, *atomic.Int64]
	bytes    *prometheus.CounterVec
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec

	mu     sync.Mutex
	labels map[string]bool
}

// newMetrics names the known registries in any case.
func newMetrics(r prometheus.Registerer, known []Upstream) (*metrics, error) {
	m := &metrics{
		from: lru.New[string, *atomic.Int64](maxCounted),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_bytes_total", Help: "Bytes of answers' bodies read from upstream registries.",
		}, []string{"registry"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_requests_total",
			Help: "Requests to upstream registries by HTTP method and status code; code 0: there was no answer. " +
				"Registries that have given nothing yet are counted as other.",
		}, []string{"registry", "method", "code"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_retries_total", Help: "Rounds of requests to upstream registries after a failed one.",
		}, []string{"registry"}),
		labels: make(map[string]bool),
	}
	for _, u := range known {
		if u.Registry != "*" {
			m.labels[u.Registry] = true
		}
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.bytes), r.Register(m.requests), r.Register(m.retries))
}

func (m *metrics) request(registry, method string, code int) {
	if code >= 200 && code < 300 {
		m.name(registry)
	}
	registry = m.label(registry)
	m.requests.WithLabelValues(registry, method, strconv.Itoa(code)).Inc()
	m.retries.WithLabelValues(registry) // at 0, so that the first retry is an increase
}

// counter counts the bytes that are read from a registry.
func (m *metrics) counter(registry string) func(n int) {
	label := m.label(registry)
	of, from := m.bytes.WithLabelValues(label), m.of(registry)
	return func(n int) {
		m.read.Add(int64(n))
		from.Add(int64(n))
		of.Add(float64(n))
	}
}

func (m *metrics) of(registry string) *atomic.Int64 {
	return lru.GetOrAdd(m.from, registry, new(atomic.Int64))
}

// name gives a registry a label of its own, as long as there are some. It has given something: a name that somebody has
// invented does not, as a rule.
func (m *metrics) name(registry string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.labels) < maxLabels {
		m.labels[registry] = true
	}
}

// label is the registry itself where it has a label of its own, and "other" for the rest.
func (m *metrics) label(registry string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.labels[registry] {
		return registry
	}
	return "other"
}
