package hub

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// plain is a reader of bytes.
type plain []byte

func (p plain) Size() int64    { return int64(len(p)) }
func (p plain) Arrived() int64 { return int64(len(p)) }
func (p plain) Close() error   { return nil }

func (p plain) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p[off : off+n])), nil
}

func TestEnding_DoesNotEndWellAfterBytesThatTheDigestDoesNotCover(t *testing.T) {
	t.Parallel()
	right := bytes.Repeat([]byte("right "), 1000)
	wrong := bytes.Clone(right)
	wrong[len(wrong)-endSize-1] ^= 1
	size := int64(len(right))
	off := size - 1000
	read := func(given *early, before []byte, off int64) ([]byte, error) {
		e := &ending{plain(before), func() (content.Reader, error) { return plain(right), nil }, given}
		body, err := e.Range(t.Context(), off, size-off)
		if err != nil {
			return nil, err
		}
		defer func() { require.NoError(t, body.Close()) }()
		return io.ReadAll(body)
	}
	t.Run("right bytes are given whole", func(t *testing.T) {
		t.Parallel()
		data, err := read(newEarly(), right, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(right[off:], data))
	})
	t.Run("wrong ones before the end are not followed by it", func(t *testing.T) {
		t.Parallel()
		data, err := read(newEarly(), wrong, off)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
		require.Less(t, int64(len(data)), size-off)
	})
	t.Run("nor where the answer was opened anew at its end", func(t *testing.T) {
		t.Parallel()
		given := newEarly()
		require.NoError(t, given.follows(off))
		_, err := given.Write(wrong[off : size-endSize])
		require.NoError(t, err)
		_, err = read(given, right, size-endSize)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
	})
	t.Run("nor where it was opened anew at another place", func(t *testing.T) {
		t.Parallel()
		given := newEarly()
		require.NoError(t, given.follows(off))
		_, err := given.Write(right[off : off+10])
		require.NoError(t, err)
		_, err = read(given, right, off+20)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
	})
}
