package swarm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newSum() *mailbox[int] { return newMailbox(func(have *int, later int) { *have += later }) }

func TestAMailboxGivesAllThatPiledUpAsOne(t *testing.T) {
	t.Parallel()
	m := newSum()
	for i := 1; i <= 4; i++ {
		m.put(i)
	}
	got, err := m.take(t.Context())
	require.NoError(t, err)
	require.Equal(t, 10, got)
}

func TestWhatWasPutInIsTakenBeforeTheClosingShows(t *testing.T) {
	t.Parallel()
	first := errors.New("first")
	m := newSum()
	m.put(7)
	m.close(first)
	m.close(errors.New("second"))
	got, err := m.take(t.Context())
	require.NoError(t, err)
	require.Equal(t, 7, got)
	for range 3 {
		_, err = m.take(t.Context())
		require.ErrorIs(t, err, first, "every later taker is told, with the first reason")
	}
}

func TestATakerWaitsUntilThereIsSomething(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newSum()
		var got int
		var err error
		done := false
		go func() { got, err = m.take(context.Background()); done = true }()
		synctest.Wait()
		require.False(t, done)
		m.put(3)
		synctest.Wait()
		require.True(t, done)
		require.NoError(t, err)
		require.Equal(t, 3, got)
	})
}

func TestATakerLeavesWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newSum()
		ctx, cancel := context.WithCancel(context.Background())
		var err error
		go func() { _, err = m.take(ctx) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		require.ErrorIs(t, err, context.Canceled)
		m.put(1) // is not lost by the taker that left
		got, err := m.take(context.Background())
		require.NoError(t, err)
		require.Equal(t, 1, got)
	})
}

func TestNothingIsLostBetweenManyWhoPut(t *testing.T) {
	t.Parallel()
	m := newSum()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				m.put(1)
			}
		})
	}
	go func() { wg.Wait(); m.close(errLeft) }()
	sum := 0
	for {
		n, err := m.take(t.Context())
		if err != nil {
			require.ErrorIs(t, err, errLeft)
			break
		}
		sum += n
	}
	require.Equal(t, 8000, sum)
}

func TestMailbox_WhoPutsTooMuchWaitsUntilItIsTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMailbox(func(have *int, later int) { *have += later })
		tooMuch := func(v int) bool { return v > 2 }
		require.NoError(t, m.space(t.Context(), tooMuch))
		m.put(3)
		waiting := true
		go func() {
			assert.NoError(t, m.space(t.Context(), tooMuch))
			waiting = false
		}()
		synctest.Wait()
		require.True(t, waiting)
		v, err := m.take(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, v)
		synctest.Wait()
		require.False(t, waiting)
	})
}
