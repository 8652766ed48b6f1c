package main

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// held is a cache of nothing.
type held struct{ gate.Cache }

// front is what the hub's front knows.
type front map[content.Request]bool

func (f front) Proved(req content.Request) bool { return f[req] }
func (f front) Prove(req content.Request)       { f[req] = true }
func (f front) Doubted(content.Request) bool    { return false }

// nothing is a cache of nothing, on a node without peers.
type nothing struct{}

func (nothing) Held(digest.Digest) (content.Reader, error) { return nil, content.ErrNotFound }
func (nothing) Has(digest.Digest) (int64, bool)            { return 0, false }
func (nothing) FromPeers(context.Context, digest.Digest) (content.Reader, error) {
	return nil, content.ErrNotFound
}

// vague is a registry whose yes may be about anything.
type vague struct{ gate.Upstream }

func (vague) Ask(context.Context) (int64, error)          { return 7, nil }
func (vague) AskForAnyone(context.Context) (int64, error) { return 0, content.ErrUnavailable }
func (vague) Whole() bool                                 { return true }
func (vague) Arrived() int64                              { return 0 }

func TestSources_WhomTheRepositoryAcceptsIsNotDoubtedWhereNoManifestIsKnown(t *testing.T) {
	t.Parallel()
	g, err := gate.New(gate.Options{Cache: nothing{}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	s := sources{g, policy.NewLive(policy.Default()), "", nil}
	req := content.Request{Repository: content.Repository{Registry: "registry.test", Name: "app"}, Kind: content.Blob,
		Digest: digest.FromString("x"), Authorization: "Basic eDp5"}
	source := gate.Repository(req.Repository)
	asks := gate.Request{Source: source, Digest: req.Digest, Credentials: req.Authorization, Upstream: vague{}}
	require.NoError(t, g.Admit(t.Context(), policy.Default().For(req.Repository), asks))
	require.True(t, s.Doubted(req))
	g.Accept(source, req.Authorization, time.Now())
	require.False(t, s.Doubted(req), "as after a restart in the middle of a layer")
	require.False(t, s.Proved(req))
	g.Accept(source, "", time.Now())
	other := req
	other.Authorization = "Basic b3RoZXI6"
	asks.Credentials = other.Authorization
	require.NoError(t, g.Admit(t.Context(), policy.Default().For(req.Repository), asks))
	require.True(t, s.Doubted(other), "another is no surer by that")
}

func TestSources_OnlyTheHubItselfHasItsFrontForAProof(t *testing.T) {
	t.Parallel()
	g, err := gate.New(gate.Options{Cache: held{}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	of := front{}
	s := sources{g, policy.NewLive(policy.Default()), "hub.test", func() fetch.Sources { return of }}
	file := func(registry, name string) content.Request {
		return content.Request{Repository: content.Repository{Registry: registry, Name: name}, Kind: content.Blob,
			Digest: digest.FromString("x"), File: "/x"}
	}
	model := file("hub.test", "models/org/m")
	require.False(t, s.Proved(model), "a repository that only lists it")
	s.Prove(model)
	require.True(t, of[model])
	require.True(t, s.Proved(model))
	for what, req := range map[string]content.Request{
		"a file by its URL":            file("files.test", "https:public/a.bin"),
		"one whose host is the hub's":  file("hub.test", "http:public/a.bin"),
		"a repository of a registry":   {Repository: content.Repository{Registry: "hub.test", Name: "a/b"}, Digest: "sha256:1"},
		"a file of some other machine": file("other.test", "models/org/m"),
	} {
		require.False(t, s.Proved(req), what)
	}
	known := file("files.test", "https:public/a.bin")
	s.Prove(known)
	require.True(t, s.Proved(known), "what it has proved counts")
}

// Each node that learns of a manifest asks others about all that it lists.
func TestTestify_WhatOtherNodesAskAboutIsEvictedAsIfNobodyHadAsked(t *testing.T) {
	t.Parallel()
	held, err := store.Open(t.Context(), store.Options{
		Path: t.TempDir(), Limits: store.Limits{Capacity: 3 << 20, High: 1, Low: 1},
	})
	require.NoError(t, err)
	defer held.Close()
	g, err := gate.New(gate.Options{Cache: cache{store: held}})
	require.NoError(t, err)
	defer g.Close()
	put := func(fill byte) digest.Digest {
		data := bytes.Repeat([]byte{fill}, 1<<20)
		require.NoError(t, held.Put(t.Context(), digest.FromBytes(data), bytes.NewReader(data), 1<<20))
		return digest.FromBytes(data)
	}
	oldest, next := put(1), put(2)
	put(3)
	testimony := g.Testify("oci registry.test/app", []digest.Digest{oldest})
	require.Equal(t, []digest.Digest{oldest}, testimony.Held)
	put(4)
	_, err = held.Stat(oldest)
	require.ErrorIs(t, err, content.ErrNotFound, "the oldest makes room")
	_, err = held.Stat(next)
	require.NoError(t, err)
}
