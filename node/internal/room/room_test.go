package room

import (
	"bytes"
	"context"
	"io"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

func TestRoom_WhoFindsNoPlaceWaitsForAWhileAndIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		in, end := r.Lease(t.Context())
		require.NoError(t, Hold(in, 15*mib))
		began := time.Now()
		late, leave := r.Lease(t.Context())
		defer leave()
		require.ErrorIs(t, Hold(late, 15*mib), ErrFull)
		require.Equal(t, Patience, time.Since(began))
		require.NoError(t, Hold(in, 15*mib), "who is in stays")

		came := make(chan error)
		go func() { came <- Hold(late, 15*mib) }()
		synctest.Wait()
		end()
		require.NoError(t, <-came)
	})
}

func TestRoom_WhoseOwnTimeIsOverFirstIsToldThatItIsFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		in, end := r.Lease(t.Context())
		defer end()
		require.NoError(t, Hold(in, 15*mib))
		late, leave := r.Lease(t.Context())
		defer leave()
		short, cancel := context.WithTimeout(late, Patience/2)
		defer cancel()
		err := Hold(short, 15*mib)
		require.ErrorIs(t, err, ErrFull)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "which is said of who did not answer")
		require.ErrorIs(t, Hold(short, mib), context.DeadlineExceeded, "of a place that it has not waited for")
	})
}

func TestRoom_WhatIsLargeKeepsNobodyOutWhoHoldsLess(t *testing.T) {
	t.Parallel()
	r := New(30 * mib)
	large, end := r.Lease(t.Context())
	defer end()
	require.NoError(t, Hold(large, 1000*mib), "it has all of its part for itself")
	for range 10 {
		ctx, end := r.Lease(t.Context())
		defer end()
		require.NoError(t, Hold(ctx, mib))
	}
	for range 10_000 {
		ctx, end := r.Lease(t.Context())
		defer end()
		require.NoError(t, Hold(ctx, free))
	}
}

func TestRoom_NoTwoWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		done := make(chan error)
		for range 8 {
			go func() {
				ctx, end := r.Lease(t.Context())
				defer end()
				for _, n := range []int64{mib, 2 * mib, 3 * mib, 20 * mib} {
					if err := Hold(ctx, n); err != nil {
						done <- err
						return
					}
					time.Sleep(time.Second / 8)
				}
				done <- nil
			}()
		}
		for range 8 {
			require.NoError(t, <-done)
		}
	})
}

func TestRoom_WhatIsHeldComesBackInWhateverOrderThingsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		empty := func() {
			synctest.Wait()
			requireEmpty(t, r.small, r.large)
		}
		ctx, end := r.Lease(t.Context())
		require.NoError(t, Hold(ctx, mib))
		require.NoError(t, Hold(ctx, 15*mib))
		Shrink(ctx, 3*mib)
		other, leave := r.Lease(t.Context())
		require.NoError(t, Hold(other, 15*mib), "what was given back others have")
		waiting := make(chan error)
		go func() { waiting <- Hold(ctx, 18*mib) }()
		synctest.Wait()
		end() // while it waits
		leave()
		require.NoError(t, <-waiting)
		empty()

		ctx, end = r.Lease(t.Context())
		gone, cancel := context.WithCancel(ctx)
		cancel()
		other, leave = r.Lease(t.Context())
		require.NoError(t, Hold(other, 20*mib))
		require.ErrorIs(t, Hold(gone, 20*mib), context.Canceled)
		leave()
		end()
		empty()
	})
}

// pieces gives a byte in the place of each announced one as long as it is asked.
type pieces struct{ n int64 }

func (p *pieces) Read(b []byte) (int, error) {
	if p.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), p.n)
	p.n -= n
	return int(n), nil
}

