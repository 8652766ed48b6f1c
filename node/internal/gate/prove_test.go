package gate_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/manifest"
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

func (c cache) Has(d digest.Digest) (int64, bool) { return c.Size(), d == digest.FromBytes(c) }
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

// startOnly does not know Range: it gives everything from the start.
type startOnly struct{ honest }

func (s startOnly) Sample(ctx context.Context, off, n int64) ([]byte, int64, error) {
	if off > 0 {
		return nil, 0, nil
	}
	return s.honest.Sample(ctx, off, n)
}

// What is private often begins as something public does: a model as the one it was made from, a layer as an archive of
// known files. Such a source gives what it has itself, until all of that has matched.
func TestGate_TheStartOfSomeContentIsNoProof(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	req := content.Request{Repository: content.Repository{Registry: "evil.test", Name: "a/b"},
		Digest: digest.FromBytes(layer)}
	for name, from := range map[string]gate.Cache{
		"that this node holds":     cache(layer),
		"that other nodes hold":    elsewhere{cache(layer)},
		"that nobody holds as yet": elsewhere{},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: from, Timeout: time.Second, Witness: unheard{}})
				require.NoError(t, err)
				defer g.Close()
				require.NoError(t, g.Admit(t.Context(), policy.Rule{}, gate.Request{
					Source: gate.Repository(req.Repository), Digest: req.Digest,
					Upstream: startOnly{honest{cache: layer}},
				}))
				proven := func() []digest.Digest {
					return g.Testify(gate.Repository(req.Repository), []digest.Digest{req.Digest}).Proven
				}
				require.False(t, g.Proved(req))
				require.Empty(t, proven())
				g.Prove(req) // the fetch has had all of it from there
				require.NotEmpty(t, proven())
			})
		})
	}
}

// noted has nothing but the name of some content, and notes where it is asked for a part of it.
type noted struct {
	honest
	at *[]int64
}

func (a noted) Sample(_ context.Context, off, _ int64) ([]byte, int64, error) {
	*a.at = append(*a.at, off)
	return nil, 0, &content.UpstreamError{Op: "GET", Status: http.StatusServiceUnavailable}
}

// Who knows a part of some content is asked for that part as rarely as can be.
func TestGate_ASampleLiesAnywhereAndIsTheSameForWhoAsksAgain(t *testing.T) {
	t.Parallel()
	layer := random(8 << 20)
	for name, from := range map[string]gate.Cache{
		"that this node holds":  cache(layer),
		"that other nodes hold": elsewhere{cache(layer)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var first []int64
			for range 20 {
				synctest.Test(t, func(t *testing.T) {
					g, err := gate.New(gate.Options{Cache: from, Timeout: time.Second, Witness: unheard{}})
					require.NoError(t, err)
					defer g.Close()
					var at []int64
					for _, source := range []gate.Source{"oci evil.test/a", "oci evil.test/a", "oci evil2.test/a"} {
						_ = g.Admit(t.Context(), policy.Rule{}, gate.Request{
							Source: source, Digest: digest.FromBytes(layer), Upstream: noted{honest{cache: layer}, &at},
						})
						time.Sleep(time.Hour)
					}
					require.NotEmpty(t, at)
					require.Len(t, slices.Compact(slices.Clone(at)), 1, "by one name or another")
					first = append(first, at[0])
				})
			}
			require.Greater(t, slices.Max(first), int64(content.ChunkSize), "of 20 nodes")
			require.Greater(t, len(slices.Compact(slices.Sorted(slices.Values(first)))), 10)
		})
	}
}

// counted counts the searches for what other nodes hold.
type counted struct {
	elsewhere
	n *int
}

func (c counted) FromPeers(ctx context.Context, d digest.Digest) (content.Reader, error) {
	*c.n++
	return c.elsewhere.FromPeers(ctx, d)
}

