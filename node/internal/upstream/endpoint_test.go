package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/registries/registriestest"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// An endpoint that swallows packets costs each call that tries it the whole time of a dial. One call at a time is
// enough to find out whether it is back.
func TestABlackHoleDelaysOneCallAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var hole atomic.Bool // a dial may outlast the call that it was for
		hole.Store(true)
		c, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: images,
				Endpoints: []string{"http://hole.test", "http://good.test"}}},
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				if hole.Load() && strings.HasPrefix(address, "hole.test") {
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

		hole.Store(false)
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
			Upstreams: []upstream.Upstream{{Registry: images,
				Endpoints: []string{"http://mute.test", "http://good.test"}}},
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

// Neither the registry nor its token server takes what the files held at the start.
func TestCertificatesThatAreRenewedAreUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	data := []byte("x")
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
	var mu sync.Mutex
	var server, client tls.Certificate // what is shown, and what is wanted of the agent
	renew := func() {
		mu.Lock()
		defer mu.Unlock()
		server, client = registriestest.Certificate(t), registriestest.Certificate(t)
	}
	secure := func(h http.HandlerFunc) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			known := x509.NewCertPool()
			known.AddCert(client.Leaf)
			return &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert,
				ClientCAs: known}, nil
		}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	renew()
	tokens := secure(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"good"}`) })
	images := secure(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="images.test"`, tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(data)
	})

	dir := t.TempDir()
	ca, cert, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func() {
		der, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
		require.NoError(t, err)
		for path, block := range map[string]*pem.Block{
			ca:   {Type: "CERTIFICATE", Bytes: server.Certificate[0]},
			cert: {Type: "CERTIFICATE", Bytes: client.Certificate[0]},
			key:  {Type: "PRIVATE KEY", Bytes: der},
		} {
			beside := path + ".new"
			require.NoError(t, os.WriteFile(beside, pem.EncodeToMemory(block), 0o600))
			require.NoError(t, os.Rename(beside, path))
		}
	}
	write()
	var log bytes.Buffer
	c := newClient(t, upstream.Options{
		Upstreams: []upstream.Upstream{{
			Registry: "images.test", Endpoints: []string{images.URL}, CAFile: ca, ClientCertFile: cert,
			ClientKeyFile: key,
		}},
		Timeouts: upstream.Timeouts{Retry: 100 * time.Millisecond},
		Logger:   slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	pull := func(user string) error { // each with a token of its own, because tokens are remembered
		images.CloseClientConnections()
		tokens.CloseClientConnections()
		authorization, err := c.Authorize(t.Context(), repo, pullsecret.Credential{Username: user, Password: "secret"})
		if err != nil {
			return err
		}
		req := req
		req.Authorization = authorization
		b, err := c.Open(t.Context(), req, 0, -1)
		if err == nil {
			require.Equal(t, data, read(t, b))
		}
		return err
	}
	require.NoError(t, pull("first"))

	require.NoError(t, os.WriteFile(ca, []byte("half of a fi"), 0o600))
	require.NoError(t, os.Remove(key))
	require.NoError(t, pull("second"), "what cannot be used leaves things as they were")
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "registry=images.test")

	renew()
	require.Error(t, pull("third"))
	log.Reset()
	write()
	require.NoError(t, pull("fourth"))
	require.Empty(t, log.String())
}
