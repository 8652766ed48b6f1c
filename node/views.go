package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/admin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/pulls"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// adminHandler shows the node.
func (n *node) adminHandler() http.Handler {
	return admin.New(admin.Options{
		Checks:   n.checks(),
		Alive:    n.store.Hangs,
		Gatherer: n.metrics,
		Node:     n.viewNode, Peers: n.viewPeers, Blobs: n.viewBlobs, Fetches: n.viewFetches, Pulls: n.pulls.Pulls,
		Image: n.contents().Image, Registries: newReach(n.upstream, n.knownRegistries).look,
		Log: n.log.With("part", "admin"),
	})
}

// checks are those of /readyz.
func (n *node) checks() []admin.Check {
	all := []admin.Check{
		{Name: "swarm", Ready: func(context.Context) error {
			select {
			case <-n.swarm.Started():
			default:
				return errors.New("still looking for the first peer")
			}
			if n.swarm.Lonely() {
				return errors.New("no peer answers, though this node knows of some; it keeps looking for them")
			}
			return nil
		}},
		{Name: "store", Ready: func(context.Context) error { return n.store.Health() }},
	}
	if n.kube.agent != nil {
		all = append(all, admin.Check{Name: "kubernetes",
			Ready: func(context.Context) error { return n.kube.agent.Ready() }})
	}
	return all
}

func (n *node) viewNode() view.Node {
	usage, c := n.store.Usage(), n.counters()
	v := view.Node{
		Version: version, PeerID: n.swarm.ID().String(), Zone: n.inZone, Started: n.started, Now: time.Now(),
		Policy: n.policy.Load(),
		Store: view.Store{
			Path: n.config.Store.Path, Blobs: usage.Blobs, Bytes: usage.Bytes, Capacity: usage.Capacity,
			Pinned: usage.PinnedBytes, DiskFree: usage.FreeDisk,
		},
		Traffic: view.Traffic{
			Hits: c.Hits, Misses: c.Misses, FromPeers: c.PeerBytes, FromUpstream: c.UpstreamBytes,
			ToPeers: c.UploadedBytes, Saved: c.SavedBytes,
		},
	}
	if err := n.storeProblem(); err != nil {
		v.Store.Problem = err.Error()
	}
	for _, a := range n.swarm.Addrs() {
		v.Addresses = append(v.Addresses, a.String())
	}
	found := n.found.Load()
	v.MirrorUnknown = found == nil
	v.MirrorAwaited = found == nil && n.config.Mirror.StateDir != ""
	if found != nil {
		for _, f := range *found {
			v.Findings = append(v.Findings, view.Finding{Reason: f.Reason, Message: f.Message})
		}
	}
	return v
}

// storeProblem is why the store takes nothing in; nil where it does.
func (n *node) storeProblem() error {
	if err := n.store.Health(); err != nil {
		return err
	}
	disk, err := n.store.DiskSize()
	if err != nil {
		return nil // where the disk's size cannot be told nothing can be said of its room
	}
	return noRoom(n.store.Usage(), n.policy.Load().Store.On(disk).MinFree)
}

// leastRoom is the room below which a store is of no use: few layers fit.
const leastRoom = 16 << 20

// noRoom is the complaint of a store whose disk is at its floor of free space, where there is nothing to evict for what
// comes. A disk that the cache itself has filled to there is as it should be.
func noRoom(u store.Usage, floor int64) error {
	evictable := u.Bytes - u.PinnedBytes
	if u.FreeDisk < 0 || u.FreeDisk-floor+evictable >= leastRoom {
		return nil
	}
	return fmt.Errorf("%s of the file system are to stay free (minFree), %s are free, and the cache has %s that may "+
		"be evicted: %w", view.Bytes(floor), view.Bytes(u.FreeDisk), view.Bytes(evictable), content.ErrNoSpace)
}

func (n *node) viewPeers() []view.Peer {
	var out []view.Peer
	for _, p := range n.swarm.Peers() {
		out = append(out, view.Peer{ID: p.ID.String(), Addresses: p.Addrs, RoundTrip: p.RoundTrip})
	}
	return out
}

func (n *node) viewBlobs(digests []string) []view.Blob {
	var infos []store.Info
	var err error
	for _, d := range digests {
		if info, err := n.store.Stat(digest.Digest(d)); err == nil {
			infos = append(infos, info)
		}
	}
	if len(digests) == 0 {
		if infos, err = n.store.List(context.Background()); err != nil {
			n.log.Warn("blobs not listed", "error", err)
		}
	}
	out := make([]view.Blob, len(infos))
	for i, info := range infos {
		out[i] = view.Blob{
			Digest: info.Digest.String(), Size: info.Size, MediaType: info.MediaType, Source: "store",
			Pinned: info.Pinned, Used: info.LastUsed,
		}
		if len(digests) > 0 {
			out[i].Fetch = n.pulls.How(info.Digest.String())
		}
		if info.FromRuntime {
			out[i].Source = "runtime"
		}
		if info.Root.Defined() {
			out[i].CID = info.Root.String()
		}
	}
	return out
}

