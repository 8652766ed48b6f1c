package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// hosts are registries in a bubble, by name. Their connections are pipes, so that time passes only as they say.
type hosts map[string]http.HandlerFunc

func (h hosts) client(t *testing.T, endpoints ...string) *upstream.Client {
	return h.limited(t, nil, endpoints...)
}

func (h hosts) limited(t *testing.T, most *upstream.Connections, endpoints ...string) *upstream.Client {
	return h.with(t, upstream.Options{Limits: limited(most),
		Upstreams: []upstream.Upstream{{Registry: images, Endpoints: endpoints}}})
}

func (h hosts) with(t *testing.T, o upstream.Options) *upstream.Client {
	at := map[string]pipes{}
	for name, handler := range h {
		listener := pipes{make(chan net.Conn), make(chan struct{})}
		at[name] = listener
		server := &http.Server{Handler: handler} //nolint:gosec // its only client is here
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { _ = server.Close() })
	}
	o.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
		name, _, _ := net.SplitHostPort(address)
		near, far := net.Pipe()
		at[name].conns <- far
		return near, nil
	}
	c, err := upstream.New(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// pipes is a listener.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.done); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// slowly is a registry that gives a blob at the pace of whichever answer it is.
type slowly struct {
	data    []byte
	noRange bool
	pace    func(answer int64) *valve
	asked   atomic.Int64
	sent    atomic.Int64
}

// valve lets bytes through as its limiter does.
type valve struct {
	*rate.Limiter
	free   int                   // bytes at the beginning that come at once
	sleeps map[int]time.Duration // before some byte
	refuse int                   // a status in place of it all; negative: no answer
}

func at(bytesPerSecond int) *valve {
	return &valve{Limiter: rate.NewLimiter(rate.Limit(bytesPerSecond), 1<<10)}
}

func fast() *valve { return at(20_000_000) }

func (s *slowly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := s.pace(s.asked.Add(1))
	switch {
	case v.refuse > 0:
		w.WriteHeader(v.refuse)
		return
	case v.refuse < 0: // it never answers
		<-r.Context().Done()
		return
	}
	if s.noRange {
		r.Header.Del("Range")
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	http.ServeContent(&throttled{ResponseWriter: w, v: v, r: r, sent: &s.sent}, r, "", time.Time{},
		bytes.NewReader(s.data))
}

type throttled struct {
	http.ResponseWriter
	v    *valve
	r    *http.Request
	sent *atomic.Int64
	n    int
}

func (t *throttled) Write(p []byte) (int, error) {
	for off := 0; off < len(p); {
		piece := p[off:min(off+1<<10, len(p))]
		for after, d := range t.v.sleeps {
			if t.n < after && t.n+len(piece) >= after {
				select {
				case <-time.After(d):
				case <-t.r.Context().Done():
					return off, context.Cause(t.r.Context())
				}
			}
		}
		if t.n >= t.v.free {
			if err := t.v.WaitN(t.r.Context(), len(piece)); err != nil {
				return off, err
			}
		}
		n, err := t.ResponseWriter.Write(piece)
		if err == nil && t.v.Limit() < 1<<20 {
			err = http.NewResponseController(t.ResponseWriter).Flush()
		}
		t.n += n
		t.sent.Add(int64(n))
		if off += n; err != nil {
			return off, err
		}
	}
	return len(p), nil
}

func (s *slowly) open(t *testing.T, c *upstream.Client) *upstream.Body {
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(s.data)}, 0, -1)
	require.NoError(t, err)
	return b
}

// drips is an answer that drips, and stands one that stands still in the middle.
func drips() *valve { return at(2_000) }

func stands() *valve {
	return &valve{Limiter: fast().Limiter, sleeps: map[int]time.Duration{20_000: time.Hour}}
}

const unread = 16 << 10 // bytes that may be under way in an answer that is given up

