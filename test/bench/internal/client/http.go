package client

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
)

// newHTTPClient speaks HTTP/1.1 as containerd does to a plain registry, and trusts the certificates in caFile, if any.
func newHTTPClient(caFile string) (*http.Client, error) {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: parallelRanges,
		ReadBufferSize: 64 << 10}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("trusted certificates: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("trusted certificates: none in %s", caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{Transport: transport}, nil
}
