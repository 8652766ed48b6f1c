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
				require.Equal(t, found{record: older, stale: true, cause: tc.err}, got)
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
