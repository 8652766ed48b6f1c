package fetch

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/trace"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// Upstream reads from registries.
type Upstream interface {
	Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error)
	Stat(ctx context.Context, req content.Request) (size int64, mediaType string, err error)
	// Distrust tells that what came of a blob was wrong.
	Distrust(req content.Request)
	// Authorize gives the Authorization header of who has the credential; the zero one is nobody's.
	Authorize(ctx context.Context, repo content.Repository, cred pullsecret.Credential) (string, error)
}

// Swarm is what a fetch asks of the other nodes; see swarm.Swarm. No fetch holds a lock while it does.
type Swarm interface {
	ID() peer.ID
	Join(ctx context.Context, d digest.Digest, j schedule.Join) (swarm.Session, error)
	JoinAlone(d digest.Digest, j schedule.Join) (swarm.Session, error)
	// Grain is how finely the blobs are cut that are planned from now on.
	Grain() content.Grain
	Want(p peer.ID, c cid.Cid, size int64, priority int32, held bool, s swarm.Sink)
	Forget(c cid.Cid, s swarm.Sink)
	Have(b blocks.Block)
	Gone(c cid.Cid)
	// Awaits sets what reports whether a block may be about to come.
	Awaits(may func(c cid.Cid) bool)
	Claim(p swarm.Plan, index int, sum schedule.Sum) (schedule.Claim, error)
	// HeldBy are the claims of a peer that says to hold the whole blob. It fails with content.ErrNotFound for one that
	// does not.
	HeldBy(ctx context.Context, p peer.ID, plan swarm.Plan) ([]schedule.Claim, error)
	Ban(p peer.ID, reason string)
	// HeardFrom counts all bytes from a peer; Ping provokes some from a live one.
	HeardFrom(p peer.ID) int64
	Ping(p peer.ID)
}

