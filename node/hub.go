package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/hub"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// newHub makes the hub front; nil where it is off.
func (n *node) newHub(documents *room.Room) (*hub.Front, error) {
	c := n.config.Hub
	if !c.Enabled {
		return nil, nil //nolint:nilnil // off is no error
	}
	endpoint, transport, err := n.upstream.Reach(c.Name())
	if err != nil {
		return nil, fmt.Errorf("hub.endpoint: %w", err)
	}
	front, err := hub.New(hub.Options{
		Endpoint: endpoint, Transport: transport, Hub: c.Name(), Gate: n.gate,
		Hasty:   func(body io.Reader, due int64) io.Reader { return n.upstream.Hasty(c.Name(), body, due) },
		Fetcher: n.fetcher, Upstream: n.upstream, Store: n.store, Documents: documents,
		Memory: n.store.Notes("hub"), Rules: func(r content.Repository) policy.Rule { return n.policy.Load().For(r) },
		AllowFrom: c.AllowFrom, URLs: c.Below(), Tracer: n.tracer, Logger: n.log.With("part", "hub"),
		Registerer: n.metrics,
	})
	if err != nil {
		return nil, err
	}
	front.Join(swarm.NewErrands(n.swarm, front.Known, front.Remembers, front.Told))
	return front, nil
}

// locate finds where a file of the hub's lies.
func (n *node) locate(ctx context.Context, repo content.Repository, file, authorization string,
	anew bool) (*url.URL, error) {
	return n.hub.Locate(ctx, repo, file, authorization, anew)
}

// upstreams are those of the configuration, and the hub and the hosts of hub.urls where they are not among them.
func upstreams(list []config.Upstream, h config.Hub) []upstream.Upstream {
	out := make([]upstream.Upstream, len(list))
	for i, u := range list {
		out[i] = upstream.Upstream(u)
	}
	if !h.Enabled {
		return out
	}
	add := func(name, endpoint string) {
		if !slices.ContainsFunc(out, func(u upstream.Upstream) bool {
			return registries.Canonical(u.Registry) == name
		}) {
			out = append(out, upstream.Upstream{Registry: name, Endpoints: []string{endpoint}})
		}
	}
	add(h.Name(), h.Endpoint)
	for _, u := range h.Below() {
		add(registries.Canonical(u.Host), u.Scheme+"://"+u.Host)
	}
	return out
}
