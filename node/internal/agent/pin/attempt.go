package pin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// attempt compares one assignment with the store, and closes the gap if it is one that fetches.
type attempt struct {
	*Keeper
	task       *task // guarded by Keeper.mu
	assignment v1alpha1.PinAssignment
	released   bool
	// fetches: an attempt that does not ends with errGap where something is missing.
	fetches bool
	owner   string
	cancel  context.CancelFunc

	limiter *rate.Limiter // of Bandwidth, nil for none

	secretsOnce    sync.Once
	secrets        []pullsecret.Credentials
	secretsProblem error // why not all pull secrets could be read

	mu       sync.Mutex
	accesses map[content.Repository]*access
}

func (a *attempt) name() string {
	if a.assignment.Name == "" {
		return a.assignment.UID // of a pin that went while the agent was down
	}
	return a.assignment.Namespace + "/" + a.assignment.Name
}

// run does it, and returns the closure that the node now holds.
func (a *attempt) run(ctx context.Context) (held []digest.Digest, err error) {
	switch {
	case a.released:
		err = a.opts.Store.Unpin(a.owner)
	case a.assignment.Action == v1alpha1.ActionPurge:
		err = a.purge(ctx)
	default:
		held, err = a.keep(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return held, err
}

// artifact is an artifact of the assignment with its closure, as far as it could be read.
type artifact struct {
	v1alpha1.AssignedArtifact
	closure *closure
	top     digest.Digest
	err     error // why the closure could not be read whole
}

// keep makes the node hold every artifact. What the pin held before under another revision stays held until all of the
// new is there.
func (a *attempt) keep(ctx context.Context) ([]digest.Digest, error) {
	artifacts, err := a.expand(ctx)
	if err != nil {
		return nil, err
	}
	whole := blobsOf(artifacts)
	if a.fetches {
		err = a.fill(ctx, artifacts, whole)
	} else {
		err = a.compare(ctx, artifacts, whole)
	}
	if err != nil {
		return nil, err
	}
	held := slices.Collect(maps.Keys(whole))
	if err := a.pin(held); err != nil {
		return nil, err
	}
	a.rememberTags(ctx, artifacts)
	a.admit(ctx, artifacts)
	return held, nil
}

// compare ends with errGap where anything is missing or amiss.
func (a *attempt) compare(ctx context.Context, artifacts []*artifact, whole map[digest.Digest]content.Request) error {
	for _, art := range artifacts {
		if art.err != nil || a.confirm(art) != nil {
			return errGap
		}
	}
	for d := range whole {
		if !a.has(d) {
			return errGap
		}
	}
	if a.assignment.Target == v1alpha1.TargetCacheAndRuntime {
		for _, art := range artifacts {
			if loaded, err := a.loaded(ctx, art); err != nil || !loaded {
				return errGap
			}
		}
	}
	a.show(a.measure(whole))
	return nil
}

// fill gets what is missing. An artifact that fails does not hinder the others.
func (a *attempt) fill(ctx context.Context, artifacts []*artifact, whole map[digest.Digest]content.Request) error {
	var problems []error
	for _, art := range artifacts {
		problems = append(problems, named(art, art.err))
	}
	if err := a.fits(whole); err != nil {
		return errors.Join(append(problems, err)...)
	}
	for _, art := range artifacts {
		if art.top == "" {
			continue // nobody knows what it is, as art.err says
		}
		err := a.fetch(ctx, art, whole)
		if err == nil && art.err == nil && a.assignment.Target == v1alpha1.TargetCacheAndRuntime {
			err = a.load(ctx, art)
		}
		problems = append(problems, named(art, err))
	}
	return errors.Join(problems...)
}

// named puts the artifact in front of err.
func named(art *artifact, err error) error {
	if err == nil {
		return nil
	}
	name := cmp.Or(art.Digest, art.CID)
	if art.Hub != nil {
		name = art.Hub.Commit
	}
	if art.Tag != "" {
		name = art.Tag + "@" + name
		return fmt.Errorf("%s:%s: %w", art.Repository, name, err)
	}
	return fmt.Errorf("%s: %w", strings.TrimPrefix(art.Repository+"@"+name, "@"), err)
}

// expand reads the closures, as far as an attempt that only looks can. Each digest is protected in the store as soon as
// it is known.
func (a *attempt) expand(ctx context.Context) ([]*artifact, error) {
	chosen, err := parsePlatforms(a.assignment.Platforms)
	if err != nil {
		return nil, err
	}
	if b := a.assignment.Bandwidth; b != nil && b.Value() > 0 {
		a.limiter = rate.NewLimiter(rate.Limit(b.Value()), content.ChunkSize)
	}
	before := a.opts.Store.Pins()[a.owner]
	protected := slices.Clone(before)
	for _, art := range a.assignment.Artifacts {
		for _, name := range append(art.Referrers, art.Digest) {
			if d, err := digest.Parse(name); err == nil {
				protected = append(protected, d)
			}
		}
	}
	if err := a.pin(protected); err != nil {
		return nil, err
	}
	artifacts := make([]*artifact, len(a.assignment.Artifacts))
	for i, assigned := range a.assignment.Artifacts {
		art := &artifact{AssignedArtifact: assigned, closure: a.newClosure(repository(assigned.Repository), chosen)}
		artifacts[i] = art
		art.err = a.walk(ctx, art, before)
		protected = append(protected, digestsOf(art.closure.blobs)...)
		if err := a.pin(protected); err != nil {
			return nil, err
		}
	}
	return artifacts, nil
}

func (a *attempt) newClosure(repo content.Repository, chosen platforms) *closure {
	c := &closure{
		repo: repo, platforms: chosen, found: make([]bool, len(chosen.wanted)), seen: make(map[digest.Digest]bool),
		get: a.get, size: a.size,
		read: func(ctx context.Context, req content.Request) ([]byte, error) {
			return readAll(ctx, a.opts.Fetcher, req)
		},
	}
	if !a.fetches {
		c.size = a.heldSize
		c.get = func(_ context.Context, req content.Request) error {
			if !a.has(req.Digest) {
				return errGap
			}
			return nil
		}
	}
	return c
}

// walk reads the closure of one artifact and of its referrers. before is what the pin held in the store.
func (a *attempt) walk(ctx context.Context, art *artifact, before []digest.Digest) error {
	if art.Hub != nil {
		return a.listHub(ctx, art)
	}
	top, size, err := a.resolve(ctx, art.AssignedArtifact)
	if err != nil {
		return err
	}
	art.top = top
	if !slices.Contains(before, top) || !a.has(top) {
		a.news(top)
	}
	if err := art.closure.walk(ctx, top, art.MediaType, size); err != nil {
		return err
	}
	for _, name := range art.Referrers {
		d, err := digest.Parse(name)
		if err != nil {
			return fmt.Errorf("referrer %q: %w", name, err)
		}
		if err := art.closure.walk(ctx, d, ocispec.MediaTypeImageManifest, 0); err != nil {
			return fmt.Errorf("referrer: %w", err)
		}
	}
	return nil
}

// resolve finds the digest at the top of an artifact, and its size in bytes where that is known.
func (a *attempt) resolve(ctx context.Context, art v1alpha1.AssignedArtifact) (digest.Digest, int64, error) {
	if art.Digest != "" {
		d, err := digest.Parse(art.Digest)
		if err != nil {
			return "", 0, fmt.Errorf("digest %q: %w", art.Digest, err)
		}
		_, err = content.DigestCID(d)
		return d, 0, err
	}
	c, err := cid.Decode(art.CID)
	if err != nil {
		return "", 0, fmt.Errorf("CID %q: %w", art.CID, err)
	}
	if d, err := content.CIDDigest(c); err == nil {
		return d, 0, nil
	}
	if a.opts.Files == nil {
		return "", 0, fmt.Errorf("CID %s names a DAG, and this agent finds blobs by digest only", c)
	}
	return a.opts.Files.Resolve(ctx, c)
}

// fits measures the pin and fails where it can't be held.
func (a *attempt) fits(whole map[digest.Digest]content.Request) error {
	wanted, held := a.measure(whole)
	a.show(wanted, held)
	if limit := a.assignment.SizeLimit; limit != nil && wanted > limit.Value() {
		return fmt.Errorf("%w: %d bytes of %d", errSizeLimit, wanted, limit.Value())
	}
	// What is pinned counts what is held already of this pin as well.
	usage, pool := a.opts.Store.Usage(), poolOf(whole)
	missing := wanted - held
	if free, capacity, bounded := usage.Room(pool); bounded && missing > 0 && missing > free {
		return fmt.Errorf("%w: %d bytes are missing, and of %d bytes of capacity for %s %d are pinned",
			errExceedsCapacity, missing, capacity, pool, capacity-free)
	}
	return nil
}

// poolOf is the pool that a closure goes into: one of a hub's files has nothing else to speak of.
func poolOf(whole map[digest.Digest]content.Request) store.Pool {
	for _, req := range whole {
		if pool := store.PoolOf(req); pool != store.Images {
			return pool
		}
	}
	return store.Images
}

// measure sums up the bytes of the closure and those of it that are held.
func (a *attempt) measure(whole map[digest.Digest]content.Request) (wanted, held int64) {
	for d, req := range whole {
		info, err := a.opts.Store.Stat(d)
		if err != nil {
			wanted += req.Size
			continue
		}
		wanted += info.Size
		if !info.FromRuntime {
			held += info.Size
		}
	}
	return wanted, held
}

// show puts how far the pin is where Progress sees it. A pin that lacks bytes is fetching; one that has failed stays so
// until more bytes have come.
func (a *attempt) show(wanted, held int64) {
	changed := false
	a.update(func(e *task) {
		p := &e.progress
		changed = p.BytesWanted != wanted || p.BytesHeld != held
		progress := p.State != v1alpha1.PinFailed || held > p.BytesHeld
		p.BytesWanted, p.BytesHeld = wanted, held
		if held < wanted && progress && p.State != v1alpha1.PinFetching {
			p.State, p.Reason, p.Message, changed = v1alpha1.PinFetching, "", "", true
		}
	})
	if changed {
		a.opts.Changed()
	}
}

// update changes the task, if that still is what the attempt works for.
func (a *attempt) update(change func(*task)) {
	a.Keeper.mu.Lock()
	defer a.Keeper.mu.Unlock()
	if !a.task.released && a.task.assignment.Revision == a.assignment.Revision {
		change(a.task)
	}
}

// fetch gets what is missing of one artifact, and gives up at the first failure.
func (a *attempt) fetch(ctx context.Context, art *artifact, whole map[digest.Digest]content.Request) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBlobs)
	for _, req := range art.closure.blobs {
		if a.has(req.Digest) {
			continue
		}
		group.Go(func() error {
			if err := a.get(ctx, req); err != nil {
				return err
			}
			a.show(a.measure(whole))
			return nil
		})
	}
	err := group.Wait()
	a.show(a.measure(whole)) // for those above may have overtaken one another
	if err != nil || art.err != nil {
		return err
	}
	return a.confirm(art)
}

