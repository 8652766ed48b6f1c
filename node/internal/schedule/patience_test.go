package schedule

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestPatience_WithAPeerGoesByTheBytesThatComeFromIt(t *testing.T) {
	t.Parallel()
	const patience = 30 * time.Second
	for name, c := range map[string]struct {
		perSecond int64 // bytes of any kind
		held      bool
		atLeast   time.Duration // the chunk is waited for
		atMost    time.Duration
	}{
		"signs of life only":                          {64, false, patience, patience + time.Second},
		"signs of life only, though it has the chunk": {64, true, patience / 3, patience/3 + time.Second},
		"bytes of other chunks": {1 << 20, false, 3 * patience,
			longPatience*patience + time.Second},
		"bytes of other chunks, and it has the chunk": {1 << 20, true, 3 * patience,
			longPatience*patience + time.Second},
		"nothing": {0, false, 5 * time.Second, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Unix(1e9, 0)
			p := NewParticipant(ParticipantConfig{PeerPatience: patience}, "self")
			p.SetUpstream(begin, true)
			p.SetSize(2*content.ChunkSize, func(int) bool { return false })
			p.Demand(begin, Run{Count: 2})
			p.Join()
			p.Joined(begin, "self")
			p.Orders(begin, Orders{Chunks: []Assignment{{Claim: Claim{Index: 0, Sum: sum(0)}, From: "peer",
				Held: c.held}}})
			require.Equal(t, peer.ID("peer"), p.AskedOf(0))
			now := begin
			for p.AskedOf(0) != "" {
				now = now.Add(TickEvery)
				require.LessOrEqual(t, now.Sub(begin), c.atMost)
				p.Tick(now, func(peer.ID) int64 { return c.perSecond * int64(now.Sub(begin)/time.Second) })
			}
			require.GreaterOrEqual(t, now.Sub(begin), c.atLeast)
		})
	}
}