// What peers bring for a sample is in the way of the source's own bytes, and costs them.
func TestGate_NothingIsBroughtToCompareWithASourceThatGivesStartsOnly(t *testing.T) {
	t.Parallel()
	layer, config := random(3<<20), random(60<<10)
	source := gate.Source("oci r.test/a")
	for name, test := range map[string]struct {
		data     []byte
		source   gate.Source
		whole    bool
		listed   int64
		after    time.Duration
		searches int
	}{
		"of another blob":             {data: layer[1:], source: source},
		"but of one listed as little": {data: config, source: source, listed: 60 << 10, searches: 1},
		"but of a manifest":           {data: config, source: source, whole: true, searches: 1},
		"but with another source":     {data: layer, source: "oci r.test/b", searches: 1},
		"but after a while":           {data: layer, source: source, after: 10 * time.Minute, searches: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := 0
				from := &counted{elsewhere{cache(layer)}, &n}
				g, err := gate.New(gate.Options{Cache: from, Timeout: time.Second, Witness: unheard{}})
				require.NoError(t, err)
				defer g.Close()
				admit := func(data []byte, source gate.Source, whole bool) {
					require.NoError(t, g.Admit(t.Context(), policy.Rule{}, gate.Request{
						Source: source, Digest: digest.FromBytes(data),
						Upstream: startOnly{honest{cache: data, whole: whole}},
					}))
				}
				admit(layer, source, false)
				require.Equal(t, 1, n)
				n, from.elsewhere = 0, elsewhere{cache(test.data)}
				time.Sleep(test.after)
				g.Learn(t.Context(), source, &manifest.Manifest{Layers: []v1.Descriptor{
					{Digest: digest.FromBytes(config), Size: test.listed},
				}})
				admit(test.data, test.source, test.whole)
				require.Equal(t, test.searches, n)
			})
		})
	}
}

// Which part of little content is the most varied, anyone can tell who knows how such content looks.
func TestGate_LittleContentIsSampledWhole(t *testing.T) {
	t.Parallel()
	config := random(60 << 10)
	for name, i := range map[string]int{"the first byte": 0, "one in the middle": 30 << 10, "the last byte": 60<<10 - 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				known := bytes.Clone(config)
				known[i]++
				g, err := gate.New(gate.Options{Cache: cache(config), Timeout: time.Second})
				require.NoError(t, err)
				defer g.Close()
				req := content.Request{Repository: content.Repository{Registry: "evil.test", Name: "a"},
					Digest: digest.FromBytes(config)}
				require.NoError(t, g.Admit(t.Context(), policy.Rule{}, gate.Request{
					Source: gate.Repository(req.Repository), Digest: req.Digest, Upstream: honest{cache: known},
				}), "to what the source gives itself")
				require.False(t, g.Proved(req))
			})
		})
	}
}

// yes says yes to everything, with a page of so many bytes.
type yes struct{ honest }

func (y yes) Sample(_ context.Context, _, n int64) ([]byte, int64, error) {
	return nil, 0, fmt.Errorf("%d of %d bytes: %w", y.Size(), n, io.ErrUnexpectedEOF)
}

// A proxy in front of a registry may answer everything with a page.
func TestGate_AYesThatMayBeAboutAnythingAcceptsNobody(t *testing.T) {
	t.Parallel()
	layer, login := random(3<<20), honest{cache: cache("please log in")}
	repo := content.Repository{Registry: "r.test", Name: "a"}
	rule := policy.DefaultRule()
	for name, test := range map[string]struct {
		from            gate.Cache
		upstream        gate.Upstream
		proved, accepts bool
		given           bool // what others have
	}{
		"to what this node holds":         {from: cache(layer), upstream: yes{login}, proved: true},
		"to what other nodes hold":        {from: elsewhere{cache(layer)}, upstream: yes{login}, proved: true},
		"to what nobody is found to hold": {from: elsewhere{}, upstream: yes{login}, proved: true},
		"to what it has to give itself":   {from: elsewhere{}, upstream: yes{login}},
		"to what it gives from its start only": {
			from: elsewhere{cache(layer)}, upstream: startOnly{honest{cache: layer}}, proved: true,
		},
		"though it has what nobody holds any more": {from: elsewhere{}, upstream: honest{cache: layer}, proved: true},
		"unless it gives what others hold": {
			from: elsewhere{cache(layer)}, upstream: honest{cache: layer}, proved: true, accepts: true, given: true,
		},
		"unless it knows how long that is": {from: cache(layer), upstream: honest{cache: layer}, proved: true,
			accepts: true, given: true},
		"unless others are wrong about that": {from: elsewhere{cache(layer[1:])}, upstream: honest{cache: layer}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: test.from, Timeout: time.Second, Witness: unheard{}})
				require.NoError(t, err)
				defer g.Close()
				req := content.Request{Repository: repo, Digest: digest.FromBytes(layer)}
				if test.proved {
					g.Prove(req)
				}
				for range 2 {
					// Whoever may be given nothing but what the source gives itself hears no more than that.
					require.NoError(t, g.Admit(t.Context(), rule, gate.Request{
						Source: gate.Repository(repo), Digest: req.Digest, Upstream: test.upstream,
					}))
					require.Equal(t, test.accepts, g.Accepts(rule, gate.Repository(repo), ""))
					require.Equal(t, test.given, g.Proved(req))
					g.Prove(req) // as another caller may bring it about at any time
				}
				others := req
				others.Authorization = "Basic another"
				require.True(t, g.Proved(others), "what a source has does not hang on one caller")
			})
		})
	}
}

