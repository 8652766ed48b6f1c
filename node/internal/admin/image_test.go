package admin_test

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/admin"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// shelf is a node's contents.
type shelf map[digest.Digest][]byte

func (s shelf) put(data []byte) v1.Descriptor {
	d := digest.FromBytes(data)
	s[d] = data
	return v1.Descriptor{Digest: d, Size: int64(len(data)), MediaType: "application/octet-stream"}
}

func (s shelf) putJSON(t *testing.T, v any) v1.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return s.put(data)
}

func (s shelf) contents(tag digest.Digest) admin.Contents {
	return admin.Contents{
		Tag: func(repo content.Repository, name string) (digest.Digest, bool) {
			return tag, repo == content.Repository{Registry: "docker.io", Name: "library/redis"} && name == "7"
		},
		Held: func(d digest.Digest) (int64, bool) { data, ok := s[d]; return int64(len(data)), ok },
		Read: func(d digest.Digest) ([]byte, error) { return s[d], nil },
	}
}

func TestImage_TellsWhatOfItIsHere(t *testing.T) {
	t.Parallel()
	s := shelf{}
	config, one, two := s.put([]byte("{}")), s.put([]byte("layer one")), s.put([]byte("layer two"))
	image := s.putJSON(t, v1.Manifest{Config: config, Layers: []v1.Descriptor{one, two},
		MediaType: v1.MediaTypeImageManifest})
	elsewhere := v1.Descriptor{Digest: digest.FromString("arm"), Size: 3, MediaType: v1.MediaTypeImageManifest}
	index := s.putJSON(t, v1.Index{Manifests: []v1.Descriptor{elsewhere, image}, MediaType: v1.MediaTypeImageIndex})

	v, err := s.contents(index.Digest).Image("redis:7")
	require.NoError(t, err)
	require.Equal(t, "docker.io/library/redis:7", v.Name)
	require.True(t, v.Complete, "the one platform that is here is whole")
	require.Len(t, v.Parts, 5)
	require.Equal(t, index.Size+image.Size+config.Size+one.Size+two.Size, v.Held())

	delete(s, two.Digest)
	for _, name := range []string{"redis:7", "docker.io/library/redis@" + index.Digest.String(),
		index.Digest.String()} {
		v, err = s.contents(index.Digest).Image(name)
		require.NoError(t, err)
		require.False(t, v.Complete, name)
		require.Len(t, v.Parts, 5, "what is missing is named: %s", name)
	}

	v, err = s.contents(index.Digest).Image(one.Digest.String())
	require.NoError(t, err)
	require.True(t, v.Complete, "a blob is whole by itself")

	v, err = s.contents(index.Digest).Image("redis:8")
	require.NoError(t, err)
	require.Empty(t, v.Digest, "a tag that this node does not know")

	_, err = s.contents(index.Digest).Image("https://Redis")
	require.ErrorContains(t, err, "write registry.example/team/app:1.2")
}
