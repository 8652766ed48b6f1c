package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	writes   *prometheus.CounterVec
	admitted prometheus.Gauge
	policy   *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer, a *Agent) *metrics {
	reg := promauto.With(r)
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_agent_api_synced",
		Help: "1 once every watch has read its first list from the API server; " +
			"0 while the agent goes by what it remembers.",
	}, func() float64 {
		for _, i := range a.api.informers() {
			if !i.HasSynced() {
				return 0
			}
		}
		return 1
	})
	return &metrics{
		writes: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_agent_api_writes_total",
			Help: "Writes to the API server, by kind and by result: " +
				"written, refused, or unreachable, which never arrived.",
		}, []string{"kind", "result"}),
		admitted: reg.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_agent_admitted_peers", Help: "Peers that the swarm lets in.",
		}),
		policy: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shoal_policy_info", Help: "1, with the revision of the effective policy in force.",
		}, []string{"revision"}),
	}
}