// confirm reports whether an artifact that was asked for by the CID of a DAG is that DAG: its digest was the word of a
// peer.
func (a *attempt) confirm(art *artifact) error {
	c, err := cid.Decode(art.CID)
	if art.Digest != "" || err != nil || c.Type() != cid.DagProtobuf {
		return nil
	}
	info, err := a.opts.Store.Stat(art.top)
	if err != nil {
		return err
	}
	if info.Root.Defined() && !bytes.Equal(info.Root.Hash(), c.Hash()) { // of either version
		return fmt.Errorf("a peer named %s, whose root is %s: %w", art.top, info.Root, content.ErrDigestMismatch)
	}
	return nil
}

// has reports whether the node's own store holds d. What only the runtime holds goes when the kubelet wants its room,
// on all nodes at once where nobody runs the image.
func (a *attempt) has(d digest.Digest) bool {
	info, err := a.opts.Store.Stat(d)
	return err == nil && !info.FromRuntime
}

// get commits one blob to the store, with the first credentials that the registry accepts.
func (a *attempt) get(ctx context.Context, req content.Request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := a.heldSize(ctx, req); err == nil {
		if err := a.adopt(ctx, req.Digest); !errors.Is(err, content.ErrDigestMismatch) {
			return failed(req, err)
		}
		// The file is damaged, which the store sees when it maps it, and counts it as not held from then on.
		if _, err := a.opts.Store.ChunkMap(req.Digest); err == nil {
			return failed(req, fmt.Errorf("in the runtime: %w", content.ErrDigestMismatch))
		}
	}
	err := a.accessFor(req).try(ctx, func(authorization string) error {
		req.Authorization = authorization
		if a.limiter != nil {
			if err := a.trickle(ctx, req); err != nil {
				return err
			}
		}
		return a.opts.Fetcher.Ensure(ctx, req)
	})
	if err == nil {
		err = a.adopt(ctx, req.Digest)
	}
	return failed(req, err)
}

