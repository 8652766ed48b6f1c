package main

import (
	"crypto/tls"
	"fmt"

	kubernetesapi "k8s.io/client-go/kubernetes"

	"github.com/shoal-cache/shoal/node/internal/admin"
)

// metricsServer is the server for metrics alone.
func (n *node) metricsServer() (server, error) {
	m := n.config.Metrics
	s := server{name: "metrics", address: m.Listen, handler: admin.Metrics(n.metrics, n.log.With("part", "metrics"))}
	if m.TokenReview {
		api, err := kubernetesapi.NewForConfig(n.kubeAPI)
		if err != nil {
			return s, fmt.Errorf("metrics.tokenReview: %w", err)
		}
		s.handler = admin.Reviewed(admin.ByCluster(api), s.handler)
	}
	if m.CertFile == "" {
		return s, nil
	}
	if _, err := tls.LoadX509KeyPair(m.CertFile, m.KeyFile); err != nil {
		return s, fmt.Errorf("metrics.certFile: %w", err)
	}
	s.tls = &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// The files are read for each connection, so a renewed certificate needs no restart.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(m.CertFile, m.KeyFile)
			return &pair, err
		},
	}
	return s, nil
}
