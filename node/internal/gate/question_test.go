package gate_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// nothing is a cache without content.
type nothing struct{}

func (nothing) Held(digest.Digest) (content.Reader, error) { return nil, content.ErrNotFound }
func (nothing) Has(digest.Digest) (int64, bool)            { return 0, false }
func (nothing) FromPeers(context.Context, digest.Digest) (content.Reader, error) {
	return nil, content.ErrNotFound
}

// busy answers yes after a while. Until then bytes come from where it is for as long as it sends.
type busy struct {
	began        time.Time
	after, sends time.Duration
}

func (b busy) Ask(ctx context.Context) (int64, error) {
	select {
	case <-time.After(b.after):
		return -1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
func (b busy) AskForAnyone(context.Context) (int64, error) { return 0, content.ErrUnavailable }
func (b busy) Whole() bool                                 { return false }
func (b busy) Arrived() int64                              { return int64(min(time.Since(b.began), b.sends) / time.Millisecond) }
func (b busy) Sample(context.Context, int64, int64) ([]byte, int64, error) {
	return nil, 0, content.ErrUnavailable
}

func TestAdmit_ASourceIsSilentWhenNothingComesFromIt(t *testing.T) {
	t.Parallel()
	const limit = 8 * time.Second
	for name, test := range map[string]struct {
		after, sends time.Duration
		admitted     bool
		atLatest     time.Duration
	}{
		"an answer in time":              {limit - time.Second, 0, true, limit - time.Second},
		"none in time, and nothing else": {limit + 2*time.Second, 0, false, limit + time.Second},
		"one that waits behind other bytes of the registry": {limit + 4*time.Second, time.Hour, true,
			limit + 4*time.Second},
		"none after the other bytes have ended": {time.Hour, 3 * time.Second, false, limit + 5*time.Second},
		"none ever, though other bytes go on":   {time.Hour, time.Hour, false, 3 * limit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: nothing{}, Timeout: limit})
				require.NoError(t, err)
				defer g.Close()
				start := time.Now()
				err = g.Admit(t.Context(), policy.Rule{}, gate.Request{
					Source: "oci r.test/a", Digest: digest.FromString("x"),
					Upstream: busy{start, test.after, test.sends},
				})
				if test.admitted {
					require.NoError(t, err)
				} else {
					require.True(t, gate.Unanswered(err), "%v", err)
				}
				require.LessOrEqual(t, time.Since(start), test.atLatest)
			})
		})
	}
}

// heldUp says yes after a while in which this node waits for something of its own.
type heldUp struct {
	honest
	by time.Duration
}

func (h heldUp) Ask(ctx context.Context) (int64, error) {
	defer content.Apart(ctx)()
	select {
	case <-time.After(h.by):
		return -1, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", content.ErrUnavailable, ctx.Err())
	}
}

// Else a full node, or peers that are slow, would make an outage of each registry.
func TestAdmit_WhatIsWaitedForBesidesTheSourceIsNoSilence(t *testing.T) {
	t.Parallel()
	const limit = 8 * time.Second
	layer := random(3 << 20)
	of := content.Request{Repository: content.Repository{Registry: "r.test", Name: "a"},
		Digest: digest.FromBytes(layer)}
	source := gate.Repository(of.Repository)
	for name, test := range map[string]struct {
		cache       gate.Cache
		by          time.Duration
		proved      time.Duration
		credentials string
		admitted    bool
	}{
		"for room, and anyone may read":         {nothing{}, 2 * gate.Hedge, 0, "", true},
		"for room, for longer than a source is": {nothing{}, limit + time.Second, 0, "Basic alice", true},
		"for room, for all the time there is":   {nothing{}, time.Hour, 0, "Basic alice", false},
		"for other nodes, and anyone may read":  {elsewhere{}, 0, gate.Hedge / 2, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: test.cache, Timeout: limit, Witness: unheard{}})
				require.NoError(t, err)
				defer g.Close()
				rule := policy.DefaultRule()
				rule.Authorization.TTL = 0 // each is asked about
				g.Accept(source, "", time.Now())
				time.AfterFunc(test.proved, func() { g.Prove(of) })
				synctest.Wait()
				err = g.Admit(t.Context(), rule, gate.Request{Source: source, Digest: of.Digest,
					Credentials: test.credentials, Upstream: heldUp{honest{cache: layer}, test.by}})
				if test.admitted {
					require.NoError(t, err)
				}
				require.False(t, g.Silent(source, test.credentials))
			})
		})
	}
}

// limited is kept from asking by the policy: for as long as it is waited for, or for so long that it does not wait.
type limited struct {
	busy
	waits bool
}

func (l limited) Ask(ctx context.Context) (int64, error) {
	if l.waits {
		<-ctx.Done()
	}
	return 0, fmt.Errorf("of the policy: %w", content.ErrRateLimit)
}

