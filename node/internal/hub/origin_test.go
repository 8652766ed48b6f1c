package hub

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// slowHub is a transport to a hub that gives a piece of the body each pause, the header after the first.
type slowHub struct {
	pieces int
	piece  int
	pause  time.Duration
	asked  int
}

func (h *slowHub) RoundTrip(r *http.Request) (*http.Response, error) {
	h.asked++
	if err := rest(r.Context(), h.pause); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, ContentLength: -1,
		Body: io.NopCloser(&slowBody{ctx: r.Context(), hub: *h})}, nil
}

type slowBody struct {
	ctx context.Context // of the request
	hub slowHub
	bytes.Buffer
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.Len() == 0 && b.hub.pieces > 0 {
		if err := rest(b.ctx, b.hub.pause); err != nil {
			return 0, err
		}
		b.hub.pieces--
		b.Write(make([]byte, b.hub.piece))
	}
	return b.Buffer.Read(p)
}

func rest(ctx context.Context, pause time.Duration) error {
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestOrigin_AnAnswerMayTakeLongWhileItComes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hub        slowHub
		ends, down bool
	}{
		"it comes at once":                   {slowHub{pieces: 2, piece: minProgress}, true, false},
		"it comes slowly, for ten minutes":   {slowHub{pieces: 75, piece: minProgress, pause: askTimeout - 1}, true, false},
		"the header does not come":           {slowHub{pieces: 2, piece: minProgress, pause: askTimeout + 1}, false, true},
		"single bytes come, one each second": {slowHub{pieces: 75, piece: 1, pause: time.Second}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hub := c.hub
				o := &origin{base: &url.URL{Scheme: "http", Host: "hub.test"}, transport: &hub, metrics: newMetrics(nil),
					key: func(...string) mark { return mark{} }, throttled: map[mark]throttle{}}
				a, err := o.ask(t.Context(), call{method: http.MethodGet, path: "/file"})
				require.Equal(t, 1, hub.asked)
				require.Equal(t, c.down, o.down())
				if c.ends {
					require.NoError(t, err)
					require.Equal(t, c.hub.pieces*c.hub.piece, len(a.body)) //nolint:testifylint // it would print all
					return
				}
				require.ErrorIs(t, err, content.ErrUnavailable)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		})
	}
}

// What drips is asked for once more, and then waited for.
func TestOrigin_AnAnswerThatDripsIsAskedForOnceMore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		drips, asked int
	}{"the first one does": {1, 2}, "all do": {9, 2}, "none does": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hub := slowHub{pieces: 8, piece: minProgress, pause: time.Second}
				o := &origin{base: &url.URL{Scheme: "http", Host: "hub.test"}, transport: &hub, metrics: newMetrics(nil),
					key: func(...string) mark { return mark{} }, throttled: map[mark]throttle{}}
				o.hasty = func(body io.Reader, _ int64) io.Reader {
					if hub.asked > c.drips {
						return body
					}
					return io.MultiReader(io.LimitReader(body, minProgress), iotest.ErrReader(content.ErrUnavailable))
				}
				a, err := o.ask(t.Context(), call{method: http.MethodGet, path: "/file"})
				require.NoError(t, err)
				require.Len(t, a.body, hub.pieces*hub.piece)
				require.Equal(t, c.asked, hub.asked)
				require.False(t, o.down())
			})
		})
	}
}
