package store

import (
	"bytes"
	"os"
	"testing"

	"github.com/ipfs/boxo/blockservice"
	offline "github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestAnyIPFSReaderReadsABlobByItsRoot(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	for name, size := range map[string]int{"one chunk": 1000, "some chunks": 5*chunkSize + 3} {
		t.Run(name, func(t *testing.T) {
			b := newSample(uint64(size), size)
			put(t, s, b)
			info, err := s.Stat(b.digest)
			require.NoError(t, err)
			bs := s.Blockstore()
			dag := merkledag.NewDAGService(blockservice.New(bs, offline.Exchange(bs)))
			root, err := dag.Get(t.Context(), info.Root)
			require.NoError(t, err)
			var got []byte
			require.ErrorIs(t, ipld.NewWalker(t.Context(), ipld.NewNavigableIPLDNode(root, dag)).Iterate(
				func(n ipld.NavigableNode) error {
					if leaf, ok := ipld.ExtractIPLDNode(n).(*merkledag.RawNode); ok {
						got = append(got, leaf.RawData()...)
					}
					return nil
				}), ipld.EndOfDag)
			require.True(t, bytes.Equal(b.data, got))
		})
	}
}

func TestBlocksThatAreNotHere(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 3*chunkSize)
	put(t, s, b)
	bs := s.Blockstore()
	whole, err := content.DigestCID(b.digest)
	require.NoError(t, err)
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	sha512, err := content.DigestCID(digest.SHA512.FromString("x"))
	require.NoError(t, err)
	for name, c := range map[string]cid.Cid{
		"a blob of many chunks as one block": whole,
		"never heard of":                     content.ChunkCID([]byte("nowhere")),
		"a chunk said to be a node":          cid.NewCidV1(cid.DagProtobuf, m.CID(0).Hash()),
		"another codec":                      cid.NewCidV1(cid.DagCBOR, m.CID(0).Hash()),
		"another hash":                       sha512,
	} {
		t.Run(name, func(t *testing.T) {
			has, err := bs.Has(t.Context(), c)
			require.NoError(t, err)
			require.False(t, has)
			_, err = bs.Get(t.Context(), c)
			require.True(t, ipld.IsNotFound(err), err)
			_, err = bs.GetSize(t.Context(), c)
			require.True(t, ipld.IsNotFound(err), err)
		})
	}
}

func TestBlockSizesAndKeys(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b, arriving := newSample(1, 2*chunkSize+5), newSample(2, 2*chunkSize)
	put(t, s, b)
	g := ingest(t, s, arriving)
	write(t, g, arriving, 1)
	bs := s.Blockstore()
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	root, inner, err := m.DAG()
	require.NoError(t, err)
	want := map[cid.Cid]int{
		m.CID(0): chunkSize, m.CID(1): chunkSize, m.CID(2): 5, root: len(inner[0].RawData()), g.CID(1): chunkSize,
	}
	pieces := m.Pieces()
	for i := range pieces.Len() {
		_, n := pieces.Cut().Range(i)
		want[pieces.CID(i)] = int(n)
	}
	for c, n := range want {
		size, err := bs.GetSize(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, n, size)
	}
}

func TestBlocksCannotBeWritten(t *testing.T) {
	t.Parallel()
	bs := openTest(t, Options{}).Blockstore()
	b := blocks.NewBlock([]byte("x"))
	require.ErrorIs(t, bs.Put(t.Context(), b), ErrReadOnly)
	require.ErrorIs(t, bs.PutMany(t.Context(), []blocks.Block{b}), ErrReadOnly)
	require.ErrorIs(t, bs.DeleteBlock(t.Context(), b.Cid()), ErrReadOnly)
}

func TestAChunkOfSeveralBlobsStaysWhileOneOfThemDoes(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 2*chunkSize)
	b := sampleOf(append(bytes.Clone(a.chunk(0)), 1))
	put(t, s, a)
	put(t, s, b)
	c := content.ChunkCID(a.chunk(0))
	for _, d := range []digest.Digest{a.digest, b.digest} {
		block, err := s.Blockstore().Get(t.Context(), c)
		require.NoError(t, err)
		require.True(t, bytes.Equal(a.chunk(0), block.RawData()))
		require.NoError(t, s.Delete(d))
	}
	has, err := s.Blockstore().Has(t.Context(), c)
	require.NoError(t, err)
	require.False(t, has)
}

func TestADamagedSmallBlockIsNotServed(t *testing.T) {
	t.Parallel()
	var events recorder
	s := openTest(t, Options{OnEvent: events.add})
	b := newSample(1, 1000)
	put(t, s, b)
	flipByte(t, s.blobPath(b.digest), 500)
	_, err := s.Blockstore().Get(t.Context(), content.ChunkCID(b.data))
	require.True(t, ipld.IsNotFound(err), err)
	requireGone(t, s, b)
	require.Equal(t, []EventType{Committed, Removed}, events.types(b.digest))
	put(t, s, b)
	requireHas(t, s, b)
}

func flipByte(t testing.TB, path string, off int64) {
	t.Helper()
	require.NoError(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	require.NoError(t, err)
	b[0] ^= 0x40
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
}
