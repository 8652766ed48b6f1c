package hub

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"testing/iotest"

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
		data, err := read(new(early), right, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(right[off:], data))
	})
	t.Run("wrong ones before the end are not followed by it", func(t *testing.T) {
		t.Parallel()
		data, err := read(new(early), wrong, off)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
		require.Less(t, int64(len(data)), size-off)
	})
	t.Run("nor where the answer was opened anew at its end", func(t *testing.T) {
		t.Parallel()
		given := new(early)
		require.NoError(t, given.follows(off))
		_, err := given.Write(wrong[off : size-endSize])
		require.NoError(t, err)
		_, err = read(given, right, size-endSize)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
	})
	t.Run("nor where it was opened anew at another place", func(t *testing.T) {
		t.Parallel()
		given := new(early)
		require.NoError(t, given.follows(off))
		_, err := given.Write(right[off : off+10])
		require.NoError(t, err)
		_, err = read(given, right, off+20)
		require.ErrorIs(t, err, content.ErrDigestMismatch)
	})
}

// onItsWay is a reader of bytes whose digest is not known yet. It breaks off in the middle of what is read of it.
type onItsWay struct{ plain }

func (o onItsWay) Arrived() int64 { return 0 }

func (o onItsWay) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := o.plain.Range(ctx, off, n/2)
	return &joined{io.MultiReader(body, iotest.ErrReader(content.ErrUnavailable)), []io.Closer{body}}, err
}

// anew opens what is on its way, and what is here after it.
type anew struct {
	Fetcher
	onItsWay
	here   plain
	opened bool
}

func (a *anew) Open(context.Context, content.Request) (content.Reader, error) {
	if a.opened {
		return a.here, nil
	}
	a.opened = true
	return a.onItsWay, nil
}

// inBothWays has a test read one large file: as a file of the hub, and by its URL.
func inBothWays(t *testing.T, test func(where, path string, a *agent, data []byte)) {
	t.Helper()
	h, host := newHub(t), newFileHost(t)
	_, _, files := model(h, "org/m")
	data := read(t, files[large].Data)
	for where, path := range map[string]string{
		"of the hub": resolve("org/m", "main", large), "by URL": host.put("/weights.bin", data),
	} {
		a := newAgent(t, h, "", nil, host.URL)
		a.allow(t, host.URL+"/")
		test(where, path, a, data)
	}
}

func TestStream_AnAnswerThatIsOpenedAnewDoesNotEndWellAfterWrongBytes(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]bool{"right bytes before": false, "a wrong byte before": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBothWays(t, func(where, path string, a *agent, data []byte) {
				before := bytes.Clone(data)
				if wrong {
					before[100] ^= 1
				}
				a.opts.Fetcher = &anew{Fetcher: a.opts.Fetcher, onItsWay: onItsWay{before}, here: data}
				g := a.ask(t, http.MethodGet, path)
				require.Equal(t, wrong, g.err != nil, "%s: %v", where, g.err)
				require.Equal(t, !wrong, bytes.Equal(data, g.body), where)
			})
		})
	}
}

// breaking opens a file whose first reader breaks off, and notes who asks for a part.
type breaking struct {
	Fetcher
	plain
	parts []bool
}

func (b *breaking) Open(_ context.Context, req content.Request) (content.Reader, error) {
	b.parts = append(b.parts, req.Part)
	return b, nil
}

func (b *breaking) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if len(b.parts) > 1 {
		return b.plain.Range(ctx, off, n)
	}
	body, err := b.plain.Range(ctx, off, n/2)
	return &joined{io.MultiReader(body, iotest.ErrReader(content.ErrUnavailable)), []io.Closer{body}}, err
}

func TestStream_AnAnswerThatHasAllOfAFileIsNoPartWhateverWasAskedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		headers []string
		part    bool
	}{
		"a suffix":                      {[]string{"Range", "bytes=-1000"}, true},
		"a suffix longer than the file": {[]string{"Range", "bytes=-99999999"}, false},
		"a suffix of another file":      {[]string{"Range", "bytes=-1000", "If-Range", `"other"`}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBothWays(t, func(where, path string, a *agent, data []byte) {
				b := &breaking{Fetcher: a.opts.Fetcher, plain: data}
				a.opts.Fetcher = b
				g := a.ask(t, http.MethodGet, path, c.headers...)
				require.NoError(t, g.err, where)
				require.True(t, bytes.HasSuffix(data, g.body), where)
				require.Len(t, b.parts, 2, where)
				require.Equal(t, c.part, b.parts[1], where)
			})
		})
	}
}
