package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
)

// arriving is a blob whose bytes come one by one as the test sends them. It tells how many have.
type arriving struct {
	size int64

	mu    sync.Mutex
	moved sync.Cond
	data  []byte
	err   error // ends reading past data
}

func newArriving(size int64) *arriving {
	a := &arriving{size: size}
	a.moved.L = &a.mu
	return a
}

func (a *arriving) send(data string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.data, a.err = append(a.data, data...), err
	a.moved.Broadcast()
}

func (a *arriving) Arrived() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(len(a.data))
}

func (a *arriving) Size() int64  { return a.size }
func (a *arriving) Close() error { return nil }
func (a *arriving) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > a.size-n {
		return nil, errors.New("range outside the blob")
	}
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.moved.Broadcast()
	})
	return &arrivingRange{a: a, ctx: ctx, off: off, end: off + n, stop: stop}, nil
}

type arrivingRange struct {
	a        *arriving
	ctx      context.Context
	off, end int64
	stop     func() bool
}

func (r *arrivingRange) Read(p []byte) (int, error) {
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	for {
		switch have := min(int64(len(r.a.data)), r.end); {
		case r.off == r.end:
			return 0, io.EOF
		case have > r.off:
			n := copy(p, r.a.data[r.off:have])
			r.off += int64(n)
			return n, nil
		case r.a.err != nil:
			return 0, r.a.err
		case r.ctx.Err() != nil:
			return 0, r.ctx.Err()
		}
		r.a.moved.Wait()
	}
}

func (r *arrivingRange) Close() error { r.stop(); return nil }

// newStream makes a world in which every blob is a.
func newStream(t *testing.T, a content.Reader) (*world, string) {
	w := newWorld(t, func(o *registry.Options) {
		o.Fetcher = opener(func(context.Context, content.Request) (content.Reader, error) { return a, nil })
	})
	w.rule.Authorization.Mode = policy.Exempt
	return w, "/v2/team/app/blobs/" + digest.FromString("any").String()
}

func TestTheFirstByteGoesOutLongBeforeTheLastHasCome(t *testing.T) {
	t.Parallel()
	a := newArriving(10)
	w, path := newStream(t, a)
	server := httptest.NewServer(w.front)
	defer server.Close()
	a.send("0", nil)
	resp, err := server.Client().Get(server.URL + path)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	first := make([]byte, 1)
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err)
	require.Equal(t, "0", string(first))
	a.send("123456789", nil)
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "123456789", string(rest))
}

func TestABlobThatBreaksOffIsNeverEndedCleanly(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{"whole": "", "as a range": "bytes=0-"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArriving(100_000)
			w, path := newStream(t, a)
			server := httptest.NewServer(w.front)
			defer server.Close()
			a.send(strings.Repeat("x", 50_000), nil)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
			require.NoError(t, err)
			req.Header.Set("Range", header)
			resp, err := server.Client().Do(req)
			require.NoError(t, err)
			defer func() { _ = resp.Body.Close() }()
			a.send("", content.ErrDigestMismatch)
			_, err = io.ReadAll(resp.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		})
	}
}

func TestABlobThatFailsBeforeItsFirstByteIsAnAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err    error
		status int
	}{
		"nobody has it":        {fmt.Errorf("x: %w", content.ErrNotFound), 404},
		"it cannot be had now": {content.ErrUnavailable, 503},
		"it was wrong":         {content.ErrDigestMismatch, 503},
		"the disk is full":     {content.ErrNoSpace, 503},
		"the node shuts down":  {content.ErrClosed, 503},
		"anything else":        {errors.New("anything"), 503},
		"upstream refused":     {&content.UpstreamError{Status: 403}, 403},
		"upstream is busy":     {&content.UpstreamError{Status: 429, RetryAfter: 1500 * time.Millisecond}, 429},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArriving(10)
			a.send("", tc.err)
			w, path := newStream(t, a)
			rep := w.get(path)
			require.False(t, rep.aborted)
			require.Equal(t, tc.status, rep.Code)
			require.Equal(t, "application/json", rep.Header().Get("Content-Type"))
			if tc.status == 429 {
				require.Equal(t, "2", rep.Header().Get("Retry-After"))
			}
		})
	}
}

