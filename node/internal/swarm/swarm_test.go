package swarm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

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

	_, ok := tagsB.Recall(t.Context(), repo, "1")
	require.False(t, ok)
	tagsA.Remember(t.Context(), repo, "1", want)
	got, ok := tagsB.Recall(t.Context(), repo, "1")
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
		_, ok := tagsB.Recall(t.Context(), other.repo, other.tag)
		require.False(t, ok, name)
	}
}

func TestTheNewestAnswerForATagWins(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	tagsA, tagsB := NewTags(a.Swarm, a.store.KV("tags")), NewTags(b.Swarm, b.store.KV("tags"))
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	repo := content.Repository{Registry: "images.test", Name: "a/b"}
	record := func(d digest.Digest, unix string) []byte {
		return []byte(`{"descriptor":{"digest":"` + string(d) + `","size":1},"unix":` + unix + `}`)
	}
	older, newer := digest.FromString("older"), digest.FromString("newer")
	for name, c := range map[string]struct{ a, b []byte }{
		"of this node":    {record(older, "100"), record(newer, "200")},
		"of another node": {record(newer, "200"), record(older, "100")},
	} {
		require.NoError(t, tagsA.memory.Put(tagKey(repo, "1"), c.a), name)
		require.NoError(t, tagsB.memory.Put(tagKey(repo, "1"), c.b), name)
		got, ok := tagsB.Recall(t.Context(), repo, "1")
		require.True(t, ok, name)
		require.Equal(t, newer, got.Digest, name)
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