// Else a caller who has asked once would be sent away in an outage that comes then.
func TestGate_WhoWasGivenTheContentAfterAnUnsureYesIsAccepted(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	rule := policy.DefaultRule()
	req := content.Request{Repository: content.Repository{Registry: "r.test", Name: "a"}, Authorization: "alice",
		Digest: digest.FromBytes(layer)}
	source := gate.Repository(req.Repository)
	g, err := gate.New(gate.Options{Cache: nothing{}, Timeout: time.Minute})
	require.NoError(t, err)
	defer g.Close()
	require.NoError(t, g.Admit(t.Context(), rule, gate.Request{
		Source: source, Digest: req.Digest, Credentials: "alice", Upstream: honest{cache: layer},
	}))
	g.Prove(req)
	require.False(t, g.Proved(req) || g.Accepts(rule, source, "alice"))
	bobs := req
	bobs.Authorization = "bob"
	g.Gave(bobs)
	require.False(t, g.Accepts(rule, source, "bob"), "there was no question about him")
	g.Gave(req)
	require.True(t, g.Proved(req) && g.Accepts(rule, source, "alice"))
}

// asked counts the questions to a source that is asked about content that it has.
type asked struct {
	honest
	n *int
}

func (a asked) Ask(ctx context.Context) (int64, error) { *a.n++; return a.honest.Ask(ctx) }

// Some pullers read a blob in many ranges, and ask for no manifest that tells its size.
func TestGate_AnUnsureYesIsNotAskedForWithEachRange(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	repo := content.Repository{Registry: "r.test", Name: "a"}
	source := gate.Repository(repo)
	listed := &manifest.Manifest{Layers: []v1.Descriptor{{Digest: digest.FromBytes(layer), Size: 3 << 20}}}
	for name, test := range map[string]struct {
		rule   policy.Rule
		before func(*gate.Gate)
		then   func(*gate.Gate)
		asked  int
		sure   bool
	}{
		"in a short time": {rule: policy.DefaultRule(), asked: 1},
		"of what was proved earlier": {rule: policy.DefaultRule(), asked: 1, before: func(g *gate.Gate) {
			g.Prove(content.Request{Repository: repo, Digest: digest.FromBytes(layer)})
		}},
		"by a caller who is accepted": {rule: policy.DefaultRule(), asked: 1,
			before: func(g *gate.Gate) { g.Accept(source, "", time.Now()) }},
		"but is after a minute": {rule: policy.DefaultRule(), asked: 2,
			then: func(*gate.Gate) { time.Sleep(time.Minute) }},
		"but is where the policy has it asked each time": {asked: 10},
		"but is where it may come from other nodes alone": {asked: 10, rule: policy.Rule{
			Mode: policy.PeersOnly, Authorization: policy.DefaultRule().Authorization,
		}},
		"but is once a manifest tells the size": {rule: policy.DefaultRule(), asked: 2, sure: true,
			then: func(g *gate.Gate) { g.Learn(t.Context(), source, listed) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g, err := gate.New(gate.Options{Cache: nothing{}, Timeout: time.Second})
				require.NoError(t, err)
				defer g.Close()
				if test.before != nil {
					test.before(g)
				}
				accepted := g.Accepts(test.rule, source, "")
				n := 0
				for i := range 10 {
					if i == 5 && test.then != nil {
						test.then(g)
					}
					require.NoError(t, g.Admit(t.Context(), test.rule, gate.Request{
						Source: source, Digest: digest.FromBytes(layer), Upstream: asked{honest{cache: layer}, &n},
					}))
				}
				require.Equal(t, test.asked, n)
				require.Equal(t, test.sure || accepted, g.Accepts(test.rule, source, ""))
			})
		})
	}
}

// memory is what a gate saves.
type memory map[string][]byte

func (m memory) Get(key string) ([]byte, bool) { v, ok := m[key]; return v, ok }
func (m memory) Put(key string, v []byte) error {
	m[key] = bytes.Clone(v)
	return nil
}

