package gate_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// cache holds one content.
type cache []byte

func (c cache) Held(d digest.Digest) (content.Reader, error) {
	if d != digest.FromBytes(c) {
		return nil, content.ErrNotFound
	}
	return c, nil
}

func (c cache) FromPeers(context.Context, digest.Digest) (content.Reader, error) {
	return nil, content.ErrNotFound
}
func (c cache) Size() int64    { return int64(len(c)) }
func (c cache) Arrived() int64 { return int64(len(c)) }
func (c cache) Close() error   { return nil }
func (c cache) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(c), off, n)), nil
}

func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data) // it never fails
	return data
}

// Whoever fetches from a host of his own chooses what it gives as a blob, and the digest shows only afterwards that it
// was not all of it.
func TestGate_AFewGuessedBytesAreNoProof(t *testing.T) {
	t.Parallel()
	layer, small := random(3<<20), random(700)
	archive := append(make([]byte, 1<<20), layer...)
	for name, test := range map[string]struct {
		content, given []byte
		off            int64
		proved         bool
	}{
		"the first bytes, which all archives have, as if that were all": {content: layer, given: layer[:4]},
		"the first KiB":                    {content: layer, given: layer[:1024]},
		"the last KiB":                     {content: layer, given: layer[3<<20-1024:], off: 3<<20 - 1024},
		"many zeros of an archive":         {content: archive, given: archive[:1<<20]},
		"a part of small content":          {content: small, given: small[:600]},
		"small content":                    {content: small, given: small, proved: true},
		"a piece":                          {content: layer, given: layer[1<<20 : 2<<20], off: 1 << 20, proved: true},
		"all":                              {content: layer, given: layer, proved: true},
		"all of an archive that has zeros": {content: archive[1<<20-10:], given: archive[1<<20-10:], proved: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := gate.New(gate.Options{Cache: cache(test.content), Timeout: time.Second})
			require.NoError(t, err)
			defer g.Close()
			req := content.Request{
				Repository: content.Repository{Registry: "evil.test", Name: "a/b"},
				Digest:     digest.FromBytes(test.content),
			}
			body := g.Given(gate.Repository(req.Repository), req.Digest, io.NopCloser(bytes.NewReader(test.given)),
				test.off, int64(len(test.given)))
			_, err = io.Copy(io.Discard, body)
			require.NoError(t, err)
			require.Equal(t, test.proved, g.Proved(req))
		})
	}
}

// startOnly does not know Range: it gives so much of the start.
type startOnly []byte

func (s startOnly) Ask(context.Context) error          { return nil }
func (s startOnly) AskForAnyone(context.Context) error { return nil }
func (s startOnly) Whole() bool                        { return false }
func (s startOnly) Arrived() int64                     { return 0 }
func (s startOnly) Sample(context.Context, int64, int64) ([]byte, int64, error) {
	return s, 0, nil
}

func TestGate_ASourceWithoutRangeGivesMoreThanAnyoneKnows(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	for name, test := range map[string]struct {
		gives  []byte
		admits bool
	}{
		"1 KiB":                 {gives: layer[:1<<10]},
		"64 KiB":                {gives: layer[:64<<10], admits: true},
		"64 KiB of other bytes": {gives: layer[1 : 64<<10+1]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: cache(layer), Timeout: time.Second})
				require.NoError(t, err)
				defer g.Close()
				err = g.Admit(t.Context(), policy.Rule{}, gate.Request{
					Source: "oci r.test/a", Digest: digest.FromBytes(layer), Upstream: startOnly(test.gives),
				})
				require.Equal(t, test.admits, err == nil, "%v", err)
			})
		})
	}
}
