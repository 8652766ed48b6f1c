package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// server is an address and what answers at it.
type server struct {
	name, address string
	handler       http.Handler
	drain         func(context.Context) error // ends the running answers first, where it is not nil
	bodies        bodies                      // of its requests; questions where it is zero
	tls           *tls.Config                 // nil: plain HTTP
	listener      net.Listener
}

// serve runs the servers until ctx ends, then lets running answers end. All ports are bound before anything is served.
func (n *node) serve(ctx context.Context) error {
	servers, err := n.listenAll(ctx)
	if err != nil {
		for _, s := range servers {
			err = errors.Join(err, s.listener.Close())
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		group.Go(func() error { return n.answer(ctx, s) })
	}
	group.Go(func() error { n.kube.run(ctx); return nil })
	group.Go(func() error { n.followMirror(ctx); return nil })
	group.Go(func() error { n.pulls.Run(ctx); return nil })
	n.log.Info("agent started", "version", version, "peer", n.swarm.ID(), "addresses", n.swarm.Addrs())
	return group.Wait()
}

// listenAll opens the address of every server. On failure it returns those that it opened.
func (n *node) listenAll(ctx context.Context) ([]server, error) {
	servers := []server{
		{name: "admin", address: n.config.Admin.Listen, handler: n.adminHandler()}, //nolint:contextcheck // what it reads is on this node's disk
		{name: "registry", address: n.config.Registry.Listen, handler: n.watch.Handler(n.front), drain: n.front.Drain},
	}
	if n.hub != nil {
		h := n.config.Hub
		config, err := serverTLS("hub", h.CertFile, h.KeyFile)
		if err != nil {
			return nil, err
		}
		servers = append(servers, server{
			name: "hub", address: h.Listen, handler: n.hub, drain: n.hub.Drain, bodies: uploads, tls: config,
		})
	}
	if n.config.Metrics.Listen != "" {
		s, err := n.metricsServer()
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	for i := range servers {
		servers[i].handler = cmp.Or(servers[i].bodies, questions).bound(servers[i].handler)
		l, err := listen(ctx, servers[i].name, servers[i].address)
		if err != nil {
			return servers[:i], err
		}
		if servers[i].tls != nil {
			l = tls.NewListener(l, servers[i].tls)
		}
		servers[i].listener = l
	}
	if s, ok := n.contentsServer(ctx); ok {
		servers = append(servers, s)
	}
	return servers, nil
}

func listen(ctx context.Context, name, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, listenProblem(name+".listen", err)
	}
	return l, nil
}

// headerWithin is how long a request's header may take to come, and mostHeader how long it may be, in bytes: room for
// the longest tokens there are.
const headerWithin, mostHeader = 10 * time.Second, 64 << 10

// answer runs a server until ctx ends.
func (n *node) answer(ctx context.Context, s server) error {
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerWithin, MaxHeaderBytes: mostHeader,
		IdleTimeout: 2 * time.Minute,
		ErrorLog:    slog.NewLogLogger(n.log.With("part", s.name).Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(s.listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("%s.listen: %w", s.name, err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.config.Registry.DrainTimeout)
	defer cancel()
	var late error
	if s.drain != nil {
		late = s.drain(ctx)
	}
	if err := server.Shutdown(ctx); err != nil {
		late = cmp.Or(late, err)
	}
	if late != nil { // as it was asked to end, that is no failure of the agent
		n.log.Warn("not all answers ended in time", "part", s.name, "error", late)
		_ = server.Close()
	}
	return nil
}
