package fetch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// claimant is a source beside the origin's, of which nothing has been proved. It claims to have every blob.
type claimant struct {
	Upstream
	sizes func(digest.Digest) int64
	asked chan struct{}
	hangs bool // until whoever asks leaves; else it fails at once
	shows bool // what is there, where it is asked for one byte
	says  int  // the status with which it fails; 0: 500
}

var (
	evil = content.Repository{Registry: "evil.test", Name: "any/image"}
	// sibling is of the registry that has the blob, and lists it in a manifest.
	sibling = content.Repository{Registry: "images.test", Name: "any/image"}
)

// unsure are credentials to which each registry answers with a page.
const unsure = "Basic unsure"

func claimsOnly(req content.Request) bool {
	return req.Repository == evil || req.Repository == sibling || req.Authorization == unsure
}

func (c *claimant) Stat(ctx context.Context, req content.Request) (int64, string, error) {
	if claimsOnly(req) {
		return c.sizes(req.Digest), "", nil
	}
	return c.Upstream.Stat(ctx, req)
}

func (c *claimant) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	if !claimsOnly(req) {
		return c.Upstream.Open(ctx, req, off, n)
	}
	if c.shows && n == 1 {
		return c.Upstream.Open(ctx, (&origin{}).request(req.Digest), off, n)
	}
	select {
	case c.asked <- struct{}{}:
	default:
	}
	if c.hangs {
		<-ctx.Done()
	}
	return nil, &content.UpstreamError{Status: cmp.Or(c.says, http.StatusInternalServerError)}
}

// proofs are Sources that begin with nothing proved.
type proofs struct {
	sync.Map
	doubted bool // all are
}

func (p *proofs) Proved(req content.Request) bool {
	_, ok := p.Load(fmt.Sprint(req.Repository, req.Digest))
	return ok && !p.Doubted(req)
}
func (p *proofs) Doubted(req content.Request) bool { return p.doubted || req.Authorization == unsure }
func (p *proofs) Prove(req content.Request)        { p.Store(fmt.Sprint(req.Repository, req.Digest), true) }

// doubting makes nodes that believe no source which has not proved what it has.
func doubting(o *origin, claims *claimant) func(int, *Options, *swarm.Options) {
	return func(_ int, fo *Options, _ *swarm.Options) {
		fo.Sources = &proofs{}
		if claims != nil {
			fo.Upstream = &claimant{Upstream: fo.Upstream, asked: claims.asked, hangs: claims.hangs,
				shows: claims.shows, says: claims.says,
				sizes: func(d digest.Digest) int64 { return int64(len(o.Blob(d))) }}
		}
	}
}

func TestSource_WhoOnlyClaimsADigestIsGivenNothingThatAnotherBrings(t *testing.T) {
	t.Parallel()
	const size = 5*chunk1 + 3
	for i := range 6 {
		hangs, thief := i%2 == 1, []content.Request{{Repository: evil}, {Repository: sibling},
			{Repository: (&origin{}).request("").Repository, Authorization: unsure}}[i/2]
		for name, attack := range map[string]func(t *testing.T, o *origin, nodes []*testNode, asked chan struct{}, good,
			bad content.Request){
			"where it asked first, and the blob comes to the same node": func(t *testing.T, _ *origin,
				nodes []*testNode, asked chan struct{}, good, bad content.Request) {
				stolen := steal(t, nodes[0], bad)
				<-asked
				_, err := nodes[0].read(t.Context(), good)
				require.NoError(t, err)
				require.Empty(t, stolen())
			},
			"where it asked first, and the blob comes to another node": func(t *testing.T, _ *origin, nodes []*testNode,
				asked chan struct{}, good, bad content.Request) {
				stolen := steal(t, nodes[0], bad)
				<-asked
				_, err := nodes[1].read(t.Context(), good)
				require.NoError(t, err)
				require.Empty(t, stolen())
			},
			"where it asks while the blob comes": func(t *testing.T, o *origin, nodes []*testNode, _ chan struct{},
				good, bad content.Request) {
				half, goOn := make(chan struct{}), make(chan struct{})
				o.Spoil(func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
					w.Header().Set("Content-Length", fmt.Sprint(len(data)))
					_, _ = w.Write(data[:3*chunk1])
					_ = http.NewResponseController(w).Flush()
					close(half)
					<-goOn
					_, _ = w.Write(data[3*chunk1:])
					return true
				})
				good.Size = 1 // it is asked for by a plain GET
				reader := make(chan error, 1)
				go func() {
					_, err := nodes[0].read(t.Context(), good)
					reader <- err
				}()
				<-half
				stolen := []func() []byte{steal(t, nodes[0], bad), steal(t, nodes[1], bad)}
				close(goOn)
				require.NoError(t, <-reader)
				for _, of := range stolen {
					require.Empty(t, of())
				}
			},
			"where it was let in before the blob was here": func(t *testing.T, _ *origin, nodes []*testNode,
				_ chan struct{}, good, bad content.Request) {
				require.NoError(t, nodes[0].Ensure(t.Context(), good))
				require.Empty(t, steal(t, nodes[0], bad)())
			},
			"where a part of the blob is left from before": func(t *testing.T, o *origin, nodes []*testNode,
				_ chan struct{}, good, bad content.Request) {
				data := o.Blob(good.Digest)
				nodes[0].leave(t, source(good.Repository.String()).mark(), good.Digest, size, data[:chunk1],
					data[chunk1:2*chunk1], data[2*chunk1:3*chunk1])
				require.Empty(t, steal(t, nodes[0], bad)())
			},
		} {
			t.Run(fmt.Sprintf("%s, hanging %v, by %s", name, hangs, thief.Repository), func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t)
				claims := &claimant{asked: make(chan struct{}, 1), hangs: hangs}
				nodes := newSwarm(t, o, 2, doubting(o, claims))
				bad := thief // which the others of these tests have, too
				bad.Digest = o.add(t, size)
				attack(t, o, nodes, claims.asked, o.request(bad.Digest), bad)
			})
		}
	}
}