func TestWhatIsStuckIsGivenUpInTime(t *testing.T) {
	t.Parallel()
	stuck := func(ctx context.Context, _ content.Request) (content.Reader, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for name, tc := range map[string]struct {
		fetch opener
		path  string
	}{
		"a blob that cannot be opened":     {stuck, "/v2/team/app/blobs/"},
		"a manifest that cannot be opened": {stuck, "/v2/team/app/manifests/"},
		"a blob of which no byte comes": {func(context.Context, content.Request) (content.Reader, error) {
			return newArriving(10), nil
		}, "/v2/team/app/blobs/"},
		"a manifest that stops halfway": {func(context.Context, content.Request) (content.Reader, error) {
			a := newArriving(10)
			a.send("12345", nil)
			return a, nil
		}, "/v2/team/app/manifests/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(o *registry.Options) { o.Fetcher = tc.fetch })
				w.rule.Authorization.Mode = policy.Exempt
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					if method == http.MethodHead && strings.Contains(name, "no byte") {
						continue // its size is known, which is all that HEAD of a blob tells
					}
					start := time.Now()
					rep := w.do(method, tc.path+digest.FromString("any").String())
					require.Equal(t, 503, rep.Code)
					require.Equal(t, content.DefaultFirstByte, time.Since(start))
				}
			})
		})
	}
}

func TestWhatArrivesSlowlyIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 100
		a := newArriving(size)
		w, path := newStream(t, a)
		done := make(chan reply)
		// The last byte is asked for, while the first ones come one each four seconds.
		go func() { done <- w.get(path, "Range", "bytes=-1") }()
		for i := range size {
			time.Sleep(4 * time.Second)
			a.send(string(rune('0'+i%10)), nil)
		}
		rep := <-done
		require.Equal(t, 206, rep.Code)
		require.Equal(t, "9", rep.Body.String())
	})
}

// pulling is a Fetcher of one blob, in a pull of which other bytes come as well.
type pulling struct {
	opener
	came *atomic.Int64
}

func (p pulling) Progress(content.Request) (int64, int64) { return 0, p.came.Load() }

// crawling is a Fetcher of one blob whose bytes come at a rate for a time, beside others of the pull.
type crawling struct {
	opener
	start   time.Time
	rate    int64 // bytes in a second
	crawls  time.Duration
	arrives *arriving
	size    int64
}

func (c crawling) Progress(content.Request) (int64, int64) {
	since := time.Since(c.start)
	blob := int64(min(since, c.crawls).Seconds() * float64(c.rate))
	if blob >= c.size && c.arrives.Arrived() == 0 {
		c.arrives.send("x", nil) // what was begun is a whole chunk
	}
	return blob, int64(since)
}

// The bytes of a blob, before the first of its chunks is whole, are a reason to wait for longer, within reason.
func TestPatience_ABlobThatComesSlowlyIsWaitedForAsLongAsItComes(t *testing.T) {
	t.Parallel()
	const layer, never = 900_000, time.Duration(1 << 60)
	for name, tc := range map[string]struct {
		size, rate int64
		crawls     time.Duration
		end        time.Duration
		aborted    bool
	}{
		"at a steady 10 kB/s":           {layer, 10_000, never, 90 * time.Second, false},
		"at a steady 5 kB/s":            {layer, 5_000, never, 180 * time.Second, false},
		"and stops":                     {layer, 10_000, 50 * time.Second, 110 * time.Second, true},
		"a trickle":                     {layer, 1 << 10, never, 80 * time.Second, true},
		"for longer than runtimes wait": {1 << 20, 4 << 10, never, 4 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newArriving(1)
				c := crawling{start: time.Now(), rate: tc.rate, crawls: tc.crawls, arrives: a, size: tc.size}
				c.opener = func(context.Context, content.Request) (content.Reader, error) { return a, nil }
				w := newWorld(t, func(o *registry.Options) { o.Fetcher = c })
				w.rule.Authorization.Mode = policy.Exempt
				rep := w.get("/v2/team/app/blobs/" + digest.FromString("any").String())
				require.Equal(t, tc.aborted, rep.aborted)
				require.InDelta(t, tc.end, time.Since(c.start), float64(3*time.Second))
			})
		})
	}
}

