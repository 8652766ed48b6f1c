// Package pin makes the node hold what it is told to keep: it reads the closure of each artifact (index, manifests,
// configs, layers, referrers), protects it in the store, fetches what is missing, and goes on until all of it is there
// and stays there.
//
// It is level-triggered. Keeper holds the assignments that stand; an attempt (attempt.go) compares one of them with the
// store, and where there is a gap another closes it, so the same two serve the first fetch, a repair, a restart and the
// regular check. To look is cheap and waits for nobody who fetches. closure.go reads manifests; credentials.go finds
// what the registry accepts; failure.go turns an error into the reason that a person reads.
package pin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// Store is what a Keeper needs of the node's store.
type Store interface {
	// Pin replaces the digests that owner pins. A digest may be pinned before its blob arrives.
	Pin(owner string, ds []digest.Digest) error
	// Unpin drops all of owner's pins; it is no error if there are none.
	Unpin(owner string) error
	Pins() map[string][]digest.Digest
	Stat(d digest.Digest) (store.Info, error)
	// Get, Put and ChunkMap copy what only the runtime holds. ChunkMap fails for a damaged blob, which then counts as
	// not held.
	Get(d digest.Digest) (*store.Blob, error)
	Put(ctx context.Context, d digest.Digest, r io.Reader, size int64) error
	ChunkMap(d digest.Digest) (*content.ChunkMap, error)
	// Delete fails with store.ErrPinned for what another owner pins. Removal of what is not there is no error.
	Delete(d digest.Digest) error
	Usage() store.Usage
}

// Fetcher gets content from this node, its peers, or upstream.
type Fetcher interface {
	Open(ctx context.Context, req content.Request) (content.Reader, error)
	// Ensure returns when the whole blob is committed on this node.
	Ensure(ctx context.Context, req content.Request) error
}

// Upstream turns credentials into the Authorization header that a registry wants.
type Upstream interface {
	Authorize(ctx context.Context, repo content.Repository, cred pullsecret.Credential) (string, error)
	// Renew gives another header in place of one that the registry has accepted before and refuses now, "" where there
	// is none.
	Renew(ctx context.Context, repo content.Repository, cred pullsecret.Credential, refused string) (string, error)
}

// Secrets reads pull secrets. Its errors match ErrSecretNotFound and pullsecret.ErrInvalid where the secret is at
// fault.
type Secrets interface {
	PullSecret(ctx context.Context, namespace, name string) (pullsecret.Credentials, error)
}

// Runtime is the node's container runtime.
type Runtime interface {
	// Holds reports whether the runtime has the image, named by tag, or by digest where tag is empty. It needs no
	// credential.
	Holds(ctx context.Context, image Image) (bool, error)
	// Load has the runtime pull the image and name it so.
	Load(ctx context.Context, image Image) error
}

// Image is an image to load into the runtime.
type Image struct {
	Repository content.Repository
	Tag        string
	Digest     digest.Digest
	// Credential is what the registry accepted, the zero one where it asked for none.
	Credential pullsecret.Credential
}

// Tags remembers which digest a registry answered for a tag.
type Tags interface {
	Remember(ctx context.Context, repo content.Repository, tag string, desc ocispec.Descriptor)
}

// Gate guards what the node serves to its workloads.
type Gate interface {
	// Admit finds out whether req's caller may read its content, and whether its repository has it, and remembers a yes
	// for when the registry can't be asked. A no is the registry's own.
	Admit(ctx context.Context, req content.Request) error
}

// Files finds files by the CID of their UnixFS DAG.
type Files interface {
	// Resolve returns the digest and size in bytes of the file whose root is c, from this node or from peers. It fails
	// with content.ErrNotFound where nobody has it.
	Resolve(ctx context.Context, c cid.Cid) (digest.Digest, int64, error)
}

// Hub is the model hub that this agent is a front for.
type Hub interface {
	// Files lists what there is to hold of a repository at a commit: what the hub tells of it first, then the files
	// whose paths keep takes. revision is what the commit was found under. What is small is fetched with that. Where
	// get is false nothing is, and it fails with content.ErrNotFound where something is not here.
	Files(ctx context.Context, repo content.Repository, revision, commit, authorization string,
		keep func(path string) bool, get bool) ([]content.Request, error)
}

