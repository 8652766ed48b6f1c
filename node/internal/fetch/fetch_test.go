package fetch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestABurstCostsTheRegistryOneCopy(t *testing.T) {
	for name, c := range map[string]struct {
		nodes   int
		size    int
		stagger time.Duration
	}{
		"one node alone":           {1, 20*content.ChunkSize + 3, 0},
		"all at once":              {8, 64*content.ChunkSize + 3, 0},
		"one after the other":      {4, 64*content.ChunkSize + 3, 20 * time.Millisecond},
		"a blob of a single chunk": {8, 1000, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			d := o.add(t, c.size)
			nodes := newSwarm(t, o, c.nodes, allPatient(t, o))
			pullAll(t, nodes, o.request(d), c.stagger)
			copies := float64(o.Bytes.Load()) / float64(c.size)
			t.Logf("%.3f copies in %d requests", copies, o.Gets.Load())
			require.LessOrEqual(t, copies, 1.05)
			for i, n := range nodes {
				sent := n.metric(t, "shoal_peer_sent_bytes_total") / float64(c.size)
				t.Logf("node %d sent %.2f copies, unwanted %.2f", i, sent,
					n.metric(t, "shoal_peer_unwanted_bytes_total")/float64(c.size))
				if c.size > 32*content.ChunkSize {
					require.LessOrEqual(t, sent, 1.6)
				}
			}
		})
	}
}