// steal asks for a blob in the background, for a while. What it returns waits for that, and gives the bytes that came.
func steal(t *testing.T, n *testNode, req content.Request) (stolen func() []byte) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	var got []byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for ctx.Err() == nil && len(got) == 0 {
			r, err := n.Open(ctx, req)
			if err != nil {
				continue
			}
			for off := int64(0); off < r.Size() && len(got) == 0; off += chunk1 {
				body, err := r.Range(ctx, off, min(chunk1, r.Size()-off))
				if err != nil {
					continue
				}
				got, _ = io.ReadAll(body)
				_ = body.Close()
			}
			_ = r.Close()
		}
	}()
	return func() []byte { <-done; return got }
}

func TestSource_ABurstFromOneThatHasProvedNothingYetCostsOneCopy(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		authorization string
		doubted       bool
	}{
		"from one that has said yes":       {},
		"from a page's, for all we know":   {doubted: true},
		"and so with one token":            {"Bearer abcdefghijklmnopqrstuvwxyz012345", true},
		"and so with one account's secret": {"Basic YTphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0NQ==", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			nodes := newSwarm(t, o, 3, func(_ int, fo *Options, _ *swarm.Options) {
				fo.Sources = &proofs{doubted: test.doubted}
			})
			req := o.request(o.add(t, 12*chunk1+5))
			req.Authorization = test.authorization
			pullAll(t, nodes, req, 0)
			require.LessOrEqual(t, o.Bytes.Load(), int64(13*chunk1))
			for _, n := range nodes {
				eventually(t, "what came from it and matched is its proof", func() bool {
					_, proved := n.opts.Sources.(*proofs).Load(fmt.Sprint(req.Repository, req.Digest))
					return proved
				})
			}
		})
	}
}

func TestSource_CredentialsThatMayBeGuessedAreNamedToNobody(t *testing.T) {
	t.Parallel()
	for authorization, same := range map[string]bool{
		"": true, "Bearer abcdefghijklmnopqrstuvwxyz012345": true, "Bearer short": false,
		"Basic dXNlcjpwYXNzd29yZA==": false, "Basic ": false, "Basic no base64 at all, but long enough": true,
	} {
		req := content.Request{Repository: evil, Authorization: authorization}
		one, another := &Fetcher{secret: []byte("one")}, &Fetcher{secret: []byte("another")}
		require.Equal(t, same, one.apart(req) == another.apart(req), authorization)
		require.Equal(t, one.apart(req), one.apart(req))
	}
}

