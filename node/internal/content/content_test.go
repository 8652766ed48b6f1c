package content

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"testing"

	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag/test"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func mapOf(t testing.TB, data []byte) *ChunkMap {
	t.Helper()
	m, err := NewChunkMap(CutLeaves(int64(len(data))))
	require.NoError(t, err)
	for i := range m.Len() {
		off, n := CutLeaves(m.Size()).Range(i)
		require.NoError(t, m.Set(i, ChunkCID(data[off:off+n])))
	}
	return m
}

// The root must be the one that boxo's own importer gives for the profile, so that any IPFS client agrees.
func TestDAGIsThatOfTheUnixFSImporter(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{
		"empty": 0, "one byte": 1, "one chunk": ChunkSize, "one byte more than a chunk": ChunkSize + 1,
		"a few chunks": 5*ChunkSize + 17,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := make([]byte, size)
			_, _ = rand.Read(data)
			root, inner, err := mapOf(t, data).DAG()
			require.NoError(t, err)

			dag := mdutils.Mock()
			params := helpers.DagBuilderParams{
				Maxlinks: dagWidth, RawLeaves: true, Dagserv: dag,
				CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256},
			}
			builder, err := params.New(chunker.NewSizeSplitter(bytes.NewReader(data), ChunkSize))
			require.NoError(t, err)
			want, err := balanced.Layout(builder)
			require.NoError(t, err)
			require.Equal(t, want.Cid(), root)
			for _, b := range inner {
				got, err := dag.Get(context.Background(), b.Cid())
				require.NoError(t, err)
				require.Equal(t, got.RawData(), b.RawData())
			}
		})
	}
}

// Two levels of inner nodes need more than 1024 chunks, so this one splits made-up leaves instead of a GiB of data.
func TestDAGOfTwoLevelsHasFullNodesFirst(t *testing.T) {
	t.Parallel()
	m, err := NewChunkMap(CutLeaves(1025 * ChunkSize))
	require.NoError(t, err)
	for i := range m.Len() {
		require.NoError(t, m.Set(i, ChunkCID([]byte{byte(i), byte(i >> 8)})))
	}
	_, inner, err := m.DAG()
	require.NoError(t, err)
	require.Len(t, inner, 3, "a node of 1024 leaves, a node of 1, and the root")
}

func TestChunkMapSurvivesEncoding(t *testing.T) {
	t.Parallel()
	data := make([]byte, 3*ChunkSize+5)
	_, _ = rand.Read(data)
	m := mapOf(t, data)
	b, err := m.MarshalBinary()
	require.NoError(t, err)
	var got ChunkMap
	require.NoError(t, got.UnmarshalBinary(b))
	require.Equal(t, m, &got)
	require.True(t, got.Complete())
}

func FuzzChunkMapUnmarshal(f *testing.F) {
	m, _ := NewChunkMap(CutLeaves(ChunkSize + 1))
	good, _ := m.MarshalBinary()
	f.Add(good)
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m ChunkMap
		if m.UnmarshalBinary(b) != nil {
			return
		}
		again, err := m.MarshalBinary()
		require.NoError(t, err)
		var twice ChunkMap
		require.NoError(t, twice.UnmarshalBinary(again))
		require.Equal(t, m, twice)
	})
}

func TestDigestAndCIDNameTheSameContent(t *testing.T) {
	t.Parallel()
	data := []byte("one chunk")
	for name, d := range map[string]digest.Digest{
		"sha256": digest.SHA256.FromBytes(data), "sha512": digest.SHA512.FromBytes(data),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := DigestCID(d)
			require.NoError(t, err)
			back, err := CIDDigest(c)
			require.NoError(t, err)
			require.Equal(t, d, back)
		})
	}
	c, err := DigestCID(digest.SHA256.FromBytes(data))
	require.NoError(t, err)
	require.Equal(t, ChunkCID(data), c, "a blob of one chunk is named by its own digest")
}

func TestDigestCIDRefusesWhatNamesNothing(t *testing.T) {
	t.Parallel()
	for _, d := range []digest.Digest{"", "sha256:xyz", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha384:00"} {
		_, err := DigestCID(d)
		require.Error(t, err, d)
	}
}

// A multihash may hold less than the whole hash, and peers may send any CID.
func TestCIDDigestRefusesWhatNamesNothing(t *testing.T) {
	t.Parallel()
	sum := make([]byte, 32)
	for name, c := range map[string]cid.Cid{
		"nothing at all":   cid.Undef,
		"a truncated hash": cid.NewCidV1(cid.Raw, must(mh.Encode(sum[:20], mh.SHA2_256))),
		"another hash":     cid.NewCidV1(cid.Raw, must(mh.Encode(sum, mh.BLAKE3))),
		"another codec":    cid.NewCidV1(cid.DagProtobuf, must(mh.Encode(sum, mh.SHA2_256))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := CIDDigest(c)
			require.Error(t, err)
			require.Error(t, new(ChunkMap).Set(0, c))
		})
	}
}

func must(h mh.Multihash, err error) mh.Multihash {
	if err != nil {
		panic(err)
	}
	return h
}

func TestVerifierEndsCleanlyOnlyForTheRightBytes(t *testing.T) {
	t.Parallel()
	data := []byte("right")
	d := digest.FromBytes(data)
	got, err := io.ReadAll(NewVerifier(bytes.NewReader(data), d, 5))
	require.NoError(t, err)
	require.Equal(t, data, got)
	for name, wrong := range map[string]string{"other bytes": "wrong", "too short": "righ", "too long": "right!"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := io.ReadAll(NewVerifier(bytes.NewReader([]byte(wrong)), d, 5))
			require.ErrorIs(t, err, ErrDigestMismatch)
		})
	}
}
