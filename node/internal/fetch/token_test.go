package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// tokens stands before an origin. Each token is good for life requests.
type tokens struct {
	*registrytest.Tokens
	life int
}

// giveTokens makes an origin want tokens. Those that it gives out itself are good for nothing unless it is public.
func (o *origin) giveTokens(life int, public bool) *tokens {
	own := registrytest.Token{}
	if public {
		own.Requests = registrytest.Forever
	}
	o.tokens = &tokens{registrytest.NewTokens(o.Files, func(*http.Request) registrytest.Token { return own }), life}
	o.Handle(o.tokens)
	return o.tokens
}

// give gives out a token, as an Authorization header.
func (k *tokens) give(life int) string { return k.Give(registrytest.Token{Requests: life}) }

// resuming reads a blob as containerd does: where the bytes end early it asks for the rest, and where it is refused it
// gets a new token. It gives the number of tokens that it took.
func (n *testNode) resuming(ctx context.Context, o *origin, d digest.Digest) (data []byte, took int, err error) {
	req := o.request(d)
	for ; took < 50; took++ {
		req.Authorization = o.tokens.give(o.tokens.life)
		for {
			var part []byte
			part, err = n.readFrom(ctx, req, int64(len(data)))
			data = append(data, part...)
			if err == nil {
				return data, took + 1, nil
			}
			if len(part) == 0 {
				break
			}
		}
		if !content.Denied(err) {
			return data, took, err
		}
	}
	return data, took, errors.New("no end of it")
}

// readFrom reads the rest of a blob.
func (n *testNode) readFrom(ctx context.Context, req content.Request, off int64) ([]byte, error) {
	r, err := n.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	body, err := r.Range(ctx, off, r.Size()-off)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return io.ReadAll(body)
}

func TestATokenThatExpiresInTheMiddleOfAPull(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 5
	for name, c := range map[string]struct {
		nodes  int
		public bool
	}{
		"of a public blob by one node":       {1, true},
		"of a public blob by several nodes":  {3, true},
		"of a private blob by one node":      {1, false},
		"of a private blob by several nodes": {3, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			k := o.giveTokens(2, c.public)
			nodes := newSwarm(t, o, c.nodes)
			var wg sync.WaitGroup
			took, errs, sums := make([]int, len(nodes)), make([]error, len(nodes)), make([]digest.Digest, len(nodes))
			for i, n := range nodes {
				wg.Go(func() {
					var data []byte
					data, took[i], errs[i] = n.resuming(t.Context(), o, d)
					sums[i] = digest.FromBytes(data)
				})
			}
			wg.Wait()
			t.Logf("tokens %v, %.2f copies in %d requests, %d refused", took, float64(o.Bytes.Load())/size,
				o.Gets.Load(), k.Refused())
			for i := range nodes {
				require.NoError(t, errs[i])
				require.Equal(t, d, sums[i])
				if c.public {
					require.Equal(t, 1, took[i], "the caller notices nothing")
				}
			}
			require.LessOrEqual(t, float64(o.Bytes.Load())/size, 1.3)
		})
	}
}

func TestAFetchGoesOnWithTheTokenOfAnyOfItsCallers(t *testing.T) {
	t.Parallel()
	for name, lives := range map[string][]int{
		"the first":                    {1 << 20, 2},
		"the last":                     {2, 1 << 20},
		"the first, where it has none": {1 << 20, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 24*chunk1)
			k := o.giveTokens(0, false)
			v := newValve(t, o, 0)
			n := newNode(t, o, "n", nil, patient(t, o))
			req := o.request(d)
			req.Size = 24 * chunk1 // as the manifest has told
			var pulls []*pull
			for i, life := range lives {
				req.Authorization = k.give(life)
				pulls = append(pulls, n.pull(t.Context(), req))
				eventually(t, "it is known to the fetch", func() bool { s, _ := n.running(d); return s.Readers == i+1 })
			}
			v.open()
			for _, p := range pulls {
				p.requireRight(t, d)
			}
		})
	}
}

// The refusal is of callers that were there when upstream was asked.
func TestAskers_ARefusalIsNotToldOfACallerWhoHasComeSince(t *testing.T) {
	t.Parallel()
	no := &content.UpstreamError{Status: http.StatusUnauthorized}
	run := schedule.Run{First: 0, Count: 1}
	for name, others := range map[string]bool{"another has come": true, "none has": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 16)
			fr, s, req, data := scripted(t, 2, func(o *Options) { o.Upstream = hanging{o.Upstream, asked} })
			req.Repository.Registry, req.Authorization = "hanging.test", "bad"
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { _, _ = fr.Open(ctx, req) }()
			session := s.next(t)
			session.orders <- schedule.Orders{Size: int64(len(data)), Leases: []schedule.Run{run}}
			<-asked
			fr.mu.Lock()
			f := fr.fetches[req.Digest]
			fr.mu.Unlock()
			f.update(func(time.Time) {
				f.askers.refuse(f.askers.next(), no)
				if others {
					another := req
					another.Authorization = "good"
					f.admit(another)
				}
			})
			f.leaseEnded(run, no)
			session.until(t, func(r schedule.Report) bool {
				return slices.ContainsFunc(r.Failed, func(l schedule.Failure) bool {
					return l.Trouble == map[bool]schedule.Trouble{true: schedule.Returned, false: schedule.Refused}[others]
				})
			})
			f.mu.Lock()
			defer f.mu.Unlock()
			require.Equal(t, others, f.upErr == nil)
		})
	}
}

