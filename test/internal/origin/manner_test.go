package origin_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/origin"
)

const mib = 1 << 20

// odd serves an image of one layer of 3 MiB in a manner.
func odd(t *testing.T, m origin.Manner) (layer digest.Digest, content []byte, server *origin.Server, h http.Handler) {
	t.Helper()
	dir := t.TempDir()
	image, err := origin.Write(dir, "bench/image", "v1", []origin.Layer{{Seed: 1, Size: 3 * mib}})
	require.NoError(t, err)
	layer = image.Manifest.Layers[0].Digest
	content, err = os.ReadFile(origin.BlobPath(dir, layer))
	require.NoError(t, err)
	server = origin.NewServer(dir)
	h, err = origin.With(m, server)
	require.NoError(t, err)
	return layer, content, server, h
}

// get asks for the bytes of a blob from first to before end; for all where end is 0.
func get(t *testing.T, h http.Handler, w http.ResponseWriter, blob digest.Digest, first, end int64) {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/bench/image/blobs/"+blob.String(), nil)
	if end > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, end-1))
	}
	h.ServeHTTP(w, request)
}

func TestARegistryWithoutRangeGivesTheWholeAndCountsIt(t *testing.T) {
	t.Parallel()
	layer, content, server, h := odd(t, origin.NoRange)
	answer := httptest.NewRecorder()
	get(t, h, answer, layer, mib, 2*mib)
	require.Equal(t, http.StatusOK, answer.Code)
	require.Empty(t, answer.Header().Get("Accept-Ranges"))
	require.True(t, bytes.Equal(content, answer.Body.Bytes()))
	require.EqualValues(t, len(content), server.Stats().Bytes)
}

func TestALyingRegistryIsRightWhenAskedAnew(t *testing.T) {
	t.Parallel()
	layer, content, _, h := odd(t, origin.Lying)
	wrong := func(first, end int64) (at []int64) {
		answer := httptest.NewRecorder()
		get(t, h, answer, layer, first, end)
		for i, b := range answer.Body.Bytes() {
			if b != content[first+int64(i)] {
				at = append(at, first+int64(i))
			}
		}
		return at
	}
	require.Empty(t, wrong(0, 0), "the whole is right")
	require.Equal(t, []int64{mib}, wrong(mib/2, 2*mib))
	require.Empty(t, wrong(mib/2, 2*mib), "it is right when it is sent once more")
	require.Equal(t, []int64{0, 2 * mib}, wrong(0, 3*mib), "what was not sent yet is wrong still")
	require.Empty(t, wrong(0, 3*mib))
}

// slow is a client that takes nothing for a while.
type slow struct {
	*httptest.ResponseRecorder
	stops time.Duration
}

func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(s.stops) // of the bubble
	s.stops = 0
	return s.ResponseRecorder.Write(b)
}

func TestAnObjectStoreGivesAConnectionTwoMiBASecondAfterFiftyMilliseconds(t *testing.T) {
	t.Parallel()
	layer, content, _, h := odd(t, origin.ObjectStore)
	for sentence, c := range map[string]struct{ stops, want time.Duration }{
		"a client that reads":                           {0, 550 * time.Millisecond},
		"what a client did not take is not given later": {10 * time.Second, 10500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, answer := time.Now(), &slow{httptest.NewRecorder(), c.stops}
			get(t, h, answer, layer, mib, 2*mib)
			require.InDelta(t, c.want.Seconds(), time.Since(began).Seconds(), 0.06, sentence)
			require.True(t, bytes.Equal(content[mib:2*mib], answer.Body.Bytes()), sentence)
		})
	}
}

func TestAMannerThatThereIsNotIsRefused(t *testing.T) {
	t.Parallel()
	_, err := origin.With("rude", origin.NewServer(t.TempDir()))
	require.ErrorContains(t, err, "rude")
}
