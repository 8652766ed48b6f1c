package fetch

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

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

// readPast reads n bytes from off straight from upstream.
func readPast(t *testing.T, n *testNode, req content.Request, off, size int64) ([]byte, error) {
	t.Helper()
	r, err := n.OpenPast(t.Context(), req)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	body, err := r.Range(t.Context(), off, size)
	if err != nil {
		return nil, err
	}
	defer func() { require.NoError(t, body.Close()) }()
	return io.ReadAll(body)
}

// As a client of a hub asks that checks nothing, whose answer was broken off because it did not match.
func TestThrough_TheRestOfADownloadEndsOnlyWhereTheWholeMatches(t *testing.T) {
	t.Parallel()
	const size, off = 2*chunk1 + 7, chunk1 + 5
	for name, spoil := range map[string]func([]byte) []byte{
		"right bytes":              func(data []byte) []byte { return data },
		"more than there are":      func(data []byte) []byte { return append(data, "and more"...) },
		"fewer than there are":     func(data []byte) []byte { return data[:len(data)-3] },
		"a wrong one in the rest":  func(data []byte) []byte { data[size-1] ^= 1; return data },
		"a wrong one given before": func(data []byte) []byte { data[0] ^= 1; return data },
	} {
		for _, ranges := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the registry knows ranges: %v", name, ranges), func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t)
				d := o.add(t, size)
				sent := spoil(bytes.Clone(o.Blob(d)))
				o.Spoil(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					if !ranges {
						r.Header.Del("Range")
					}
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(sent))
					return true
				})
				n := newNode(t, o, "n", nil)
				req := o.request(d)
				req.File = "weights"
				got, err := readPast(t, n, req, off, int64(len(sent))-off)
				if bytes.Equal(sent, o.Blob(d)) {
					require.NoError(t, err)
					require.True(t, bytes.Equal(sent[off:], got))
					return
				}
				require.ErrorIs(t, err, content.ErrDigestMismatch)
			})
		}
	}
}

func TestThrough_APartIsNotGivenWhereTheManifestNamesAnotherSize(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 2*chunk1)
	n := newNode(t, o, "n", nil)
	req := o.request(d)
	req.Part = true
	n.hints.Add(hint{req.Repository, d}, 2*chunk1)
	got, err := readPast(t, n, req, 5, 7)
	require.NoError(t, err)
	require.Equal(t, o.Blob(d)[5:12], got)
	n.hints.Add(hint{req.Repository, d}, 2*chunk1-8)
	_, err = readPast(t, n, req, 5, 7)
	require.ErrorIs(t, err, content.ErrUnavailable)
	rest := req
	rest.Part = false
	got, err = readPast(t, n, rest, 5, 2*chunk1-5)
	require.NoError(t, err, "the whole is checked")
	require.True(t, bytes.Equal(o.Blob(d)[5:], got))
	got, err = readPast(t, n, req, 0, 2*chunk1)
	require.NoError(t, err, "it is the manifest that was wrong")
	require.True(t, bytes.Equal(o.Blob(d), got))
}

// banning counts whom it is told to ban.
type banning struct {
	*script
	bans atomic.Int32
}

func (b *banning) Ban(peer.ID, string) { b.bans.Add(1) }

// While a blob is read again a window may give wrong bytes of it once more, in a plan that cuts it otherwise.
func TestThrough_ClaimsAreComparedWithSumsOfTheSameGrainAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		read, charged content.Grain
		bans          int32
	}{
		"leaves and leaves": {content.Leaves, content.Leaves, 1},
		"pieces and pieces": {content.Pieces, content.Pieces, 1},
		"leaves and pieces": {content.Leaves, content.Pieces, 0},
		"pieces and leaves": {content.Pieces, content.Leaves, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var others *banning
			fr, _, req, data := scripted(t, 2, func(o *Options) {
				others = &banning{script: o.Swarm.(*script)}
				o.Swarm = others
			})
			sums, err := content.NewSummer(c.read.Cut(req.Size))
			require.NoError(t, err)
			wrong := &charge{digest: req.Digest, grain: c.charged, suspects: []suspect{{
				schedule.Claim{By: "victim"}, swarm.Plan{Digest: req.Digest, Grain: c.charged}, "forger",
			}}}
			fr.doubts.passedWrong(*wrong)
			w := &weighed{Reader: bytes.NewReader(data), t: &through{fr: fr, req: req, size: req.Size}, sums: sums}
			_, err = io.Copy(io.Discard, w)
			require.NoError(t, err)
			fr.Close()
			require.Equal(t, c.bans, others.bans.Load())
		})
	}
}

func TestBlame_AForgerIsBannedOnceHoweverMuchItHasForged(t *testing.T) {
	t.Parallel()
	var others *banning
	fr, _, req, data := scripted(t, 2, func(o *Options) {
		others = &banning{script: o.Swarm.(*script)}
		o.Swarm = others
	})
	c := &charge{digest: req.Digest}
	for i := range 1000 {
		c.suspects = append(c.suspects, suspect{
			schedule.Claim{Index: i % 2, By: "victim"}, swarm.Plan{Digest: req.Digest}, "forger",
		})
	}
	fr.settle(c, "images.test", true, 2, func(i int) schedule.Sum { return sumOf(content.ChunkCID(chunkOf(data, i))) })
	require.EqualValues(t, 1, others.bans.Load())
}

// A coordinator that could make up claims of the node that it misleads would have that node doubt the registry.
func TestBlame_AClaimInTheNodesOwnNameThatItDidNotSignIsTheCoordinatorsForgery(t *testing.T) {
	t.Parallel()
	var others *banning
	fr, s, req, data := scripted(t, 2, func(o *Options) {
		others = &banning{script: o.Swarm.(*script)}
		o.Swarm = others
	})
	right := func(i int) schedule.Sum { return sumOf(content.ChunkCID(chunkOf(data, i))) }
	plan := swarm.Plan{Digest: req.Digest}
	fr.settle(&charge{digest: req.Digest, suspects: []suspect{
		{schedule.Claim{Index: 0, By: s.ID()}, plan, "forger"},
		{schedule.Claim{Index: 1, Sum: right(1), By: "another"}, plan, "forger"},
	}}, "images.test", false, 2, right)
	require.EqualValues(t, 1, others.bans.Load())
	require.False(t, fr.doubts.wary(time.Now(), "images.test"))
}
