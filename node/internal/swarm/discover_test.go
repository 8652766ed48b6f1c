package swarm

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// withMap holds one blob more, of which only the chunk map is there.
type withMap struct {
	Store
	d digest.Digest
	m *content.ChunkMap
}

func (s withMap) ChunkMap(d digest.Digest) (*content.ChunkMap, error) {
	if d == s.d {
		return s.m, nil
	}
	return s.Store.ChunkMap(d)
}

// Of a large file the claims take long to sign. That it is here is said before.
func TestMap_OfALargeFileIsSentAsItIsSigned(t *testing.T) {
	t.Parallel()
	const chunks = 10_000
	d := digest.FromString("large")
	m, err := content.NewChunkMap(chunks * content.ChunkSize)
	require.NoError(t, err)
	for i := range chunks {
		block := blocks.NewBlock(binary.BigEndian.AppendUint32(nil, uint32(i)))
		require.NoError(t, m.Set(i, cid.NewCidV1(cid.Raw, block.Cid().Hash())))
	}
	a := newTestSwarm(t, func(o *Options) { o.Store = withMap{o.Store, d, m} })
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	left := a.guard.standing(b.ID()).work

	require.False(t, b.askPlans(t.Context(), a.ID(), d))
	require.Greater(t, left.Tokens(), float64(workBurst-signWork*chunks/4), "who asks for the plan pays for no claims")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	claims, err := b.HeldBy(ctx, a.ID(), d)
	require.NoError(t, err)
	require.Len(t, claims, chunks)
	require.NoError(t, VerifyClaim(d, claims[chunks-1]))
	require.EqualValues(t, breachBurst, a.guard.standing(b.ID()).breaches.Tokens())

	before := left.Tokens()
	again, err := b.HeldBy(ctx, a.ID(), d)
	require.NoError(t, err)
	require.Equal(t, claims, again)
	require.Greater(t, left.Tokens(), before-2*mapWork, "what is signed once is charged once")
}
