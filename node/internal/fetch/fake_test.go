package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// script is a swarm whose coordinator and peers say what a test tells them to say.
type script struct {
	grain content.Grain
	joins chan *scriptedSession
	wants chan asked

	mu        sync.Mutex
	forgotten []cid.Cid
}

type asked struct {
	of       peer.ID
	cid      cid.Cid
	priority int32
	held     bool
	sink     swarm.Sink
}

// scriptedSession is a session with a coordinator that a test plays.
type scriptedSession struct {
	coordinator peer.ID
	joined      schedule.Join
	orders      chan schedule.Orders
	reports     chan schedule.Report
	closed      chan struct{}
	once        sync.Once
}

func newScript() *script {
	return &script{joins: make(chan *scriptedSession, 16), wants: make(chan asked, 1024)}
}

func (s *script) ID() peer.ID { return "self" }

func (s *script) Grain() content.Grain { return s.grain }

func (s *script) Join(_ context.Context, _ digest.Digest, j schedule.Join) (swarm.Session, error) {
	return s.session("coordinator", j), nil
}

func (s *script) JoinAlone(_ digest.Digest, j schedule.Join) (swarm.Session, error) {
	return s.session(s.ID(), j), nil
}

func (s *script) session(coordinator peer.ID, j schedule.Join) *scriptedSession {
	session := &scriptedSession{
		coordinator: coordinator, joined: j, orders: make(chan schedule.Orders, 16),
		reports: make(chan schedule.Report, 1024),
		closed:  make(chan struct{}),
	}
	s.joins <- session
	return session
}

func (s *script) Want(p peer.ID, c cid.Cid, _ int64, priority int32, held bool, sink swarm.Sink) {
	s.wants <- asked{p, c, priority, held, sink}
}

func (s *script) Forget(c cid.Cid, _ swarm.Sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten = append(s.forgotten, c)
}

func (s *script) Have(blocks.Block)         {}
func (s *script) Gone(cid.Cid)              {}
func (s *script) Awaits(func(cid.Cid) bool) {}
func (s *script) HeldBy(context.Context, peer.ID, swarm.Plan) ([]schedule.Claim, error) {
	return nil, content.ErrNotFound
}
func (s *script) Ban(peer.ID, string)     {}
func (s *script) HeardFrom(peer.ID) int64 { return time.Now().UnixNano() } // all are alive
func (s *script) Ping(peer.ID)            {}
func (s *script) Claim(_ swarm.Plan, index int, sum schedule.Sum) (schedule.Claim, error) {
	return schedule.Claim{Index: index, Sum: sum, By: s.ID()}, nil
}

func (s *scriptedSession) Next(ctx context.Context) (schedule.Orders, error) {
	select {
	case o := <-s.orders:
		return o, nil
	case <-ctx.Done():
		return schedule.Orders{}, ctx.Err()
	}
}

func (s *scriptedSession) Send(r schedule.Report) { s.reports <- r }
func (s *scriptedSession) Close()                 { s.once.Do(func() { close(s.closed) }) }
func (s *scriptedSession) Coordinator() peer.ID   { return s.coordinator }
func (s *scriptedSession) Alone() bool            { return false }

// until merges reports until ok says yes of them.
func (s *scriptedSession) until(t *testing.T, ok func(schedule.Report) bool) {
	t.Helper()
	var all schedule.Report
	for !ok(all) {
		select {
		case r := <-s.reports:
			all.Merge(r)
		case <-time.After(patience):
			require.FailNow(t, "it was not reported", "%+v", all)
		}
	}
}

func (s *script) next(t *testing.T) *scriptedSession {
	t.Helper()
	select {
	case session := <-s.joins:
		return session
	case <-time.After(patience):
		require.FailNow(t, "no coordinator is joined")
		return nil
	}
}

// want waits for n wants.
func (s *script) want(t *testing.T, n int) []asked {
	t.Helper()
	var out []asked
	for range n {
		select {
		case w := <-s.wants:
			out = append(out, w)
		case <-time.After(patience):
			require.FailNow(t, "nothing is asked of peers", "only %d times", len(out))
		}
	}
	return out
}

// shelf is an upstream that has one blob.
type shelf []byte

func (s shelf) Open(_ context.Context, _ content.Request, off, n int64) (*upstream.Body, error) {
	if n < 0 {
		n = int64(len(s)) - off
	}
	return &upstream.Body{ReadCloser: io.NopCloser(bytes.NewReader(s[off : off+n])), Offset: off, Size: int64(len(s))},
		nil
}

func (s shelf) Stat(context.Context, content.Request) (int64, string, error) {
	return int64(len(s)), "", nil
}

func (s shelf) Distrust(content.Request) {}

func (s shelf) Authorize(context.Context, content.Repository, pullsecret.Credential) (string, error) {
	return "", nil
}