// The coordinator sends a node that was refused upstream no more.
func TestACallerWithGoodCredentialsIsOfUseToANodeThatWasRefused(t *testing.T) {
	t.Parallel()
	const size = 24 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	k := o.giveTokens(0, false)
	enough := k.give(1 << 20)
	var came atomic.Int32
	o.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == enough {
			came.Add(1)
		}
		k.ServeHTTP(w, r)
	}))
	v := newValve(t, o, 0)
	nodes := newSwarm(t, o, 2, allPatient(t, o))
	for _, n := range nodes {
		n.sizes.Add(d, size) // so that both may be sent upstream at once
	}
	ask := func(n *testNode, token string) *pull {
		req := o.request(d)
		req.Size, req.Authorization = size, token
		return n.pull(t.Context(), req)
	}
	other := ask(nodes[1], k.give(2)) // not enough for the whole
	eventually(t, "the other node reads", func() bool { return o.Gets.Load() > 0 })
	bad := ask(nodes[0], k.give(0))
	eventually(t, "the node is refused", func() bool { return k.Refused() > 0 })
	good := ask(nodes[0], enough)
	eventually(t, "the node reads", func() bool { return came.Load() > 0 })
	v.open()
	for _, p := range []*pull{good, bad, other} {
		p.requireRight(t, d)
	}
	require.LessOrEqual(t, float64(o.Bytes.Load())/size, 1.05)
}

// Upstream throttles each caller for himself. Who comes last is asked for first.
func TestThrottling_OfOneCallerKeepsNoOtherFromTheRegistry(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 5
	o := newOrigin(t)
	d := o.add(t, size)
	both := make(chan struct{})
	var throttled atomic.Int32
	o.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			throttled.Add(1)
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		<-both
		o.Files.ServeHTTP(w, r)
	}))
	n := newSwarm(t, o, 1)[0]
	alice := o.request(d)
	alice.Authorization = "Bearer alice"
	pulls := []*pull{n.pull(t.Context(), alice)}
	eventually(t, "she is there", func() bool { return len(n.Running()) == 1 })
	pulls = append(pulls, n.pull(t.Context(), o.request(d)))
	eventually(t, "both are there", func() bool { return n.Running()[0].Readers == 2 })
	close(both)
	for _, p := range pulls {
		p.requireRight(t, d)
	}
	require.LessOrEqual(t, throttled.Load(), int32(schedule.UpstreamStreams), "the wish is heeded")
}

// A caller's wish ends while the other is asked, as one who is throttled is asked twice.
func TestThrottling_OfEachCallerEndsThePulls(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 5
	o := newOrigin(t)
	d := o.add(t, size)
	both := make(chan struct{})
	var throttled atomic.Int32
	o.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-both
		throttled.Add(1)
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	up, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: "images.test", Endpoints: []string{o.URL}}},
		Timeouts:  upstream.Timeouts{Retry: 10 * time.Second}, Logger: testLogger("upstream"),
	})
	require.NoError(t, err)
	t.Cleanup(up.Close)
	n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) { fo.Upstream = up })
	alice := o.request(d)
	alice.Size, alice.Authorization = size, "Bearer alice"
	pulls := []*pull{n.pull(t.Context(), alice)}
	eventually(t, "she is there", func() bool { return len(n.Running()) == 1 })
	pulls = append(pulls, n.pull(t.Context(), o.request(d)))
	eventually(t, "both are there", func() bool { return n.Running()[0].Readers == 2 })
	close(both)
	for _, p := range pulls {
		<-p.done
		require.True(t, content.Throttled(p.err), "%v", p.err)
	}
	require.LessOrEqual(t, throttled.Load(), int32(2*len(pulls)*schedule.UpstreamStreams), "each has one turn")
}

// A caller can do something about a refusal, and nothing about a file that was closed in that moment.
func TestSection_OfAFetchThatHasEndedFailsWithTheReason(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 2, nil)
	go func() { _, _ = fr.Open(t.Context(), req) }()
	session := s.next(t)
	session.orders <- schedule.Orders{Size: int64(len(data))}
	fr.mu.Lock()
	f := fr.fetches[req.Digest]
	fr.mu.Unlock()
	require.NoError(t, f.await(t.Context(), func() bool { return f.ing != nil }))
	no := &content.UpstreamError{Status: http.StatusUnauthorized}
	f.fail(no)
	<-f.released
	_, _, err := f.section(t.Context(), 0, 0, 1)
	require.ErrorIs(t, err, no)
}
