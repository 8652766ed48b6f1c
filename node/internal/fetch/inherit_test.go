package fetch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// spoil writes wrong bytes into chunks of a partial ingest.
func spoil(t *testing.T, o store.Options, d digest.Digest, wrong []byte, chunks ...int64) {
	t.Helper()
	require.NoError(t, overwrite(o, d, wrong, chunks...))
}

// overwrite is spoil for a goroutine that is not the test's.
func overwrite(o store.Options, d digest.Digest, wrong []byte, chunks ...int64) error {
	f, err := os.OpenFile(filepath.Join(o.Path, "ingest", "sha256", d.Encoded()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, i := range chunks {
		_, writeErr := f.WriteAt(wrong, i*chunk1+chunk1/2)
		err = errors.Join(err, writeErr)
	}
	return errors.Join(err, f.Close())
}

func TestOpen_AResumeReadsOnlyWhatWasLostAnewAndGivesNothingWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		had  int
		lost []int64
	}{
		"nothing":                          {5, nil},
		"the beginning":                    {5, []int64{0}},
		"all of it":                        {5, []int64{0, 1, 2, 3, 4}},
		"the last of what was there":       {5, []int64{4}},
		"a chunk of a blob that was whole": {8, []int64{3}},
		"the end of a blob that was whole": {8, []int64{7}},
	} {
		for what, wrong := range map[string][]byte{"a few bytes": []byte("wrong"), "all zero": make([]byte, chunk1/2)} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t)
				d := o.add(t, 8*chunk1)
				disk := leavePartial(t, o, d, c.had)
				spoil(t, disk, d, wrong, c.lost...)
				n := newNodeOn(t, o, "n", nil, disk)
				n.pull(t.Context(), o.request(d)).requireRight(t, d)
				require.Equal(t, int64(8-c.had+len(c.lost))*chunk1, o.Bytes.Load())
				require.NoError(t, n.Ensure(t.Context(), o.request(d)))
			})
		}
	}
}

// After a kill a client may ask for a blob alone, and the gate no longer knows what the repository's yes is about.
func TestInherit_WhatIsKeptInAnotherNameIsResumedOnceTheRegistryGivesTheCallerTheSame(t *testing.T) {
	t.Parallel()
	const chunks, kept = 6, 4
	for name, c := range map[string]struct {
		of            func(n *testNode, req content.Request) source
		authorization string
		wrong         bool
	}{
		"of the repository, to a caller to whom its yes is in doubt": {of: ofRepository, authorization: unsure},
		"of all, to such a caller": {of: func(*testNode, content.Request) source {
			return ""
		}, authorization: unsure},
		"of the caller apart, to all": {of: func(n *testNode, req content.Request) source {
			return n.Fetcher.apart(req)
		}},
		"but not of other content": {of: ofRepository, authorization: unsure, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			n := newSwarm(t, o, 1, doubting(o, nil))[0]
			d := o.add(t, chunks*chunk1)
			req := o.request(d)
			req.Authorization = c.authorization
			left := make([][]byte, kept)
			for i := range left {
				left[i] = o.Blob(d)[i*chunk1 : (i+1)*chunk1]
				if c.wrong {
					left[i] = o.Blob(d)[(chunks-1-i)*chunk1 : (chunks-i)*chunk1]
				}
			}
			n.leave(t, c.of(n, req).mark(), d, chunks*chunk1, left...)
			got, err := n.read(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, o.Blob(d), got)
			if c.wrong {
				require.GreaterOrEqual(t, o.Bytes.Load(), int64(chunks*chunk1))
				return
			}
			require.LessOrEqual(t, o.Bytes.Load(), int64((chunks-kept)*chunk1+content.SampleSize))
		})
	}
}

func ofRepository(_ *testNode, req content.Request) source { return source(req.Repository.String()) }

func TestInherit_WhoOnlyClaimsADigestIsGivenNothingThatIsKept(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 4*chunk1)
	for name, of := range map[string]source{"of all": "", "of the repository": ofRepository(nil, o.request(d))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newSwarm(t, o, 1, doubting(o, &claimant{}))[0]
			n.leaveIn(t, store.Origin{Source: of.mark(), Pool: store.Models}, d, 4*chunk1, o.Blob(d)[:chunk1],
				o.Blob(d)[chunk1:2*chunk1])
			for _, req := range []content.Request{{Repository: evil, Digest: d}, {Repository: sibling, Digest: d},
				{Repository: o.request(d).Repository, Digest: d, Authorization: unsure}} {
				ctx, cancel := context.WithCancel(t.Context())
				got, err := n.read(ctx, req)
				cancel()
				require.Error(t, err)
				require.Empty(t, got)
			}
			require.EqualValues(t, 2*chunk1, n.store.Usage().Models.IngestBytes, "it is whose it was")
		})
	}
}

func TestInherit_ASampleTakesATurnAndHoldsNoReliefUp(t *testing.T) {
	t.Parallel()
	const chunks, kept = 6, 4
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil), func(_ int, fo *Options, _ *swarm.Options) { fo.UpstreamStreams = 1 })[0]
	d := o.add(t, chunks*chunk1)
	req := o.request(d)
	req.Authorization = unsure
	var left [][]byte
	for i := range kept {
		left = append(left, o.Blob(d)[i*chunk1:(i+1)*chunk1])
	}
	n.leave(t, ofRepository(nil, req).mark(), d, chunks*chunk1, left...)
	var sampled, turn, making atomic.Bool
	o.Spoil(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !sampled.Swap(true) {
			turn.Store(!n.turnsAt(req.Repository).TryAcquire(1))
			n.mu.Lock()
			f := n.fetches[d]
			n.mu.Unlock()
			if making.Store(!f.making.TryLock()); !making.Load() {
				f.making.Unlock()
			}
		}
		return false
	})
	got, err := n.read(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, o.Blob(d), got)
	require.LessOrEqual(t, o.Bytes.Load(), int64((chunks-kept)*chunk1+content.SampleSize))
	require.True(t, turn.Load())
	require.False(t, making.Load())
}
