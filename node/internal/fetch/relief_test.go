package fetch

import (
	"cmp"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// What a caller's front does, see package registry.
const (
	frontHeaderBy, frontHardEnd = 25 * time.Second, 60 * time.Second
	mebibitPerSecond            = 1 << 17
)

func TestWait_LastsForAsLongAsTheLinkIsSlowAndTheFrontAllows(t *testing.T) {
	t.Parallel()
	const never = time.Hour
	for name, tc := range map[string]struct {
		mebibits  int64         // per second, all of which is for other callers of the pull
		ownEvery  time.Duration // how often a chunk of the blob comes, at another place
		unsized   bool
		again     bool // a relief helped a moment ago
		from, til time.Duration
	}{
		"on a fast link for half of what the front allows": {
			mebibits: 100, ownEvery: never, from: 30 * time.Second, til: 45 * time.Second,
		},
		"on a slow link until the front's end is near, while nothing of the blob comes": {
			mebibits: 10, ownEvery: never, from: 38 * time.Second, til: 50 * time.Second,
		},
		"on a very slow link no longer than that": {
			mebibits: 1, ownEvery: never, from: 40 * time.Second, til: 50 * time.Second,
		},
		"on a slow link for longer, while the blob comes at other places": {
			mebibits: 6, ownEvery: 20 * time.Second, from: 64 * time.Second, til: 65 * time.Second,
		},
		"no longer than an answer is kept alive": {
			mebibits: 1, ownEvery: 20 * time.Second, from: 100 * time.Second, til: 100 * time.Second,
		},
		"until the front has to say something, while the size is not known": {
			mebibits: 10, ownEvery: never, unsized: true, from: 15 * time.Second, til: 22500 * time.Millisecond,
		},
		"shorter after a relief": {
			mebibits: 100, ownEvery: time.Second, again: true, from: 5 * time.Second, til: 7500 * time.Millisecond,
		},
		"and not so much shorter on a slow link": {
			mebibits: 4, ownEvery: time.Second, again: true, from: 32 * time.Second, til: 33 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, spread := range []float64{1, 1.25, 1.5} {
				start := time.Now()
				patience := time.Duration(spread * float64(content.DefaultFirstByte/2))
				w := newWait(start, spread, patience, !tc.unsized, tc.again)
				waited := time.Duration(0)
				for step := 100 * time.Millisecond; ; waited += step {
					others := int64(waited.Seconds() * float64(tc.mebibits*mebibitPerSecond))
					own := int64(waited / tc.ownEvery * content.ChunkSize)
					if w.long(start.Add(waited), others, own) {
						break
					}
				}
				require.GreaterOrEqual(t, waited, tc.from, "spread %v", spread)
				require.LessOrEqual(t, waited, tc.til, "spread %v", spread)
				switch {
				case tc.unsized:
					require.Less(t, waited, frontHeaderBy)
				case tc.ownEvery == never:
					require.LessOrEqual(t, waited, frontHardEnd-frontHardEnd/6, "and time to read a chunk")
				}
			}
		})
	}
}

func TestHunger_WhatACallerHasWaitedForBeforeCounts(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	fr := &Fetcher{opts: Options{Swarm: newScript(), Patience: time.Minute}}
	for sentence, tc := range map[string]struct {
		came, lastByte time.Time     // zero: now; never
		used           time.Duration // of the caller's patience
	}{
		"a caller that has just come has all of it":     {},
		"one that was let in late has the rest":         {came: ago(10 * time.Second), used: 10 * time.Second},
		"what moved meanwhile begins it anew":           {ago(10 * time.Second), ago(time.Second), time.Second},
		"what moved before it came was none of its own": {ago(10 * time.Second), ago(time.Hour), 10 * time.Second},
		"a byte of this very moment leaves all of it":   {ago(10 * time.Second), ago(-time.Second), 0},
		"nor does a clock that is set back begin it anew": {
			ago(10 * time.Second), contenttest.ClockSet(ago(4*time.Second), time.Hour), 4 * time.Second},
		"nor does one that is set to later end it": {
			ago(10 * time.Second), contenttest.ClockSet(ago(4*time.Second), -time.Hour), 4 * time.Second},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			f := &fetch{fr: fr, cut: content.CutLeaves(-1), pull: &bytesOf{}}
			if !tc.lastByte.IsZero() {
				f.pull.at.Store(&tc.lastByte)
			}
			require.Equal(t, tc.used, now.Sub(f.hunger(now, tc.came).moved))
		})
	}
	t.Run("a front that is about to send the caller away is waited for no longer", func(t *testing.T) {
		t.Parallel()
		h := (&fetch{fr: fr, cut: content.CutLeaves(-1), pull: &bytesOf{}}).hunger(now, ago(40*time.Second))
		require.Equal(t, 8*time.Second, h.untilLastCall(now), "of a minute")
		require.Less(t, 8*time.Second, h.most-now.Sub(h.moved), "though another node is said to read")
		h = (&fetch{fr: fr, cut: content.CutLeaves(-1), pull: &bytesOf{}}).hunger(now, ago(50*time.Second))
		left := h.untilLastCall(now)
		require.Positive(t, left, "where that is now others have a little while all the same")
		require.LessOrEqual(t, left, 9*time.Second)
		require.Less(t, h.step(now.Add(left)), time.Second, "and no longer")
	})
	t.Run("others always have a while to bring what is wanted", func(t *testing.T) {
		t.Parallel()
		h := (&fetch{fr: fr, cut: content.CutLeaves(-1), pull: &bytesOf{}}).hunger(now, ago(time.Hour))
		require.InDelta(t, h.patience/4, h.patience-now.Sub(h.moved), float64(time.Microsecond))
	})
}

