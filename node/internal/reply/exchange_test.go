package reply

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipe is a listener of one connection.
type pipe chan net.Conn

func (p pipe) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipe) Close() error   { close(p); return nil }
func (p pipe) Addr() net.Addr { return &net.TCPAddr{} }

func TestGive_WhoTakesNothingIsCutOffAndWhoTakesItsTimeIsNot(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		pause time.Duration // between the pieces that the client takes
		whole bool
	}{
		"at once":               {whole: true},
		"some each second":      {pause: time.Second, whole: true},
		"a little now and then": {pause: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const size = 8 << 20
				l, ended := make(pipe, 1), make(chan error, 2)
				server := &http.Server{ReadHeaderTimeout: time.Minute, //nolint:gosec // a test's
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						x := New(w, r)
						ended <- x.Give(make([]byte, size))
					})}
				go func() { _ = server.Serve(l) }()
				client, served := net.Pipe()
				l <- served
				go func() { _, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }()
				began, read := time.Now(), make(chan int64, 1)
				go func() {
					n, buf := int64(0), make([]byte, size/8)
					in := bufio.NewReader(client)
					for {
						got, err := io.ReadFull(in, buf)
						n += int64(got)
						if err != nil {
							break
						}
						time.Sleep(test.pause)
					}
					read <- n
				}()
				err := <-ended
				took := time.Since(began)
				synctest.Wait()
				_ = server.Close()
				n := <-read
				_ = client.Close()
				if test.whole {
					require.NoError(t, err)
					require.GreaterOrEqual(t, n, int64(size))
				} else {
					require.Error(t, err)
					require.LessOrEqual(t, took, giveWithin+size/giveRate*time.Second)
				}
			})
		})
	}
}
