package main

import (
	"fmt"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
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
	var err error
	s.tls, err = serverTLS(s.name, m.CertFile, m.KeyFile)
	return s, err
}

// registerInfo registers what does not count: which program this is, and whether the runtime asks it.
func (n *node) registerInfo() {
	n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_build_info", Help: "1, with the version of the agent and of Go that built it.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_mirror_in_force",
		Help: "1 where the container runtime is set up to ask this agent and does, 0 where not, " +
			"-1 while that is not known.",
	}, func() float64 {
		switch found := n.found.Load(); {
		case found == nil:
			return -1
		case len(*found) == 0:
			return 1
		}
		return 0
	}))
}