const piece = 256 << 10

// gated is an upstream each of whose answers gives the first piece of it, and the rest once the gate is open.
type gated struct {
	shelf

	asked chan [2]int64 // offset and length
	gate  chan struct{}
}

func (g gated) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	g.asked <- [2]int64{off, n}
	body, err := g.shelf.Open(ctx, req, off, n)
	if err == nil {
		sent := body.ReadCloser
		gate := readerFunc(func([]byte) (int, error) {
			select {
			case <-g.gate:
				return 0, cmp.Or(ctx.Err(), io.EOF)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
		body.ReadCloser = io.NopCloser(io.MultiReader(io.LimitReader(sent, piece), gate, sent))
	}
	return body, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestRelief_ReadsALeafThoughTheBlobIsInPieces(t *testing.T) {
	t.Parallel()
	for sentence, known := range map[string]bool{"its size is known": true, "its size is not known": false} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := gated{asked: make(chan [2]int64, 64), gate: make(chan struct{})}
			fr, s, req, data := scripted(t, 2, func(o *Options) {
				g.shelf = o.Upstream.(shelf)
				o.Upstream, o.Patience, o.CoordinatorPatience = g, time.Second, time.Hour
			})
			s.grain = content.Pieces
			if !known {
				req.Size = 0
			}
			r, err := fr.Open(t.Context(), req)
			require.NoError(t, err)
			defer func() { require.NoError(t, r.Close()) }()
			body, err := r.Range(t.Context(), 0, r.Size())
			require.NoError(t, err)
			defer func() { require.NoError(t, body.Close()) }()
			got := make([]byte, len(data))
			_, err = io.ReadFull(body, got[:piece])
			require.NoError(t, err)
			close(g.gate) // what the caller waited for is there, and the rest of the leaf is read all the same
			_, err = io.ReadFull(body, got[piece:])
			require.NoError(t, err)
			require.Equal(t, data, got)
			var asked [][2]int64
			for len(g.asked) > 0 {
				asked = append(asked, <-g.asked)
			}
			require.Equal(t, [][2]int64{{0, chunk1}, {chunk1, chunk1}}, asked)
		})
	}
}

// hole is an upstream that gives the first chunk, and of all else a header only.
type hole struct{ shelf }

func (h hole) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	body, err := h.shelf.Open(ctx, req, off, n)
	if err == nil && off > 0 {
		body.ReadCloser = io.NopCloser(readerFunc(func([]byte) (int, error) {
			content.Sleep(ctx, 57*time.Second)
			return 0, cmp.Or(ctx.Err(), content.ErrUnavailable)
		}))
	}
	return body, err
}

// Each node that is leased what does not come waits for its own answer, one after the other.
func TestHunger_ACallerIsSentAwayHoweverOftenWhatHeWaitsForIsAskedForAnew(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		others bool
		end    time.Duration
	}{
		"where nothing comes":              {false, longestHunger},
		"where other bytes of the pull do": {true, longestInVain},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fr, s, req, data := scripted(t, 3, func(o *Options) { o.Upstream = hole{o.Upstream.(shelf)} })
				ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Minute, errors.New("it waits for ever"))
				defer cancel()
				ended := make(chan error, 1)
				var began time.Time
				go func() {
					r, err := fr.Open(ctx, req)
					if err != nil {
						ended <- err
						return
					}
					defer func() { _ = r.Close() }()
					body, err := r.Range(ctx, 0, r.Size())
					if err == nil {
						_, err = io.ReadFull(body, make([]byte, chunk1))
						began = time.Now()
					}
					if err == nil {
						_, err = io.ReadFull(body, make([]byte, len(data)-chunk1))
						_ = body.Close()
					}
					ended <- err
				}()
				session := s.next(t)
				session.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 1}}}
				tick := time.NewTicker(5 * time.Second)
				defer tick.Stop()
				for {
					select {
					case <-session.reports:
					case <-tick.C: // the same again and again
						session.orders <- schedule.Orders{Leases: []schedule.Run{{First: 1, Count: 2}}}
						if c.others {
							fr.pulls.of(req.Repository).add(1)
						}
					case err := <-ended:
						require.ErrorIs(t, err, content.ErrUnavailable)
						require.InDelta(t, c.end, time.Since(began), float64(3*time.Second))
						return
					}
				}
			})
		})
	}
}
