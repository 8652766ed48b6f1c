// Package pulls remembers how the last pulls of this node went, so that somebody who finds one slow can be told why,
// and leaves one line in the log for each: what came from where.
//
// The registry front tells it of requests, and package fetch of what came for them. A pull is what is asked of one
// repository without a pause of more than Quiet. Nothing here is waited for, and all that is kept is bounded.
package pulls

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// Quiet is how long nothing is asked of a repository when a pull of it is taken to be over.
	Quiet = 5 * time.Second
	// maxPulls are kept of those that are over, maxRunning at most are under way, and maxParts are kept of each.
	maxPulls   = 256
	maxRunning = 256
	maxParts   = 256
	// maxFetches are kept to be matched with requests.
	maxFetches = 2048
	// maxAge is for how long a pull that is over is remembered.
	maxAge = 2 * time.Hour
)

// Answer is a request to the registry front that has ended.
type Answer struct {
	// Reference is a tag, or the digest again.
	Kind, Reference, Digest string
	Code                    string
	Err                     error
	Bytes                   int64
	Start                   time.Time
	// Each of these is from Start on, and 0 where it did not come to that.
	Resolve, Authorize, FirstByte, Took time.Duration
}

// Fetched is a fetch that has ended.
type Fetched struct {
	Digest string
	Start  time.Time
	view.PullFetch
}

// Record is the memory. Its methods may be called concurrently.
type Record struct {
	log   *slog.Logger
	saved *prometheus.CounterVec

	mu      sync.Mutex
	running running
	over    []*pull // the newest last
	fetches *lru.Cache[string, Fetched]
	sum     int64 // of saved
}

// running are the pulls that are under way, the newest last. The last of a repository takes what is asked of it.
type running []*pull

type pull struct {
	registry string
	view.Pull
	open int // requests that are not answered yet
	last time.Time
}

// New makes a Record.
func New(log *slog.Logger, reg prometheus.Registerer) *Record {
	r := &Record{
		log: log, fetches: lru.New[string, Fetched](maxFetches),
		saved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_saved_bytes_total",
			Help: "Bytes given to callers that were not read from their registry by this node: " +
				"what the cache has saved it.",
		}, []string{"registry"}),
	}
	if reg != nil {
		reg.MustRegister(r.saved)
	}
	return r
}

// Asked is called when a request begins. What it returns is called when its answer has ended.
func (r *Record) Asked(registry, name string) func(Answer) {
	now := time.Now()
	repository := registry + "/" + name
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.running.latest(repository)
	if p == nil {
		if p = r.running.begin(registry, repository, now); p == nil {
			return func(Answer) {}
		}
	}
	p.open++
	p.last = now
	return func(a Answer) {
		r.mu.Lock()
		defer r.mu.Unlock()
		p.open--
		p.last = time.Now()
		if into := r.running.other(p, a); into != p {
			into.last = p.last
			into.add(a)
			return
		}
		p.add(a)
	}
}

// latest is the newest pull of a repository; nil where there is none.
func (all running) latest(repository string) *pull {
	for _, p := range slices.Backward(all) {
		if p.Repository == repository {
			return p
		}
	}
	return nil
}

// begin makes a pull; nil where too many are under way.
func (all *running) begin(registry, repository string, at time.Time) *pull {
	if len(*all) >= maxRunning {
		return nil
	}
	p := &pull{registry: registry, last: at, Pull: view.Pull{Repository: repository, Started: at}}
	*all = append(*all, p)
	return p
}

// other is the pull that an answer belongs to. A second tag of a repository is another image, and so another pull.
func (all *running) other(p *pull, a Answer) *pull {
	tag := a.Kind == "manifest" && a.Reference != a.Digest && !strings.Contains(a.Reference, ":")
	if !tag || p.Reference == "" || p.Reference == a.Reference {
		return p
	}
	for _, q := range *all {
		if q.Repository == p.Repository && q.Reference == a.Reference {
			return q
		}
	}
	return cmp.Or(all.begin(p.registry, p.Repository, a.Start), p)
}

// How tells how a blob came to this node; nil where that is not known any more.
func (r *Record) How(digest string) *view.PullFetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.fetches.Peek(digest)
	if !ok {
		return nil
	}
	return &f.PullFetch
}

// Fetched is called when a fetch has ended. Of what is read past the store it is called with each range, and then tells
// of all ranges so far.
func (r *Record) Fetched(f Fetched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetches.Add(f.Digest, f)
}