func TestSource_OneThatBringsNothingGivesWayToOneThatDoes(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	claims := &claimant{asked: make(chan struct{}, 1), hangs: true}
	n := newSwarm(t, o, 1, doubting(o, claims))[0]
	d := o.add(t, 2*chunk1)
	ctx, cancel := context.WithCancel(t.Context())
	thief := n.pull(ctx, content.Request{Repository: evil, Digest: d})
	<-claims.asked
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.NoError(t, n.Ensure(t.Context(), o.request(d)))
	require.Equal(t, int64(2*chunk1+1), o.Bytes.Load(), "what came is kept; one byte showed that it would come")
	cancel()
	<-thief.done
	require.Error(t, thief.err)
}

// lateProofs are Sources that note a proof once they may.
type lateProofs struct {
	proofs
	asked, may chan struct{} // asked: somebody has found nothing proved since the proof came in
	came       atomic.Bool
}

func (p *lateProofs) Prove(req content.Request) {
	p.came.Store(true)
	<-p.may
	p.proofs.Prove(req)
}

func (p *lateProofs) Proved(req content.Request) bool {
	proved := p.proofs.Proved(req)
	if p.came.Load() && !proved {
		select {
		case p.asked <- struct{}{}:
		default:
		}
	}
	return proved
}

// The store has the blob a moment before it is noted that its source has proved to have it.
func TestSource_WhoComesBeforeItsProofIsNotedCostsNoSecondCopy(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	late := &lateProofs{asked: make(chan struct{}, 1), may: make(chan struct{})}
	n := newSwarm(t, o, 1, func(_ int, fo *Options, _ *swarm.Options) { fo.Sources = late })[0]
	d := o.add(t, 3*chunk1+5)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	eventually(t, "the store has it", func() bool {
		b, err := n.store.Get(d)
		return err == nil && b.Close() == nil && late.came.Load()
	})
	second := n.pull(t.Context(), o.request(d))
	<-late.asked
	close(late.may)
	second.requireRight(t, d)
	require.EqualValues(t, 3*chunk1+5, o.Bytes.Load())
}

func TestSource_AnotherThatHasTheBlobGivesItItself(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil))[0]
	d := o.add(t, 3*chunk1+5)
	other := o.request(d)
	other.Repository.Name = "c/d"
	require.NoError(t, n.Ensure(t.Context(), o.request(d)))
	before := o.Bytes.Load()
	data, err := n.read(t.Context(), other)
	require.NoError(t, err)
	require.Equal(t, d, digest.FromBytes(data))
	require.Equal(t, before+3*chunk1+5, o.Bytes.Load())

	_, err = n.read(t.Context(), other)
	require.NoError(t, err)
	require.Equal(t, before+3*chunk1+5, o.Bytes.Load(), "that was the proof, so what is here is given")
}

func TestSource_WhoOnlyClaimsADigestIsToldNoOtherSizeThanItsOwn(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newSwarm(t, o, 1, func(_ int, fo *Options, _ *swarm.Options) {
		fo.Sources = &proofs{}
		fo.Upstream = &claimant{Upstream: fo.Upstream, sizes: func(digest.Digest) int64 { return 7 }}
	})[0]
	d := o.add(t, 3*chunk1+5)
	claims := o.request(d)
	claims.Repository = evil
	for _, held := range []bool{false, true} {
		if held {
			require.NoError(t, n.Ensure(t.Context(), o.request(d)))
		}
		size, _, err := n.Stat(t.Context(), claims)
		require.NoError(t, err)
		require.EqualValues(t, 7, size)
	}
	size, _, err := n.Stat(t.Context(), o.request(d))
	require.NoError(t, err)
	require.EqualValues(t, 3*chunk1+5, size)
}

// The gate looks at what peers hold before it lets in a caller of a source that has proved nothing.
func TestSource_WhatWasFetchedForASampleGivesWayToItOnceThatIsTaken(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		of       content.Repository // zero: of no source, as a sample is
		stays    bool
		givesWay bool
	}{
		"a sample that was taken":             {givesWay: true},
		"but not one that is being taken":     {stays: true},
		"nor a fetch for callers, if they go": {of: content.Repository{Registry: "images.test", Name: "c/d"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				proved := &proofs{}
				fr, s, req, data := scripted(t, 3, func(o *Options) { o.Sources = proved })
				first := content.Request{Repository: test.of, Digest: req.Digest, Size: req.Size}
				proved.Prove(first)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				took, left := make(chan error, 1), make(chan struct{})
				go func() {
					defer close(left)
					r, err := fr.Open(ctx, first)
					if err == nil {
						_, err = read(ctx, r, content.ChunkSize)
						defer func() { _ = r.Close() }()
					}
					took <- err
					<-ctx.Done()
				}()
				session := s.next(t)
				session.orders <- assigned(data, "home", 0)
				w := s.want(t, 1)[0]
				w.sink.Block("home", w.cid, chunkOf(data, 0))
				require.NoError(t, <-took)
				if !test.stays {
					cancel()
					<-left
				}
				got := readAll(t, fr, req)
				if test.givesWay {
					<-session.closed
					s.next(t).orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 3}}}
				}
				require.Equal(t, data, got())
				if !test.givesWay {
					require.Len(t, fr.running(), 1, "it goes on, and the source is read past it")
				}
			})
		})
	}
}

