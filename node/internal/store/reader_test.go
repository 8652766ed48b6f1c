package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

func TestBlob_IsAReader(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 2*chunkSize+77)
	put(t, s, b)
	contenttest.Reader(t, b.data, func(t *testing.T) content.Reader {
		blob, err := s.Get(b.digest)
		require.NoError(t, err)
		return blob
	})
}