func TestPace_AnAnswerThatDripsIsReadOnByAnotherConnection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		paces   []*valve // the last one is that of all that follow
		size    int
		noRange bool
		within  time.Duration
		asked   int64
		twice   int64 // bytes
	}{
		"from its beginning": {paces: []*valve{drips(), fast()}, size: 2 << 20, within: 10 * time.Second, asked: 2},
		"from its middle on": {paces: []*valve{{Limiter: drips().Limiter, free: 1 << 20}, fast()}, size: 2 << 20,
			within: 10 * time.Second, asked: 2},
		"where the registry has no Range": {paces: []*valve{drips(), fast()}, size: 2 << 20, noRange: true,
			within: 10 * time.Second, asked: 2, twice: 32 << 10},
		"and stays with it where the registry refuses another": {paces: []*valve{drips(), {refuse: 403}},
			size: 40_000, within: 25 * time.Second, asked: 2},
		"and stays with it where the registry is in trouble": {paces: []*valve{drips(), {refuse: 503}},
			size: 40_000, within: 40 * time.Second, asked: 6},
		"and stays with it where the registry answers no other": {paces: []*valve{drips(), {refuse: -1}},
			size: 40_000, within: 40 * time.Second, asked: 5},
		"and stays with it where the whole comes no faster": {paces: []*valve{drips(), drips()}, size: 40_000,
			noRange: true, within: 40 * time.Second, asked: 3, twice: 80_000},
		"and goes on with the next where that drips too": {paces: []*valve{drips(), drips()}, size: 40_000,
			within: 30 * time.Second, asked: 5},
		"and with the third where two drip": {paces: []*valve{drips(), drips(), fast()}, size: 2 << 20,
			within: 15 * time.Second, asked: 3},
		"and with the fifth where four drip": {paces: []*valve{drips(), drips(), drips(), drips(), fast()},
			size: 2 << 20, within: 25 * time.Second, asked: 5, twice: 50_000},
		"and of those that never answer the next is tried": {paces: []*valve{drips(), {refuse: -1}, {refuse: -1},
			fast()}, size: 2 << 20, within: 20 * time.Second, asked: 4},
		"or stand still": {paces: []*valve{stands(), stands(), stands(), fast()}, size: 2 << 20,
			within: 25 * time.Second, asked: 4, twice: 3 * 40_000},
		"and stays with it where others are slower": {paces: []*valve{at(40_000), at(14_000)}, size: 600_000,
			within: 30 * time.Second, asked: 5, twice: 4 * 42_000},
		"and reads one that is better for a while before it asks for the next": {paces: []*valve{drips(), at(20_000),
			at(20_000)}, size: 280_000, within: 30 * time.Second, asked: 3, twice: 100_000},
		"and is not asked for again and again": {paces: []*valve{drips()}, size: 500_000, within: 5 * time.Minute,
			asked: 13},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &slowly{data: randomBytes(tc.size), noRange: tc.noRange}
				s.pace = func(i int64) *valve { return tc.paces[min(int(i), len(tc.paces))-1] }
				c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
				start := time.Now()
				b := s.open(t, c)
				require.True(t, bytes.Equal(s.data, read(t, b)))
				require.Less(t, time.Since(start), tc.within)
				require.LessOrEqual(t, s.asked.Load(), tc.asked)
				require.LessOrEqual(t, s.sent.Load(), int64(tc.size)+tc.twice+tc.asked*unread)
			})
		})
	}
}

// Half of the machines of a registry may be sick, and each answer may be of one.
func TestPace_OfARegistryHalfOfWhoseAnswersDripOrStandStillABlobComesInTime(t *testing.T) {
	t.Parallel()
	const part, parts, soon = 256 << 10, 28, 64 << 10
	for seed := range uint64(16) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &slowly{data: randomBytes(parts * part)}
				s.pace = func(i int64) *valve {
					switch luck := rand.New(rand.NewPCG(seed, uint64(i))); luck.IntN(4) { //nolint:gosec // a plan
					case 0:
						return &valve{Limiter: at(2_000).Limiter, free: luck.IntN(soon)}
					case 1:
						return &valve{Limiter: fast().Limiter, sleeps: map[int]time.Duration{
							luck.IntN(soon): time.Hour}}
					}
					return at(2_000_000)
				}
				c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
				req := content.Request{Repository: repo, Digest: digest.FromBytes(s.data)}
				start := time.Now()
				var readers sync.WaitGroup
				for i := range int64(parts) {
					readers.Go(func() {
						b, err := c.Open(t.Context(), req, i*part, part)
						if assert.NoError(t, err) {
							got, err := io.ReadAll(b)
							assert.NoError(t, errors.Join(err, b.Close()))
							assert.True(t, bytes.Equal(s.data[i*part:(i+1)*part], got))
						}
					})
				}
				readers.Wait()
				require.Less(t, time.Since(start), 35*time.Second)
			})
		})
	}
}

