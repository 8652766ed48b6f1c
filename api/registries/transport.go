package registries

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/api/files"
)

// rereadAfter is how soon files that could not be used are read again although they look the same: what has changed may
// be who may read them.
const rereadAfter = 10 * time.Second

// Transport sends requests with the certificates that the files of an Upstream hold by then, so that whoever renews
// them restarts nothing. While a file cannot be used, as when only one of a pair has been written yet, all stay as they
// were.
type Transport struct {
	upstream Upstream
	base     *http.Transport
	log      *slog.Logger

	current atomic.Pointer[http.Transport]

	mu     sync.Mutex
	files  []os.FileInfo // as they were when they were last read
	failed time.Time     // when they could not be used; zero: they could
}

// NewTransport returns a Transport that but for TLS is like base. It fails when a file does not hold what it should.
func NewTransport(u Upstream, base *http.Transport, log *slog.Logger) (*Transport, error) {
	t := &Transport{upstream: u, base: base, log: log, files: u.files()}
	if err := t.read(); err != nil {
		return nil, err
	}
	return t, nil
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	transport := t.renewed()
	resp, err := transport.RoundTrip(r)
	if t.current.Load() != transport {
		// It was replaced meanwhile. If that was before it began with this request, it would keep the connection for
		// the next.
		transport.CloseIdleConnections()
	}
	return resp, err
}

// CloseIdleConnections is what http.Client calls to do the same.
func (t *Transport) CloseIdleConnections() { t.current.Load().CloseIdleConnections() }

// renewed is the transport of the files as they are, or as they were when they could last be used. It looks at them
// each time, and reads them when they are others than before.
func (t *Transport) renewed() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	// They are looked at before they are read, so that what is written meanwhile is seen the next time.
	files := t.upstream.files()
	if slices.EqualFunc(files, t.files, same) && (t.failed.IsZero() || time.Since(t.failed) < rereadAfter) {
		return t.current.Load()
	}
	t.files, t.failed = files, time.Time{}
	registry := cmp.Or(t.upstream.Registry, "*")
	before := t.current.Load()
	if err := t.read(); err != nil {
		t.failed = time.Now()
		t.log.Warn("new certificates for a registry cannot be used; the old ones stay", "registry", registry,
			"cause", err)
		return before
	}
	// Whom an authority of before vouched for is asked nothing any more. What is being answered is answered to its end.
	before.CloseIdleConnections()
	t.log.Info("certificates for a registry have been read again", "registry", registry)
	return t.current.Load()
}

// read makes the transport from the files as they are.
func (t *Transport) read() error {
	config, err := t.upstream.tls()
	if err != nil {
		return err
	}
	transport := t.base.Clone()
	transport.TLSClientConfig = config
	t.current.Store(transport)
	return nil
}

// files are those that hold certificates, nil for one that is not there.
func (u Upstream) files() []os.FileInfo {
	var files []os.FileInfo
	for _, path := range []string{u.CAFile, u.ClientCertFile, u.ClientKeyFile} {
		if path != "" {
			file, _ := os.Stat(path)
			files = append(files, file)
		}
	}
	return files
}

// same reports whether a file has been neither written nor replaced. A mounted Secret or ConfigMap is replaced: its
// names are links, and after an update lead to other files.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// tls is the client's side of TLS with the registry. It reads the files, and fails for one that does not hold what it
// should.
func (u Upstream) tls() (*tls.Config, error) {
	config := &tls.Config{
		InsecureSkipVerify: u.InsecureSkipVerify, //nolint:gosec // the administrator asked for it, for this registry
		MinVersion:         tls.VersionTLS12,
	}
	if u.CAFile != "" {
		pem, err := files.Read(u.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile: %s: holds no PEM certificate", u.CAFile)
		}
		config.RootCAs = pool
	}
	if u.ClientCertFile != "" || u.ClientKeyFile != "" {
		pair, err := files.KeyPair("clientCertFile", u.ClientCertFile, "clientKeyFile", u.ClientKeyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