// Whoever has credentials can use up what the policy lets the node ask.
func TestAdmit_WhoIsKeptFromAskingByThePolicyIsLetOnByNoSilence(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		credentials string
		ago         time.Duration
		waits       bool
		admitted    bool
	}{
		"who was accepted a while ago":            {"Basic alice", time.Hour, false, false},
		"who was accepted a while ago, and waits": {"Basic alice", time.Hour, true, false},
		"what anyone could read that day":         {"", time.Hour, false, true},
		"what anyone could read before":           {"", 25 * time.Hour, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: nothing{}})
				require.NoError(t, err)
				defer g.Close()
				of := content.Request{Repository: content.Repository{Registry: "r.test", Name: "a"},
					Kind: content.Blob, Digest: digest.FromString("x")}
				g.Prove(of)
				g.Accept(gate.Repository(of.Repository), test.credentials, time.Now().Add(-test.ago))
				req := gate.Request{Source: gate.Repository(of.Repository), Digest: of.Digest,
					Credentials: test.credentials, Upstream: limited{waits: test.waits}}
				for range 2 { // the second within the moment in which silence is remembered
					err = g.Admit(t.Context(), policy.DefaultRule(), req)
					require.Equal(t, test.admitted, err == nil, "%v", err)
				}
			})
		})
	}
}

// failing gives no sample, and counts what it is asked besides.
type failing struct {
	honest
	sample error
	asked  *int
}

func (f failing) Sample(context.Context, int64, int64) ([]byte, int64, error) {
	return nil, 0, f.sample
}
func (f failing) Ask(ctx context.Context) (int64, error) {
	*f.asked++
	return f.honest.Ask(ctx)
}

func TestAdmit_ASourceThatDoesNotAnswerOrThrottlesIsNotAskedOnceMore(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	of := content.Request{Repository: content.Repository{Registry: "r.test", Name: "a"},
		Digest: digest.FromBytes(layer)}
	for name, test := range map[string]struct {
		sample   error
		asked    int
		admitted bool
	}{
		"throttles":                          {&content.UpstreamError{Op: "GET", Status: http.StatusTooManyRequests}, 0, true},
		"fails":                              {&content.UpstreamError{Op: "GET", Status: http.StatusBadGateway}, 0, false},
		"is not reached":                     {content.ErrUnavailable, 0, false},
		"but one whose answer is of no use":  {content.ErrBadAnswer, 1, true},
		"but one that does not have content": {content.ErrNotFound, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := gate.New(gate.Options{Cache: cache(layer)})
			require.NoError(t, err)
			defer g.Close()
			asked := 0
			g.Accept(gate.Repository(of.Repository), "Basic alice", time.Now())
			err = g.Admit(t.Context(), policy.DefaultRule(), gate.Request{
				Source: gate.Repository(of.Repository), Digest: of.Digest, Credentials: "Basic alice",
				Upstream: failing{honest{cache: layer}, test.sample, &asked},
			})
			require.Equal(t, test.admitted, err == nil, "%v", err)
			require.Equal(t, test.asked, asked)
			require.False(t, g.Proved(of))
		})
	}
}

// file is content that a cache holds, which reads nothing once it is closed.
type file struct {
	cache
	closed atomic.Bool
}

func (f *file) Close() error {
	f.closed.Store(true)
	return nil
}

func (f *file) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if f.closed.Load() {
		return nil, os.ErrClosed
	}
	return f.cache.Range(ctx, off, n)
}

// shelf opens a file for each who asks.
type shelf struct{ cache }

func (s shelf) Held(d digest.Digest) (content.Reader, error) {
	if _, err := s.cache.Held(d); err != nil {
		return nil, err
	}
	return &file{cache: s.cache}, nil
}

// slow takes a second for a sample.
type slow struct{ honest }

func (s slow) Sample(ctx context.Context, off, n int64) ([]byte, int64, error) {
	time.Sleep(time.Second)
	return s.honest.Sample(ctx, off, n)
}

func TestAdmit_ASampleGoesOnWhenTheCallerLeavesWithWhomItBegan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		layer := random(3 << 20)
		g, err := gate.New(gate.Options{Cache: shelf{layer}})
		require.NoError(t, err)
		defer g.Close()
		of := content.Request{Repository: content.Repository{Registry: "r.test", Name: "a"},
			Digest: digest.FromBytes(layer)}
		admit := func(ctx context.Context, done chan<- error) {
			done <- g.Admit(ctx, policy.DefaultRule(), gate.Request{Source: gate.Repository(of.Repository),
				Digest: of.Digest, Upstream: slow{honest{cache: layer}}})
		}
		ctx, leave := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go admit(ctx, first)
		synctest.Wait()
		go admit(t.Context(), second)
		synctest.Wait()
		leave()
		t.Log("who has left was told", <-first)
		require.NoError(t, <-second)
		require.True(t, g.Proved(of))
	})
}