// scripted is a node in a scripted swarm, and the blob that it is to get.
func scripted(t *testing.T, chunks int, set func(*Options)) (*Fetcher, *script, content.Request, []byte) {
	t.Helper()
	var data []byte
	for i := range chunks {
		data = append(data, bytes.Repeat([]byte{byte(i + 1)}, content.ChunkSize)...)
	}
	disk, err := store.Open(t.Context(), store.Options{Path: t.TempDir(), Logger: testLogger("disk")})
	require.NoError(t, err)
	s := newScript()
	o := Options{Store: disk, Swarm: s, Upstream: shelf(data), Logger: testLogger("scripted"),
		Registerer: prometheus.NewRegistry()}
	if set != nil {
		set(&o)
	}
	fr := New(o)
	t.Cleanup(func() { fr.Close(); require.NoError(t, disk.Close()) })
	req := content.Request{
		Repository: content.Repository{Registry: "images.test", Name: "a/b"}, Digest: digest.FromBytes(data),
		Size: int64(len(data)),
	}
	return fr, s, req, data
}

func chunkOf(data []byte, i int) []byte { return data[i*content.ChunkSize : (i+1)*content.ChunkSize] }

// assigned orders chunks of a peer that has them.
func assigned(data []byte, from peer.ID, chunks ...int) schedule.Orders {
	o := schedule.Orders{Size: int64(len(data))}
	for _, i := range chunks {
		o.Chunks = append(o.Chunks, schedule.Assignment{
			Claim: schedule.Claim{Index: i, Sum: sha256.Sum256(chunkOf(data, i)), By: from}, From: from, Held: true,
		})
	}
	return o
}

func readAll(t *testing.T, fr *Fetcher, req content.Request) (got func() []byte) {
	t.Helper()
	var data []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		var r content.Reader
		if r, err = fr.Open(t.Context(), req); err != nil {
			return
		}
		defer func() { _ = r.Close() }()
		var body io.ReadCloser
		if body, err = r.Range(t.Context(), 0, r.Size()); err == nil {
			data, err = io.ReadAll(body)
			_ = body.Close()
		}
	}()
	return func() []byte {
		<-done
		require.NoError(t, err)
		return data
	}
}

func TestFetch_WhatLandsWhileACoordinatorIsJoinedIsReportedToIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testWhatLands)
}

func testWhatLands(t *testing.T) {
	fr, s, req, data := scripted(t, 3, nil)
	got := readAll(t, fr, req)
	first := s.next(t)
	first.until(t, func(r schedule.Report) bool { return len(r.Need) > 0 })
	first.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 1}}}
	first.until(t, func(r schedule.Report) bool { return len(r.Claims) == 1 })
	first.orders <- assigned(data, "home", 1)
	w := s.want(t, 1)[0]
	require.Equal(t, peer.ID("home"), w.of)
	w.sink.Block("home", w.cid, chunkOf(data, 1))
	first.until(t, func(r schedule.Report) bool { return len(r.Have) == 1 && r.Have[0] == 1 })
	first.orders <- schedule.Orders{Leases: []schedule.Run{{First: 2, Count: 1}}}
	first.until(t, func(r schedule.Report) bool { return r.Complete })
	require.Equal(t, data, got())
	<-first.closed
}

func TestFetch_APeerThatLacksAChunkIsPassedOverAtOnce(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 2, nil)
	got := readAll(t, fr, req)
	session := s.next(t)
	session.orders <- assigned(data, "empty", 0, 1)
	for _, w := range s.want(t, 2) {
		require.True(t, w.held, "it is to say so if it does not hold it")
		w.sink.Lost("empty", w.cid)
	}
	session.until(t, func(r schedule.Report) bool { return len(r.Suspects) == 2 })
	session.orders <- assigned(data, "full", 0, 1)
	for _, w := range s.want(t, 2) {
		require.Equal(t, peer.ID("full"), w.of)
		i := 0
		if w.cid.Equals(content.SumCID(sha256.Sum256(chunkOf(data, 1)))) {
			i = 1
		}
		w.sink.Block("full", w.cid, chunkOf(data, i))
	}
	require.Equal(t, data, got())
}

// Only bytes are progress, however much such a coordinator has to say.
func TestFetch_ACoordinatorWhoseOrdersLeadNowhereIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testUselessCoordinator)
}

func testUselessCoordinator(t *testing.T) {
	fr, s, req, data := scripted(t, 8, func(o *Options) { o.Patience = time.Hour }) // nobody else reads it
	got := readAll(t, fr, req)
	useless := s.next(t)
	useless.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 1}}}
	for done := false; !done; {
		select {
		case <-time.After(schedule.TickEvery):
			useless.orders <- schedule.Orders{Size: int64(len(data))}
		case <-useless.closed:
			done = true
		}
	}
	own := s.next(t)
	require.Equal(t, s.ID(), own.coordinator, "the node goes on by itself")
	require.GreaterOrEqual(t, len(own.joined.Have), 2, "what was leased to it, and one chunk of its own choice")
	own.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 8}}}
	require.Equal(t, data, got())
}

