package fetch

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// misbehaviour is how an origin answers a GET. It returns false where it lets the right answer through.
type misbehaviour func(w http.ResponseWriter, r *http.Request, data []byte) bool

func status(code int) misbehaviour {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		w.WriteHeader(code)
		return true
	}
}

// corrupt answers as if the blob had one wrong byte in its middle.
func corrupt(w http.ResponseWriter, r *http.Request, data []byte) bool {
	wrong := append([]byte(nil), data...)
	wrong[len(wrong)/2] ^= 1
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
	return true
}

// cut breaks the connection half-way through the answer.
func cut(w http.ResponseWriter, r *http.Request, data []byte) bool {
	http.ServeContent(&cutWriter{ResponseWriter: w, left: len(data) / 2}, r, "", time.Time{}, bytes.NewReader(data))
	return true
}

// shrunk answers with a blob that is too short, and says so.
func shrunk(w http.ResponseWriter, r *http.Request, data []byte) bool {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data[:len(data)-1]))
	return true
}

// dripping sends little by little.
func dripping(w http.ResponseWriter, _ *http.Request, data []byte) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	for len(data) > 0 {
		n := min(len(data), 32<<10)
		if _, err := w.Write(data[:n]); err != nil {
			return true
		}
		_ = http.NewResponseController(w).Flush()
		data = data[n:]
		<-time.After(time.Millisecond)
	}
	return true
}

// once misbehaves at the first GET of a blob's bytes, and never again.
func once(m misbehaviour) misbehaviour {
	var done atomic.Bool
	return func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		return r.Method == http.MethodGet && !done.Swap(true) && m(w, r, data)
	}
}

func TestWhateverTheRegistryDoesNoWrongByteIsServed(t *testing.T) {
	t.Parallel()
	const size = 3*chunk1 + 77
	for name, c := range map[string]struct {
		origin misbehaviour
		want   error // nil: right bytes
		status int   // of the *content.UpstreamError that the caller must see, if any
	}{
		"refuses the credentials": {status(http.StatusUnauthorized), nil, http.StatusUnauthorized},
		"forbids it":              {status(http.StatusForbidden), nil, http.StatusForbidden},
		"does not have it":        {status(http.StatusNotFound), content.ErrNotFound, http.StatusNotFound},
		"is broken": {status(http.StatusInternalServerError), content.ErrUnavailable,
			http.StatusInternalServerError},
		"is broken once":                      {once(status(http.StatusInternalServerError)), nil, 0},
		"is busy once":                        {once(status(http.StatusTooManyRequests)), nil, 0},
		"sends wrong bytes":                   {corrupt, content.ErrDigestMismatch, 0},
		"sends a blob that is too short":      {shrunk, content.ErrDigestMismatch, 0},
		"breaks the connection once":          {once(cut), nil, 0},
		"sends slowly, and ignores the range": {dripping, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			o.Spoil(c.origin)
			n := newNode(t, o, "n", nil)
			data, err := n.read(t.Context(), o.request(d))
			switch {
			case c.want == nil && c.status == 0:
				require.NoError(t, err)
				require.Equal(t, d, digest.FromBytes(data))
				return
			case c.want != nil:
				require.ErrorIs(t, err, c.want)
			}
			require.Error(t, err)
			require.Less(t, len(data), size, "an answer that is wrong must not look whole")
			if c.status != 0 {
				var answer *content.UpstreamError
				require.ErrorAs(t, err, &answer)
				require.Equal(t, c.status, answer.Status)
			}
			_, err = n.store.Stat(d)
			require.ErrorIs(t, err, content.ErrNotFound, "nothing of it is kept")
		})
	}
}

// blink is away for d once it has sent n bytes: connections break, and no new ones are answered.
func (o *origin) blink(n int64, d time.Duration) {
	var once sync.Once
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		http.ServeContent(hooked{w, func() {
			if o.Bytes.Load() < n {
				return
			}
			once.Do(func() {
				o.SetDown(true)
				time.AfterFunc(d, func() { o.SetDown(false) })
			})
			if o.Down() {
				panic(http.ErrAbortHandler)
			}
		}}, r, "", time.Time{}, bytes.NewReader(data))
		return true
	})
}

