package contender

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-cache/shoal/test/internal/proc"
)

// HTTPS is the yardstick of a warm pull: the first host serves the images as files over plain HTTPS, and the clients
// hash what they read. No cache can do less work for bytes that are encrypted and verified.
type HTTPS struct {
	// Keep has the clients write to a file what they read, as a cache must.
	Keep bool
}

// Name implements Contender.
func (h HTTPS) Name() string {
	if h.Keep {
		return "https-kept"
	}
	return "https"
}

// Missing implements Contender.
func (HTTPS) Missing() string { return "" }

// Start implements Contender.
func (h HTTPS) Start(ctx context.Context, site Site) (*Running, error) {
	host := site.Hosts[0]
	cert, key, err := selfSigned(site.Dir, host.Addr)
	if err != nil {
		return nil, err
	}
	cmd := host.Command(ctx, site.Program, "origin", "-dir", site.Images,
		"-listen", fmt.Sprintf("%s:%d", host.Addr, OriginPort), "-control", "127.0.0.1:5001", "-cert", cert, "-key",
		key)
	process, err := proc.Start(cmd, filepath.Join(site.Dir, "https.log"))
	if err != nil {
		return nil, err
	}
	running := &Running{Processes: []*proc.Process{process}, CAFile: cert}
	if h.Keep {
		running.Keep = site.Dir
	}
	for range site.Hosts {
		running.Mirrors = append(running.Mirrors, fmt.Sprintf("https://%s:%d", host.Addr, OriginPort))
	}
	if err := awaitOK(ctx, host, process, "http://127.0.0.1:5001/"); err != nil {
		running.Stop()
		return nil, err
	}
	return running, nil
}

// selfSigned writes a certificate for addr and its key below dir.
func selfSigned(dir string, addr netip.Addr) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("certificate key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{addr.AsSlice()}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", "", fmt.Errorf("certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", fmt.Errorf("certificate key: %w", err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return certFile, keyFile, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
	)
}
