package fetch

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// What Open gives, whether it is here, arrives, or finds no room.
func TestReader_PassesTheSuiteOfReaders(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits store.Limits
		before func(t *testing.T, n *testNode, req content.Request)
	}{
		"arriving": {},
		"held": {before: func(t *testing.T, n *testNode, req content.Request) {
			n.pull(t.Context(), req).requireRight(t, req.Digest)
		}},
		"passed through": {limits: store.Limits{Capacity: chunk1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 2*chunk1+10)
			n := newNodeOn(t, o, "n", nil, store.Options{Path: t.TempDir(), Limits: c.limits})
			if c.before != nil {
				c.before(t, n, o.request(d))
			}
			contenttest.Reader(t, o.Blob(d), func(t *testing.T) content.Reader {
				r, err := n.Open(t.Context(), o.request(d))
				require.NoError(t, err)
				return r
			})
		})
	}
}
