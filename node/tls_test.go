package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// certificate makes one for "hub.test" that signs itself, and returns its files and who trusts it.
func certificate(t *testing.T, dir string) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"hub.test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	roots = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots.AddCert(parsed)
	return write("tls.crt", "CERTIFICATE", der), write("tls.key", "PRIVATE KEY", private), roots
}

func TestHub_SpeaksTLSWhereItHasACertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, roots := certificate(t, dir)
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`
registry: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
hub: {enabled: true, listen: "127.0.0.1:0", endpoint: "http://127.0.0.1:1", certFile: `+certFile+`, keyFile: `+
		keyFile+`}
swarm: {listen: [/ip4/127.0.0.1/tcp/0]}
store: {path: `+dir+`/store}`), 0o600))
	c, err := config.Load(file, nil, nil)
	require.NoError(t, err)
	n := &node{
		config: c, log: slog.New(slog.DiscardHandler), started: time.Now(), metrics: prometheus.NewRegistry(),
		policy: policy.NewLive(c.EffectivePolicy()),
	}
	require.NoError(t, n.start(t.Context()))
	servers, err := n.listenAll(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	for _, s := range servers {
		if s.name != "hub" {
			require.NoError(t, s.listener.Close())
			continue
		}
		go func() { ended <- n.answer(ctx, s) }()
		address := s.listener.Addr().String()
		transport := &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: "hub.test", MinVersion: tls.VersionTLS12,
		}}
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+address+"/api/telemetry/x", nil)
		require.NoError(t, err)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode)
		transport.CloseIdleConnections()
	}
	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, n.close(t.Context()))
}