// What comes of a pull for as long as its time says, once a second, and what its callers are told when.
func TestPatience_ProgressDecidesAndNotAClock(t *testing.T) {
	t.Parallel()
	const limit = 10 * time.Second
	never := time.Duration(1 << 60)
	for name, tc := range map[string]struct {
		path    string
		opens   time.Duration // when the blob's size is known
		arrives time.Duration // when its first byte comes
		pull    time.Duration // until when other bytes of the pull come
		status  int
		header  time.Duration // when the header goes out
		end     time.Duration // when all is over
		aborted bool
	}{
		"nothing moves":                       {"blobs/", 0, never, 0, 503, limit, limit, false},
		"nothing moves, and no size is known": {"blobs/", never, never, 0, 503, limit, limit, false},
		"the pull moves, and then the blob comes": {"blobs/", 0, 18 * time.Second, never, 200, 18 * time.Second,
			18 * time.Second, false},
		"the size comes late": {"blobs/", 17 * time.Second, 18 * time.Second, never, 200,
			18 * time.Second, 18 * time.Second, false},
		"the pull stops": {"blobs/", 0, never, 5 * time.Second, 503, 15 * time.Second,
			15 * time.Second, false},
		"the blob comes later than a runtime waits for a header": {
			"blobs/", 0, 50 * time.Second, never, 200, 25 * time.Second, 50 * time.Second, false},
		"the blob never comes": {"blobs/", 0, never, never, 200, 25 * time.Second, 60 * time.Second, true},
		"the size never comes": {"blobs/", never, never, never, 503, 25 * time.Second, 25 * time.Second,
			false},
		"a manifest never comes": {"manifests/", 0, never, never, 503, 25 * time.Second, 25 * time.Second,
			false},
		"nothing moves after a late start": {"blobs/", 9 * time.Second, never, 0, 503, limit, limit, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newArriving(1)
				p := pulling{came: new(atomic.Int64)}
				p.opener = func(ctx context.Context, _ content.Request) (content.Reader, error) {
					select {
					case <-time.After(tc.opens):
						return a, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}
				w := newWorld(t, func(o *registry.Options) { o.Fetcher, o.FirstByteTimeout = p, limit })
				w.rule.Authorization.Mode = policy.Exempt
				start := time.Now()
				done := make(chan struct{})
				go func() {
					for time.Since(start) < min(tc.pull, 2*time.Minute) {
						select {
						case <-done:
							return
						case <-time.After(time.Second):
							p.came.Add(1)
						}
					}
				}()
				timer := time.AfterFunc(tc.arrives, func() { a.send("x", nil) })
				defer timer.Stop()
				rep := w.get("/v2/team/app/" + tc.path + digest.FromString("any").String())
				end := time.Since(start)
				close(done)
				require.Equal(t, tc.status, rep.Code)
				require.Equal(t, tc.aborted, rep.aborted)
				require.InDelta(t, tc.end, end, float64(limit/5))
				require.InDelta(t, tc.header, rep.headerAt.Sub(start), float64(limit/5))
			})
		})
	}
}

func TestACallerThatLeavesEndsItsOwnWaiting(t *testing.T) {
	t.Parallel()
	came, left := make(chan struct{}), make(chan error, 1)
	w := newWorld(t, func(o *registry.Options) {
		o.Fetcher = opener(func(ctx context.Context, _ content.Request) (content.Reader, error) {
			close(came)
			<-ctx.Done()
			left <- ctx.Err()
			return nil, ctx.Err()
		})
		o.FirstByteTimeout = time.Hour
	})
	w.rule.Authorization.Mode = policy.Exempt
	server := httptest.NewServer(w.front)
	defer server.Close()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	go func() {
		<-came
		leave()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		server.URL+"/v2/team/app/blobs/"+digest.FromString("any").String(), nil)
	require.NoError(t, err)
	_, err = server.Client().Do(req)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, <-left, context.Canceled)
}

// filelike hands its bytes over only to a writer that can take file pages without copying.
type filelike struct{ held }

func (f filelike) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if _, err := f.held.Range(ctx, off, n); err != nil {
		return nil, err
	}
	return &filelikeRange{bytes.NewReader(f.held[off : off+n]), false}, nil
}

type filelikeRange struct {
	*bytes.Reader
	plain bool
}

func (f *filelikeRange) Close() error { return nil }
func (f *filelikeRange) WriteTo(w io.Writer) (int64, error) {
	to, ok := w.(io.ReaderFrom)
	if !ok {
		return 0, errors.New("the response writer lost its ReadFrom, and with it sendfile")
	}
	return to.ReadFrom(struct{ io.Reader }{f.Reader})
}

func TestFilePagesMoveWithoutCopying(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), 200_000)
	w, path := newStream(t, filelike{data})
	server := httptest.NewServer(w.front)
	defer server.Close()
	resp, err := server.Client().Get(server.URL + path)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, data, got)
}