// Options configure a Fetcher. Store, Swarm and Upstream are required.
type Options struct {
	Store    *store.Store
	Swarm    Swarm
	Upstream Upstream
	// Zone of this node.
	Zone string
	// Sources is optional: without it each source may be given what any other has.
	Sources Sources
	// Gave is told that the repository of a request has itself given its caller some of a blob which matched its digest
	// as a whole, where the repository had not proved before to have it. Optional.
	Gave func(content.Request)
	// PeersOnly tells of a repository that its registry must not be asked. nil: none.
	PeersOnly func(content.Repository) bool
	// PeerSilence, PeerPatience and CoordinatorPatience are those of schedule.ParticipantConfig.
	PeerSilence, PeerPatience, CoordinatorPatience time.Duration
	// UpstreamStreams is the most runs that this node reads from one registry at one time, where the policy does not
	// say; default schedule.UpstreamStreams.
	UpstreamStreams int64
	// Connections is how many requests the policy lets be under way at the registry of a repository. So many runs are
	// read at one time, fewer or more than else. 0: it does not say. Optional.
	Connections func(content.Repository) int
	// Patience is how long a caller is kept waiting while nothing comes. After half of it the node itself reads what
	// the caller waits for; default content.DefaultFirstByte.
	Patience time.Duration
	// VerifiedRanges: a range of a blob that is not here is given once the whole has come and matches its digest. Else
	// the chunks that it needs are fetched and given, by the word of who read them from upstream: nothing less than the
	// whole can be checked against the digest.
	VerifiedRanges bool
	// ReadAhead is how many bytes, at most, are fetched of the layers that come after one that is asked for. 0: none.
	ReadAhead int64
	// Linger is for how long a fetch that no caller waits for any more goes on; default 30 s.
	Linger time.Duration
	// Ended is told how each fetch went. Optional.
	Ended func(Story)
	// Tracer makes a span of each fetch. Optional.
	Tracer     *trace.Tracer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// participant configures a participant of fr's node in a plan of a grain.
func (o *Options) participant(fr *Fetcher, g content.Grain) schedule.ParticipantConfig {
	return schedule.ParticipantConfig{
		Zone: o.Zone, Grain: g,
		Running:     func() int { return int(fr.asking.Load()) },
		PeerSilence: o.PeerSilence, PeerPatience: o.PeerPatience, CoordinatorPatience: o.CoordinatorPatience,
	}
}

// Fetcher opens blobs.
type Fetcher struct {
	opts    Options
	log     *slog.Logger
	m       *metrics
	turns   turns
	again   turns                            // for asking a registry again that has failed
	sizes   *lru.Cache[digest.Digest, int64] // of blobs that matched their digests
	hints   *lru.Cache[hint, int64]
	places  *lru.Cache[hint, place]
	buffers sync.Pool
	secret  []byte     // see apart
	chunks  *room.Room // the memory for what is known of the chunks of all that is fetched
	// rumoured is the same for blobs of whose size there is only the word of peers.
	rumoured *semaphore.Weighted
	// ingest is the store's.
	ingest func(d digest.Digest, size int64, origin store.Origin) (*store.Ingest, error)

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	fetches map[digest.Digest]*fetch
	asking  atomic.Int32 // fetches that ask peers
	// noRange holds registries that were seen to ignore Range requests, and when: the next of their blobs are read in
	// one stream from the start.
	noRange *lru.Cache[string, time.Time]
	pulls   pulls
	doubts  *doubts
	gave    *lru.Cache[string, time.Time] // when each registry last gave something
}

// knownRegistries bounds of how many registries it is known whether they gave something lately.
const knownRegistries = 1 << 8

// rangeAgain is after how long a registry that ignored Range is tried with it again: it may have been a cache in
// between.
const rangeAgain = 10 * time.Minute

func (fr *Fetcher) ignoresRange(registry string) bool {
	at, seen := fr.noRange.Get(registry)
	return seen && time.Since(at) < rangeAgain
}

// New returns a Fetcher. Close ends it.
func New(o Options) *Fetcher {
	o.UpstreamStreams = cmp.Or(o.UpstreamStreams, schedule.UpstreamStreams)
	o.Patience = cmp.Or(o.Patience, content.DefaultFirstByte)
	o.Linger = cmp.Or(o.Linger, 30*time.Second)
	if o.Sources == nil {
		o.Sources = everyone{}
	}
	if o.Gave == nil {
		o.Gave = func(content.Request) {}
	}
	if o.PeersOnly == nil {
		o.PeersOnly = func(content.Repository) bool { return false }
	}
	if o.Connections == nil {
		o.Connections = func(content.Repository) int { return 0 }
	}
	f := &Fetcher{
		opts: o, log: o.Logger, turns: newTurns(), again: newTurns(), pulls: newPulls(),
		doubts: newDoubts(o.Swarm.ID()),
		sizes:  lru.New[digest.Digest, int64](1 << 16), hints: lru.New[hint, int64](1 << 16),
		places: lru.New[hint, place](knownLayers), gave: lru.New[string, time.Time](knownRegistries),
		noRange: lru.New[string, time.Time](knownRegistries),
		buffers: sync.Pool{New: func() any { b := make([]byte, content.ChunkSize); return &b }},
		fetches: map[digest.Digest]*fetch{}, ingest: o.Store.Ingest, secret: make([]byte, sha256.Size),
		chunks: room.New(room.Share(3)), rumoured: semaphore.NewWeighted(room.Share(12)),
	}
	_, _ = rand.Read(f.secret) // never fails, says crypto/rand
	f.ctx, f.cancel = context.WithCancel(context.Background())
	o.Swarm.Awaits(f.mayGet)
	f.m = newMetrics(o.Registerer, func() float64 { return float64(len(f.running())) })
	return f
}

// running are the fetches that run now.
func (fr *Fetcher) running() []*fetch {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	return slices.Collect(maps.Values(fr.fetches))
}

// mayGet reports whether a running fetch may be about to get a block.
func (fr *Fetcher) mayGet(c cid.Cid) bool {
	if h := c.Hash(); len(h) < len(schedule.Sum{}) || !c.Equals(content.SumCID(sumOf(c))) {
		return false // peers ask for anything
	}
	return slices.ContainsFunc(fr.running(), func(f *fetch) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.part.MayGet(sumOf(c))
	})
}

// aside runs something that nobody waits for, until Close.
func (fr *Fetcher) aside(run func()) {
	fr.mu.Lock() // Close comes before, or waits
	defer fr.mu.Unlock()
	if fr.ctx.Err() == nil {
		fr.wg.Go(run)
	}
}

