package plan_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-cache/shoal/operator/internal/plan"
)

// BenchmarkCompute is one plan of 5,000 nodes and 2,000 pins, five of them on every node, with every copy reported. Its
// figures are in operator/README.md.
func BenchmarkCompute(b *testing.B) { benchmarkCompute(b, newModel(5000)) }

// BenchmarkCompute_InOneZone is the same where nodes have no zones.
func BenchmarkCompute_InOneZone(b *testing.B) {
	m := newModel(5000)
	for i := range m.Nodes {
		delete(m.Nodes[i].Labels, m.ZoneKey)
	}
	benchmarkCompute(b, m)
}

func benchmarkCompute(b *testing.B, m *model) {
	for i := range m.Nodes {
		m.Nodes[i].Capacity = 0
	}
	for i := range 2000 {
		if i < 5 {
			m.pin(fmt.Sprint("every-", i), "All", nil)
		} else {
			m.pin(fmt.Sprint("pin-", i), 3, nil)
		}
	}
	m.hand()
	m.report("Ready", "")
	b.ReportAllocs()
	for b.Loop() {
		plan.Compute(m.Input)
	}
}

// BenchmarkCompute_WithoutAZone is one plan of 5,000 nodes and 100 pins while one of three zones is lost.
func BenchmarkCompute_WithoutAZone(b *testing.B) {
	m := newModel(5000)
	for i := range m.Nodes {
		m.Nodes[i].Capacity = 0
	}
	for i := range 100 {
		m.pin(fmt.Sprint("pin-", i), 3, nil)
	}
	m.hand()
	m.report("Ready", "")
	for i := 0; i < len(m.Nodes); i += 3 {
		m.Nodes[i].DownSince = now.Add(-time.Hour)
	}
	b.ReportAllocs()
	for b.Loop() {
		plan.Compute(m.Input)
	}
}