// hooked calls something before each piece of an answer.
type hooked struct {
	http.ResponseWriter
	before func()
}

func (h hooked) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		h.before()
		var k int
		k, err = h.ResponseWriter.Write(p[:min(len(p), 64<<10)])
		n, p = n+k, p[k:]
	}
	return n, err
}

func TestBlip_OfTheRegistryEndsNoPull(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 5
	for name, c := range map[string]struct {
		nodes  int
		before int64 // bytes
		away   time.Duration
	}{
		"of a moment, alone":             {1, 5 * chunk1, 300 * time.Millisecond},
		"of a moment, everyone's":        {4, 7 * chunk1, 300 * time.Millisecond},
		"of seconds, everyone's":         {4, 7 * chunk1, 4500 * time.Millisecond},
		"of seconds, in the first chunk": {4, chunk1 / 2, 4500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			req := o.request(d)
			req.Size = size
			nodes := newSwarm(t, o, c.nodes, allPatient(t, o), func(_ int, _ *Options, so *swarm.Options) {
				so.Schedule.LeaseTimeout = 3500 * time.Millisecond // less than it is away
			})
			o.blink(c.before, c.away)
			pullAll(t, nodes, req, 0)
			require.False(t, o.Down())
			// What was in the buffers of connections that broke was sent for nothing.
			require.LessOrEqual(t, float64(o.Bytes.Load())/size, 1.25)
		})
	}
}

// page answers as a proxy does that wants a login; other as a registry that has something else under the digest.
func page(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
	w.Header().Set("Content-Type", "text/html")
	_, _ = w.Write(bytes.Repeat([]byte("<p>"), 1000))
	return true
}

func other(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
	_, _ = w.Write(bytes.Repeat([]byte("x"), 5000))
	return true
}

// What a registry's page, or the manifest of somebody else, says of a blob's size is believed no longer than it is
// useful.
func TestSize_IsAClaimUntilTheDigestProvesIt(t *testing.T) {
	t.Parallel()
	const size = 3*chunk1 + 9
	manifest := func(size int, d digest.Digest) []byte {
		return fmt.Appendf(nil,
			`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[{"digest":%q,"size":%d}]}`, d, size)
	}
	for name, tc := range map[string]struct {
		first  misbehaviour // how the first GET of the blob is answered
		listed int          // what a manifest says of the size, 0: there is none
		others bool         // the manifest is of another repository
		fails  bool         // the first pull may
	}{
		"an error page, once":                     {first: once(page)},
		"other content, once":                     {first: once(other), fails: true},
		"a manifest that says less":               {listed: 100},
		"a manifest that says a little more":      {listed: size + 1},
		"a manifest that says far too much":       {listed: 1 << 36},
		"a manifest of another repository":        {listed: 100, others: true},
		"a manifest that is wrong, and a page":    {first: once(page), listed: 100},
		"a manifest that fits the page, and none": {first: once(page), listed: 3000, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			nodes := newSwarm(t, o, 2)
			if tc.listed > 0 {
				raw := manifest(tc.listed, d)
				where := "a/b"
				if tc.others {
					where = "someone/else"
				}
				req := o.request(o.PushManifest(t, where, "", ocispec.MediaTypeImageManifest, string(raw)))
				req.Kind, req.Repository.Name = content.Manifest, where
				pullAll(t, nodes, req, 0)
			}
			o.Spoil(tc.first)
			if tc.fails {
				for _, n := range nodes {
					if data, err := n.read(t.Context(), o.request(d)); err == nil {
						require.Equal(t, d, digest.FromBytes(data))
					}
				}
			}
			if !tc.fails {
				pullAll(t, nodes, o.request(d), 0)
				return
			}
			for _, n := range nodes {
				eventually(t, "right", func() bool {
					data, err := n.read(t.Context(), o.request(d))
					return err == nil && d == digest.FromBytes(data)
				})
			}
		})
	}
}

// hanging is upstream with a registry besides that never answers.
type hanging struct {
	Upstream
	asked chan struct{}
}

func (h hanging) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	if req.Repository.Registry != "hanging.test" {
		return h.Upstream.Open(ctx, req, off, n)
	}
	h.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// anotherRange answers with another part than was asked for.