// adopt copies a blob that only the runtime holds.
func (a *attempt) adopt(ctx context.Context, d digest.Digest) error {
	if a.has(d) {
		return nil
	}
	blob, err := a.opts.Store.Get(d)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	r, err := blob.Range(ctx, 0, blob.Size())
	if err != nil {
		return err
	}
	return errors.Join(a.opts.Store.Put(ctx, d, r, blob.Size()), r.Close())
}

// size finds how many bytes a blob has, without fetching it.
func (a *attempt) size(ctx context.Context, req content.Request) (size int64, err error) {
	if size, err := a.heldSize(ctx, req); err == nil {
		return size, nil
	}
	err = a.access(req.Repository).try(ctx, func(authorization string) error {
		req.Authorization = authorization
		r, err := a.opts.Fetcher.Open(ctx, req)
		if err != nil {
			return err
		}
		size = r.Size()
		return r.Close()
	})
	return size, failed(req, err)
}

func (a *attempt) heldSize(_ context.Context, req content.Request) (int64, error) {
	info, err := a.opts.Store.Stat(req.Digest)
	return info.Size, err
}

// failed says what was to be fetched.
func failed(req content.Request, err error) error {
	if err == nil {
		return nil
	}
	if req.NoUpstream() && errors.Is(err, content.ErrNotFound) {
		err = fmt.Errorf("%w: %w", errNoPeer, err)
	}
	return fmt.Errorf("fetch %s %s: %w", req.Kind, req.Digest, err)
}