func TestReadAll_HoldsWhatItReadsAndNoMore(t *testing.T) {
	t.Parallel()
	const limit, times = 8 * mib, 2
	for name, test := range map[string]struct {
		size, announced, held int64
		fails                 error
	}{
		"little":                              {size: 1000, announced: 1000},
		"little, of which nothing was said":   {size: 1000, announced: -1},
		"nothing":                             {announced: 0},
		"some":                                {size: mib / 2, announced: mib / 2, held: mib},
		"some, of which nothing was said":     {size: mib / 2, announced: -1, held: mib},
		"much":                                {size: 3 * mib, announced: 3 * mib, held: 6 * mib},
		"much, of which nothing was said":     {size: 3 * mib, announced: -1, held: 6 * mib},
		"as much as may be":                   {size: limit, announced: limit, held: 2 * limit},
		"as much as may be, of which nothing": {size: limit, announced: -1, held: 2 * limit},
		"more than may be":                    {size: limit + 1, announced: limit + 1, fails: ErrTooLong},
		"more, of which nothing was said":     {size: 2 * limit, announced: -1, fails: ErrTooLong},
		"more than was said":                  {size: mib, announced: 10, held: 2 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, end := New(64 * mib).Lease(t.Context())
			defer end()
			got, err := ReadAll(ctx, &pieces{test.size}, test.announced, limit, times)
			if test.fails != nil {
				require.ErrorIs(t, err, test.fails)
				return
			}
			require.NoError(t, err)
			require.Len(t, got, int(test.size))
			require.LessOrEqual(t, test.held, leaseOf(ctx).held())
			require.LessOrEqual(t, leaseOf(ctx).held(), test.held+some)
		})
	}
}

func TestReadAll_OfUnknownLengthWaitsForNoMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(77 * mib)
		in, end := r.Lease(t.Context())
		defer end()
		require.NoError(t, Hold(in, 4*mib))
		ctx, leave := r.Lease(t.Context())
		defer leave()
		began := time.Now()
		_, err := ReadAll(ctx, &pieces{mib}, -1, 64*mib, 3)
		require.NoError(t, err)
		require.Zero(t, time.Since(began))
	})
}

// unfinished counts what many read and still hold.
type unfinished struct {
	io.Reader
	all *atomic.Int64
}

func (u unfinished) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	u.all.Add(int64(n))
	return n, err
}

func TestReadAll_OfUnknownLengthsHoldsNothingThatIsNotCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const many, long, most = 20, 9 * mib, 30*mib + 20*free
		r := New(30 * mib)
		var all atomic.Int64
		done := make(chan error)
		for range many {
			go func() {
				ctx, end := r.Lease(t.Context())
				defer end()
				_, err := ReadAll(ctx, unfinished{&pieces{long}, &all}, -1, 64*mib, 1)
				time.Sleep(time.Second / 8)
				all.Add(-long)
				done <- err
			}()
		}
		synctest.Wait()
		require.LessOrEqual(t, all.Load(), int64(most))
		for range many {
			require.NoError(t, <-done)
			require.LessOrEqual(t, all.Load(), int64(most))
		}
	})
}

func TestReadAll_GivesTheBytesAsTheyAre(t *testing.T) {
	t.Parallel()
	want := []byte(strings.Repeat("0123456789", 300_000))
	for _, announced := range []int64{-1, int64(len(want)), 7} {
		got, err := ReadAll(t.Context(), bytes.NewReader(want), announced, 8*mib, 3)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
	}
}

func TestShare_IsOfTheMemoryThatTheProcessMayUse(t *testing.T) { //nolint:paralleltest // the limit is the process's
	was := debug.SetMemoryLimit(400 * mib)
	defer debug.SetMemoryLimit(was)
	require.EqualValues(t, 100*mib, Share(4))
	debug.SetMemoryLimit(1<<63 - 1)
	require.EqualValues(t, unbounded/4, Share(4))
}

// drip gives so many bytes, and then one every second for an hour.
type drip struct{ n, more int64 }

func (d *drip) Read(b []byte) (int, error) {
	if d.n > 0 {
		n := min(int64(len(b)), d.n)
		d.n -= n
		return int(n), nil
	}
	if d.more++; d.more > 3600 {
		return 0, io.EOF
	}
	time.Sleep(time.Second)
	return 1, nil
}

func TestReadAll_WhatComesSlowlyKeepsNobodyElseFromGrowing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(60 * mib)
		read := func(in io.Reader) error {
			ctx, end := r.Lease(t.Context())
			defer end()
			_, err := ReadAll(ctx, in, -1, 64*mib, 1)
			return err
		}
		slow := make(chan error)
		for range 3 {
			go func() { slow <- read(&drip{n: 3 * mib}) }()
		}
		synctest.Wait()
		began := time.Now()
		for range 10 {
			require.NoError(t, read(&pieces{9 * mib}))
		}
		require.LessOrEqual(t, time.Since(began), 3*turn)
		for range 3 {
			require.ErrorIs(t, <-slow, ErrSlow)
		}
		requireEmpty(t, r.large)
		require.True(t, r.growing.TryAcquire(1))
	})
}