// Where the link is full, each connection more takes from those that there are.
func TestPace_OfManyAnswersThatStandStillFewAreAskedForByMoreThanOneConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const many, more = 8, 8
		s, link := &slowly{data: randomBytes(600_000)}, at(2_000)
		s.pace = func(i int64) *valve {
			if i <= many {
				return &valve{Limiter: fast().Limiter, sleeps: map[int]time.Duration{300_000: time.Hour}}
			}
			return link
		}
		c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
		ctx, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for range many {
			b, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(s.data)}, 0, -1)
			require.NoError(t, err)
			readers.Go(func() { _, _ = io.Copy(io.Discard, b); _ = b.Close() })
		}
		time.Sleep(20 * time.Second) // of which they stand still for 15
		require.EqualValues(t, many+many+more, s.asked.Load())
		cancel()
		readers.Wait()
	})
}

// What is slow for everyone is asked for once.
func TestPace_ARegistryThatIsSlowAndHonestIsAskedNoMore(t *testing.T) {
	t.Parallel()
	const mbit = 1_000_000 / 8
	for name, tc := range map[string]struct {
		pace func() func() *valve
		n    int // blobs at the same time
	}{
		"a link of 25 Mbit/s for sixteen nodes, one blob": {func() func() *valve {
			return func() *valve { return at(25 * mbit / 16) }
		}, 1},
		"the same, eight blobs": {func() func() *valve {
			shared := at(25 * mbit / 16)
			return func() *valve { return shared }
		}, 8},
		"half a megabyte per second for each of sixteen": {func() func() *valve {
			shared := at(500_000)
			return func() *valve { return shared }
		}, 16},
		"object storage that gives each connection its part": {func() func() *valve {
			return func() *valve {
				return &valve{Limiter: at(2 << 20).Limiter, sleeps: map[int]time.Duration{1: 50 * time.Millisecond}}
			}
		}, 4},
		"one that thinks in the middle": {func() func() *valve {
			return func() *valve {
				return &valve{Limiter: fast().Limiter, sleeps: map[int]time.Duration{500_000: 12 * time.Second}}
			}
		}, 1},
		"one that fetches a part at a time itself": {func() func() *valve {
			return func() *valve {
				return &valve{Limiter: fast().Limiter, sleeps: map[int]time.Duration{300_000: 10 * time.Second,
					600_000: 10 * time.Second, 900_000: 10 * time.Second}}
			}
		}, 2},
		"one that becomes slow": {func() func() *valve {
			shared := at(12 * mbit / 16)
			return func() *valve { return &valve{Limiter: shared.Limiter, free: 500_000} }
		}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, pace := &slowly{data: randomBytes(1_200_000)}, tc.pace()
				s.pace = func(int64) *valve { return pace() }
				c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
				var readers sync.WaitGroup
				for range tc.n {
					b := s.open(t, c)
					readers.Go(func() { _, _ = io.Copy(io.Discard, b); _ = b.Close() })
				}
				readers.Wait()
				require.EqualValues(t, tc.n, s.asked.Load())
				require.LessOrEqual(t, s.sent.Load(), int64(tc.n*len(s.data)))
			})
		})
	}
}

// Of a full link some flow always gets many times what another does.
func TestPace_OneFlowThatGetsMostOfALinkDoesNotMakeTheOthersDrip(t *testing.T) {
	t.Parallel()
	const n = 6
	synctest.Test(t, func(t *testing.T) {
		s := &slowly{data: randomBytes(1_200_000), pace: func(i int64) *valve {
			if i == 1 {
				return at(500_000)
			}
			return at(45_000)
		}}
		c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
		var readers sync.WaitGroup
		for range n {
			b := s.open(t, c)
			readers.Go(func() { _, _ = io.Copy(io.Discard, b); _ = b.Close() })
		}
		readers.Wait()
		require.EqualValues(t, n, s.asked.Load())
	})
}

// Of a path one of whose flows is bad each connection may be the next that is, and the others show that it need not.
func TestPace_WhatDripsBesideFastOnesIsAskedForUntilItIsFast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		well := &slowly{data: randomBytes(24 << 20), pace: func(int64) *valve { return at(600_000) }}
		bad := &slowly{data: randomBytes(1 << 20), pace: func(i int64) *valve {
			if i <= 3 {
				return at(2_000)
			}
			return at(600_000)
		}}
		c := hosts{"a.test": func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, digest.FromBytes(bad.data).String()) {
				bad.ServeHTTP(w, r)
				return
			}
			well.ServeHTTP(w, r)
		}}.client(t, "http://a.test")
		other := well.open(t, c)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(io.Discard, other) }()
		start := time.Now()
		require.True(t, bytes.Equal(bad.data, read(t, bad.open(t, c))))
		require.Less(t, time.Since(start), 50*time.Second)
		require.EqualValues(t, 4, bad.asked.Load())
		<-done
		require.NoError(t, other.Close())
		require.EqualValues(t, 1, well.asked.Load())
	})
}

