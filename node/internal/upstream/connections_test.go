package upstream_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// limited are the limits of who may have so many requests under way.
func limited(most *upstream.Connections) func(content.Repository) upstream.Limits {
	return func(content.Repository) upstream.Limits { return upstream.Limits{Connections: most} }
}

// readsWell reads a whole blob of which something was asked before.
func readsWell(t *testing.T, c *upstream.Client, data []byte) {
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
	size, _, err := c.Stat(t.Context(), req)
	if !assert.NoError(t, err) || !assert.EqualValues(t, len(data), size) {
		return
	}
	b, err := c.Open(t.Context(), req, 0, -1)
	if !assert.NoError(t, err) {
		return
	}
	got, err := io.ReadAll(b)
	assert.NoError(t, err)
	assert.NoError(t, b.Close())
	assert.True(t, bytes.Equal(data, got))
}

func TestConnections_AsManyRequestsAreUnderWayAsThePolicyLetsAndNoMore(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			t.Parallel()
			data := randomBytes(1 << 20)
			r := registrytest.New(t)
			r.Add(data)
			crowd := registrytest.NewCrowd(r.Files, most)
			r.Handle(crowd)
			c := newClient(t, upstream.Options{Limits: limited(upstream.NewConnections(most))}, r.URL)
			var readers sync.WaitGroup
			for range 3 * most {
				readers.Go(func() { readsWell(t, c, data) })
			}
			readers.Wait()
			require.Equal(t, most, crowd.Most())
		})
	}
}

func TestConnections_ABoundThatIsRaisedLetsInWhoWaits(t *testing.T) {
	t.Parallel()
	for _, raised := range []int{2, 0} {
		t.Run(fmt.Sprint("to ", raised), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &slowly{data: randomBytes(1_000_000), pace: func(int64) *valve { return at(100_000) }}
				most := upstream.NewConnections(1)
				c := hosts{"a.test": s.ServeHTTP}.limited(t, most, "http://a.test")
				start := time.Now()
				var readers sync.WaitGroup
				for range 2 {
					readers.Go(func() { assert.True(t, bytes.Equal(s.data, read(t, s.open(t, c)))) })
				}
				synctest.Wait()
				require.EqualValues(t, 1, s.asked.Load())
				most.SetMost(raised)
				readers.Wait()
				require.Less(t, time.Since(start), 15*time.Second, "not one after the other")
			})
		})
	}
}

func TestConnections_ABoundThatIsLoweredHoldsOnceWhatIsUnderWayHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(1_000_000), pace: func(int64) *valve { return at(100_000) }}
		most := upstream.NewConnections(2)
		c := hosts{"a.test": s.ServeHTTP}.limited(t, most, "http://a.test")
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() { assert.True(t, bytes.Equal(s.data, read(t, s.open(t, c)))) })
		}
		synctest.Wait()
		most.SetMost(1)
		time.Sleep(15 * time.Second) // each takes 10
		asked := s.asked.Load()
		readers.Wait()
		require.EqualValues(t, 3, asked)
	})
}

func TestConnections_WhoGivesUpWaitingHoldsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(100_000), pace: func(int64) *valve { return fast() }}
		c := hosts{"a.test": s.ServeHTTP}.limited(t, upstream.NewConnections(1), "http://a.test")
		held := s.open(t, c)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(s.data)}, 0, -1)
			cancel()
			require.ErrorIs(t, err, content.ErrRateLimit)
			require.True(t, content.Throttled(err), "the registry was not asked, and is not silent")
		}
		require.EqualValues(t, 1, s.asked.Load())
		require.NoError(t, held.Close())
		start := time.Now()
		for range 2 {
			require.True(t, bytes.Equal(s.data, read(t, s.open(t, c))))
		}
		require.Less(t, time.Since(start), time.Second)
	})
}

// Such as one for a client that has stopped.
func TestConnections_AnAnswerThatNobodyReadsIsGivenUpWhereOthersWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(900_000), pace: func(int64) *valve { return fast() }}
		c := hosts{"a.test": s.ServeHTTP}.limited(t, upstream.NewConnections(1), "http://a.test")
		first := s.open(t, c)
		begun := make([]byte, 100_000)
		_, err := io.ReadFull(first, begun)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		second := func() {
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			b, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(s.data)}, 0, -1)
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.data, read(t, b)))
		}
		second()
		for range 20 { // more often than a registry may break off
			_, err := io.ReadFull(first, begun[:1])
			require.NoError(t, err)
			second()
		}
		rest := read(t, first)
		require.True(t, bytes.Equal(s.data[100_020:], rest), "it goes on from there")
	})
}

func TestConnections_AnAnswerThatNobodyReadsIsKeptWhereNobodyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(900_000), pace: func(int64) *valve { return fast() }}
		c := hosts{"a.test": s.ServeHTTP}.limited(t, upstream.NewConnections(1), "http://a.test")
		b := s.open(t, c)
		time.Sleep(time.Hour)
		require.True(t, bytes.Equal(s.data, read(t, b)))
		require.EqualValues(t, 1, s.asked.Load())
	})
}

