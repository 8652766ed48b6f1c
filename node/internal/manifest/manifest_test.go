package manifest

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

const dockerManifest = string(types.DockerManifestSchema2)

const some = `{"mediaType":"application/octet-stream","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}`

func TestType_IsItsOwnWordThenTheDeclaredThenWhatTheFieldsSay(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ raw, declared, want string }{
		"its own word goes before the declared one": {`{"schemaVersion":2,"mediaType":"` + dockerManifest +
			`","config":` + some + `}`, v1.MediaTypeImageIndex, dockerManifest},
		"the declared one before the fields": {`{"schemaVersion":2,"layers":[]}`, dockerManifest,
			dockerManifest},
		"an image without a type is OCI's": {`{"schemaVersion":2,"config":` + some + `,"layers":[]}`, "",
			v1.MediaTypeImageManifest},
		"so is an index": {`{"schemaVersion":2,"manifests":[]}`, "", v1.MediaTypeImageIndex},
		"schema 1 is known by its layers": {`{"schemaVersion":1,"fsLayers":[{"blobSum":"` +
			digest.FromString("").String() + `"}]}`, "", schema1},
		"signed schema 1 by its signatures": {`{"schemaVersion":1,"signatures":[{}],"fsLayers":[{"blobSum":"` +
			digest.FromString("").String() + `"}]}`, "", schema1Signed},
		"an artifact by its blobs": {`{"blobs":[` + some + `]}`, "", artifact},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := Parse([]byte(tc.raw))
			require.NoError(t, err)
			require.Equal(t, tc.want, m.Type(tc.declared))
		})
	}
}

func TestParse_RefusesWhatIsNoManifest(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"nothing":                "",
		"a page":                 "<html>",
		"JSON of no kind":        `{"schemaVersion":2}`,
		"a list":                 `[]`,
		"the config of an image": `{"architecture":"amd64","config":{"Env":["A=b"]},"rootfs":{"type":"layers"}}`,
		"a reference to nothing": `{"schemaVersion":2,"layers":[{"digest":"sha256:1","size":1}]}`,
		"a negative size": `{"schemaVersion":2,"layers":[` +
			strings.Replace(some, `"size":1`, `"size":-1`, 1) + `]}`,
		"a size that no blob has": `{"schemaVersion":2,"layers":[` +
			strings.Replace(some, `"size":1`, `"size":9000000000000`, 1) + `]}`,
		"schema 1 without a real sum": `{"schemaVersion":1,"fsLayers":[{"blobSum":"md5:1"}]}`,
		"more than is taken": `{"schemaVersion":2,"layers":[],"annotations":{"a":"` +
			strings.Repeat("x", MaxSize) + `"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(raw))
			require.ErrorIs(t, err, ErrMalformed)
		})
	}
}

//nolint:paralleltest // it measures what the process allocates
func TestParse_ManyElementsDoNotExhaustTheMemory(t *testing.T) {
	for _, element := range []string{"{},", "0,"} {
		raw := []byte(`{"layers":[` + strings.Repeat(element, MaxSize/len(element)-100) + `{}]}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse(raw)
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, ErrMalformed)
		require.ErrorContains(t, err, "elements; at most 100000")
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
	}
}

func TestDistributable_IsWhatRegistriesGiveOut(t *testing.T) {
	t.Parallel()
	require.True(t, Distributable(v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip}))
	require.False(t, Distributable(v1.Descriptor{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}))
	require.False(t, Distributable(v1.Descriptor{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"}))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s]}`, some, some)))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":""}],"signatures":[null]}`))
	f.Add([]byte(`{"manifests":null,"blobs":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		require.NotEmpty(t, m.Type(""))
		for _, d := range append(m.Blobs(), m.Manifests...) {
			require.NoError(t, d.Digest.Validate())
			require.GreaterOrEqual(t, d.Size, int64(0))
		}
	})
}