func read(ctx context.Context, r content.Reader, n int64) ([]byte, error) {
	body, err := r.Range(ctx, 0, n)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(body)
	return data, errors.Join(err, body.Close())
}

// Whom a repository gives wholly right bytes, it lets read. Of several callers at one time it may be any one.
func TestSource_WhoWasGivenTheBlobItselfIsTold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		callers []string
		peers   bool
		told    []string
	}{
		"of the only caller":              {callers: []string{"a"}, told: []string{"a"}},
		"of one who asks twice":           {callers: []string{"a", "a"}, told: []string{"a"}},
		"but of none of several":          {callers: []string{"a", "b"}},
		"and of none where peers give it": {callers: []string{"a"}, peers: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				told := make(chan string, 8)
				fr, s, req, data := scripted(t, 2, func(o *Options) {
					o.Sources = &proofs{}
					o.Gave = func(req content.Request) { told <- req.Authorization }
				})
				var got []func() []byte
				for _, who := range test.callers {
					req.Authorization = who
					got = append(got, readAll(t, fr, req))
				}
				session := s.next(t)
				eventually(t, "all are there", func() bool {
					running := fr.Running()
					return len(running) == 1 && running[0].Readers == len(test.callers)
				})
				if !test.peers {
					session.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 2}}}
				} else {
					session.orders <- assigned(data, "home", 0, 1)
					for _, w := range s.want(t, 2) {
						i := 0
						if w.cid.Equals(content.SumCID(sha256.Sum256(chunkOf(data, 1)))) {
							i = 1
						}
						w.sink.Block("home", w.cid, chunkOf(data, i))
					}
				}
				for _, of := range got {
					require.Equal(t, data, of())
				}
				fr.Close() // the fetch has ended
				close(told)
				var all []string
				for who := range told {
					all = append(all, who)
				}
				require.Equal(t, test.told, all)
			})
		})
	}
}

// leave puts chunks of a blob into a partial ingest of a source.
func (n *testNode) leave(t *testing.T, of store.Source, d digest.Digest, size int64, chunks ...[]byte) {
	t.Helper()
	n.leaveIn(t, store.Origin{Source: of}, d, size, chunks...)
}

func (n *testNode) leaveIn(t *testing.T, of store.Origin, d digest.Digest, size int64, chunks ...[]byte) {
	t.Helper()
	ing, err := n.store.Ingest(d, size, of)
	require.NoError(t, err)
	for i, data := range chunks {
		require.NoError(t, ing.WriteChunk(i, content.ChunkCID(data), data))
	}
	require.NoError(t, ing.Close())
}

// The gate compares what a source gives with what peers hold. Who could choose what is taken for that could choose what
// he must give to be let in.
func TestSource_WhatOneHasLeftIsNotTakenForWhatPeersHold(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"of the same size": 3*chunk1 + 5, "of another": 2 * chunk1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			nodes := newSwarm(t, o, 2, doubting(o, nil))
			d := o.add(t, 3*chunk1+5)
			require.NoError(t, nodes[1].Ensure(t.Context(), o.request(d)))
			nodes[0].leave(t, source(evil.String()).mark(), d, size, make([]byte, chunk1))

			r, err := nodes[0].Open(t.Context(), content.Request{Digest: d})
			require.NoError(t, err)
			got, err := read(t.Context(), r, chunk1)
			require.NoError(t, err)
			require.Equal(t, o.Blob(d)[:chunk1], got)
			require.NoError(t, r.Close())
		})
	}
}

