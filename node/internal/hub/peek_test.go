package hub

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// What a peer holds comes late where this node's link is full, and early enough for every client.
func TestPeek_StorageIsAskedEarlyAndLastOfAllForWhatAPeerHolds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		held  bool
		after time.Duration
	}{"nobody holds it": {false, peekAfter}, "a peer holds it": {true, peekHeldAfter}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start, asked := time.Now(), time.Duration(0)
				var early foretaste
				early.begin(httptest.NewRecorder(), func(_, n int64) ([]byte, error) {
					asked = time.Since(start)
					return make([]byte, n), nil
				}, tc.held, 0, 100)
				time.Sleep(time.Minute)
				early.end()
				require.Equal(t, tc.after, asked)
				require.Less(t, headerWait+asked+upstreamAnswers, 10*time.Second, "clients give up then")
			})
		})
	}
}

// upstreamAnswers is what storage may take to give a few bytes.
const upstreamAnswers = 2 * time.Second

// asks notes what is asked of a Fetcher.
type asks struct {
	Fetcher
	held []bool
}

func (a *asks) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	a.held = append(a.held, req.Held)
	return a.Fetcher.Open(ctx, req)
}

func TestSwarm_AFetchHearsOfTheHolderOfWhomItsFrontHasHeard(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	agents := newAgents(t, h, 2)
	var heard [2]*asks
	for i, a := range agents {
		heard[i] = &asks{Fetcher: a.opts.Fetcher}
		a.opts.Fetcher = heard[i]
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, resolve("org/m", "main", large)).status)
		a.rest(t)
	}
	require.Contains(t, heard[1].held, true)
	require.NotContains(t, heard[0].held, true)
}
