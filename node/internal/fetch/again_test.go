package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// stories are how the fetches of a node went.
type stories struct {
	mu   sync.Mutex
	list []Story
}

func (s *stories) add(st Story) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, st)
}

// complete is that of the fetch which brought a blob.
func (s *stories) complete(t *testing.T, d digest.Digest) (st Story) {
	t.Helper()
	eventually(t, "the fetch has ended", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.IndexFunc(s.list, func(st Story) bool { return st.Digest == d && st.Outcome == outcomeComplete })
		if i >= 0 {
			st = s.list[i]
		}
		return i >= 0
	})
	return st
}

// wrongOnce has the registry change a byte of one leaf the first time that it sends it, and calls anew when it is asked
// for that leaf once more.
func (o *origin) wrongOnce(leaf int, anew func()) {
	var mu sync.Mutex
	told := map[string]bool{}
	o.Spoil(func(w http.ResponseWriter, r *http.Request, right []byte) bool {
		var from, to int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
			return false
		}
		at := leaf * chunk1
		mu.Lock()
		defer mu.Unlock()
		switch {
		case at < from || at > to:
			if told[r.URL.Path] && from == 0 {
				anew()
			}
			return false
		case told[r.URL.Path]:
			anew()
			return false
		}
		told[r.URL.Path] = true
		given := slices.Clone(right)
		given[at] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(given))
		return true
	})
}

// ingestFiles lists what there is of ingests on a disk.
func ingestFiles(t *testing.T, disk store.Options) (list []string) {
	t.Helper()
	root := filepath.Join(disk.Path, "ingest")
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			list = append(list, path)
		}
		return err
	}))
	return list
}

// swarmOn starts nodes that all know each other, each on a disk of its own, and tells how their fetches go.
func swarmOn(t *testing.T, o *origin, count int, limits store.Limits) ([]*testNode, []store.Options, []stories) {
	t.Helper()
	var nodes []*testNode
	var boot []peer.AddrInfo
	disks, told := make([]store.Options, count), make([]stories, count)
	for i := range disks {
		disks[i] = store.Options{Path: t.TempDir(), Limits: limits}
		n := newNodeOn(t, o, fmt.Sprint("n", i), boot, disks[i], func(fo *Options, so *swarm.Options) {
			patient(t, o)(fo, so)
			fo.Ended = told[i].add
		})
		nodes, boot = append(nodes, n), append(boot, n.info())
	}
	for _, n := range nodes {
		<-n.swarm.Started()
		eventually(t, "all know each other", func() bool { return len(n.swarm.Peers()) == count-1 })
	}
	return nodes, disks, told
}

func TestElected_TheOthersTakeOnlyWhatWasWrongFromHim(t *testing.T) {
	const size, wrong, rotten = 12*chunk1 + 5, 7, 3
	for name, c := range map[string]struct {
		capacity    int64 // of each store; 0: no limit
		rots        bool  // a chunk that was right, before it is used
		least, most int64 // bytes that each takes from peers
	}{
		"what matches stays where it is":          {least: 1, most: chunk1},
		"also where the blob fits no second time": {least: 1, most: chunk1, capacity: size},
		"but not what rots on the disk meanwhile": {least: chunk1 / 2, most: 2 * chunk1, rots: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			d := o.add(t, size)
			nodes, disks, told := swarmOn(t, o, 4, store.Limits{Capacity: c.capacity, High: 1, Low: 1})
			var rotted error
			o.wrongOnce(wrong, sync.OnceFunc(func() {
				for i := range disks {
					if c.rots {
						rotted = errors.Join(rotted, overwrite(disks[i], d, []byte("rot"), rotten))
					}
				}
			}))
			readAllUntilRight(t, nodes, o.request(d))
			require.NoError(t, rotted)
			readers := 0
			for i, n := range nodes {
				require.NoError(t, n.Ensure(t.Context(), o.request(d)))
				st := told[i].complete(t, d)
				t.Logf("node %d: %d from peers, %d from upstream, %d kept", i, st.FromPeers, st.FromUpstream, st.Kept)
				require.EqualValues(t, size, st.FromPeers+st.FromUpstream+st.Kept)
				require.Empty(t, ingestFiles(t, disks[i]))
				require.Zero(t, n.metric(t, "shoal_peer_bans_total"), "node %d", i)
				if st.FromUpstream == size {
					readers++
					continue
				}
				require.GreaterOrEqual(t, st.FromPeers, c.least, "node %d", i)
				require.LessOrEqual(t, st.FromPeers, c.most, "node %d", i)
				var byPeer int64
				for _, n := range st.ByPeer {
					byPeer += n
				}
				require.Equal(t, st.FromPeers, byPeer, "no peer is credited with what it did not send")
			}
			require.Equal(t, 1, readers, "one reads all of it")
		})
	}
}

// brings has the scripted peer send what is asked of it.
func (s *script) brings(t *testing.T, n int, data []byte) (chunks []int) {
	t.Helper()
	for _, w := range s.want(t, n) {
		for i := range len(data) / content.ChunkSize {
			if w.cid.Equals(content.ChunkCID(chunkOf(data, i))) {
				chunks = append(chunks, i)
				w.sink.Block(w.of, w.cid, chunkOf(data, i))
			}
		}
	}
	slices.Sort(chunks)
	return chunks
}

