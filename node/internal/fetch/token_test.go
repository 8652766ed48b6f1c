package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// tokens is what an origin wants to see before it gives anything out. Each is good for a number of requests, in place
// of the minutes that they live in truth.
type tokens struct {
	public bool // anyone gets tokens that are good for something
	life   int  // requests

	mu      sync.Mutex
	left    map[string]int // requests, by header
	refused int            // requests for bytes
}

// giveTokens makes an origin want tokens. To be called before nodes ask it.
func (o *origin) giveTokens(life int, public bool) *tokens {
	o.tokens = &tokens{public: public, life: life, left: map[string]int{}}
	return o.tokens
}

// give gives out a token, as an Authorization header.
func (k *tokens) give(life int) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	header := fmt.Sprintf("Bearer %d", len(k.left))
	k.left[header] = life
	return header
}

func (k *tokens) admit(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		life := 0
		if k.public {
			life = 1 << 20
		}
		_, _ = fmt.Fprintf(w, `{"token":%q}`, k.give(life)[len("Bearer "):])
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if header := r.Header.Get("Authorization"); k.left[header] > 0 {
		k.left[header]--
		return true
	}
	if r.URL.Path != "/v2/" {
		k.refused++
	}
	w.Header().Set("WWW-Authenticate",
		`Bearer realm="http://`+r.Host+`/token",service="images.test",error="invalid_token"`)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// resuming reads a blob as containerd does: where the bytes end early it asks for the rest, and where it is refused it
// gets a new token. It gives the number of tokens that it took.
func (n *testNode) resuming(ctx context.Context, o *origin, d digest.Digest) (data []byte, took int, err error) {
	req := o.request(d)
	for ; took < 50; took++ {
		req.Authorization = o.tokens.give(o.tokens.life)
		for {
			var part []byte
			part, err = n.readFrom(ctx, req, int64(len(data)))
			data = append(data, part...)
			if err == nil {
				return data, took + 1, nil
			}
			if len(part) == 0 {
				break
			}
		}
		if !content.Denied(err) {
			return data, took, err
		}
	}
	return data, took, errors.New("no end of it")
}

// readFrom reads the rest of a blob.
func (n *testNode) readFrom(ctx context.Context, req content.Request, off int64) ([]byte, error) {
	r, err := n.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	body, err := r.Range(ctx, off, r.Size()-off)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return io.ReadAll(body)
}

func TestATokenThatExpiresInTheMiddleOfAPull(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 5
	for name, c := range map[string]struct {
		nodes  int
		public bool
	}{
		"of a public blob by one node":       {1, true},
		"of a public blob by several nodes":  {3, true},
		"of a private blob by one node":      {1, false},
		"of a private blob by several nodes": {3, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			k := o.giveTokens(2, c.public)
			nodes := newSwarm(t, o, c.nodes)
			var wg sync.WaitGroup
			took, errs, sums := make([]int, len(nodes)), make([]error, len(nodes)), make([]digest.Digest, len(nodes))
			for i, n := range nodes {
				wg.Go(func() {
					var data []byte
					data, took[i], errs[i] = n.resuming(t.Context(), o, d)
					sums[i] = digest.FromBytes(data)
				})
			}
			wg.Wait()
			t.Logf("tokens %v, %.2f copies in %d requests, %d refused", took, float64(o.bytes.Load())/size,
				o.requests.Load(), k.refused)
			for i := range nodes {
				require.NoError(t, errs[i])
				require.Equal(t, d, sums[i])
				if c.public {
					require.Equal(t, 1, took[i], "the caller notices nothing")
				}
			}
			require.LessOrEqual(t, float64(o.bytes.Load())/size, 1.3)
		})
	}
}

func TestAFetchGoesOnWithTheTokenOfAnyOfItsCallers(t *testing.T) {
	t.Parallel()
	for name, lives := range map[string][]int{
		"the first":                    {1 << 20, 2},
		"the last":                     {2, 1 << 20},
		"the first, where it has none": {1 << 20, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 24*chunk1)
			k := o.giveTokens(0, false)
			v := newValve(t, o, 0)
			n := newNode(t, o, "n", nil, patient(t, o))
			req := o.request(d)
			req.Size = 24 * chunk1 // as the manifest has told
			var pulls []*pull
			for i, life := range lives {
				req.Authorization = k.give(life)
				pulls = append(pulls, n.pull(t.Context(), req))
				eventually(t, "it is known to the fetch", func() bool { s, _ := n.running(d); return s.Readers == i+1 })
			}
			v.open()
			for _, p := range pulls {
				p.requireRight(t, d)
			}
		})
	}
}

// The coordinator sends a node that was refused upstream no more.
func TestACallerWithGoodCredentialsIsOfUseToANodeThatWasRefused(t *testing.T) {
	t.Parallel()
	const size = 24 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	k := o.giveTokens(0, false)
	v := newValve(t, o, 0)
	nodes := newSwarm(t, o, 2, allPatient(t, o))
	for _, n := range nodes {
		n.sizes.Add(d, size) // so that both may be sent upstream at once
	}
	ask := func(n *testNode, life int) *pull {
		req := o.request(d)
		req.Size, req.Authorization = size, k.give(life)
		return n.pull(t.Context(), req)
	}
	other := ask(nodes[1], 2) // not enough for the whole
	eventually(t, "the other node reads", func() bool { return o.requests.Load() > 0 })
	bad := ask(nodes[0], 0)
	eventually(t, "the node is refused", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.refused > 0 })
	good := ask(nodes[0], 1<<20)
	eventually(t, "both wait", func() bool { s, _ := nodes[0].running(d); return s.Readers == 2 })
	v.open()
	for _, p := range []*pull{good, bad, other} {
		p.requireRight(t, d)
	}
	require.LessOrEqual(t, float64(o.bytes.Load())/size, 1.05)
}
