package swarm

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestANodeAloneIsStarted(t *testing.T) {
	t.Parallel()
	<-newTestSwarm(t).Started()
}

func TestNodesThatStartFromOneFindEachOther(t *testing.T) {
	t.Parallel()
	first := newTestSwarm(t)
	nodes := []*testSwarm{first}
	for range 3 {
		nodes = append(nodes, newTestSwarm(t, startingFrom(first)))
	}
	for _, s := range nodes {
		eventually(t, "a full mesh", func() bool { return len(s.Peers()) == len(nodes)-1 })
	}
}

func TestANodeListensOnIPv6(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback here:", err)
	}
	require.NoError(t, l.Close())
	v6 := func(o *Options) { o.Listen = []ma.Multiaddr{ma.StringCast("/ip6/::1/tcp/0")} }
	a := newTestSwarm(t, v6)
	b := newTestSwarm(t, v6, startingFrom(a))
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	require.Contains(t, b.Peers()[0].Addrs[0], "/ip6/::1/")
}

func TestAnotherNodeRemembersATag(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	tagsA, tagsB := NewTags(a.Swarm, a.store.KV("tags")), NewTags(b.Swarm, b.store.KV("tags"))
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	repo := content.Repository{Registry: "images.test", Name: "a/b"}
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("m"), Size: 7}

	_, _, ok := tagsB.Recall(t.Context(), repo, "1")
	require.False(t, ok)
	tagsA.Remember(t.Context(), repo, "1", want)
	got, _, ok := tagsB.Recall(t.Context(), repo, "1")
	require.True(t, ok)
	require.Equal(t, want, got)

	for name, other := range map[string]struct {
		repo content.Repository
		tag  string
	}{
		"another tag":        {repo, "2"},
		"another repository": {content.Repository{Registry: "images.test", Name: "a/c"}, "1"},
		"another registry":   {content.Repository{Registry: "other.test", Name: "a/b"}, "1"},
	} {
		_, _, ok := tagsB.Recall(t.Context(), other.repo, other.tag)
		require.False(t, ok, name)
	}
}