// misleads has a peer bring chunk 2 wrong and all others right, and returns what it brought and the session of the try
// that follows.
func misleads(t *testing.T, fr *Fetcher, s *script, req content.Request, data []byte) ([]byte, *scriptedSession) {
	t.Helper()
	wrong := slices.Clone(data)
	wrong[2*content.ChunkSize] ^= 1
	read := make(chan error, 1)
	go func() { read <- readInto(t.Context(), fr, req, io.Discard) }()
	s.next(t).orders <- assigned(wrong, "home", 0, 1, 2, 3)
	require.Equal(t, []int{0, 1, 2, 3}, s.brings(t, 4, wrong))
	require.ErrorIs(t, <-read, content.ErrDigestMismatch)
	again := s.next(t)
	require.True(t, again.joined.Again)
	require.Empty(t, again.joined.Have)
	return wrong, again
}

func readInto(ctx context.Context, fr *Fetcher, req content.Request, w io.Writer) error {
	r, err := fr.Open(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	body, err := r.Range(ctx, 0, r.Size())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(w, body)
	return err
}

func TestAgain_APeerIsAskedOnlyForWhatDiffers(t *testing.T) {
	t.Parallel()
	var told stories
	fr, s, req, data := scripted(t, 4, func(o *Options) { o.Ended = told.add })
	_, again := misleads(t, fr, s, req, data)
	got := readAll(t, fr, req)
	again.orders <- assigned(data, "elected", 0, 1, 2, 3)
	again.until(t, func(r schedule.Report) bool { return len(r.Have) == 3 })
	require.Equal(t, []int{2}, s.brings(t, 1, data))
	require.Equal(t, data, got())
	again.until(t, func(r schedule.Report) bool { return r.Complete })
	st := told.complete(t, req.Digest)
	require.EqualValues(t, content.ChunkSize, st.FromPeers)
	require.EqualValues(t, 3*content.ChunkSize, st.Kept)
	require.Equal(t, map[peer.ID]int64{"elected": content.ChunkSize}, st.ByPeer)
	require.Empty(t, s.wants)
}

// Who claims the same wrong chunk again is caught by the digest, and then peers are asked for nothing.
func TestAgain_WhatIsWrongAThirdTimeIsReadAloneAndNothingOfItIsKept(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 4, nil)
	wrong, again := misleads(t, fr, s, req, data)
	again.orders <- assigned(wrong, "liar", 0, 1, 2, 3)
	another := s.next(t)
	require.True(t, another.joined.Again)
	require.Empty(t, another.joined.Have)
	another.orders <- assigned(wrong, "liar", 0, 1, 2, 3)
	alone := s.next(t)
	require.Equal(t, s.ID(), alone.coordinator)
	require.Empty(t, alone.joined.Have)
	require.Zero(t, fr.opts.Store.Usage().IngestBytes)
	alone.orders <- schedule.Orders{Size: req.Size, Leases: []schedule.Run{{First: 0, Count: 4}}}
	require.Equal(t, data, readAll(t, fr, req)())
	require.Empty(t, s.wants)
}

// kept is a node that keeps what did not match: before the next try knows the blob's size, or in its middle.
func kept(t *testing.T, begun bool) (*Fetcher, store.Options) {
	t.Helper()
	disk := store.Options{Path: t.TempDir(), Logger: testLogger("disk")}
	fr, s, req, data := scripted(t, 4, func(o *Options) {
		var err error
		require.NoError(t, o.Store.Close())
		o.Store, err = store.Open(t.Context(), disk)
		require.NoError(t, err)
	})
	_, again := misleads(t, fr, s, req, data)
	if begun {
		again.orders <- assigned(data, "elected", 0, 1, 2)
		again.until(t, func(r schedule.Report) bool { return len(r.Have) == 2 })
	}
	require.NotEmpty(t, ingestFiles(t, disk))
	return fr, disk
}

func TestAgain_WhereTheRoomIsGoneMeanwhileNothingIsKeptAndAllIsRight(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 4, nil)
	_, again := misleads(t, fr, s, req, data)
	require.NoError(t, fr.opts.Store.SetLimits(store.Limits{Capacity: 3 * content.ChunkSize}))
	require.Zero(t, fr.opts.Store.Usage().IngestBytes)
	got := readAll(t, fr, req)
	again.orders <- assigned(data, "elected", 0, 1, 2, 3)
	require.Equal(t, data, got())
}

func TestAgain_WhatIsKeptGoesWithTheTry(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]bool{"before it knows the size": false, "in its middle": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fr, disk := kept(t, begun)
			fr.Close()
			require.Zero(t, fr.opts.Store.Usage().IngestBytes)
			require.Empty(t, ingestFiles(t, disk))
			require.NoError(t, fr.opts.Store.Close())
		})
	}
}

func TestAgain_WhatIsKeptIsNotResumedAfterAKill(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]bool{"before the try knows the size": false, "in its middle": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fr, disk := kept(t, begun)
			after := store.Options{Path: t.TempDir(), Logger: testLogger("after")}
			require.NoError(t, os.CopyFS(after.Path, os.DirFS(disk.Path))) // which is what a kill leaves
			next, err := store.Open(t.Context(), after)
			require.NoError(t, err)
			require.Zero(t, next.Usage().IngestBytes)
			require.Empty(t, ingestFiles(t, after))
			require.NoError(t, next.Close())
			fr.Close()
			require.NoError(t, fr.opts.Store.Close())
		})
	}
}
