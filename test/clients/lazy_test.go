package clients

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/layer"
)

// The lazy snapshotter stargz mounts an image that is not there and reads a file of it by Ranges, for which only the
// chunks that hold it come from the registry. The next node takes those from the first, and the rest from wherever it
// is.
func TestALazySnapshotterReadsThroughAgents(t *testing.T) { //nolint:paralleltest // it counts what the one registry sends
	program(t, "stargz")
	needsRoot(t)
	registry := startRegistry(t, "images.test", nil)
	agents := startAgents(t, registry, "", "")
	img := registry.pushStargz(t, unique(), map[string]int{"large": 24 * mib, "small": 100_000, "other": 3 * mib})

	before := registry.sent.Load()
	ranges := agents[0].metric(t, "shoal_registry_requests_total", "kind", "blob", "code", "206")
	first := mountLazily(t, agents[0], img)
	first.requireFile(t, img, "small")
	cold := registry.sent.Load() - before
	ranges = agents[0].metric(t, "shoal_registry_requests_total", "kind", "blob", "code", "206") - ranges
	require.Positive(t, ranges, "the snapshotter did not ask for Ranges")
	require.Less(t, cold, img.size/2, "the registry sent what nobody has read")
	t.Logf("a file of %d bytes in an image of %d: %d requests for Ranges, %d bytes from the registry",
		len(img.files["small"]), img.size, ranges, cold)

	before = registry.sent.Load()
	second := mountLazily(t, agents[1], img)
	second.requireFile(t, img, "small")
	require.Zero(t, registry.sent.Load()-before, "the registry sent chunks that an agent has")
	t.Logf("the same on the second node: %d bytes from peers", agents[1].metric(t, "shoal_peer_received_bytes_total"))
	for name := range img.files {
		second.requireFile(t, img, name)
		first.requireFile(t, img, name)
	}
	require.LessOrEqual(t, float64(registry.sent.Load()), 1.05*float64(img.size),
		"the registry sent more than one copy")
}

// pushStargz pushes an image with one layer in the eStargz format, with random files of these sizes.
func (r *registry) pushStargz(t *testing.T, repository string, sizes map[string]int) image {
	t.Helper()
	files := map[string][]byte{}
	for name, size := range sizes {
		files[name] = randomBytes(size)
	}
	raw := layer.Archive(t, files)
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))))
	require.NoError(t, err)
	defer blob.Close()
	compressed, err := io.ReadAll(blob)
	require.NoError(t, err)
	return r.pushLayers(t, repository, files, mutate.Addendum{
		Layer:       static.NewLayer(compressed, types.OCILayer),
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: blob.TOCDigest().String()},
	})
}

// lazyMount is where an image's files can be read.
type lazyMount string

// mountLazily starts a containerd with the snapshotter stargz, pulls the image through the agent and mounts it.
func mountLazily(t *testing.T, a *agent, img image) lazyMount {
	t.Helper()
	dir := shortDir(t)
	socket := filepath.Join(dir, "stargz.sock")
	hosts := a.installMirror(t, "containerd", img.registry.host, "etc/containerd/certs.d")
	start(t, nil, func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return c.Close()
	}, program(t, "stargz"), socket, filepath.Join(dir, "root"), hosts)

	c := startContainerd(t, program(t, "containerd"), program(t, "ctr"), transfer("stargz", nil),
		map[string]any{"stargz": map[string]any{
			"type": "snapshot", "address": socket,
			// It is told which layers it is to mount.
			"exports": map[string]any{"enable_remote_snapshot_annotations": "true"},
		}})
	require.NoError(t, c.pull(t, a, img, "", "stargz"))
	mount := filepath.Join(dir, "mount")
	require.NoError(t, os.Mkdir(mount, 0o700))
	require.NoError(t, tryRun(t, nil, c.ctr, "--address="+c.socket, "images", "mount", "--snapshotter=stargz",
		img.reference(), mount))
	return lazyMount(mount)
}

func (m lazyMount) requireFile(t *testing.T, img image, name string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(string(m), name))
	require.NoError(t, err)
	require.True(t, bytes.Equal(img.files[name], got), "%s is another file", name)
}