func TestReadAll_WhatIsLargeKeepsOthersOutForABoundedTime(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		announced int64
		in        io.Reader
		fails     error
		within    time.Duration
	}{
		"of unknown length, a byte every second": {-1, &drip{n: 3 * mib}, ErrSlow, 2 * time.Minute},
		"of known length, a byte every second":   {9 * mib, &drip{n: 3 * mib}, ErrSlow, 2 * time.Minute},
		"as fast as may be asked of a link": {9 * mib, &steady{9 * mib, slowest}, nil,
			9 * mib / slowest * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, end := New(60 * mib).Lease(t.Context())
				defer end()
				began := time.Now()
				_, err := ReadAll(ctx, test.in, test.announced, 64*mib, 1)
				require.ErrorIs(t, err, test.fails)
				require.LessOrEqual(t, time.Since(began), test.within)
			})
		})
	}
}

// steady gives so many bytes, and each second some of them.
type steady struct{ n, each int64 }

func (s *steady) Read(b []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), s.n, s.each)
	s.n -= n
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.each))
	return int(n), nil
}

// rest checks that all of a room has been given back.
func (r *Room) rest(t *testing.T) {
	t.Helper()
	for _, p := range []*part{r.small, r.large} {
		requireEmpty(t, p)
	}
}

func TestRoom_WhatIsLargeHoldsNothingOfThePartForWhatIsNot(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(ctx context.Context) error{
		"once it is held": func(ctx context.Context) error {
			if err := Hold(ctx, some); err != nil {
				return err
			}
			return Hold(ctx, 3*mib)
		},
		"once it has grown": func(ctx context.Context) error {
			_, err := ReadAll(ctx, &pieces{3 * mib}, -1, 8*mib, 1)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(30 * mib)
			ctx, end := r.Lease(t.Context())
			require.NoError(t, take(ctx))
			requireEmpty(t, r.small)
			end()
			r.rest(t)
		})
	}
}

func TestRoom_WhoWaitsForMuchKeepsNobodyOutWhoHoldsLess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		in, end := r.Lease(t.Context())
		require.NoError(t, Hold(in, 20*mib))
		waiting := make(chan error)
		for range 5 { // with all that there is for what is not large
			go func() {
				ctx, end := r.Lease(t.Context())
				defer end()
				if err := Hold(ctx, some); err != nil {
					waiting <- err
					return
				}
				waiting <- Hold(ctx, 3*mib)
			}()
		}
		synctest.Wait()
		began := time.Now()
		little, leave := r.Lease(t.Context())
		require.NoError(t, Hold(little, some))
		require.Zero(t, time.Since(began))
		leave()
		end()
		for range 5 {
			require.NoError(t, <-waiting)
		}
		synctest.Wait()
		r.rest(t)
	})
}

func TestReadAll_WhoFailsHoldsWhatHeHeldBefore(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		announced, before, read int64
	}{
		"of what is announced":   {3 * mib, 0, mib},
		"of unknown length":      {-1, 0, mib},
		"after it has grown":     {-1, 0, 5 * mib},
		"with something already": {3 * mib, mib, mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(64 * mib)
			ctx, end := r.Lease(t.Context())
			require.NoError(t, Hold(ctx, test.before))
			_, err := ReadAll(ctx, io.MultiReader(&pieces{test.read}, iotest.ErrReader(io.ErrUnexpectedEOF)),
				test.announced, 8*mib, 2)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.LessOrEqual(t, leaseOf(ctx).held(), test.before)
			end()
			r.rest(t)
		})
	}
}