func TestSource_WhatItGaveBeforeItHadProvedToHaveTheBlobIsResumedAfterwards(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil))[0]
	d := o.add(t, 4*chunk1)
	n.leave(t, source(o.request(d).Repository.String()).mark(), d, 4*chunk1, o.Blob(d)[:chunk1],
		o.Blob(d)[chunk1:2*chunk1])
	n.opts.Sources.Prove(o.request(d))
	got, err := n.read(t.Context(), o.request(d))
	require.NoError(t, err)
	require.Equal(t, o.Blob(d), got)
	require.Equal(t, int64(2*chunk1), o.Bytes.Load())
}

// stall has the origin's first answer stop after some chunks, until the test ends.
func stall(t *testing.T, o *origin, after int) {
	t.Helper()
	goOn := make(chan struct{})
	t.Cleanup(func() { close(goOn) })
	var stalls atomic.Bool
	stalls.Store(true)
	o.Spoil(func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
		if !stalls.Swap(false) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:after*chunk1])
		_ = http.NewResponseController(w).Flush()
		<-goOn
		return true
	})
}

// begin reads the first chunk of a blob whose origin stalls, and returns when that has stood still for long.
func begin(t *testing.T, n *testNode, req content.Request) (begun []byte, rest func() ([]byte, error)) {
	t.Helper()
	req.Size = 1 // it is asked for by a plain GET
	r, err := n.Open(t.Context(), req)
	require.NoError(t, err)
	body, err := r.Range(t.Context(), 0, r.Size())
	require.NoError(t, err)
	begun = make([]byte, chunk1)
	_, err = io.ReadFull(body, begun)
	require.NoError(t, err)
	eventually(t, "it stands still", func() bool { return n.Fetcher.running()[0].standsStill() >= mayStandStill })
	return begun, func() ([]byte, error) {
		rest, err := io.ReadAll(body)
		return rest, errors.Join(err, body.Close(), r.Close())
	}
}

func TestSource_AnAnswerThatHasBegunIsNotBrokenOffForAnother(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil))[0]
	d := o.add(t, 5*chunk1+3)
	stall(t, o, 3)
	begun, readOn := begin(t, n, o.request(d))
	other := o.request(d)
	other.Repository.Name = "c/d"
	n.pull(t.Context(), other).requireRight(t, d)
	rest, err := readOn()
	require.NoError(t, err)
	require.Equal(t, o.Blob(d), append(begun, rest...))
}

func TestSource_WhatIsToBeKeptIsWaitedForFromWhomItGaveWayTo(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil))[0]
	d := o.add(t, 5*chunk1+3)
	stall(t, o, 3)
	kept := make(chan error, 1)
	go func() { kept <- n.Ensure(t.Context(), o.request(d)) }()
	eventually(t, "it stands still", func() bool {
		all := n.Fetcher.running()
		return len(all) == 1 && all[0].came.Load() > 0 && all[0].standsStill() >= mayStandStill
	})
	other := o.request(d)
	other.Repository.Name = "c/d"
	n.pull(t.Context(), other).requireRight(t, d)
	require.NoError(t, <-kept)
}

func TestSource_AFetchThatGoesOnBetweenTwoLooksDoesNotGiveWay(t *testing.T) {
	t.Parallel()
	f := &fetch{start: time.Now().Add(-time.Hour)}
	f.cameAt.Store(int64(time.Hour)) // just now, since it was last looked at
	require.False(t, f.endStill())
	require.NoError(t, f.ended())
}

// As a node does that compares what peers hold with what the source has.
func TestSource_AnAnswerThatGivesWayToWhoAsksPeersAloneCostsNoSecondCopy(t *testing.T) {
	t.Parallel()
	const size = 5*chunk1 + 3
	o := newOrigin(t)
	n := newSwarm(t, o, 1, doubting(o, nil))[0]
	d := o.add(t, size)
	stall(t, o, 3)
	begun, readOn := begin(t, n, o.request(d))
	_, err := n.OpenHere(t.Context(), o.request(d).WithoutUpstream())
	require.Error(t, err, "no peer has it")
	rest, err := readOn()
	require.NoError(t, err)
	require.Equal(t, o.Blob(d), append(begun, rest...))
	require.LessOrEqual(t, o.Bytes.Load(), int64(size+chunk1), "bytes of the origin")
}

// away has an origin give no byte of a blob until it is back.
func away(t *testing.T, o *origin) (back func()) {
	t.Helper()
	ready := make(chan struct{})
	back = sync.OnceFunc(func() { close(ready) })
	t.Cleanup(back)
	o.Spoil(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method != http.MethodGet || r.Header.Get("Range") == "bytes=0-0" {
			return false
		}
		select {
		case <-ready:
			return false
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	})
	return back
}