func (p *pull) add(a Answer) {
	if a.Kind == "manifest" && p.Reference == "" {
		p.Reference = a.Reference
	}
	key := cmp.Or(a.Digest, a.Reference)
	i := slices.IndexFunc(p.Parts, func(x view.PullPart) bool { return x.Digest == key && x.Kind == a.Kind })
	if i < 0 {
		if len(p.Parts) >= maxParts {
			p.Dropped++
			return
		}
		p.Parts = append(p.Parts, view.PullPart{Digest: key, Kind: a.Kind, After: max(0, a.Start.Sub(p.Started))})
		i = len(p.Parts) - 1
	}
	part := &p.Parts[i]
	part.Requests++
	part.Bytes += a.Bytes
	part.Code, part.Problem = a.Code, ""
	if a.Err != nil {
		part.Problem = a.Err.Error()
	}
	if a.Took >= part.Took {
		part.After = max(0, a.Start.Sub(p.Started))
		part.Resolve, part.Authorize, part.FirstByte, part.Took = a.Resolve, a.Authorize, a.FirstByte, a.Took
	}
}

// Run ends pulls that are over, until ctx does.
func (r *Record) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, p := range r.sweep(now) {
				r.tell(ctx, p)
			}
		case <-ctx.Done():
			return
		}
	}
}

// sweep moves what is over out of what runs, and returns it.
func (r *Record) sweep(now time.Time) []view.Pull {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ended []view.Pull
	over := func(p *pull) bool { return p.open == 0 && now.Sub(p.last) >= Quiet }
	quiet := slices.DeleteFunc(slices.Clone(r.running), func(p *pull) bool { return !over(p) })
	r.running = slices.DeleteFunc(r.running, over)
	for _, p := range quiet {
		p.Pull = p.show(r.fetches.Peek)
		if len(p.Parts) == 0 {
			continue
		}
		local, peers, _ := p.Sources()
		if local+peers > 0 {
			r.saved.WithLabelValues(p.registry).Add(float64(local + peers))
			r.sum += local + peers
		}
		r.over = append(r.over, p)
		ended = append(ended, p.Pull)
	}
	old := func(p *pull) bool { return now.Sub(p.last) > maxAge }
	r.over = slices.DeleteFunc(r.over, old)
	if n := len(r.over) - maxPulls; n > 0 {
		r.over = slices.Delete(r.over, 0, n)
	}
	return ended
}

// show is p as it stands, with what is known of its fetches.
func (p *pull) show(known func(digest string) (Fetched, bool)) view.Pull {
	v := p.Pull
	v.Parts = slices.Clone(p.Parts)
	v.Running = p.open > 0
	v.Took = p.last.Sub(p.Started)
	if v.Running {
		v.Took = time.Since(p.Started)
	}
	for i := range v.Parts {
		part := &v.Parts[i]
		asked := p.Started.Add(part.After)
		f, ok := known(part.Digest)
		// One that ended before the request, or began after its answer, brought nothing for it.
		if part.Fetch != nil || !ok || f.Start.Add(f.Took).Before(asked) || f.Start.After(asked.Add(part.Took)) {
			continue
		}
		how := f.PullFetch
		how.Before = max(0, asked.Sub(f.Start))
		part.Fetch = &how
	}
	return v
}

// Pulls are those that are known, the newest first.
func (r *Record) Pulls() []view.Pull {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]view.Pull, 0, len(r.running)+len(r.over))
	for _, p := range r.over {
		all = append(all, p.Pull)
	}
	for _, p := range r.running {
		all = append(all, p.show(r.fetches.Peek))
	}
	slices.SortFunc(all, func(a, b view.Pull) int { return b.Started.Compare(a.Started) })
	return all
}

// Registries are those of the pulls that are known.
func (r *Record) Registries() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, p := range r.over {
		all = append(all, p.registry)
	}
	for _, p := range r.running {
		all = append(all, p.registry)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Saved are the bytes that registries need not have sent, since the start.
func (r *Record) Saved() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sum
}

// tell leaves one line of a pull.
func (r *Record) tell(ctx context.Context, p view.Pull) {
	local, peers, upstream := p.Sources()
	var failed int
	var problem string
	for _, part := range p.Parts {
		if part.Problem != "" {
			failed++
			problem = part.Problem
		}
	}
	if local+peers+upstream == 0 && failed == 0 {
		return // questions only, such as whether an image is there
	}
	attrs := []slog.Attr{
		slog.String("image", p.Image()), slog.String("took", view.Duration(p.Took)), slog.Int("parts", len(p.Parts)),
		slog.String("fromThisNode", view.Bytes(local)), slog.String("fromPeers", view.Bytes(peers)),
		slog.String("fromRegistry", view.Bytes(upstream)),
	}
	if failed > 0 {
		attrs = append(attrs, slog.Int("failed", failed), slog.String("lastProblem", problem))
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "pulled", attrs...)
}