// One of the others was taken over: it names another digest, as of now.
func TestTags_WhatOneOtherNodeSaysIsTakenOnlyWhereNothingElseIsKnown(t *testing.T) {
	t.Parallel()
	node := newTestSwarm(t)
	one := newTestSwarm(t, startingFrom(node))
	two := newTestSwarm(t, startingFrom(node, one))
	liar := newTestSwarm(t, startingFrom(node, one, two))
	tags := NewTags(node.Swarm, node.store.KV("tags"))
	answers := map[*testSwarm]*atomic.Pointer[tagAnswer]{}
	for _, s := range []*testSwarm{one, two, liar} {
		says := new(atomic.Pointer[tagAnswer])
		says.Store(&tagAnswer{})
		answers[s] = says
		answer(s.Swarm, "tag", func(tagQuery) tagAnswer { return *says.Load() })
	}
	eventually(t, "connected", func() bool { return len(node.Peers()) == 3 })
	repo := content.Repository{Registry: "images.test", Name: "a/b"}
	older, newer, evil := digest.FromString("older"), digest.FromString("newer"), digest.FromString("evil")
	now := time.Now().Unix()
	says := func(d digest.Digest, unix int64) tagAnswer {
		return tagAnswer{Found: true, Digest: string(d), Size: 1, Unix: unix}
	}
	type said = map[*testSwarm]tagAnswer
	for name, test := range map[string]struct {
		own  tagAnswer
		said said
		want digest.Digest
	}{
		"what this node was told goes before what one says":    {says(older, 100), said{liar: says(evil, now)}, older},
		"and before what it says of times to come":             {says(older, 100), said{liar: says(evil, now+1e9)}, older},
		"what two say goes before what this node was told":     {says(older, 100), said{one: says(newer, 200), two: says(newer, 300)}, newer},
		"also beside one that says something else":             {says(older, 100), said{one: says(newer, 200), two: says(newer, 300), liar: says(evil, now)}, newer},
		"but not where they were told so before":               {says(newer, 400), said{one: says(older, 200), two: says(older, 300)}, newer},
		"but where its clock was ahead when it noted that":     {says(older, now+1e9), said{one: says(newer, 200), two: says(newer, 300)}, newer},
		"nor where one of them was":                            {says(newer, 250), said{one: says(older, 200), liar: says(older, now)}, newer},
		"who knows nothing takes what two say":                 {tagAnswer{}, said{one: says(newer, 200), two: says(newer, 300), liar: says(evil, now)}, newer},
		"and what one says, where nobody says anything else":   {tagAnswer{}, said{one: says(newer, 200)}, newer},
		"and the newest, where each says something else":       {tagAnswer{}, said{one: says(older, 200), two: says(newer, 300)}, newer},
		"nobody is believed about another size of the same":    {tagAnswer{}, said{one: says(newer, 300), two: says(older, 200), liar: {Found: true, Digest: string(older), Size: 2, Unix: 200}}, newer},
		"what is no digest is none":                            {tagAnswer{}, said{one: says(newer, 200), liar: says("evil", now)}, newer},
		"two that differ are not two, for who knows something": {says(older, 100), said{one: says(newer, 200), liar: says(evil, now)}, older},
	} {
		raw := []byte("none")
		if test.own.Found {
			r, _ := test.own.record()
			r.Unix = test.own.Unix
			var err error
			raw, err = json.Marshal(r)
			require.NoError(t, err)
		}
		require.NoError(t, tags.memory.Put(tagKey(repo, "1"), raw), name)
		for s, says := range answers {
			a := test.said[s]
			says.Store(&a)
		}
		got, at, ok := tags.Recall(t.Context(), repo, "1")
		require.True(t, ok, name)
		require.Equal(t, test.want, got.Digest, name)
		require.LessOrEqual(t, at.Unix(), int64(400), "%s: it is as old as it is", name)
	}
}

func TestTheIdentityStaysTheSame(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "made", "on", "demand", "identity.key")
	first, err := LoadIdentity(path)
	require.NoError(t, err)
	second, err := LoadIdentity(path)
	require.NoError(t, err)
	require.True(t, first.Equals(second))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "no one else may read it")
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left")

	other, err := LoadIdentity(filepath.Join(t.TempDir(), "identity.key"))
	require.NoError(t, err)
	require.False(t, first.Equals(other))
}

// A damaged key must not be replaced silently: the node would come back as someone whom no one admits.
func TestADamagedIdentityIsAnErrorThatNamesTheFile(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{"empty": {}, "noise": []byte("not a key"),
		"half": {8, 1, 18, 64, 1, 2, 3}} {
		path := filepath.Join(t.TempDir(), "identity.key")
		require.NoError(t, os.WriteFile(path, raw, 0o600))
		_, err := LoadIdentity(path)
		require.ErrorContains(t, err, path, name)
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, raw, after, "%s: it is left as it was", name)
	}
	_, err := LoadIdentity(t.TempDir())
	require.Error(t, err, "a folder")
}

func TestBootstrapPeersMayComeLater(t *testing.T) {
	t.Parallel()
	a, b := newTestSwarm(t), newTestSwarm(t)
	<-b.Started()
	b.SetBootstrap([]peer.AddrInfo{a.info()})
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
}

func TestANodeWhoseBootstrapPeersAreGoneStartsFromThoseItRemembers(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	gone := peer.AddrInfo{ID: somePeer(t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
	b := newTestSwarm(t, func(o *Options) {
		o.Bootstrap = []peer.AddrInfo{gone}
		o.LoadPeers = func(context.Context) []peer.AddrInfo { return []peer.AddrInfo{a.info()} }
		o.SavePeers = func(context.Context, []peer.AddrInfo) {}
	})
	eventually(t, "connected", func() bool { return len(b.Peers()) == 1 })
}
