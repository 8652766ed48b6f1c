package main

import (
	"crypto/tls"

	"github.com/shoal-cache/shoal/api/files"
)

// serverTLS is the TLS configuration of a server with a certificate, nil of one without.
func serverTLS(name, certFile, keyFile string) (*tls.Config, error) {
	if certFile == "" {
		return nil, nil //nolint:nilnil // plain HTTP is no error
	}
	read := func() (tls.Certificate, error) {
		return files.KeyPair(name+".certFile", certFile, name+".keyFile", keyFile)
	}
	if _, err := read(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// The files are read for each connection, so a renewed certificate needs no restart.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := read()
			return &pair, err
		},
	}, nil
}
