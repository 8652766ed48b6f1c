package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// peekAfter is how long bytes are waited for after the header before storage is asked for the first few alone. Most
	// clients give up after 10 s without a byte, and a chunk takes longer than that from slow storage.
	peekAfter = 3500 * time.Millisecond
	// peekHeldAfter is the same of a file that a peer holds: it is no slow storage that is waited for, but peers, whose
	// words stand behind what else comes over this node's link.
	peekHeldAfter = 7 * time.Second
	// peekSize is how many bytes are asked for then: one to be given at once, and those that keep an answer alive while
	// it waits for more. The last byte of an answer is never one of them.
	peekSize = 33
)

// peeker reads n bytes at off from storage, past what is being fetched.
type peeker func(off, n int64) ([]byte, error)

// peek is the peeker of a blob, nil where nobody but peers is to be asked. What many callers wait for is asked for
// once. It goes on when they have left: to break it off would look like trouble of the storage.
func (f *Front) peek(ctx context.Context, req content.Request) peeker {
	if ctx.Value(peersOnly{}) != nil {
		return nil
	}
	return func(off, n int64) ([]byte, error) {
		k := key(req.Repository.String(), req.File, req.Authorization, fmt.Sprint(off, n))
		return f.peekOnce(k, func() ([]byte, error) {
			body, err := f.opts.Upstream.Open(f.ctx, req, off, n)
			if err != nil {
				return nil, err
			}
			defer func() { _ = body.Close() }()
			if body.Offset != off {
				return nil, errNoRange
			}
			b := make([]byte, n)
			_, err = io.ReadFull(body, b)
			return b, err
		})
	}
}

// peekGit is the peeker of a file in git, which comes whole otherwise, nil for one that comes soon by any link. Each
// node asks the hub itself: what another says of the bytes cannot be checked before they are given.
func (f *Front) peekGit(ctx context.Context, x *exchange, e *element, commit string) peeker {
	if ctx.Value(peersOnly{}) != nil || e.Size < content.ChunkSize {
		return nil
	}
	r, authorization := x.route.repo, x.Authorization()
	return func(off, n int64) ([]byte, error) {
		k := key(r.name(), e.OID, authorization, fmt.Sprint(off, n))
		return f.peekOnce(k, func() ([]byte, error) {
			a, err := f.askOpen(f.ctx, call{
				method: http.MethodGet, path: r.file(commit, e.Path), authorization: authorization, only: n,
				header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}},
			})
			switch {
			case err != nil:
				return nil, err
			case off > 0 && a.header.Get("Content-Range") == "" || int64(len(a.body)) != n:
				return nil, errNoRange
			}
			return a.body, nil
		})
	}
}

// peekOnce asks once for what many callers wait for.
func (f *Front) peekOnce(key string, ask func() ([]byte, error)) ([]byte, error) {
	b, err, _ := f.peeks.Do(key, func() (any, error) { return ask() })
	if err != nil {
		return nil, err
	}
	return b.([]byte), nil
}

var errNoRange = errors.New("storage does not give the range alone")

// foretaste is the first few bytes of an answer, given before those come that are checked. They are compared with those
// before anything else is given. So no answer ends well with a wrong byte in it.
type foretaste struct {
	slack Slack
	timer *time.Timer
	mu    sync.Mutex // is held while they are given
	ended bool
	given []byte
}

// begin gives a few of n bytes at off to w after a while. The header of the answer is out. held: a peer has them.
func (t *foretaste) begin(w http.ResponseWriter, peek peeker, held bool, off, n int64) {
	if n = min(peekSize, n-1); peek == nil || n < 1 {
		return
	}
	after := peekAfter
	if held {
		after = peekHeldAfter
	}
	t.timer = time.AfterFunc(t.slack.of(after), func() {
		b, err := peek(off, n)
		t.mu.Lock()
		defer t.mu.Unlock()
		if err != nil || t.ended {
			return
		}
		t.given = b
		_, _ = w.Write(b) // who writes next hears of it, if it fails
		_ = http.NewResponseController(w).Flush()
	})
}

// end gives no more.
func (t *foretaste) end() {
	if t.timer == nil {
		return
	}
	t.timer.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}

// after is what is left of first, which body began with, behind what was given.
func (t *foretaste) after(first []byte, body io.Reader) ([]byte, error) {
	if more := len(t.given) - len(first); more > 0 {
		rest := make([]byte, more)
		if _, err := io.ReadFull(body, rest); err != nil {
			return nil, err
		}
		first = append(first, rest...)
	}
	rest, ok := bytes.CutPrefix(first, t.given)
	if !ok {
		return nil, fmt.Errorf("storage gave other bytes before: %w", content.ErrDigestMismatch)
	}
	return rest, nil
}