// trickle reads a blob no faster than the pin's bandwidth. Nothing is fetched that no reader asked for, so the blob
// arrives no faster either. What came in an earlier attempt costs nothing.
func (a *attempt) trickle(ctx context.Context, req content.Request) error {
	r, err := a.opts.Fetcher.Open(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if r.Arrived() == r.Size() {
		return nil // it is here
	}
	cut := content.CutLeaves(r.Size())
	for i := range cut.Len() {
		off, n := cut.Range(i)
		before := r.Arrived()
		rc, err := r.Range(ctx, off, n)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			return err
		}
		if r.Arrived() == 0 {
			return nil // nothing is kept, and Ensure says why
		}
		if came := min(r.Arrived()-before, n); came > 0 {
			if err := a.limiter.WaitN(ctx, int(came)); err != nil {
				// It gives up as soon as it sees that the time will not do.
				return fmt.Errorf("%w: %w", errTimeLimit, err)
			}
		}
	}
	return nil
}

// image is an artifact as the runtime knows it.
func (art *artifact) image() Image {
	return Image{Repository: art.closure.repo, Tag: art.Tag, Digest: art.top}
}

func (a *attempt) loaded(ctx context.Context, art *artifact) (bool, error) {
	if a.opts.Runtime == nil {
		return false, fmt.Errorf("%w: this agent may not use the runtime's socket; "+
			"set runtime.loadImages=true in the chart, or give the pin the target Cache", errRuntime)
	}
	held, err := a.opts.Runtime.Holds(ctx, art.image())
	if err != nil {
		return false, fmt.Errorf("%w: %w", errRuntime, err)
	}
	return held, nil
}

