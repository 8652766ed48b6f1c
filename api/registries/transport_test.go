package registries_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/registries/registriestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a registry with TLS that answers to the bearers of one certificate.
type site struct {
	*httptest.Server
	mu        sync.Mutex
	own, lets tls.Certificate
	closed    chan struct{} // gets a value for each connection that has ended
}

func newSite(t *testing.T, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{Server: httptest.NewUnstartedServer(h), closed: make(chan struct{}, 100)}
	s.renew(t)
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		known := x509.NewCertPool()
		known.AddCert(s.lets.Leaf)
		return &tls.Config{Certificates: []tls.Certificate{s.own}, ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs: known}, nil
	}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			s.closed <- struct{}{}
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// renew has the site show and want other certificates from the next connection on.
func (s *site) renew(t *testing.T) {
	t.Helper()
	own, lets := registriestest.Certificate(t), registriestest.Certificate(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.lets = own, lets
}

// files are what an administrator would write for the site as it is: name to content.
func (s *site) files(t *testing.T) map[string][]byte {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := x509.MarshalPKCS8PrivateKey(s.lets.PrivateKey)
	require.NoError(t, err)
	files := map[string][]byte{
		"ca.crt":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.own.Certificate[0]}),
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.lets.Certificate[0]}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
	for name, content := range files { // signatures vary in length, and the size shall tell nothing
		files[name] = append(content, bytes.Repeat([]byte("\n"), 2000-len(content))...)
	}
	return files
}

var written atomic.Int64

// writeAll writes the files, each time at another second, for clocks of file systems are coarse.
func writeAll(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	now := time.Unix(1_700_000_000+written.Add(1), 0)
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		require.NoError(t, os.Chtimes(path, now, now))
	}
}

// newTransport keeps to the files in dir. Of its log it gives what is at least a warning.
func newTransport(t *testing.T, dir string,
	base *http.Transport) (transport *registries.Transport, warnings *bytes.Buffer) {
	t.Helper()
	warnings = &bytes.Buffer{}
	transport, err := registries.NewTransport(registries.Upstream{
		Registry: "registry.example", CAFile: filepath.Join(dir, "ca.crt"),
		ClientCertFile: filepath.Join(dir, "tls.crt"), ClientKeyFile: filepath.Join(dir, "tls.key"),
	}, base, slog.New(slog.NewTextHandler(warnings, &slog.HandlerOptions{Level: slog.LevelWarn})))
	require.NoError(t, err)
	t.Cleanup(transport.CloseIdleConnections)
	return transport, warnings
}

func get(t *testing.T, transport *registries.Transport, url string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func TestRenewedCertificatesAreUsedHoweverTheyAreWritten(t *testing.T) {
	t.Parallel()
	type files = map[string][]byte
	// mount is what the kubelet makes of a Secret: names that lead through one link to a folder of this version.
	mount := func(t *testing.T, dir, version string, now files) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		writeAll(t, filepath.Join(dir, version), now)
		require.NoError(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	for name, tc := range map[string]struct {
		first, then func(t *testing.T, dir string, now files)
	}{
		"in place": {writeAll, writeAll},
		"beside, and moved over, as old as those of before": {writeAll, func(t *testing.T, dir string, now files) {
			beside := t.TempDir()
			writeAll(t, beside, now)
			for name := range now {
				before, err := os.Stat(filepath.Join(dir, name))
				require.NoError(t, err)
				require.NoError(t, os.Chtimes(filepath.Join(beside, name), before.ModTime(), before.ModTime()))
				require.NoError(t, os.Rename(filepath.Join(beside, name), filepath.Join(dir, name)))
			}
		}},
		"in a Secret that is mounted": {
			first: func(t *testing.T, dir string, now files) {
				mount(t, dir, "..1", now)
				for name := range now {
					require.NoError(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
				}
			},
			then: func(t *testing.T, dir string, now files) {
				mount(t, dir, "..2", now)
				require.NoError(t, os.RemoveAll(filepath.Join(dir, "..1")))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := newSite(t, hello), t.TempDir()
			tc.first(t, dir, s.files(t))
			transport, warnings := newTransport(t, dir, &http.Transport{})
			err := get(t, transport, s.URL)
			require.NoError(t, err)

			s.renew(t)
			s.CloseClientConnections()
			err = get(t, transport, s.URL)
			require.Error(t, err, "the files are those of before")

			tc.then(t, dir, s.files(t))
			err = get(t, transport, s.URL)
			require.NoError(t, err)
			require.Empty(t, warnings.String())
		})
	}
}

func TestCertificatesStayInUseWhileTheirFilesAreBroken(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		breakIt func(t *testing.T, dir string, other map[string][]byte)
		want    string // of the warning
	}{
		"half of an authority is there": {want: "ca.crt: holds no PEM certificate",
			breakIt: func(t *testing.T, dir string, other map[string][]byte) {
				writeAll(t, dir, map[string][]byte{"ca.crt": other["ca.crt"][:100]})
			}},
		"an authority is not there": {want: "caFile: stat",
			breakIt: func(t *testing.T, dir string, _ map[string][]byte) {
				require.NoError(t, os.Remove(filepath.Join(dir, "ca.crt")))
			}},
		"a certificate is there and its key is not": {want: "tls.key: tls: private key does not match",
			breakIt: func(t *testing.T, dir string, other map[string][]byte) {
				writeAll(t, dir, map[string][]byte{"tls.crt": other["tls.crt"]})
			}},
		"all is gone": {want: "caFile: stat",
			breakIt: func(t *testing.T, dir string, _ map[string][]byte) { require.NoError(t, os.RemoveAll(dir)) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := newSite(t, hello), t.TempDir()
			writeAll(t, dir, s.files(t))
			transport, warnings := newTransport(t, dir, &http.Transport{DisableKeepAlives: true})
			tc.breakIt(t, dir, newSite(t, hello).files(t))
			for range 3 {
				err := get(t, transport, s.URL)
				require.NoError(t, err)
			}
			require.Contains(t, warnings.String(), tc.want)
			require.Contains(t, warnings.String(), "registry=registry.example")
			require.Equal(t, 1, strings.Count(warnings.String(), "\n"),
				"it is not said, nor are files read, with each request")

			s.renew(t)
			require.NoError(t, os.MkdirAll(dir, 0o700))
			writeAll(t, dir, s.files(t))
			err := get(t, transport, s.URL)
			require.NoError(t, err, "from the next request on")
		})
	}
}

// Who may read a file, or a disk that failed, changes nothing that is seen of the file from outside.
func TestFilesThatCouldNotBeUsedAreReadAgainAfterAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, cut := t.TempDir(), errors.New("cut")
		ca, moment := filepath.Join(dir, "ca.crt"), time.Now()
		authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: registriestest.Certificate(t).Certificate[0]})
		write := func(content []byte) {
			require.NoError(t, os.WriteFile(ca, content, 0o600))
			require.NoError(t, os.Chtimes(ca, moment, moment))
		}
		write(append(authority, '\n'))
		var log bytes.Buffer
		transport, err := registries.NewTransport(registries.Upstream{CAFile: ca},
			&http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, cut }},
			slog.New(slog.NewTextHandler(&log, nil)))
		require.NoError(t, err)
		ask := func() (logged string) {
			log.Reset()
			err := get(t, transport, "https://registry.example")
			require.ErrorIs(t, err, cut)
			return log.String()
		}
		write(make([]byte, len(authority)))
		require.Contains(t, ask(), "cannot be used")
		write(authority) // looks the same
		require.Empty(t, ask())
		time.Sleep(10 * time.Second)
		require.Contains(t, ask(), "have been read again")
		time.Sleep(time.Hour)
		require.Empty(t, ask())
	})
}