// Options configure a Keeper. Store, Fetcher, Upstream and Secrets are required.
type Options struct {
	Store    Store
	Fetcher  Fetcher
	Upstream Upstream
	Secrets  Secrets
	// Runtime is nil where the agent has no access to one: pins with target CacheAndRuntime then fail.
	Runtime Runtime
	// Tags, Files and Gate are optional. Without a Gate nobody but who pulled from here before is served while the
	// registry is down.
	Tags  Tags
	Files Files
	Gate  Gate
	// Hub is nil where this agent is no front for one: pins of its files then fail.
	Hub Hub
	// Changed is called, without locks held, when the state or the failure of a pin has changed.
	Changed func()
	// Ended is called in place of it where somebody may wait for the change: the pin has become ready, or is purged, or
	// has begun to fail. nil: Changed.
	Ended      func()
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

const (
	// parallelPins is the number of pins, and parallelBlobs of blobs of one pin, that are fetched at one time. Pins of
	// a lower priority keep no pin waiting, so there may be more of them, but no more than maxPins.
	parallelPins  = 2
	maxPins       = 8
	parallelBlobs = 3
	// parallelLooks is the number of pins that are compared with the store, or released, at one time.
	parallelLooks = 2
	// checkInterval is how often a pin that is ready is compared with the store, and with the runtime, which does not
	// tell when the kubelet removes an image.
	checkInterval = 5 * time.Minute
	// defaultTimeLimit bounds an attempt that the pin does not bound. What it fetched stays, and the next goes on
	// there.
	defaultTimeLimit = 6 * time.Hour
	never            = 100 * 365 * 24 * time.Hour
	// ownerPrefix begins the names under which pins are held in the store; the pin's UID follows.
	ownerPrefix = "pin/"
)

// Keeper keeps the pins of one node.
type Keeper struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	kick    chan struct{} // holds one signal: something may be due

	mu    sync.Mutex
	set   bool // by Set, since dropStrangers last looked
	tasks map[string]*task
}

// task is one assignment and how far the node is with it. Keeper.mu guards it.
type task struct {
	assignment v1alpha1.PinAssignment
	progress   v1alpha1.PinProgress
	released   bool // no longer assigned: what is left is to unpin it
	running    *attempt
	due        time.Time       // of the next attempt
	lacks      bool            // the last look found a gap, so the next attempt fetches
	failures   int32           // in a row
	held       []digest.Digest // the closure, once Ready
	earlier    []digest.Digest // the closure of progress.HeldRevision
	// Artifacts that are new here, by their top: those whose tags are remembered once all is whole, and those of which
	// the gate does not know yet.
	untold, ungated map[digest.Digest]bool
}

func (e *task) owner() string { return ownerPrefix + e.assignment.UID }

// New makes a Keeper, which does nothing until Run.
func New(opts Options) (*Keeper, error) {
	if opts.Store == nil || opts.Fetcher == nil || opts.Upstream == nil || opts.Secrets == nil || opts.Changed == nil {
		return nil, errors.New("pins: need a Store, a Fetcher, an Upstream, Secrets and Changed")
	}
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	if opts.Ended == nil {
		opts.Ended = opts.Changed
	}
	k := &Keeper{opts: opts, log: opts.Logger, kick: make(chan struct{}, 1), tasks: make(map[string]*task)}
	k.metrics = newMetrics(opts.Registerer, k)
	return k, nil
}

// Set makes assignments those that stand. What was assigned before and is no longer is released. An assignment
// of the same revision goes on undisturbed.
func (k *Keeper) Set(assignments []v1alpha1.PinAssignment) {
	k.mu.Lock()
	k.set = true
	listed := make(map[string]bool, len(assignments))
	for _, a := range assignments {
		listed[a.UID] = true
		e := k.tasks[a.UID]
		if e == nil {
			e = &task{}
			k.tasks[a.UID] = e
		} else if !e.released && e.assignment.Revision == a.Revision {
			continue
		}
		e.replace(a)
	}
	for uid, e := range k.tasks {
		if !listed[uid] && !e.released {
			e.release()
		}
	}
	k.mu.Unlock()
	k.wake()
	k.opts.Changed()
}

// replace starts e anew for another revision. The store keeps what it holds for the pin until the new is whole.
func (e *task) replace(a v1alpha1.PinAssignment) {
	e.stop()
	before := e.progress
	if before.State == v1alpha1.PinReady && !e.assignment.LetsGo() { // of which nothing is held
		before.HeldRevision, e.earlier = before.Revision, e.held
	}
	e.assignment, e.released, e.failures, e.due, e.lacks, e.held = *a.DeepCopy(), false, 0, time.Time{}, false, nil
	e.untold, e.ungated = make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	e.progress = v1alpha1.PinProgress{
		UID: a.UID, Revision: a.Revision, State: v1alpha1.PinPending, HeldRevision: before.HeldRevision,
		LastUsed: before.LastUsed,
	}
	if a.Action == v1alpha1.ActionPurge {
		e.forgetEarlier()
	}
}

// forgetEarlier is for when the earlier revision is not held whole any more.
func (e *task) forgetEarlier() { e.progress.HeldRevision, e.earlier = "", nil }

