package store

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// arriveAndDie writes every chunk of b and ends as a killed process does. It returns the store's directory.
func arriveAndDie(t *testing.T, b sample) string {
	t.Helper()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	g := ingest(t, s, b)
	for i := range b.chunks() {
		write(t, g, b, i)
	}
	kill(s)
	return path
}

func TestFinish_ABlobThatHadArrivedIsCommittedAtTheNextStart(t *testing.T) {
	t.Parallel()
	for name, boot := range map[string]string{"after a kill": "", "after a loss of power": "an earlier boot\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newSample(1, 3*chunkSize+5)
			path := arriveAndDie(t, b)
			if boot != "" {
				require.NoError(t, os.WriteFile(path+"/"+lockName, []byte(boot), 0o600))
			}
			committed := make(chan Event, 1)
			s := openTest(t, Options{Path: path, OnEvent: func(ev Event) { committed <- ev }})
			select {
			case ev := <-committed:
				require.Equal(t, Committed, ev.Type)
				require.Equal(t, b.digest, ev.Info.Digest)
			case <-time.After(time.Minute):
				t.Fatal("nothing was committed")
			}
			requireHas(t, s, b)
			requireBlocks(t, s, b)
			require.Equal(t, b.size(), s.SizeOf(b.digest, Source{}))
			require.NoFileExists(t, flat(s.ingestDir, b.digest))
		})
	}
}

func TestFinish_WhoAsksMeanwhileHasTheBlobOrItsChunks(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize)
	for range 20 {
		s := openTest(t, Options{Path: arriveAndDie(t, b)})
		g, err := s.Ingest(b.digest, b.size(), Origin{})
		if err == nil {
			require.True(t, g.Complete())
			require.NoError(t, g.Commit(t.Context(), ""))
			require.NoError(t, g.Close())
		} else {
			require.ErrorIs(t, err, ErrExists)
		}
		requireHas(t, s, b)
		require.NoError(t, s.Close())
	}
}

func TestFinish_ChunksThatAreNotTheBlobsAreDropped(t *testing.T) {
	t.Parallel()
	b, other := newSample(1, 2*chunkSize), newSample(2, 2*chunkSize)
	path := arriveAndDie(t, sample{data: other.data, digest: b.digest})
	s := openTest(t, Options{Path: path})
	require.Eventually(t, func() bool { return s.SizeOf(b.digest, Source{}) == 0 }, time.Minute, time.Millisecond)
	_, err := s.Get(b.digest)
	require.ErrorIs(t, err, content.ErrNotFound)
}

func TestFinish_AnIncompleteIngestStaysAndIsOfAKnownSize(t *testing.T) {
	t.Parallel()
	b := newSample(1, 3*chunkSize)
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	g := ingest(t, s, b)
	write(t, g, b, 0, 2)
	kill(s)
	s = openTest(t, Options{Path: path})
	require.Equal(t, b.size(), s.SizeOf(b.digest, Source{}))
	g = ingest(t, s, b)
	require.Equal(t, bits(0, 2), presentIn(g))
	require.NoError(t, g.Close())
}