// load has the runtime hold an image.
func (a *attempt) load(ctx context.Context, art *artifact) error {
	if held, err := a.loaded(ctx, art); err != nil || held {
		return err
	}
	image := art.image()
	var errs []error
	for _, c := range a.access(art.closure.repo).candidates(ctx) {
		image.Credential = c
		err := a.opts.Runtime.Load(ctx, image)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%w: %w", errRuntime, errors.Join(errs...))
}

// news notes an artifact that came to the node with this pin.
func (a *attempt) news(top digest.Digest) {
	a.update(func(e *task) { e.untold[top], e.ungated[top] = true, true })
}

// taken are the artifacts of a set of the task, which is empty from then on.
func (a *attempt) taken(set *map[digest.Digest]bool) (tops map[digest.Digest]bool) {
	a.update(func(*task) { tops, *set = *set, make(map[digest.Digest]bool) })
	return tops
}

// admit has the gate know of what has just come, so that the node can serve it when the registry is down, which is what
// a pin is for. Where the registry can't be asked now, another attempt does it.
func (a *attempt) admit(ctx context.Context, artifacts []*artifact) {
	tops := a.taken(&a.task.ungated)
	for _, art := range artifacts {
		if a.opts.Gate == nil || !tops[art.top] || art.closure.repo.None() || art.Hub != nil {
			continue // the hub's front knows by itself who may read what
		}
		for _, req := range art.closure.blobs {
			err := a.access(req.Repository).try(ctx, func(authorization string) error {
				req.Authorization = authorization
				return a.opts.Gate.Admit(ctx, req)
			})
			if err != nil {
				a.log.Warn("pin may not be served while its registry is down: nobody asked who may read it",
					"pin", a.name(), "digest", req.Digest, "error", err)
				a.update(func(e *task) { maps.Copy(e.ungated, tops) })
				return
			}
		}
	}
}

// rememberTags makes what has just come the newest answer for its tag. Of what was here before, such as when the agent
// starts anew, a later answer of the registry may have been remembered since.
func (a *attempt) rememberTags(ctx context.Context, artifacts []*artifact) {
	untold := a.taken(&a.task.untold)
	if a.opts.Tags == nil {
		return
	}
	for _, art := range artifacts {
		info, err := a.opts.Store.Stat(art.top)
		if art.Tag == "" || art.Hub != nil || !untold[art.top] || err != nil {
			continue
		}
		a.opts.Tags.Remember(ctx, art.closure.repo, art.Tag, ocispec.Descriptor{
			MediaType: art.MediaType, Digest: art.top, Size: info.Size,
		})
	}
}

// purge removes what the pin held, and what of its artifacts is here for other reasons, but for what other pins keep.
func (a *attempt) purge(ctx context.Context) error {
	doomed := a.opts.Store.Pins()[a.owner]
	for _, assigned := range a.assignment.Artifacts {
		if assigned.Hub != nil {
			continue // the store knows what the pin held
		}
		c := a.newClosure(repository(assigned.Repository), platforms{all: true})
		c.held, c.size = true, a.heldSize
		c.get = func(ctx context.Context, req content.Request) error {
			_, err := a.heldSize(ctx, req)
			return err
		}
		top, _, err := a.resolve(ctx, assigned)
		if err != nil {
			continue // nothing is here of what can't even be named
		}
		for _, name := range append(assigned.Referrers, top.String()) {
			if err := c.walk(ctx, digest.Digest(name), "", 0); err != nil {
				a.log.Warn("purge: closure not read whole", "pin", a.name(), "digest", name, "error", err)
			}
		}
		doomed = append(doomed, digestsOf(c.blobs)...)
	}
	if err := a.opts.Store.Unpin(a.owner); err != nil {
		return err
	}
	// Manifests come before what they refer to, so that an attempt that is cut short finds the rest again.
	for _, d := range slices.Backward(doomed) {
		if err := a.opts.Store.Delete(d); err != nil && !errors.Is(err, store.ErrPinned) {
			return err
		}
	}
	a.update(func(e *task) { e.progress.BytesHeld, e.progress.BytesWanted = 0, 0 })
	return nil
}

// pin makes ds what the store holds for this pin, and writes nothing where it is so already.
func (a *attempt) pin(ds []digest.Digest) error {
	ds = slices.Compact(slices.Sorted(slices.Values(ds)))
	if slices.Equal(ds, slices.Sorted(slices.Values(a.opts.Store.Pins()[a.owner]))) {
		return nil
	}
	return a.opts.Store.Pin(a.owner, ds)
}

// repository splits host/path. The empty string is the repository that is not known.
func repository(s string) content.Repository {
	host, path, _ := strings.Cut(s, "/")
	return content.Repository{Registry: host, Name: path}
}

func digestsOf(blobs []content.Request) []digest.Digest {
	ds := make([]digest.Digest, len(blobs))
	for i, req := range blobs {
		ds[i] = req.Digest
	}
	return ds
}

// blobsOf puts the closures together, each blob once.
func blobsOf(artifacts []*artifact) map[digest.Digest]content.Request {
	all := make(map[digest.Digest]content.Request)
	for _, art := range artifacts {
		for _, req := range art.closure.blobs {
			all[req.Digest] = req
		}
	}
	return all
}