func TestRoom_NoCallerKeepsOthersOut(t *testing.T) {
	t.Parallel()
	const small, large = 2 * mib, 3 * mib
	hold := func(t *testing.T, r *Room, caller string, n int64) (end func(), err error) {
		ctx, end := r.Lease(For(t.Context(), caller))
		t.Cleanup(end)
		return end, Hold(ctx, n)
	}
	for name, n := range map[string]int64{"little": small, "much": large} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := New(60 * mib)
				var ends []func()
				var refused error
				for refused == nil {
					var end func()
					if end, refused = hold(t, r, "greedy", n); refused == nil {
						ends = append(ends, end)
					}
				}
				require.ErrorIs(t, refused, ErrFull)
				more := make(chan error, 8)
				for range cap(more) {
					go func() { _, err := hold(t, r, "greedy", n); more <- err }()
				}
				synctest.Wait()
				began := time.Now()
				for _, caller := range []string{"another", "", "a third"} {
					_, err := hold(t, r, caller, n/2)
					require.NoError(t, err, caller)
				}
				require.Zero(t, time.Since(began), "they wait behind nobody who may not have more")
				ends[0]()
				require.NoError(t, <-more, "whose places come back gets them")
				for range cap(more) - 1 {
					require.ErrorIs(t, <-more, ErrFull)
				}
			})
		})
	}
	t.Run("but has all of it for one document", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := New(60 * mib)
			_, err := hold(t, r, "greedy", 1000*mib)
			require.NoError(t, err)
			_, err = hold(t, r, "another", small)
			require.NoError(t, err)
		})
	})
	t.Run("and who has no name is the whole node", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := New(60 * mib)
			for range 10 {
				_, err := hold(t, r, "", small)
				require.NoError(t, err)
			}
		})
	})
}

// Who waits for what he may not have yet would keep all others from growing.
func TestRoom_WhoGrowsBeyondHisShareKeepsNobodyFromGrowing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(32 << 20)
		holds, end := r.Lease(For(t.Context(), "10.1.2.3"))
		defer end()
		require.NoError(t, Hold(holds, r.large.size*3/4))
		grows := func(caller string) error {
			ctx, end := r.Lease(For(t.Context(), caller))
			defer end()
			g := growth{of: leaseOf(ctx)}
			defer g.end()
			return g.more(ctx, r.large.size/8)
		}
		start := time.Now()
		require.ErrorIs(t, grows("10.1.2.3"), ErrFull)
		require.NoError(t, grows("10.1.2.4"))
		require.Less(t, time.Since(start), Patience)
	})
}

// requireEmpty requires that nothing is held of some parts.
func requireEmpty(t *testing.T, parts ...*part) {
	t.Helper()
	for _, p := range parts {
		of := new(owner)
		require.True(t, p.try(of, p.size))
		p.release(of, p.size)
		require.Empty(t, p.holds)
	}
}

func TestFlights_WhatManyWaitForIsHeldInNobodysName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size, n = 60 * mib, 2 * mib
		r := New(size)
		greedy := func() context.Context { return For(t.Context(), "greedy") }
		var ends []func()
		for r.small.allows(&owner{caller: "greedy"}, n) { // all that he may have
			ctx, end := r.Lease(greedy())
			require.NoError(t, Hold(ctx, n))
			ends = append(ends, end)
		}
		var flights Flights
		asked, answer := 0, make(chan struct{})
		ask := func(ctx context.Context) (any, error) {
			asked++
			ctx, end := r.Lease(ctx)
			defer end()
			if err := Hold(ctx, n); err != nil {
				return nil, err
			}
			<-answer
			return Caller(ctx), nil
		}
		began := time.Now()
		first := flights.Do(greedy(), "question", ask)
		again := flights.Do(greedy(), "question", ask)
		synctest.Wait()
		require.Len(t, r.small.waiting, 1, "he alone may have no more")
		second := flights.Do(For(t.Context(), "another"), "question", ask)
		synctest.Wait()
		require.Empty(t, r.small.waiting, "another waits for nothing that the first may not have")
		require.EqualValues(t, len(ends)*n, r.small.holds["greedy"], "and the first does not pay for both")
		close(answer)
		for _, a := range []<-chan Answer{first, again, second} {
			require.Equal(t, Answer{Val: ""}, <-a)
		}
		require.Equal(t, 1, asked)
		require.Zero(t, time.Since(began))
		for _, end := range ends {
			end()
		}
		requireEmpty(t, r.small, r.large)
		require.Equal(t, Answer{Val: "greedy"}, <-flights.Do(greedy(), "question", ask), "who asks alone is asked for")
	})
}

// What is held may become nobody's at any time.
func TestJoin_LeavesNothingBehindWheneverItComes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(30 * mib)
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				ctx := For(t.Context(), "10.0.0.1")
				all.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					Join(ctx, "10.0.0.2")
				})
				for _, n := range []int64{mib, 3 * mib, 15 * mib} {
					leased, end := r.Lease(ctx)
					if Hold(leased, n) == nil {
						time.Sleep(20 * time.Millisecond)
					}
					end()
				}
			})
		}
		all.Wait()
		requireEmpty(t, r.small, r.large)
	})
}