func (e *task) release() {
	e.stop()
	e.released, e.due, e.lacks, e.failures = true, time.Time{}, false, 0
}

func (e *task) stop() {
	if e.running != nil {
		e.running.cancel()
	}
}

// Progress describes every assignment that stands, in the order of their UIDs.
func (k *Keeper) Progress() []v1alpha1.PinProgress {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]v1alpha1.PinProgress, 0, len(k.tasks))
	hour := time.Now().Truncate(time.Hour)
	for _, e := range k.tasks {
		if !e.released {
			// The clock was ahead then. The operator takes a use that has yet to come for one of now, again and again.
			if used := e.progress.LastUsed; used != nil && used.After(hour) {
				e.progress.LastUsed = new(metav1.NewTime(hour))
			}
			all = append(all, *e.progress.DeepCopy())
		}
	}
	slices.SortFunc(all, func(a, b v1alpha1.PinProgress) int { return cmp.Compare(a.UID, b.UID) })
	return all
}

// Lost tells that the store no longer has a blob. Pins that hold it are repaired at once.
func (k *Keeper) Lost(d digest.Digest) {
	k.mu.Lock()
	changed := false
	for _, e := range k.tasks {
		if !e.released && slices.Contains(e.held, d) {
			e.due = time.Time{}
		}
		if slices.Contains(e.earlier, d) {
			e.forgetEarlier()
			changed = true
		}
	}
	k.mu.Unlock()
	k.wake()
	if changed {
		k.opts.Changed()
	}
}

// Retry has every pin that waits for its back-off try at once: the store was given more room, or a registry is back.
func (k *Keeper) Retry() {
	k.mu.Lock()
	for _, e := range k.tasks {
		if e.progress.State == v1alpha1.PinFailed {
			e.due = time.Time{}
		}
	}
	k.mu.Unlock()
	k.wake()
}

// Used tells that a workload of this node pulled the manifest d. It reaches Progress to the hour.
func (k *Keeper) Used(d digest.Digest, at time.Time) {
	k.mu.Lock()
	changed := false
	for _, e := range k.tasks {
		if !e.keeps(d) {
			continue
		}
		if e.progress.LastUsed == nil || at.Truncate(time.Hour).After(e.progress.LastUsed.Time) {
			e.progress.LastUsed = new(metav1.NewTime(at.Truncate(time.Hour)))
			changed = true
		}
	}
	k.mu.Unlock()
	if changed {
		k.opts.Changed()
	}
}

// keeps reports whether d is the top of an artifact of e.
func (e *task) keeps(d digest.Digest) bool {
	return !e.released && slices.ContainsFunc(e.assignment.Artifacts, func(a v1alpha1.AssignedArtifact) bool {
		return a.Digest == d.String()
	})
}

func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Run works on the assignments until ctx ends, and returns when every attempt has ended. Store pins stay.
func (k *Keeper) Run(ctx context.Context) {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		k.dropStrangers()
		timer.Reset(k.startDue(ctx, &attempts))
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		case <-timer.C:
		}
	}
}

// dropStrangers releases what the store holds for pins that are assigned no longer: they went while the agent was down.
// Before Set has told the assignments, nobody is a stranger.
func (k *Keeper) dropStrangers() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.set {
		return
	}
	k.set = false
	for owner := range k.opts.Store.Pins() {
		uid, ours := strings.CutPrefix(owner, ownerPrefix)
		if ours && k.tasks[uid] == nil {
			e := &task{assignment: v1alpha1.PinAssignment{UID: uid}}
			e.release()
			k.tasks[uid] = e
		}
	}
}

// startDue starts the attempts that are due and may run, the most urgent first, and returns the time until the next is
// due.
func (k *Keeper) startDue(ctx context.Context, attempts *sync.WaitGroup) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	next := checkInterval
	looking := 0
	var fetching []*attempt
	var line []*task // those that are due or looked at
	for _, e := range k.tasks {
		switch {
		case e.running != nil && e.running.fetches:
			fetching = append(fetching, e.running)
		case e.running != nil:
			looking++
			line = append(line, e)
		case e.due.After(now):
			next = min(next, e.due.Sub(now))
		default:
			line = append(line, e)
		}
	}
	slices.SortFunc(line, byUrgency)
	unseen := false // somebody more urgent may turn out to have to fetch
	for _, e := range line {
		switch {
		case e.running != nil:
			unseen = true
		case !e.lacks:
			unseen = true
			if looking < parallelLooks {
				looking++
				e.start(ctx, k, attempts)
			}
		case !unseen && mayFetch(e.assignment.Priority, fetching):
			e.start(ctx, k, attempts)
			fetching = append(fetching, e.running)
		}
	}
	return next
}

