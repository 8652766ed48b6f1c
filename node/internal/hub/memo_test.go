package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

func TestMemo_WhereTheHubsAnswerIsNotHadAnOlderOneWillDo(t *testing.T) {
	t.Parallel()
	other := errors.New("it is no JSON")
	for name, tc := range map[string]struct {
		err   error
		known bool
		stale bool
	}{
		"the hub is away":                             {fmt.Errorf("GET: %w", content.ErrUnavailable), true, true},
		"there is no room for its answer":             {fmt.Errorf("GET: %w", room.ErrFull), true, true},
		"there is no room, and nothing older":         {fmt.Errorf("GET: %w", room.ErrFull), false, false},
		"its answer makes no sense, which is its own": {other, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemo(nil, room.New(1<<20), slog.New(slog.DiscardHandler))
				m.down = func() bool { return false }
				older := record{Commit: "a"}
				if tc.known {
					m.learn("k", older, time.Hour, false)
				}
				got, err := m.do(t.Context(), "k", time.Minute, mark{}, func(context.Context) (record, error) {
					return record{}, tc.err
				})
				if !tc.stale {
					require.ErrorIs(t, err, tc.err)
					return
				}
				require.NoError(t, err)
				require.Equal(t, found{record: older, age: time.Hour, stale: true, cause: tc.err}, got)
			})
		})
	}
}

// Of a caller who has as much of the room as he may the others would know nothing, and they would be refused with him.
func TestMemo_WhoAsksWhatAnotherHasAskedNeedsNoneOfHisRoom(t *testing.T) {
	t.Parallel()
	type ask = func(context.Context) (record, error)
	for name, put := range map[string]func(*memo, context.Context, ask) (record, error){
		"of all": func(m *memo, ctx context.Context, a ask) (record, error) {
			got, err := m.do(ctx, "k", time.Minute, mark{}, a)
			return got.record, err
		},
		"by name": func(m *memo, ctx context.Context, a ask) (record, error) {
			got := <-m.once(ctx, "k", time.Minute, false, a)
			rec, _ := got.Val.(record)
			return rec, got.Err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n = 2 << 20
				documents := room.New(30 << 20)
				greedy, another := room.For(t.Context(), "10.0.0.1"), room.For(t.Context(), "10.0.0.2")
				for range 3 {
					ctx, end := documents.Lease(greedy)
					defer end()
					require.NoError(t, room.Hold(ctx, n))
				}
				m := newMemo(nil, documents, slog.New(slog.DiscardHandler))
				m.down = func() bool { return false }
				began, first := time.Now(), make(chan error, 1)
				answer := func(ctx context.Context) (record, error) {
					return record{Commit: "a"}, room.Hold(ctx, n)
				}
				go func() {
					_, err := put(m, room.For(t.Context(), "10.0.0.1"), answer)
					first <- err
				}()
				synctest.Wait()
				require.Empty(t, first, "he alone waits")
				rec, err := put(m, another, answer)
				require.NoError(t, err)
				require.Equal(t, "a", rec.Commit)
				require.NoError(t, <-first)
				require.Zero(t, time.Since(began))
			})
		})
	}
}

// Whoever fills the room would else read on what was public once.
func TestAccess_AFullRoomMakesNothingReadableThatIsOver(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	a := newAgent(t, h, "", nil)
	r := repo{"models", "org/m"}
	full := func(context.Context, string) error { return room.ErrFull }
	for ago, open := range map[time.Duration]bool{23 * time.Hour: true, 25 * time.Hour: false} {
		a.memo.forget(openKey(r, levelFiles))
		a.memo.learn(openKey(r, levelFiles), record{Yes: true}, ago, false)
		got, err := a.access.anyone(t.Context(), r, levelFiles, time.Minute, full)
		require.NoError(t, err)
		require.Equal(t, open, got.Yes, "%s", ago)
	}
}