func anotherRange(w http.ResponseWriter, _ *http.Request, data []byte) bool {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-2/%d", len(data)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(data[1:3])
	return true
}

// severalRanges answers as if several parts had been asked for.
func severalRanges(w http.ResponseWriter, _ *http.Request, data []byte) bool {
	w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(data[:100])
	return true
}

// circle redirects to where the request came.
func circle(w http.ResponseWriter, r *http.Request, _ []byte) bool {
	http.Redirect(w, r, r.URL.RequestURI(), http.StatusTemporaryRedirect)
	return true
}

// onAndOn redirects without an end.
func onAndOn(w http.ResponseWriter, r *http.Request, _ []byte) bool {
	http.Redirect(w, r, r.URL.Path+"?"+r.URL.RawQuery+"x", http.StatusTemporaryRedirect)
	return true
}

// What a registry answers is no blip: whoever has just given something is asked again, but not for seconds.
func TestBadAnswers_CostFewRequestsAndAreToldAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer misbehaviour
		most   int
	}{
		"another range":                 {anotherRange, 2},
		"several ranges":                {severalRanges, 2},
		"a page":                        {page, 2},
		"redirects in a circle":         {circle, 20},
		"redirects that go on for ever": {onAndOn, 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			n := newNode(t, o, "n", nil)
			_, err := n.read(t.Context(), o.request(o.add(t, 100)))
			require.NoError(t, err) // it gives something a moment before
			d := o.add(t, 3*chunk1)
			o.Requests()
			o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
				return r.Method == http.MethodGet && c.answer(w, r, data)
			})
			_, err = n.read(t.Context(), o.request(d))
			require.ErrorIs(t, err, content.ErrBadAnswer)
			require.LessOrEqual(t, len(o.Requests()), c.most)
			o.Spoil(nil)
			_, err = n.read(t.Context(), o.request(d))
			require.NoError(t, err, "whoever comes afterwards asks anew")
		})
	}
}

func TestBadAnswers_OneOfManyMachinesGivesEndsNoPull(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1)
	o.Spoil(once(circle))
	data, err := newNode(t, o, "n", nil).read(t.Context(), o.request(d))
	require.NoError(t, err)
	require.Equal(t, d, digest.FromBytes(data))
}

func TestBadAnswers_ForAMomentEndNoPullThatHasBegun(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 12*chunk1)
	var answers, bad atomic.Int32
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if r.Method != http.MethodGet || answers.Add(1) < 3 || bad.Add(1) > 4 {
			return false
		}
		return page(w, r, data)
	})
	data, err := newNode(t, o, "n", nil).read(t.Context(), o.request(d))
	require.NoError(t, err)
	require.Equal(t, d, digest.FromBytes(data))
	require.Greater(t, bad.Load(), int32(mostBadAnswers), "there were some")
}

func TestTurns_ARegistryThatHangsKeepsNobodyFromAnother(t *testing.T) {
	t.Parallel()
	requireATurn(t, func(u Upstream, asked chan struct{}) Upstream { return hanging{u, asked} },
		func(req *content.Request) { req.Repository.Registry = "hanging.test" })
}

// fullRoom is an upstream whose manifests find no place in memory.
type fullRoom struct {
	Upstream
	waits chan struct{}
}

func (u fullRoom) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	if req.Kind == content.Blob {
		return u.Upstream.Open(ctx, req, off, n)
	}
	u.waits <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestTurns_ManifestsThatWaitForMemoryKeepNoBlobFromTheirRegistry(t *testing.T) {
	t.Parallel()
	requireATurn(t, func(u Upstream, waits chan struct{}) Upstream { return fullRoom{u, waits} },
		func(req *content.Request) { req.Kind = content.Manifest })
}

// requireATurn reads a blob while more requests than a registry has turns are stuck in an upstream that says so.
func requireATurn(t *testing.T, sticky func(Upstream, chan struct{}) Upstream, stuck func(*content.Request)) {
	t.Helper()
	const many = 2 * schedule.UpstreamStreams
	o := newOrigin(t)
	asked := make(chan struct{}, 100*many)
	n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) {
		fo.Upstream, fo.Patience = sticky(fo.Upstream, asked), time.Hour // no relief takes the place of a turn
	})
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range many {
		req := o.request(o.add(t, 5))
		stuck(&req)
		callers.Go(func() { _, _ = n.read(ctx, req) })
	}
	for range schedule.UpstreamStreams { // any more have no turn, where these keep theirs
		<-asked
	}
	d := o.add(t, 3*chunk1+5)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	cancel()
	callers.Wait()
}

