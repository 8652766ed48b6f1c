package fetch

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// As an answer of HTTP/2 may, whose end comes by itself.
func TestThrough_ItsLastByteIsTheProofWhetherOrNotItsEndIsRead(t *testing.T) {
	t.Parallel()
	data := []byte("a small blob")
	right := 0
	r := &judged{content.NewVerifier(bytes.NewReader(data), digest.FromBytes(data), int64(len(data))),
		int64(len(data)), func() { right++ }, nil}
	_, err := io.ReadFull(r, make([]byte, len(data)-1))
	require.NoError(t, err)
	require.Zero(t, right)
	_, err = io.ReadFull(r, make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 1, right)
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 1, right)
}

func TestThrough_WhatWasReadIsToldAndNothingElse(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1)
	told := make(chan Story, 1)
	n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) { fo.Ended = func(s Story) { told <- s } })
	r, err := n.OpenPast(t.Context(), o.request(d))
	require.NoError(t, err)
	require.Empty(t, told, "a size alone is no pull")
	body, err := r.Range(t.Context(), 5, 7)
	require.NoError(t, err)
	_, err = io.ReadAll(body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	s := <-told
	require.Equal(t, []any{outcomeThrough, int64(3 * chunk1), int64(7)}, []any{s.Outcome, s.Size, s.FromUpstream})
	require.NoError(t, r.Close())
}

// banning counts whom it is told to ban.
type banning struct {
	*script
	bans atomic.Int32
}

func (b *banning) Ban(peer.ID, string) { b.bans.Add(1) }

func TestBlame_AForgerIsBannedOnceHoweverMuchItHasForged(t *testing.T) {
	t.Parallel()
	var swarm *banning
	fr, _, req, data := scripted(t, 2, func(o *Options) {
		swarm = &banning{script: o.Swarm.(*script)}
		o.Swarm = swarm
	})
	c := &charge{digest: req.Digest, room: req.Digest}
	for i := range 1000 {
		c.suspects = append(c.suspects, suspect{schedule.Claim{Index: i % 2, By: "victim"}, "forger"})
	}
	fr.settle(c, "images.test", 2, func(i int) schedule.Sum { return sumOf(content.ChunkCID(chunkOf(data, i))) })
	require.EqualValues(t, 1, swarm.bans.Load())
}
