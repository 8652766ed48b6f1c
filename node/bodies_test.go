package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipes is a listener of connections that a test makes, on the test's clock.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestBodies_WhoAnnouncesOneAndDoesNotSendItIsAnsweredAndHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		request, drip string
		wanted        bool // the handler reads the body before it answers
		refused       bool
	}{
		"a byte a second of what is wanted": {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
			drip: "x", wanted: true, refused: true},
		"all of what is wanted":      {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", wanted: true},
		"none of it comes":           {request: "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"},
		"a byte a second":            {request: "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", drip: "x"},
		"a chunk that never ends":    {request: "POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"},
		"it waits to be told to":     {request: "PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"},
		"it is larger than any disk": {request: "HEAD /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conns := make(pipes, 1)
				const answering = time.Minute // far longer than a body may take
				server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: boundBodies(
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if test.wanted {
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
						time.Sleep(time.Second)
					}
				})
				began := time.Now()
				in := bufio.NewReader(client)
				answer, err := http.ReadResponse(in, &http.Request{Method: test.request[:4]})
				require.NoError(t, err)
				if test.refused {
					require.Equal(t, http.StatusRequestTimeout, answer.StatusCode)
					require.Equal(t, bodyWithin, time.Since(began))
				} else {
					require.Equal(t, http.StatusOK, answer.StatusCode)
					require.Equal(t, answering, time.Since(began), "no later than without a body, and not broken off")
				}
				_, _ = io.Copy(io.Discard, in) // until the connection ends
				require.LessOrEqual(t, time.Since(began), answering+3*bodyWithin)
				_ = client.Close()
				sending.Wait()
				close(conns)
				require.NoError(t, server.Shutdown(context.Background()))
			})
		})
	}
}