func (n *node) viewFetches() []view.Fetch {
	var out []view.Fetch
	for _, s := range n.fetcher.Running() {
		f := view.Fetch{
			Digest: s.Digest.String(), Repository: repositoryName(s.Repository), Size: s.Size, Present: s.Arrived,
			FromPeers: s.FromPeers, FromUpstream: s.FromUpstream, Started: s.Started, Readers: s.Readers,
			Peers: byName(s.ByPeer),
		}
		for _, tenths := range s.Filled {
			f.Map = append(f.Map, int(tenths))
		}
		out = append(out, f)
	}
	return out
}

// repositoryName is empty where a download has no repository: what came by its digest alone.
func repositoryName(r content.Repository) string {
	if r == (content.Repository{}) {
		return ""
	}
	return r.String()
}

// contents is what this node has, for the view of an image.
func (n *node) contents() admin.Contents {
	return admin.Contents{
		Tag:  n.tags.Own,
		Held: cache{store: n.store}.Has,
		Read: func(d digest.Digest) ([]byte, error) {
			b, err := n.store.Get(d)
			if err != nil {
				return nil, err
			}
			defer func() { _ = b.Close() }()
			body, err := b.Range(context.Background(), 0, b.Size())
			if err != nil {
				return nil, err
			}
			defer func() { _ = body.Close() }()
			return io.ReadAll(body)
		},
	}
}

// told hands the end of a fetch to the record of pulls.
func (n *node) told(s fetch.Story) {
	f := pulls.Fetched{Digest: s.Digest.String(), Start: s.Started, PullFetch: view.PullFetch{
		Discovery: s.Discovery, Plan: s.Plan, FirstChunk: s.FirstChunk, Took: s.Took, Size: s.Size, Kept: s.Kept,
		FromPeers: s.FromPeers, FromUpstream: s.FromUpstream, Outcome: s.Outcome,
	}}
	f.Peers = byName(s.ByPeer)
	if s.Err != nil {
		f.Problem = s.Err.Error()
	}
	n.pulls.Fetched(f)
}

// byName names peers as people and other programs do; nil where there are none.
func byName(bytes map[peer.ID]int64) map[string]int64 {
	if len(bytes) == 0 {
		return nil
	}
	named := make(map[string]int64, len(bytes))
	for p, n := range bytes {
		named[p.String()] = n
	}
	return named
}

// knownRegistries are those that the configuration names and those that were pulled from lately.
func (n *node) knownRegistries() []string {
	all := n.pulls.Registries()
	for _, u := range n.config.Upstreams {
		if u.Registry != "*" {
			all = append(all, u.Registry)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

const (
	// reachEvery is how often registries are asked whether they answer, whoever wants to know.
	reachEvery = 15 * time.Second
	// reachTimeout bounds one question, and reachMost their number.
	reachTimeout = 5 * time.Second
	reachMost    = 16
)

// reach asks registries whether they answer.
type reach struct {
	upstream *upstream.Client
	known    func() []string

	mu   sync.Mutex
	last []view.Registry
	at   time.Time
}

func newReach(u *upstream.Client, known func() []string) *reach {
	return &reach{upstream: u, known: known}
}

// look asks all known registries at once, unless that was done a moment ago.
func (r *reach) look(ctx context.Context) []view.Registry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && time.Since(r.at) < reachEvery {
		return r.last
	}
	hosts := r.known()
	hosts = hosts[:min(len(hosts), reachMost)]
	all := make([]view.Registry, len(hosts))
	var asking sync.WaitGroup
	for i, host := range hosts {
		asking.Go(func() { all[i] = r.ask(ctx, host) })
	}
	asking.Wait()
	if ctx.Err() == nil {
		r.last, r.at = all, time.Now()
	}
	return all
}

func (r *reach) ask(ctx context.Context, host string) view.Registry {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	start := time.Now()
	resp, err := r.upstream.Forward(ctx, content.Repository{Registry: host}, "", nil, nil, "")
	if err == nil {
		_ = resp.Body.Close()
	}
	v := view.Registry{Host: host, Took: time.Since(start)}
	var answer *content.UpstreamError
	if err != nil && !errors.As(err, &answer) {
		v.Problem = err.Error()
	}
	return v
}
