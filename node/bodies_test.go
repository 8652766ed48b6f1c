package main

import (
	"bufio"
	"cmp"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/config"
)

// pipes is a listener of connections that a test makes, on the test's clock.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestBodies_WhoAnnouncesOneAndDoesNotSendItIsAnsweredAndHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bodies        bodies
		request, drip string
		every         time.Duration // how often drip is sent, a second where it is zero
		wanted        bool          // the handler reads the body before it answers
		slowly        time.Duration // how long it waits before that
		refused       time.Duration // after how long it is
		within        time.Duration // the handler gives it so much time in all, where that is not zero
	}{
		"a byte a second of what is wanted": {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
			drip: "x", wanted: true, refused: questions.all},
		"all of what is wanted":      {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", wanted: true},
		"none of it comes":           {request: "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"},
		"a byte a second":            {request: "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", drip: "x"},
		"a chunk that never ends":    {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"},
		"it waits to be told to":     {request: "PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"},
		"it is larger than any disk": {request: "HEAD /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000\r\n\r\n"},
		"an upload over a slow link": {bodies: uploads, request: "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n",
			drip: "x", every: 20 * time.Second, wanted: true},
		"an upload that the hub takes slowly": {bodies: uploads, wanted: true, slowly: 40 * time.Second,
			request: "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nall of it"},
		"an upload that stands still": {bodies: uploads, request: "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nall",
			wanted: true, refused: uploads.pause},
		"a byte now and then of what is no upload": {bodies: uploads, drip: "x", every: 7 * time.Second, wanted: true,
			request: "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", within: 20 * time.Second, refused: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conns := make(pipes, 1)
				const answering = time.Minute // far longer than a body may take
				server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: cmp.Or(test.bodies, questions).bound(
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if test.within > 0 {
							r.Body.(interface{ Within(time.Duration) }).Within(test.within)
						}
						if test.wanted {
							time.Sleep(test.slowly)
							if _, err := io.Copy(io.Discard, r.Body); err != nil {
								w.WriteHeader(http.StatusRequestTimeout)
								return
							}
						}
						select {
						case <-time.After(answering):
						case <-r.Context().Done():
							return
						}
						_, _ = io.WriteString(w, "the answer")
					}))}
				go func() { _ = server.Serve(conns) }() // it ends with the listener
				client, conn := net.Pipe()
				defer client.Close()
				conns <- conn
				var sending sync.WaitGroup
				sending.Go(func() {
					_, err := io.WriteString(client, test.request)
					for ; err == nil && test.drip != ""; _, err = io.WriteString(client, test.drip) {
						time.Sleep(cmp.Or(test.every, time.Second))
					}
				})
				began := time.Now()
				in := bufio.NewReader(client)
				answer, err := http.ReadResponse(in, &http.Request{Method: test.request[:4]})
				require.NoError(t, err)
				took := time.Since(began)
				switch {
				case test.refused > 0:
					require.Equal(t, http.StatusRequestTimeout, answer.StatusCode)
					require.Equal(t, test.refused, took)
				case test.bodies == uploads:
					require.Equal(t, http.StatusOK, answer.StatusCode)
				default:
					require.Equal(t, http.StatusOK, answer.StatusCode)
					require.Equal(t, answering, took, "no later than without a body, and not broken off")
				}
				_, _ = io.Copy(io.Discard, in) // until the connection ends
				require.LessOrEqual(t, time.Since(began)-took, answering+3*questions.all)
				_ = client.Close()
				sending.Wait()
				require.NoError(t, server.Shutdown(context.Background()))
			})
		})
	}
}

func TestAnswer_ADownloadThatOutlastsTheDrainIsNoFailureOfTheAgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &node{log: slog.New(slog.DiscardHandler), config: &config.Config{}}
		n.config.Registry.DrainTimeout = 30 * time.Second
		conns := make(pipes, 1)
		client, conn := net.Pipe()
		defer client.Close()
		conns <- conn
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		begun := make(chan struct{})
		go func() {
			ended <- n.answer(ctx, server{name: "registry", listener: conns,
				drain: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
				handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					close(begun)
					<-r.Context().Done()
				})})
		}()
		_, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		<-begun
		stop()
		asked := time.Now()
		require.NoError(t, <-ended)
		require.Equal(t, 30*time.Second, time.Since(asked))
	})
}

func TestAnswer_AHeaderThatIsTooLongIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &node{log: slog.New(slog.DiscardHandler), config: &config.Config{}}
		conns := make(pipes, 1)
		client, conn := net.Pipe()
		conns <- conn
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- n.answer(ctx, server{name: "registry", listener: conns, handler: http.NotFoundHandler()})
		}()
		go func() { _, _ = io.WriteString(client, "GET / HTTP/1.1\r\nAccept: "+strings.Repeat("a", 2*mostHeader)) }()
		answer, err := http.ReadResponse(bufio.NewReader(client), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, answer.StatusCode)
		require.NoError(t, client.Close())
		stop()
		require.NoError(t, <-ended)
		time.Sleep(time.Second) // for which the server keeps the connection after a refusal
	})
}