func TestABlobThatWasWrongOnceIsRightTheNextTime(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]store.Limits{"stored": {}, "passed through": {Capacity: chunk1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 2*chunk1+10)
			o.Spoil(corrupt)
			n := newNodeOn(t, o, "n", nil, store.Options{Path: t.TempDir(), Limits: limits})
			data, err := n.read(t.Context(), o.request(d))
			require.ErrorIs(t, err, content.ErrDigestMismatch)
			require.Less(t, len(data), 2*chunk1+10)
			o.Spoil(nil)
			n.pull(t.Context(), o.request(d)).requireRight(t, d)
		})
	}
}

func TestOneReadsARegistryWithoutRangeForTheOthers(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	o.Spoil(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		r.Header.Del("Range")
		return false
	})
	const size = 16*chunk1 + 3
	d := o.add(t, size)
	req := o.request(d)
	req.Size = size // as the manifest has told
	nodes := newSwarm(t, o, 4, allPatient(t, o))
	pullAll(t, nodes, req, 0)
	t.Logf("%.2f copies in %d requests", float64(o.Bytes.Load())/size, o.Gets.Load())
	require.LessOrEqual(t, float64(o.Bytes.Load())/size, 1.02)
	var kept int64
	for _, n := range nodes {
		kept += n.swarm.Counters().Received
		require.Eventually(t, func() bool {
			return n.metric(t, "shoal_fetches_total") == 1
		}, patience, time.Millisecond,
			"a fetch counts when it has ended")
	}
	require.GreaterOrEqual(t, kept, int64(3*size*9/10), "three of four take it from the one that streams")
}

// To lease to another what a registry thinks about for long has it think twice, and send twice. It runs alone: its nodes
// tell who is dead by how long they hear nothing, and all others beside it would be silence.
func TestARegistryThatAnswersLateSendsOneCopy(t *testing.T) {
	const size = 4 * chunk1
	const timeout = 5 * time.Second
	o := newOrigin(t)
	d := o.add(t, size)
	o.Spoil(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method == http.MethodGet {
			select {
			case <-time.After(2 * timeout):
			case <-r.Context().Done():
			}
		}
		return false
	})
	nodes := newSwarm(t, o, 4, allPatient(t, o), func(_ int, _ *Options, so *swarm.Options) {
		so.Schedule.LeaseTimeout = timeout
	})
	req := o.request(d)
	req.Size = size // as the manifest has told
	pullAll(t, nodes, req, 0)
	require.Less(t, float64(o.Bytes.Load())/size, 1.05)
}

func TestARegistryThatIsDownDoesNotMatterWhereAPeerHasTheBlob(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 8*chunk1+1)
	nodes := newSwarm(t, o, 3)
	nodes[0].pull(t.Context(), o.request(d)).requireRight(t, d)
	o.SetDown(true)
	pullAll(t, nodes[1:], o.request(d), 0)
	require.Equal(t, int64(8*chunk1+1), o.Bytes.Load())
}

// A node that may not ask the registry learns all from peers, and says so at once where they know nothing.
func TestARepositoryThatOnlyPeersServe(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d, other := o.add(t, 4*chunk1), o.add(t, 10)
	nodes := newSwarm(t, o, 2, func(i int, fo *Options, _ *swarm.Options) {
		fo.PeersOnly = func(content.Repository) bool { return i == 1 }
	})
	nodes[0].pull(t.Context(), o.request(d)).requireRight(t, d)
	nodes[1].pull(t.Context(), o.request(d)).requireRight(t, d)
	_, err := nodes[1].read(t.Context(), o.request(other))
	require.ErrorIs(t, err, content.ErrNotFound)
}

func TestRedirect_WhereAWrongBlobCameFromIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	for name, full := range map[string]bool{"kept": false, "passed through": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, chunk1+5)
			storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				data := o.Blob(d)
				if r.URL.Path == "/bad" {
					data = make([]byte, len(data))
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			}))
			t.Cleanup(storage.Close)
			to := atomic.Pointer[string]{}
			bad, good := storage.URL+"/bad", storage.URL+"/good"
			to.Store(&bad)
			o.Spoil(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.Method != http.MethodGet {
					return false
				}
				http.Redirect(w, r, *to.Load(), http.StatusTemporaryRedirect)
				return true
			})
			n := newNode(t, o, "n", nil, func(fo *Options, _ *swarm.Options) {
				up, err := upstream.New(upstream.Options{
					Upstreams:      []upstream.Upstream{{Registry: "images.test", Endpoints: []string{o.URL}}},
					AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
				})
				require.NoError(t, err)
				t.Cleanup(up.Close)
				fo.Upstream = up
			})
			if full {
				n.ingest = func(digest.Digest, int64, store.Origin) (*store.Ingest, error) {
					return nil, content.ErrNoSpace
				}
			}
			_, err := n.read(t.Context(), o.request(d))
			require.Error(t, err)
			to.Store(&good)
			n.pull(t.Context(), o.request(d)).requireRight(t, d)
		})
	}
}

func TestFinish_AFetchThatEndedWhileItsDigestWasCheckedIsNotWhole(t *testing.T) {
	t.Parallel()
	for name, why := range map[string]error{
		"by other bytes, on which all is dropped": content.ErrDigestMismatch,
		"by something else":                       content.ErrUnavailable,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, chunk1+7)
			v := newValve(t, o, 1)
			n := newNode(t, o, "n", nil, patient(t, o))
			r, err := n.Open(t.Context(), o.request(d))
			require.NoError(t, err)
			defer func() { _ = r.Close() }()
			f := n.Fetcher.running()[0]
			f.update(func(time.Time) { f.finishing = true }) // the test does it
			body, err := r.Range(t.Context(), 0, r.Size())
			require.NoError(t, err)
			defer func() { _ = body.Close() }()
			v.open()
			require.NoError(t, f.await(t.Context(), func() bool { return f.part.Absent() == 0 }))
			ing := f.ing
			require.NoError(t, ing.Verify(t.Context()))
			f.fail(why)
			<-f.released
			f.finish(ing)
			require.False(t, f.complete())
			_, err = n.store.Stat(d)
			require.ErrorIs(t, err, content.ErrNotFound)
		})
	}
}

// A registry that is in trouble is asked again by one read of a node at a time, and not before it wishes.
func TestBlip_ARegistryThatWishesToBeAskedLaterGetsFewRequestsMeanwhile(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 24*chunk1)
	var given, refused atomic.Int32
	o.Spoil(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method != http.MethodGet || given.Add(1) < 3 {
			return false
		}
		refused.Add(1)
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	_, err := newNode(t, o, "n", nil).read(t.Context(), o.request(d))
	require.Error(t, err)
	require.LessOrEqual(t, refused.Load(), int32(2*schedule.UpstreamStreams))
}

// One blob that the registry cannot give is no blip of the registry, which gives all others.
func TestBlip_ABlobThatTheRegistryNeverGivesHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	broken, flaky := o.add(t, 3*chunk1), o.add(t, 3*chunk1+1)
	var stumbled atomic.Bool
	asked := make(chan struct{}, 1000)
	o.Spoil(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch {
		case r.Method != http.MethodGet:
			return false
		case strings.HasSuffix(r.URL.Path, broken.String()):
			select {
			case asked <- struct{}{}:
			default:
			}
			w.Header().Set("Retry-After", "60")
		case strings.HasSuffix(r.URL.Path, flaky.String()) && !stumbled.Swap(true):
		default:
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	n := newNode(t, o, "n", nil)
	read := func(d digest.Digest) error {
		_, err := n.read(t.Context(), o.request(d))
		return err
	}
	require.NoError(t, read(o.add(t, 7)))
	var wg sync.WaitGroup
	others := make(chan struct{})
	wg.Go(func() {
		defer close(others)
		require.Error(t, read(broken), "it ends although the registry gives others")
	})
	<-asked
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond) // or this alone keeps a processor busy
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-others:
				return
			case <-tick.C:
				require.NoError(t, read(o.add(t, 8+i)))
			}
		}
	})
	require.NoError(t, read(flaky))
	wg.Wait()
}