// Close ends the running fetches; what has arrived is kept for the next start.
func (fr *Fetcher) Close() {
	fr.mu.Lock() // nothing begins from now on
	fr.cancel()
	fr.mu.Unlock()
	fr.wg.Wait()
}

// Open returns a reader of a blob: of the store's, or of one that is arriving. It fails with content.ErrNotFound,
// content.ErrUnavailable or an *content.UpstreamError, or when ctx ends; that ctx bounds only Open itself. A source
// that has not proved to have the content is given what it gives itself, whatever has come from elsewhere since the
// caller was let in.
func (fr *Fetcher) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	r, err := fr.open(ctx, req)
	if err != nil {
		return nil, err
	}
	return &lasting{Reader: r, fr: fr, req: req}, nil
}

func (fr *Fetcher) open(ctx context.Context, req content.Request) (content.Reader, error) {
	for range 3 {
		if b, err := fr.opts.Store.Get(req.Digest); err == nil {
			if fr.foreign(ctx, req) {
				return fr.openThrough(ctx, req, errors.Join(errForeign, b.Close()))
			}
			return &local{blob: b, m: fr.m}, nil
		} else if !errors.Is(err, content.ErrNotFound) {
			fr.log.Warn("store not read", "digest", req.Digest, "error", err)
			if errors.Is(err, content.ErrStorage) {
				return fr.openThrough(ctx, req, err)
			}
		}
		r, err := fr.follow(ctx, req, false)
		switch {
		case errors.Is(err, store.ErrExists), gaveWay(err): // committed since we looked, or to be begun anew
			continue
		case errors.Is(err, content.ErrNoSpace), errors.Is(err, content.ErrStorage), errors.Is(err, errForeign):
			return fr.openThrough(ctx, req, err)
		}
		return r, err
	}
	return nil, fmt.Errorf("open %s: %w", req.Digest, content.ErrUnavailable)
}

// OpenHere is Open of what this node or the swarm has or gets to keep: it fails with content.ErrNoSpace, in place of
// reading straight from upstream, and so do ranges of what passes through a window.
func (fr *Fetcher) OpenHere(ctx context.Context, req content.Request) (content.Reader, error) {
	for range 3 {
		if b, err := fr.opts.Store.Get(req.Digest); err == nil {
			return &local{blob: b, m: fr.m}, nil
		}
		fr.mu.Lock()
		f := fr.fetches[req.Digest]
		fr.mu.Unlock()
		if f != nil && f.passes() { // nor is upstream asked for it in this name
			return nil, fmt.Errorf("open %s: it passes by: %w", req.Digest, content.ErrNoSpace)
		}
		r, err := fr.follow(ctx, req, true)
		if !errors.Is(err, store.ErrExists) { // committed since we looked
			return r, err
		}
	}
	return nil, fmt.Errorf("open %s: %w", req.Digest, content.ErrUnavailable)
}

// Serves reports whether a fetch that runs here serves a request.
func (fr *Fetcher) Serves(req content.Request) bool {
	fr.mu.Lock()
	f := fr.fetches[req.Digest]
	fr.mu.Unlock()
	return f != nil && fr.serves(f, req)
}

// OpenPast opens a blob straight from upstream, and shares nothing of it.
func (fr *Fetcher) OpenPast(ctx context.Context, req content.Request) (content.Reader, error) {
	return fr.openThrough(ctx, req, errForeign)
}

// Stat tells size and media type of what Open would give, without fetching it. To a source that has not proved to have
// the content it tells what that says itself: not even that there is such content here, and of what size.
func (fr *Fetcher) Stat(ctx context.Context, req content.Request) (size int64, mediaType string, err error) {
	if fr.sourceOf(req) == "" {
		info, err := fr.opts.Store.Stat(req.Digest)
		if err == nil && (req.Kind == content.Blob || info.MediaType != "") {
			return info.Size, info.MediaType, nil
		}
	}
	if req.Kind == content.Blob {
		fr.mu.Lock()
		f := fr.fetches[req.Digest]
		fr.mu.Unlock()
		if f != nil && fr.serves(f, req) {
			if size := f.confirmedSize(); size >= 0 {
				return size, "", nil
			}
		}
	}
	if !req.NoUpstream() && !fr.opts.PeersOnly(req.Repository) {
		if size, mediaType, err = fr.opts.Upstream.Stat(ctx, req); err == nil ||
			!errors.Is(err, content.ErrUnavailable) {
			return size, mediaType, err
		}
	}
	// No registry to ask: what the swarm has can only be told by joining in.
	r, err := fr.Open(ctx, req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = r.Close() }()
	return r.Size(), "", nil
}

