package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/admin"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// contentsInMemory holds content in memory.
func contentsInMemory() admin.Shelf {
	held := map[digest.Digest][]byte{}
	return admin.Shelf{
		Open: func(d digest.Digest) (io.ReadCloser, int64, error) {
			data, ok := held[d]
			if !ok {
				return nil, 0, fmt.Errorf("%s: %w", d, content.ErrNotFound)
			}
			return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
		},
		Put: func(_ context.Context, d digest.Digest, body io.Reader, size int64) error {
			data, err := io.ReadAll(content.NewVerifier(body, d, size))
			if err == nil {
				held[d] = data
			}
			return err
		},
	}
}

func TestContents_AreTakenInAndGivenByTheirDigest(t *testing.T) {
	t.Parallel()
	handler := admin.NewContents(contentsInMemory(), slog.New(slog.DiscardHandler))
	ask := func(method, name, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, "/contents/"+name, strings.NewReader(body)))
		return w
	}
	d := digest.FromString("hello").String()
	require.Equal(t, http.StatusNotFound, ask("GET", d, "").Code, "before")
	require.Equal(t, http.StatusBadRequest, ask("PUT", d, "other").Code, "what is other than its digest says")
	require.Equal(t, http.StatusNotFound, ask("GET", d, "").Code, "is not kept")
	require.Equal(t, http.StatusNoContent, ask("PUT", d, "hello").Code)
	got := ask("GET", d, "")
	require.Equal(t, http.StatusOK, got.Code)
	require.Equal(t, "hello", got.Body.String())
	require.Equal(t, "5", got.Header().Get("Content-Length"))
	bad := ask("PUT", "sha256:short", "x")
	require.Equal(t, http.StatusBadRequest, bad.Code)
	require.Contains(t, bad.Body.String(), `"sha256:short" is no digest`)
	require.Equal(t, http.StatusMethodNotAllowed, ask("DELETE", d, "").Code)
}

func TestContents_WhoStopsOrNamesTooMuchIsAnsweredAndHoldsNothing(t *testing.T) {
	t.Parallel()
	d := digest.FromString("hello").String()
	for name, test := range map[string]struct {
		header string
		body   string
		drip   bool // a byte every twenty seconds of what follows
		status int
		says   string
		within time.Duration
	}{
		"a body that stops": {header: "Content-Length: 5", body: "hel", status: http.StatusRequestTimeout,
			says: "no more of the content came for 30s", within: 35 * time.Second},
		"one that is slow": {header: "Content-Length: 5", body: "hel", drip: true, status: http.StatusNoContent,
			within: 45 * time.Second},
		"one that does not say how long it is": {header: "Transfer-Encoding: chunked", body: "3\r\nhel\r\n",
			status: http.StatusBadRequest, says: "Content-Length", within: 5 * time.Second},
		"one that is longer than any blob": {header: "Content-Length: 9000000000000000", body: "hel", drip: true,
			status: http.StatusBadRequest, says: "9000000000000000 bytes are too many", within: 5 * time.Second},
		"one that waits to be told to": {header: "Content-Length: 9000000000000000\r\nExpect: 100-continue",
			status: http.StatusBadRequest, says: "9000000000000000 bytes are too many"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				client, conn := net.Pipe()
				server := &http.Server{ReadHeaderTimeout: time.Minute,
					Handler: admin.NewContents(contentsInMemory(), slog.New(slog.DiscardHandler))}
				go func() { _ = server.Serve(&oneConn{conn: conn}) }() // it ends with the listener
				var sending sync.WaitGroup
				sending.Go(func() {
					_, err := fmt.Fprintf(client, "PUT /contents/%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s", d, test.header,
						test.body)
					for i := 0; err == nil && test.drip; i++ {
						time.Sleep(20 * time.Second)
						_, err = client.Write([]byte{"lo"[i%2]})
					}
				})
				began := time.Now()
				answer, err := http.ReadResponse(bufio.NewReader(client), &http.Request{Method: http.MethodPut})
				require.NoError(t, err)
				said, err := io.ReadAll(answer.Body)
				require.NoError(t, err)
				require.Equal(t, test.status, answer.StatusCode, "%s", said)
				require.Contains(t, string(said), test.says)
				require.LessOrEqual(t, time.Since(began), test.within)
				require.NoError(t, client.Close())
				sending.Wait()
				require.NoError(t, server.Close())
			})
		})
	}
}

// oneConn is a listener of one connection.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	c := l.conn
	if l.conn = nil; c == nil {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