// Agents saved as proof what bytes had shown that many know. Who was accepted, the registry has accepted.
func TestGate_ProofsOfTheReleaseBeforeAreForgottenAndCallersAreNot(t *testing.T) {
	t.Parallel()
	layer := random(3 << 20)
	repo := content.Repository{Registry: "evil.test", Name: "a/b"}
	source := gate.Repository(repo)
	req := content.Request{Repository: repo, Digest: digest.FromBytes(layer)}
	var rule policy.Rule
	rule.Authorization.TTL = time.Hour
	for name, test := range map[string]struct {
		version byte
		proved  bool
	}{
		"of the release before the last": {version: 2},
		"of the release before":          {version: 3},
		"of the one with proofs":         {version: 4, proved: true},
		"of this one":                    {version: 5, proved: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			saved := memory{}
			open := func() *gate.Gate {
				g, err := gate.New(gate.Options{Cache: cache(layer), Timeout: time.Second, Memory: saved})
				require.NoError(t, err)
				return g
			}
			g := open()
			g.Accept(source, "alice", time.Now())
			g.Prove(req)
			require.True(t, g.Proved(req))
			require.NoError(t, g.Close())
			require.Equal(t, byte(5), saved["gate"][0])
			saved["gate"][0] = test.version
			g = open()
			defer g.Close()
			require.Equal(t, test.proved, g.Proved(req))
			require.True(t, g.Accepts(rule, source, "alice"))
		})
	}
}

// says is what other nodes say of any source.
type says gate.Testimony

func (s says) Hear(context.Context, gate.Source, []digest.Digest) gate.Testimony {
	return gate.Testimony(s)
}

// Nodes that told each other what they have only heard would never take it back.
func TestGate_TestifiesToWhatItHasSeenItselfAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	const source = gate.Source("oci r.test/a")
	for name, test := range map[string]struct {
		learn  func(*gate.Gate)
		public bool
	}{
		"others say that anyone may read": {learn: func(g *gate.Gate) {
			require.True(t, g.HeardPublic(t.Context(), source))
		}},
		"the source let someone read without credentials": {
			learn: func(g *gate.Gate) { g.Accept(source, "", time.Now().Add(-time.Hour)) }, public: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			saved := memory{}
			for range 2 {
				g, err := gate.New(gate.Options{
					Cache: nothing{}, Timeout: time.Second, Memory: saved, Witness: says{Public: []time.Duration{0}},
				})
				require.NoError(t, err)
				test.learn(g)
				require.Equal(t, test.public, len(g.Testify(source, nil).Public) == 1)
				require.NoError(t, g.Close())
			}
			g, err := gate.New(gate.Options{Cache: nothing{}, Timeout: time.Second, Memory: saved})
			require.NoError(t, err)
			defer g.Close()
			require.Equal(t, test.public, g.Public(source), "what was seen is known after the restart, and no more")
			require.Equal(t, test.public, len(g.Testify(source, nil).Public) == 1)
		})
	}
}

// An agent often begins before its machine has learned the time. What it saw by then would be of now after each restart.
func TestGate_WhatWasSeenByAClockThatWasAheadIsOfLongAgoOnceThatIsSetBack(t *testing.T) {
	t.Parallel()
	const source = gate.Source("oci r.test/a")
	rule, saved := policy.DefaultRule(), memory{}
	open := func(t *testing.T) *gate.Gate {
		g, err := gate.New(gate.Options{Cache: nothing{}, Timeout: time.Second, Memory: saved,
			Witness: says{Refused: []time.Duration{time.Minute}}})
		require.NoError(t, err)
		return g
	}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(24 * time.Hour)
		g := open(t)
		for _, credentials := range []string{"", "alice"} {
			g.Accept(source, credentials, time.Now())
			require.True(t, g.Accepts(rule, source, credentials))
		}
		require.NoError(t, g.Close())
	})
	synctest.Test(t, func(t *testing.T) { // whose clock begins where that of the first did
		for range 2 {
			g := open(t)
			require.False(t, g.Accepts(rule, source, "alice"), "the source is asked")
			require.True(t, g.Remembers(rule, source, "alice"), "and he is not forgotten where it is away")
			require.False(t, g.HeardPublic(t.Context(), source), "another node has been refused a minute ago")
			require.NoError(t, g.Close())
		}
	})
}

// elsewhere is a cache that holds nothing itself; other nodes say that they have some content.
type elsewhere struct{ content.Reader }