// Ensure fetches a whole blob into the store. It returns when the blob is committed, or with the reason why it is not.
func (fr *Fetcher) Ensure(ctx context.Context, req content.Request) error {
	for range 3 {
		if _, err := fr.opts.Store.Stat(req.Digest); err == nil {
			return nil
		}
		err := fr.ensure(ctx, req)
		foreign, ok := errors.AsType[*foreignError](err)
		switch {
		case ok: // whose it is does not matter here, once it has matched its digest
			if err := foreign.wait(ctx); err != nil {
				return err
			}
		case errors.Is(err, store.ErrExists), gaveWay(err): // to one that may bring the blob
		default:
			return err
		}
	}
	return fmt.Errorf("ensure %s: %w", req.Digest, content.ErrUnavailable)
}

// ensure is Ensure for the fetch that runs now.
func (fr *Fetcher) ensure(ctx context.Context, req content.Request) error {
	r, err := fr.follow(ctx, req, true)
	if err != nil {
		return err
	}
	return errors.Join(r.(*reader).ensure(ctx), r.Close())
}

// follow joins the running fetch of a digest, or starts one, and waits until its size is known. keep: the blob is
// wanted here, and not only to be read once.
func (fr *Fetcher) follow(ctx context.Context, req content.Request, keep bool) (content.Reader, error) {
	req.Size = fr.sizeNamed(req)
	f, err := fr.attach(ctx, req, keep)
	if err != nil {
		return nil, err
	}
	r := &reader{f: f, part: req.Part, unchecked: req.File != "", keep: keep, came: req.Since}
	if err = f.awaitSize(ctx, req.Since); err == nil {
		err = f.confirmSize(ctx, req)
	}
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// attach adds a reader to the running fetch of a digest, or to a new one.
func (fr *Fetcher) attach(ctx context.Context, req content.Request, keep bool) (*fetch, error) {
	for {
		from := fr.sourceOf(req) // which may have proved what it has since
		fr.mu.Lock()
		if fr.ctx.Err() != nil {
			fr.mu.Unlock()
			return nil, content.ErrClosed
		}
		f := fr.fetches[req.Digest]
		if f == nil {
			f = startFetch(ctx, fr, req, from, keep, nil)
			fr.fetches[req.Digest] = f
			fr.mu.Unlock()
			return f, nil
		}
		fr.mu.Unlock() // for f may be busy for long, and the others must not wait for it
		if fr.serves(f, req) {
			if f.attach(req, keep) {
				room.Join(f.ctx, room.Caller(ctx))
				return f, nil
			}
		} else if next, err := f.giveWay(ctx, req, keep); next != nil || err != nil {
			return next, err
		} else if f.ended() == nil { // it serves the request by now
			continue
		}
		if err := f.arrivedAs(); err != nil {
			return nil, err
		}
		select { // it has ended, and a new one can start as soon as it lets go of the ingest
		case <-f.released:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// replace puts the fetch that runs for a digest in the place of another, or (nil) takes it away.
func (fr *Fetcher) replace(old, by *fetch) {
	fr.mu.Lock()
	defer fr.mu.Unlock()
	if fr.fetches[old.digest] != old {
		return
	}
	if by == nil {
		delete(fr.fetches, old.digest)
	} else {
		fr.fetches[old.digest] = by
	}
}

// Status is a running fetch. Sizes are in bytes.
type Status struct {
	Digest                           digest.Digest
	Repository                       content.Repository
	Size                             int64 // -1 while not known
	Arrived, FromPeers, FromUpstream int64
	Readers                          int
	Started                          time.Time
	// ByPeer are the bytes that came from each peer so far. Filled is how much of each part of the blob is here, in
	// tenths, the blob being cut into filledParts parts at most.
	ByPeer map[peer.ID]int64
	Filled []byte
}

// filledParts is how exactly a Status tells which parts of a blob are here.
const filledParts = 64

// Running lists the fetches that run now.
func (fr *Fetcher) Running() []Status {
	out := []Status{}
	for _, f := range fr.running() {
		out = append(out, f.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out
}
