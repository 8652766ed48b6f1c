package upstream_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// An endpoint that swallows packets costs each call that tries it the whole time of a dial. One call at a time is enough to
// find out whether it is back.
func TestABlackHoleDelaysOneCallAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hole := true
		c, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://hole.test", "http://good.test"}}},
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				if hole && strings.HasPrefix(address, "hole.test") {
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Second):
					}
					return nil, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
				}
				near, far := net.Pipe()
				go answer(far)
				return near, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		var slow atomic.Int32
		ask := func() {
			start := time.Now()
			_, _, err := c.Stat(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")})
			require.NoError(t, err)
			if time.Since(start) > time.Second {
				slow.Add(1)
			}
		}
		ask()
		slow.Store(0)
		var group sync.WaitGroup
		for range 60 {
			for range 10 {
				group.Go(ask)
			}
			time.Sleep(time.Second)
		}
		group.Wait()
		require.LessOrEqual(t, slow.Load(), int32(12), "of 600 calls in a minute, one each time 5 s are over")

		hole = false
		time.Sleep(10 * time.Second)
		ask()
		slow.Store(0)
		ask()
		require.Zero(t, slow.Load(), "it is back for all")
	})
}

// The front gives a question less time than an endpoint that hangs would take.
func TestAnEndpointThatHangsLeavesTimeForTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mute := silent(t)
		c, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://mute.test", "http://good.test"}}},
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				if strings.HasPrefix(address, "mute.test") {
					return mute(ctx, network, address)
				}
				near, far := net.Pipe()
				go answer(far)
				return near, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		_, _, err = c.Stat(ctx, content.Request{Repository: repo, Digest: digest.FromString("x")})
		require.NoError(t, err)
	})
}

// answer plays a registry that has every blob, each of one byte.
func answer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	requests := bufio.NewReader(conn)
	for {
		if _, err := http.ReadRequest(requests); err != nil {
			return
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"); err != nil {
			return
		}
	}
}