func TestFetch_WhatNoOneWaitsForIsTakenBackAtTheEnd(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 2, func(o *Options) { o.Linger = time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	opened := make(chan error, 1)
	go func() {
		r, err := fr.Open(ctx, req)
		if err == nil {
			_, err = r.Range(ctx, 0, r.Size())
			<-ctx.Done()
			_ = r.Close()
		}
		opened <- err
	}()
	session := s.next(t)
	session.orders <- assigned(data, "slow", 0, 1)
	s.want(t, 2)
	cancel()
	t.Logf("opened: %v", <-opened) // it may have been opened before
	<-session.closed
	eventually(t, "both are forgotten", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.forgotten) == 2
	})
}

func TestFetch_ASizeThatPeersNameWrongIsForgottenWithTheAttempt(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{
		"for which there is room":      40 * content.ChunkSize,
		"for which there is no room":   8 << 30,
		"for which there is no memory": 1 << 40,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testSizeForgotten(t, size) })
		})
	}
}

func testSizeForgotten(t *testing.T, size int64) {
	t.Helper()
	fr, s, req, data := scripted(t, 2, func(o *Options) {
		disk, err := store.Open(t.Context(), store.Options{Path: t.TempDir(), Logger: testLogger("disk"),
			Limits: store.Limits{Capacity: 100 * content.ChunkSize}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disk.Close()) })
		o.Store = disk
	})
	req.Size = 0
	first := make(chan error, 1)
	go func() {
		r, err := fr.Open(t.Context(), req)
		if err == nil {
			var body io.ReadCloser
			if body, err = r.Range(t.Context(), 0, r.Size()); err == nil {
				_, err = io.Copy(io.Discard, body)
				_ = body.Close()
			}
			_ = r.Close()
		}
		first <- err
	}()
	liar := s.next(t)
	liar.orders <- schedule.Orders{Size: size, Leases: []schedule.Run{{First: 0, Count: 1}}}
	err := <-first
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	require.ErrorIs(t, err, content.ErrMisled)
	alone := s.next(t)
	require.Equal(t, s.ID(), alone.coordinator, "it is read from upstream alone")
	require.Zero(t, alone.joined.Size)
	alone.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 2}}}
	require.Equal(t, data, readAll(t, fr, req)())
}

// An answer's header goes out with the size, before any byte of what peers claim could be compared.
func TestFetch_ASizeThatPeersNameIsConfirmedWhereTheManifestNamesAnother(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		listed, told int64 // in chunks
		wrong        bool  // the told one is
	}{
		"the peers are wrong":    {listed: 2, told: 40, wrong: true},
		"the manifest is wrong":  {listed: 40, told: 2},
		"no manifest tells":      {listed: 0, told: 2},
		"they name the same one": {listed: 2, told: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fr, s, req, data := scripted(t, 2, nil)
				req.Size = c.listed * content.ChunkSize
				opened := make(chan error, 1)
				var r content.Reader
				go func() {
					var err error
					r, err = fr.Open(t.Context(), req)
					opened <- err
				}()
				s.next(t).orders <- schedule.Orders{Size: c.told * content.ChunkSize} // nobody brings anything yet
				if c.wrong {
					require.ErrorIs(t, <-opened, content.ErrMisled)
					alone := s.next(t)
					require.Equal(t, s.ID(), alone.coordinator, "it is read from upstream alone")
					alone.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 2}}}
					require.Equal(t, data, readAll(t, fr, req)())
					return
				}
				require.NoError(t, <-opened)
				require.Equal(t, int64(len(data)), r.Size())
				require.NoError(t, r.Close())
			})
		})
	}
}

// silent is an upstream that does not tell sizes, and counts who asks.
type silent struct {
	shelf
	asked *atomic.Int32
}

func (s silent) Stat(context.Context, content.Request) (int64, string, error) {
	s.asked.Add(1)
	return 0, "", content.ErrUnavailable
}

func TestFetch_ASizeThatUpstreamDoesNotTellIsAskedForOnceForAllCallers(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	fr, s, req, data := scripted(t, 2, func(o *Options) { o.Upstream = silent{o.Upstream.(shelf), &asked} })
	req.Size++ // by a manifest that is wrong
	opened := make(chan error, 1)
	open := func() {
		r, err := fr.Open(t.Context(), req)
		if err == nil {
			err = r.Close()
		}
		opened <- err
	}
	go open()
	s.next(t).orders <- schedule.Orders{Size: int64(len(data))}
	require.NoError(t, <-opened)
	for range 3 {
		go open()
	}
	for range 3 {
		require.NoError(t, <-opened)
	}
	require.EqualValues(t, 1, asked.Load())
}