func TestConnectionsOfBeforeEndWithTheirRequests(t *testing.T) {
	t.Parallel()
	ended := func(t *testing.T, s *site) {
		t.Helper()
		select {
		case <-s.closed:
		case <-time.After(20 * time.Second):
			t.Fatal("the connection is kept")
		}
	}
	t.Run("of one that is idle", func(t *testing.T) {
		t.Parallel()
		s, dir := newSite(t, hello), t.TempDir()
		writeAll(t, dir, s.files(t))
		transport, _ := newTransport(t, dir, &http.Transport{})
		err := get(t, transport, s.URL)
		require.NoError(t, err)
		s.renew(t)
		writeAll(t, dir, s.files(t))
		err = get(t, transport, s.URL)
		require.NoError(t, err)
		ended(t, s)
	})
	t.Run("of one that is being answered, to the end", func(t *testing.T) {
		t.Parallel()
		goOn := make(chan struct{})
		release := sync.OnceFunc(func() { close(goOn) })
		defer release()
		s, dir := newSite(t, func(w http.ResponseWriter, r *http.Request) {
			hello(w, r)
			if r.URL.Path == "/slow" {
				_ = http.NewResponseController(w).Flush()
				<-goOn
				_, _ = io.WriteString(w, " again")
			}
		}), t.TempDir()
		writeAll(t, dir, s.files(t))
		transport, _ := newTransport(t, dir, &http.Transport{})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/slow", nil)
		require.NoError(t, err)
		resp, err := transport.RoundTrip(req)
		require.NoError(t, err)
		s.renew(t)
		writeAll(t, dir, s.files(t))
		err = get(t, transport, s.URL)
		require.NoError(t, err)
		release()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "hello again", string(body))
		require.NoError(t, resp.Body.Close())
		ended(t, s)
	})
	t.Run("of one that began when the certificates were replaced", func(t *testing.T) {
		t.Parallel()
		s, dir := newSite(t, hello), t.TempDir()
		writeAll(t, dir, s.files(t))
		var asked atomic.Int32
		begun, renewed := make(chan struct{}), make(chan struct{})
		// asked before a connection is chosen
		transport, _ := newTransport(t, dir, &http.Transport{Proxy: func(*http.Request) (*url.URL, error) {
			if asked.Add(1) == 1 {
				close(begun)
				<-renewed
			}
			return nil, nil
		}})
		done := make(chan error)
		go func() {
			err := get(t, transport, s.URL)
			done <- err
		}()
		<-begun
		before := s.files(t)
		before["tls.key"] = append(before["tls.key"], '\n') // written anew, and as good as it was
		writeAll(t, dir, before)
		err := get(t, transport, s.URL)
		require.NoError(t, err)
		close(renewed)
		require.NoError(t, <-done)
		ended(t, s)
	})
}