func (elsewhere) Held(digest.Digest) (content.Reader, error) { return nil, content.ErrNotFound }
func (elsewhere) Has(digest.Digest) (int64, bool)            { return 0, false }
func (e elsewhere) FromPeers(ctx context.Context, _ digest.Digest) (content.Reader, error) {
	if e.Reader == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return e.Reader, nil
}

// broken is content of which the half is wrong.
type broken struct{ cache }

func (b broken) Range(context.Context, int64, int64) (io.ReadCloser, error) {
	wrong := iotest.ErrReader(fmt.Errorf("chunk 0: %w: %w", content.ErrDigestMismatch, content.ErrMisled))
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.cache[:len(b.cache)/2]), wrong)), nil
}

// promised is content that never comes.
type promised struct{ cache }

func (promised) Arrived() int64 { return 0 }
func (p promised) Range(ctx context.Context, _, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(waiting{ctx}), nil
}

type waiting struct{ ctx context.Context }

func (w waiting) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, context.Cause(w.ctx)
}

// honest is a source that has what it is asked for.
type honest struct {
	cache
	whole bool
}

func (h honest) Ask(context.Context) (int64, error)          { return h.Size(), nil }
func (h honest) AskForAnyone(context.Context) (int64, error) { return h.Size(), nil }
func (h honest) Whole() bool                                 { return h.whole }
func (h honest) Arrived() int64                              { return 0 }
func (h honest) Sample(_ context.Context, off, n int64) ([]byte, int64, error) {
	if off >= int64(len(h.cache)) {
		return nil, 0, &content.UpstreamError{Op: "GET", Status: http.StatusRequestedRangeNotSatisfiable}
	}
	data := h.cache[off:min(off+n, int64(len(h.cache)))]
	if int64(len(data)) < n {
		return nil, 0, io.ErrUnexpectedEOF
	}
	return data, off, nil
}

type unheard struct{}

func (unheard) Hear(context.Context, gate.Source, []digest.Digest) gate.Testimony {
	return gate.Testimony{}
}

// sworn is the word of a node that it holds whatever it is asked for.
type sworn struct{}

func (sworn) Hear(_ context.Context, _ gate.Source, all []digest.Digest) gate.Testimony {
	return gate.Testimony{Held: all}
}

// One hostile node must not make a registry look like a liar, nor cost a caller all his patience.
func TestGate_WhatOtherNodesOnlySayToHaveKeepsNobodyFromTheRegistry(t *testing.T) {
	t.Parallel()
	blob, doc := random(3<<20), random(5000)
	for name, test := range map[string]struct {
		peers content.Reader
		has   honest
	}{
		"a blob that does not come":        {peers: promised{blob}, has: honest{cache: blob}},
		"a blob of another size":           {peers: promised{blob[:1]}, has: honest{cache: blob}},
		"a manifest that does not come":    {peers: promised{doc}, has: honest{cache: doc, whole: true}},
		"a manifest of other bytes":        {peers: cache(random(6000)[1000:]), has: honest{cache: doc, whole: true}},
		"a manifest of another size":       {peers: cache(doc[:1]), has: honest{cache: doc, whole: true}},
		"a manifest larger than there are": {peers: cache(random(9 << 20)), has: honest{cache: doc, whole: true}},
		"a blob of other bytes":            {peers: cache(random(4 << 20)[1<<20:]), has: honest{cache: blob}},
		"a blob that is longer":            {peers: cache(random(5 << 20)), has: honest{cache: blob[:100<<10]}},
		"a blob that is shorter":           {peers: cache(blob[:100]), has: honest{cache: blob}},
		"a blob that breaks off":           {peers: broken{blob}, has: honest{cache: blob}},
		"a manifest that breaks off":       {peers: broken{doc}, has: honest{cache: doc, whole: true}},
		"a blob that is not there":         {has: honest{cache: blob}},
		"the manifest":                     {peers: cache(doc), has: honest{cache: doc, whole: true}},
		"the blob":                         {peers: cache(blob), has: honest{cache: blob}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for _, word := range []gate.Witness{unheard{}, sworn{}} {
					g, err := gate.New(gate.Options{Cache: elsewhere{test.peers}, Timeout: 8 * time.Second, Witness: word})
					require.NoError(t, err)
					defer g.Close()
					began := time.Now()
					require.NoError(t, g.Admit(t.Context(), policy.Rule{}, gate.Request{
						Source: "oci r.test/a", Digest: digest.FromBytes(test.has.cache), Upstream: test.has,
					}))
					require.LessOrEqual(t, time.Since(began), 4*time.Second, "the caller has 10 s")
				}
			})
		})
	}
}