// pullMany has several callers wait for a blob of which nothing comes.
func pullMany(t *testing.T, n *testNode, req content.Request) (pulls []*pull) {
	t.Helper()
	for range 6 {
		pulls = append(pulls, n.pull(t.Context(), req))
	}
	eventually(t, "all wait", func() bool {
		s, _ := n.running(req.Digest)
		return s.Readers == len(pulls)
	})
	return pulls
}

// Its own registry may be away for a moment. Then a caller names another, or a repository that anyone may read and
// whose manifest lists the blob.
func TestSource_AFetchThatStandsStillGivesWayToNoneThatOnlyClaimsTheBlob(t *testing.T) {
	t.Parallel()
	const size = 5*chunk1 + 3
	for name, claims := range map[string]*claimant{
		"whose registry has no such blob": {says: http.StatusNotFound},
		"whose registry refuses it":       {says: http.StatusForbidden},
		"whose registry throttles":        {says: http.StatusTooManyRequests},
		"whose registry fails":            {},
		"whose registry hangs":            {hangs: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			claims.asked = make(chan struct{}, 1)
			n := newSwarm(t, o, 1, doubting(o, claims))[0]
			d := o.add(t, size)
			back := away(t, o)
			pulls := pullMany(t, n, o.request(d))
			ctx, cancel := context.WithCancel(t.Context())
			thief := n.pull(ctx, content.Request{Repository: evil, Digest: d})
			<-claims.asked
			back()
			for _, p := range pulls {
				p.requireRight(t, d)
			}
			cancel()
			<-thief.done
			require.Error(t, thief.err)
			require.Empty(t, thief.data)
			require.Equal(t, int64(size), o.Bytes.Load(), "bytes of the origin")
		})
	}
}

// Each of them would else read all of it from the registry.
func TestSource_ThoseWhoWaitForAFetchThatGivesWayGoOnTogether(t *testing.T) {
	t.Parallel()
	const size = 5*chunk1 + 3
	for name, other := range map[string]content.Request{
		"where it gave way to a source that gives a byte and no more": {Repository: evil},
		"where it gave way to who asked peers, which have nothing":    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			n := newSwarm(t, o, 1, doubting(o, &claimant{asked: make(chan struct{}, 1), shows: true}))[0]
			d := o.add(t, size)
			back := away(t, o)
			pulls := pullMany(t, n, o.request(d))
			first := n.Fetcher.running()[0]
			eventually(t, "it stands still", func() bool { return first.standsStill() >= mayStandStill })
			other.Digest = d
			_, err := n.OpenHere(t.Context(), other)
			require.Error(t, err)
			require.ErrorIs(t, first.ended(), errForeign)
			back()
			for _, p := range pulls {
				p.requireRight(t, d)
			}
			require.LessOrEqual(t, o.Bytes.Load(), int64(size+chunk1), "bytes of the origin")
		})
	}
}

// The gate takes a sample of what peers hold when another caller of the repository comes, and lets all of them have it.
func TestSource_ThoseWhoWaitForAFetchThatGivesWayToASampleAreGivenWhatThatProves(t *testing.T) {
	t.Parallel()
	const size = 5*chunk1 + 3
	o := newOrigin(t)
	nodes := newSwarm(t, o, 2, doubting(o, nil))
	n := nodes[0]
	d := o.add(t, size)
	back := away(t, o)
	pulls := pullMany(t, n, o.request(d))
	first := n.Fetcher.running()[0]
	eventually(t, "it stands still", func() bool { return first.standsStill() >= mayStandStill })
	require.NoError(t, nodes[1].store.Put(t.Context(), d, bytes.NewReader(o.Blob(d)), size))
	r, err := n.OpenHere(t.Context(), content.Request{Digest: d, Held: true})
	require.NoError(t, err)
	got, err := read(t.Context(), r, chunk1)
	require.NoError(t, err)
	require.Equal(t, o.Blob(d)[:chunk1], got)
	n.opts.Sources.Prove(o.request(d))
	require.NoError(t, r.Close())
	back()
	for _, p := range pulls {
		p.requireRight(t, d)
	}
	require.LessOrEqual(t, o.Bytes.Load(), int64(size), "bytes of the origin")
}
