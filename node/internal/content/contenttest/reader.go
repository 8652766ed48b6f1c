// Package contenttest holds the suite that every implementation of content.Reader passes, and every fake of one.
package contenttest

import (
	"bytes"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Reader checks a reader of want, which must be of some bytes at least. Its bytes may still be arriving. open is called
// for each check, and the reader closed after it.
func Reader(t *testing.T, want []byte, open func(t *testing.T) content.Reader) {
	t.Helper()
	require.Greater(t, len(want), 3)
	for name, check := range checks(want) {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			check(t, r)
			require.NoError(t, r.Close())
		})
	}
}

func checks(want []byte) map[string]func(*testing.T, content.Reader) {
	size := int64(len(want))
	return map[string]func(*testing.T, content.Reader){
		"its size is known": func(t *testing.T, r content.Reader) { require.Equal(t, size, r.Size()) },
		"no more has arrived than there is": func(t *testing.T, r content.Reader) {
			require.GreaterOrEqual(t, r.Arrived(), int64(0))
			require.LessOrEqual(t, r.Arrived(), size)
			require.Equal(t, want, read(t, r, 0, size))
			require.LessOrEqual(t, r.Arrived(), size)
		},
		"ranges are read": func(t *testing.T, r content.Reader) {
			for _, at := range ranges(size) {
				require.Equal(t, want[at[0]:at[0]+at[1]], read(t, r, at[0], at[1]), "%d bytes at %d", at[1], at[0])
			}
		},
		"ranges are read at one time": func(t *testing.T, r content.Reader) {
			var all sync.WaitGroup
			for _, at := range slices.Concat(ranges(size), ranges(size)) {
				all.Go(func() {
					got, err := attempt(t, r, at[0], at[1])
					if err != nil || !bytes.Equal(want[at[0]:at[0]+at[1]], got) {
						t.Errorf("%d bytes at %d: %v", at[1], at[0], err)
					}
				})
			}
			all.Wait()
		},
		"a range is an io.Reader as others are": func(t *testing.T, r content.Reader) {
			n := min(size-2, 4<<10) // it is read by a few bytes at a time
			body, err := r.Range(t.Context(), 1, n)
			require.NoError(t, err)
			defer func() { require.NoError(t, body.Close()) }()
			require.NoError(t, iotest.TestReader(struct{ io.Reader }{body}, want[1:1+n]))
		},
		"a range is copied": func(t *testing.T, r content.Reader) {
			body, err := r.Range(t.Context(), 1, size-1)
			require.NoError(t, err)
			defer func() { require.NoError(t, body.Close()) }()
			var got bytes.Buffer
			n, err := io.Copy(&got, body) // by its WriteTo, if it has one
			require.NoError(t, err)
			require.Equal(t, size-1, n)
			require.Equal(t, want[1:], got.Bytes())
		},
		"one that is half read is closed": func(t *testing.T, r content.Reader) {
			body, err := r.Range(t.Context(), 0, size)
			require.NoError(t, err)
			_, err = io.ReadFull(body, make([]byte, size/2))
			require.NoError(t, err)
			require.NoError(t, body.Close())
			require.Equal(t, want[size-1:], read(t, r, size-1, 1), "others go on")
		},
		"what lies outside is an error": func(t *testing.T, r content.Reader) {
			for _, at := range [][2]int64{{-1, 1}, {0, -1}, {0, size + 1}, {size, 1}, {1, size}, {1 << 62, 1 << 62}} {
				_, err := attempt(t, r, at[0], at[1])
				require.Error(t, err, "%d bytes at %d", at[1], at[0])
			}
		},
	}
}

// ranges are offsets and lengths within size: the whole, its ends, nothing, and what crosses the bounds of chunks.
func ranges(size int64) [][2]int64 {
	list := [][2]int64{{0, size}, {0, 1}, {size - 1, 1}, {0, 0}, {size, 0}, {size / 2, 0}, {1, size - 2},
		{size / 3, size / 3}}
	for bound := int64(content.ChunkSize); bound < size; bound += content.ChunkSize {
		list = append(list, [2]int64{bound - 1, 2}, [2]int64{bound, min(3, size-bound)})
	}
	return list
}

func read(t *testing.T, r content.Reader, off, n int64) []byte {
	t.Helper()
	data, err := attempt(t, r, off, n)
	require.NoError(t, err, "%d bytes at %d", n, off)
	return data
}

func attempt(t *testing.T, r content.Reader, off, n int64) (data []byte, err error) {
	body, err := r.Range(t.Context(), off, n)
	if err != nil {
		return nil, err
	}
	data, err = io.ReadAll(body)
	if closed := body.Close(); err == nil {
		err = closed
	}
	if data == nil {
		data = []byte{}
	}
	return data, err
}
