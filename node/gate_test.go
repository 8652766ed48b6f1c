package main

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// held is a cache of nothing.
type held struct{ gate.Cache }

func TestSources_OnlyTheHubItselfHasItsFrontForAProof(t *testing.T) {
	t.Parallel()
	g, err := gate.New(gate.Options{Cache: held{}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	s := sources{g, policy.NewLive(policy.Default()), "hub.test"}
	file := func(registry, name string) content.Request {
		return content.Request{Repository: content.Repository{Registry: registry, Name: name}, Kind: content.Blob,
			Digest: digest.FromString("x"), File: "/x"}
	}
	require.True(t, s.Proved(file("hub.test", "models/org/m")))
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