// What comes at once may have ended before the others drip, and of what is asked for anew little may be left.
func TestPace_EachThatDripsAfterOneThatEndedAtOnceIsAskedForAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dripsFirst := func(i int64) *valve {
			if i == 1 {
				return at(2_000)
			}
			return fast()
		}
		well := &slowly{data: randomBytes(2 << 20), pace: func(int64) *valve { return fast() }}
		config := &slowly{data: randomBytes(30_000), pace: dripsFirst}
		layer := &slowly{data: randomBytes(1 << 20), pace: dripsFirst}
		c := hosts{"a.test": func(w http.ResponseWriter, r *http.Request) {
			for _, blob := range []*slowly{well, config, layer} {
				if strings.Contains(r.URL.Path, digest.FromBytes(blob.data).String()) {
					blob.ServeHTTP(w, r)
				}
			}
		}}.client(t, "http://a.test")
		require.True(t, bytes.Equal(well.data, read(t, well.open(t, c))))
		start := time.Now()
		small := config.open(t, c)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, small)
			_ = small.Close()
		}()
		time.Sleep(time.Second)
		require.True(t, bytes.Equal(layer.data, read(t, layer.open(t, c))))
		<-done
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

func TestPace_TheRestOfWhatDripsIsAskedOfAnotherEndpoint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := randomBytes(2 << 20)
		a := &slowly{data: data, pace: func(int64) *valve { return at(2_000) }}
		b := &slowly{data: data, pace: func(int64) *valve { return fast() }}
		c := hosts{"a.test": a.ServeHTTP, "b.test": b.ServeHTTP}.client(t, "http://a.test", "http://b.test")
		for range 3 {
			start := time.Now()
			require.True(t, bytes.Equal(data, read(t, a.open(t, c))))
			require.Less(t, time.Since(start), 10*time.Second)
		}
		require.EqualValues(t, 1, a.asked.Load(), "the next blobs are asked of the other at once")
		require.EqualValues(t, 3, b.asked.Load())
		time.Sleep(2 * time.Minute)
		_ = read(t, a.open(t, c))
		require.EqualValues(t, 2, a.asked.Load(), "until it may be well again")
	})
}

func TestPace_AManifestThatDripsIsAskedForAnew(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		then   *valve
		within time.Duration
	}{
		"and comes at once":                      {fast(), 10 * time.Second},
		"and is waited for where that drips too": {at(2_000), time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"x":%q}`,
					"application/vnd.oci.image.manifest.v1+json", strings.Repeat("x", 100_000))
				s := &slowly{data: []byte(manifest), pace: func(i int64) *valve {
					if i == 1 {
						return at(2_000)
					}
					return tc.then
				}}
				c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
				start := time.Now()
				b, err := c.Open(t.Context(), content.Request{Repository: repo, Kind: content.Manifest,
					Digest: digest.FromString(manifest)}, 0, -1)
				require.NoError(t, err)
				require.Equal(t, manifest, string(read(t, b)))
				require.Less(t, time.Since(start), tc.within)
				require.LessOrEqual(t, s.asked.Load(), int64(2))
			})
		})
	}
}

func TestHasty_FailsWhereAnotherAnswerIsBetterAskedFor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		pace, other int // bytes per second; other: of one that has ended
		drips       bool
	}{
		"it drips":                            {pace: 2_000, drips: true},
		"it drips, and another came at once":  {pace: 2_000, other: 20_000_000, drips: true},
		"it comes as the link gives it":       {pace: 200_000},
		"it comes slowly, and so did another": {pace: 60_000, other: 60_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				data := randomBytes(1 << 20)
				paces := []int{tc.other, tc.pace}
				if tc.other == 0 {
					paces = paces[1:]
				}
				s := &slowly{data: data, pace: func(i int64) *valve { return at(paces[i-1]) }}
				c := hosts{"a.test": s.ServeHTTP}.client(t, "http://a.test")
				for i := range paces {
					base, transport, err := c.Reach(images)
					require.NoError(t, err)
					req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base.String(), nil)
					require.NoError(t, err)
					resp, err := transport.RoundTrip(req)
					require.NoError(t, err)
					start := time.Now()
					_, err = io.Copy(io.Discard, c.Hasty(images, resp.Body, resp.ContentLength))
					require.NoError(t, resp.Body.Close())
					if i == len(paces)-1 && tc.drips {
						require.ErrorIs(t, err, content.ErrUnavailable)
						require.Less(t, time.Since(start), 6*time.Second)
						return
					}
					require.NoError(t, err)
				}
			})
		})
	}
}
