package store

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg                                 prometheus.Registerer
	all, registered                     []prometheus.Collector
	evicted, damaged, ingested, checked prometheus.Counter
	noSpace                             *prometheus.CounterVec // by pool
}

func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string, value func(Usage) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			return float64(value(s.Usage()))
		})
	}
	m := &metrics{
		reg:      reg,
		evicted:  counter("shoal_store_evicted_bytes_total", "Bytes of blobs evicted to make room."),
		damaged:  counter("shoal_store_damaged_total", "Blobs found not to match their digest on disk, and dropped."),
		ingested: counter("shoal_store_ingested_bytes_total", "Bytes of chunks written to ingests."),
		checked: counter("shoal_store_checked_bytes_total",
			"Bytes of blobs that were hashed because they were about to be given out."),
		noSpace: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_store_no_space_total",
			Help: "Ingests and chunk writes refused because the pool (images, models) or the disk was full."},
			[]string{"pool"}),
	}
	for pool := range poolCount { // so that each is there before it counts
		m.noSpace.WithLabelValues(pool.String())
	}
	m.all = []prometheus.Collector{
		m.evicted, m.damaged, m.ingested, m.noSpace, m.checked,
		gauge("shoal_store_bytes", "Bytes of committed blobs.", func(u Usage) int64 { return u.Bytes }),
		gauge("shoal_store_pinned_bytes", "Bytes of committed blobs that are pinned.",
			func(u Usage) int64 { return u.PinnedBytes }),
		gauge("shoal_store_model_bytes", "Bytes of committed blobs of models, a part of shoal_store_bytes.",
			func(u Usage) int64 { return u.Models.Bytes }),
		gauge("shoal_store_model_capacity_bytes",
			"Capacity for models in bytes, a part of shoal_store_capacity_bytes; 0 where they have none of their own.",
			func(u Usage) int64 { return u.Models.Capacity }),
		gauge("shoal_store_ingest_bytes", "Bytes present in open and partial ingests.",
			func(u Usage) int64 { return u.IngestBytes }),
		gauge("shoal_store_blobs", "Number of committed blobs.", func(u Usage) int64 { return int64(u.Blobs) }),
		gauge("shoal_store_capacity_bytes", "Capacity in bytes, 0 for no limit.",
			func(u Usage) int64 { return u.Capacity }),
		gauge("shoal_store_free_disk_bytes", "Free bytes of the store's file system, -1 if not known.",
			func(u Usage) int64 { return u.FreeDisk }),
	}
	return m
}

// register registers the metrics, all or none of them; a nil registerer takes none.
func (m *metrics) register() error {
	if m.reg == nil {
		return nil
	}
	for _, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			m.unregister()
			return fmt.Errorf("register metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
	m.registered = nil
}

// refused counts what a pool has no room for.
func (m *metrics) refused(p Pool) { m.noSpace.WithLabelValues(p.String()).Inc() }
