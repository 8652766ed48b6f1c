package fetch

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// image adds a manifest of layers to o, in the order of their digests in list.
func (o *origin) image(t *testing.T, list ...digest.Digest) content.Request {
	t.Helper()
	return o.imageOf(t, "a/b", list...)
}

func (o *origin) imageOf(t *testing.T, repo string, list ...digest.Digest) content.Request {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON}
	for _, d := range list {
		m.Layers = append(m.Layers, ocispec.Descriptor{Digest: d, Size: int64(len(o.Blob(d)))})
	}
	data, err := json.Marshal(m)
	require.NoError(t, err)
	req := o.request(o.PushManifest(t, repo, "", m.MediaType, string(data)))
	req.Repository.Name, req.Kind = repo, content.Manifest
	return req
}

func TestReadAhead(t *testing.T) {
	t.Parallel()
	const unit = 100_000
	for name, c := range map[string]struct {
		sizes []int // of the layers, in units
		again int   // this layer stands at the end once more
		here  []int // layers that the store has
		asked int
		ahead []int // layers that come though nobody asks
	}{
		"goes as far as its bytes do": {sizes: []int{1, 1, 1, 1, 1, 1}, asked: 1,
			ahead: []int{2, 3, 4}},
		"ends with the image":            {sizes: []int{1, 1, 1}, asked: 1, ahead: []int{2}},
		"ends at a layer that is larger": {sizes: []int{1, 1, 9, 1}, asked: 0, ahead: []int{1}},
		"does not count what is here": {sizes: []int{1, 9, 1, 1, 1, 1}, here: []int{1, 2}, asked: 0,
			ahead: []int{3, 4, 5}},
		"goes on from what is here": {sizes: []int{1, 1, 1}, here: []int{0}, asked: 0,
			ahead: []int{1, 2}},
		"is of so many layers at a time":                {sizes: make([]int, 2+mostAhead), asked: 0, ahead: upTo(mostAhead)},
		"has nothing to do for the last":                {sizes: []int{1, 1}, asked: 1},
		"takes a layer once though it stands there two": {sizes: []int{1, 1, 1}, again: 1, asked: 1, ahead: []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			var layers []digest.Digest
			for _, size := range c.sizes {
				layers = append(layers, o.add(t, max(100, size*unit)))
			}
			list := slices.Clone(layers)
			if c.again > 0 {
				list = append(list, layers[c.again])
			}
			n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) { fo.ReadAhead = 3 * unit })
			require.NoError(t, n.Ensure(t.Context(), o.image(t, list...)))
			want := map[digest.Digest]bool{layers[c.asked]: true}
			for _, i := range c.here {
				require.NoError(t, n.Ensure(t.Context(), o.request(layers[i])))
				want[layers[i]] = true
			}
			for _, i := range c.ahead {
				want[layers[i]] = true
			}

			_, err := n.read(t.Context(), o.request(layers[c.asked]))
			require.NoError(t, err)
			begun := make(chan struct{}) // none ends before all have begun, or it could begin once more
			o.Spoil(func(http.ResponseWriter, *http.Request, []byte) bool { <-begun; return false })
			n.ReadAhead(o.request(layers[c.asked]))
			n.ReadAhead(o.request(layers[c.asked])) // as another caller
			eventually(t, "all is begun", func() bool {
				return n.metric(t, "shoal_fetches_ahead_total") == float64(len(c.ahead))
			})
			close(begun)
			eventually(t, "all is here", func() bool { return len(n.Running()) == 0 })
			held := map[digest.Digest]bool{}
			for _, d := range layers {
				if _, err := n.store.Stat(d); err == nil {
					held[d] = true
				}
			}
			require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(held)))
		})
	}
}

func upTo(n int) (list []int) {
	for i := range n {
		list = append(list, i+1)
	}
	return list
}

func TestReadAhead_FollowsNoManifestOfAnotherRepository(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	a, b, c := o.add(t, 1000), o.add(t, 1000), o.add(t, 1000)
	n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) { fo.ReadAhead = 32 << 20 })
	require.NoError(t, n.Ensure(t.Context(), o.image(t, a, b)))
	require.NoError(t, n.Ensure(t.Context(), o.imageOf(t, "c/d", a, c)))
	n.ReadAhead(o.request(a))
	eventually(t, "the next is here", func() bool { _, err := n.store.Stat(b); return err == nil })
	_, err := n.store.Stat(c)
	require.ErrorIs(t, err, content.ErrNotFound)
}

func TestReadAheadIsOffWhereItIsNotWanted(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	a, b := o.add(t, 1000), o.add(t, 1000)
	n := newNode(t, o, "n", nil)
	require.NoError(t, n.Ensure(t.Context(), o.image(t, a, b)))
	n.ReadAhead(o.request(a))
	require.Zero(t, n.metric(t, "shoal_fetches_ahead_total"))
}

func TestALayerThatIsReadAheadIsThereForWhoAsks(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	a, b := o.add(t, 3*content.ChunkSize), o.add(t, 3*content.ChunkSize+1)
	nodes := newSwarm(t, o, 4, func(_ int, fo *Options, _ *swarm.Options) { fo.ReadAhead = 32 << 20 })
	image := o.image(t, a, b)
	for _, n := range nodes {
		require.NoError(t, n.Ensure(t.Context(), image))
	}
	before := o.Bytes.Load()
	for _, n := range nodes {
		n.ReadAhead(o.request(a))
	}
	pullAll(t, nodes, o.request(b), 0)
	require.Equal(t, int64(3*content.ChunkSize+1), o.Bytes.Load()-before, "the registry gives it once")
}

func TestALayerThatCannotBeReadAheadIsAskedForAnew(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	a, b := o.add(t, 1000), o.add(t, 1000)
	image := o.image(t, a, b)
	data := o.Blob(b)
	o.Delete(b)
	n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) { fo.ReadAhead = 32 << 20 })
	require.NoError(t, n.Ensure(t.Context(), image))
	n.ReadAhead(o.request(a))
	eventually(t, "given up", func() bool {
		return n.metric(t, "shoal_fetches_ahead_total") == 1 && len(n.Running()) == 0
	})
	o.Add(data)
	got, err := n.read(t.Context(), o.request(b))
	require.NoError(t, err)
	require.Equal(t, data, got)
}