func TestConnections_WithOneAnAnswerInTroubleIsReadOn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		paces   []*valve // the last one is that of all that follow
		size    int
		noRange bool
		within  time.Duration
		asked   int64
	}{
		"that drips": {paces: []*valve{drips(), fast()}, size: 2 << 20, within: 10 * time.Second, asked: 2},
		"that drips, and the next too": {paces: []*valve{drips(), drips(), fast()}, size: 2 << 20,
			within: time.Minute, asked: 3},
		"that drips, as all do": {paces: []*valve{drips()}, size: 60_000, within: 50 * time.Second, asked: 6},
		"that stands still": {paces: []*valve{stands(), fast()}, size: 2 << 20, within: 20 * time.Second,
			asked: 2},
		"that stands still, and the next too": {paces: []*valve{stands(), stands(), fast()}, size: 2 << 20,
			within: time.Minute, asked: 4},
		"that drips where there is no Range": {paces: []*valve{drips(), fast()}, size: 2 << 20, noRange: true,
			within: 10 * time.Second, asked: 2},
		"that drips as all do where there is no Range": {paces: []*valve{drips()}, size: 40_000, noRange: true,
			within: 40 * time.Second, asked: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &slowly{data: randomBytes(tc.size), noRange: tc.noRange}
				s.pace = func(i int64) *valve { return tc.paces[min(int(i), len(tc.paces))-1] }
				c := hosts{"a.test": s.ServeHTTP}.limited(t, upstream.NewConnections(1), "http://a.test")
				start := time.Now()
				require.True(t, bytes.Equal(s.data, read(t, s.open(t, c))))
				require.Less(t, time.Since(start), tc.within)
				require.LessOrEqual(t, s.asked.Load(), tc.asked)
			})
		})
	}
}

// It has the only connection, and the others have all the time in the world.
func TestConnections_WhatDripsLetsInWhoWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(1 << 20)}
		s.pace = func(i int64) *valve {
			if i == 1 {
				return at(1_000)
			}
			return fast()
		}
		c := hosts{"a.test": s.ServeHTTP}.limited(t, upstream.NewConnections(1), "http://a.test")
		start := time.Now()
		var readers sync.WaitGroup
		for range 5 {
			readers.Go(func() { assert.True(t, bytes.Equal(s.data, read(t, s.open(t, c)))) })
		}
		readers.Wait()
		require.Less(t, time.Since(start), 15*time.Second)
	})
}

// A request that goes on while another waits for its answer would wait for ever.
func TestConnections_OneIsEnoughForAPullWithTokensAndRedirects(t *testing.T) {
	t.Parallel()
	data := randomBytes(300_000)
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // the URL is signed for GET
			w.WriteHeader(http.StatusForbidden)
			return
		}
		withoutLength(w, data)
	})
	r := registrytest.New(t)
	manifest := r.PushManifest(t, "team/app", "v1", "application/vnd.oci.image.index.v1+json", "{}")
	blobs := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/v2/team/app/blobs/"+digest.FromBytes(data).String() {
			http.Redirect(w, q, storage+"/x", http.StatusTemporaryRedirect)
			return
		}
		r.Files.ServeHTTP(w, q)
	})
	r.Handle(registrytest.NewTokens(blobs, func(*http.Request) registrytest.Token {
		return registrytest.Token{Requests: registrytest.Forever}
	}))
	c := newClient(t, upstream.Options{Limits: limited(upstream.NewConnections(1))}, r.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // in which no answer is given up
	defer cancel()
	authorization, err := c.Authorize(ctx, repo, pullsecret.Credential{})
	require.NoError(t, err)
	desc, err := c.Resolve(ctx, repo, "v1", nil, authorization)
	require.NoError(t, err)
	require.Equal(t, manifest, desc.Digest)
	for range 2 { // the second time it is known where it lies
		b, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(data), Size: int64(len(data)),
			Authorization: authorization}, 0, -1)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, read(t, b)))
	}
}

func withoutLength(w http.ResponseWriter, data []byte) {
	w.Header().Set("Transfer-Encoding", "chunked")
	_, _ = w.Write(data)
}

func TestConnections_OneIsEnoughForABlobWhoseSizeIsAskedForByItself(t *testing.T) {
	t.Parallel()
	data := randomBytes(300_000)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			return
		}
		withoutLength(w, data)
	})
	c := newClient(t, upstream.Options{Limits: limited(upstream.NewConnections(1))}, url)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // in which no answer is given up
	defer cancel()
	b, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, read(t, b)))
}

func TestConnections_OneRegistryThatHangsKeepsNobodyFromAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(1000), pace: func(int64) *valve { return fast() }}
		hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		c := hosts{"a.test": hang, "b.test": s.ServeHTTP}.with(t, upstream.Options{Limits: limited(upstream.NewConnections(1)), Upstreams: []upstream.Upstream{
			{Registry: "a.test", Endpoints: []string{"http://a.test"}},
			{Registry: "b.test", Endpoints: []string{"http://b.test"}},
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var hanging sync.WaitGroup
		hanging.Go(func() {
			_, _, err := c.Stat(ctx, content.Request{Repository: content.Repository{Registry: "a.test", Name: "x"},
				Digest: digest.FromBytes(s.data)})
			assert.Error(t, err)
		})
		synctest.Wait()
		b, err := c.Open(t.Context(), content.Request{Repository: content.Repository{Registry: "b.test", Name: "x"},
			Digest: digest.FromBytes(s.data)}, 0, -1)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.data, read(t, b)))
		cancel()
		hanging.Wait()
	})
}