// mayFetch reports whether a pin may fetch beside those that do. It waits for no pin of a lower priority, which may
// take hours over a slow registry or at the bandwidth that it is allowed.
func mayFetch(priority int32, fetching []*attempt) bool {
	ahead := 0
	for _, a := range fetching {
		if a.assignment.Priority >= priority {
			ahead++
		}
	}
	return ahead < parallelPins && len(fetching) < maxPins
}

// byUrgency puts releases first, which cost nothing and make room; then those of high priority; then by name, so that
// two nodes with the same pins fetch them in the same order and share.
func byUrgency(a, b *task) int {
	switch {
	case a.released != b.released && a.released:
		return -1
	case a.released != b.released:
		return 1
	}
	return cmp.Or(cmp.Compare(b.assignment.Priority, a.assignment.Priority),
		cmp.Compare(a.assignment.Namespace, b.assignment.Namespace), cmp.Compare(a.assignment.Name, b.assignment.Name),
		cmp.Compare(a.assignment.UID, b.assignment.UID))
}

// start runs one attempt of k at e.
func (e *task) start(ctx context.Context, k *Keeper, attempts *sync.WaitGroup) {
	a := &attempt{Keeper: k, task: e, assignment: e.assignment, released: e.released, fetches: e.lacks,
		owner: e.owner()}
	limit := defaultTimeLimit
	if t := a.assignment.TimeLimit; t != nil && t.Duration > 0 {
		limit = t.Duration
	}
	ctx, cancelTime := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w of %s", errTimeLimit, limit))
	ctx, cancel := context.WithCancel(ctx)
	a.cancel = cancel
	e.running = a
	attempts.Go(func() {
		held, err := a.run(ctx)
		// A cancelled attempt says nothing about its pin, even where it failed of something else on the way.
		superseded := err != nil && ctx.Err() != nil && context.Cause(ctx) == context.Canceled //nolint:errorlint // Cause returns it bare
		cancel()
		cancelTime()
		k.finish(a, held, err, superseded)
	})
}

// finish records what came of an attempt.
func (k *Keeper) finish(a *attempt, held []digest.Digest, err error, superseded bool) {
	k.mu.Lock()
	e := a.task
	e.running = nil
	changed, before := false, e.progress.State
	switch {
	case superseded || e.assignment.Revision != a.assignment.Revision || e.released != a.released:
		// Replaced meanwhile: it is due as it stands now.
	case errors.Is(err, errGap):
		e.lacks = true
		if e.progress.State == v1alpha1.PinReady { // which it is no longer, however long it waits for its turn
			e.progress.State, changed = v1alpha1.PinPending, true
		}
	case err == nil && slices.ContainsFunc(held, func(d digest.Digest) bool { return !a.has(d) }):
		e.lacks = false // a blob was lost meanwhile, which Lost could not know to be held
	case err != nil:
		e.lacks = false
		changed = e.fail(err)
		k.metrics.failures.WithLabelValues(e.progress.Reason).Inc()
		k.log.Warn("pin failed", "pin", a.name(), "reason", e.progress.Reason, "again",
			time.Until(e.due).Round(time.Second), "error", err)
	case e.released:
		delete(k.tasks, e.assignment.UID)
		k.log.Info("pin released", "pin", a.name())
	default:
		state, again := v1alpha1.PinReady, v1alpha1.Jitter(checkInterval)
		if e.assignment.Action == v1alpha1.ActionPurge {
			// Once is enough: what is cached anew after that is no longer the pin's.
			state, again = v1alpha1.PinPurged, never
		}
		if e.progress.State != state {
			k.log.Info("pin is "+strings.ToLower(string(state)), "pin", a.name(), "bytes", e.progress.BytesWanted)
		}
		changed = e.progress.State != state
		e.progress.State, e.progress.Reason, e.progress.Message = state, "", ""
		e.forgetEarlier()
		e.failures, e.lacks, e.held = 0, false, held
		e.due = time.Now().Add(again)
	}
	ended := changed && e.progress.State != before && e.progress.State != v1alpha1.PinPending
	k.mu.Unlock()
	k.wake()
	switch {
	case ended:
		k.opts.Ended()
	case changed:
		k.opts.Changed()
	}
}

// fail records a failure and when to try again. It reports whether what a person sees has changed.
func (e *task) fail(err error) bool {
	before := e.progress
	e.progress.State = v1alpha1.PinFailed
	e.progress.Reason, e.progress.Message = explain(err)
	e.failures++
	var backoff v1alpha1.Backoff
	if b := e.assignment.Backoff; b != nil {
		backoff = *b
	}
	e.due = time.Now().Add(max(backoff.Pause(e.failures), min(retryAfter(err), maxRetryAfter)))
	return before.State != e.progress.State || before.Reason != e.progress.Reason ||
		before.Message != e.progress.Message
}
