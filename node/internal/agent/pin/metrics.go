package pin

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	pinsDesc = prometheus.NewDesc("shoal_pins", "Pins that this node is to keep, by state.", []string{"state"}, nil)
	heldDesc = prometheus.NewDesc("shoal_pins_held_bytes",
		"Bytes that this node holds of its pins, counting a blob once for each pin.", nil, nil)
	wantedDesc = prometheus.NewDesc("shoal_pins_wanted_bytes",
		"Bytes that the pins of this node need, as far as is known.", nil, nil)
)

type metrics struct{ failures *prometheus.CounterVec }

func newMetrics(reg prometheus.Registerer, k *Keeper) *metrics {
	if reg != nil {
		reg.MustRegister(collector{k})
	}
	return &metrics{failures: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_pin_failures_total", Help: "Failed attempts at a pin, by reason.",
	}, []string{"reason"})}
}

// collector shows the pins as they are when it is asked.
type collector struct{ k *Keeper }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- pinsDesc
	ch <- heldDesc
	ch <- wantedDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	var held, wanted int64
	states := make(map[string]int)
	for _, p := range c.k.Progress() {
		states[string(p.State)]++
		held, wanted = held+p.BytesHeld, wanted+p.BytesWanted
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(pinsDesc, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(held))
	ch <- prometheus.MustNewConstMetric(wantedDesc, prometheus.GaugeValue, float64(wanted))
}
