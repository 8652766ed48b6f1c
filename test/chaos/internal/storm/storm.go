// Package storm carries out a plan and judges what is seen: clients pull while things fail, and none of these may
// happen:
//
//   - a wrong byte in an answer that ends as if all were well, or a tag that names another image
//   - a committed blob that is gone after a crash
//   - a byte of a private image, or its size, for a caller without credentials, with wrong ones or revoked ones
//   - a pull that does not end in time, or fails while the client itself could reach a good registry
//   - more copies from the registry than 1.05 and what each agent that died was reading
//   - a blob that is pinned on a node and not there
//   - an agent that ends by itself, or that is not as it was before once all is healed
//   - when all is healed, agents that are not connected with one another, or a burst of more than 1.05 copies
package storm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/chaos/internal/plan"
	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/chaos/internal/rig"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
)

const (
	// pullBound is within what a pull has to end, far above what any does on a machine that has nothing else to do.
	pullBound = 90 * time.Second
	// healBound is how long agents have for being as before when all is healed.
	healBound = 90 * time.Second
	// offlineEvery is how often, in rounds, what nodes hold is pulled without the registry.
	offlineEvery = 4
	// maxRSS is the memory limit of the chart.
	maxRSS = 512 << 20
	// leased is what a death costs of a layer at most. An agent reads two runs of a leaf at one time, of layers as
	// small as here, and on a busy machine those who are to read them after it may be taken for dead as well.
	leased = 4 << 20
	// obeyed is how long after a revocation it may still be being asked about.
	obeyed = 500 * time.Millisecond
)

// Storm is a run.
type Storm struct {
	rig      *rig.Rig
	settings plan.Settings
	log      *slog.Logger
	tokens   puller.Tokens

	mu       sync.Mutex
	images   map[int]*badregistry.Image // by round
	held     map[int]holding            // by node, before it was last ended
	pinned   *badregistry.Image         // on every node; nil: none
	pins     []string                   // its digests
	troubles []trouble
	// revoked is since when nobody may read revokedImage any more; zero: they may.
	revoked      time.Time
	revokedImage *badregistry.Image
	Figures      Figures
	Violations   []string
}

// trouble is a time in which a client on a node could not count on the registry. Node -1 stands for all.
type trouble struct {
	node       int
	begin, end time.Time
}

// Figures are what a run has done and seen.
type Figures struct {
	Rounds, Pulls, Failed int
	Faults                map[plan.Kind]int
	// Fallbacks are requests that went to the registry, Resumed bodies that broke off, Tries pulls that were begun
	// again.
	Fallbacks, Resumed, Again int
	// Aborted are answers of mirrors with wrong bytes that were broken off, Clean those that were not.
	Aborted, Clean int
	// Thefts are attempts to get private bytes.
	Thefts int
	// Alone are rounds without faults, and the copies that the registry sent then; Bounded those in which agents died
	// only. Healed is the same of bursts when all was healed.
	Alone, Bounded, Healed Copies
	// Peak is the most memory that an agent has taken, and Idle the most of a core that one takes when all is over.
	Peak    int64
	Idle    float64
	Slowest time.Duration
	// Soak is what the agents used, by quarters of the run.
	Soak []Quarter `json:",omitempty"`
	// Took are the times of pulls, sorted.
	Took []time.Duration
}

// Copies sums up what was to be pulled and what the registry sent of it.
type Copies struct {
	Rounds, Deaths int
	Size, Sent     int64
	// Allowed is what Sent may be, and Largest one image more: on a machine that is busy with other things an agent may
	// seem dead.
	Allowed float64
	Largest int64
	// Most is of the round with the most copies.
	Most float64
}

// PerImage is the mean.
func (c Copies) PerImage() float64 { return float64(c.Sent) / float64(max(1, c.Size)) }

// New makes a run on a rig.
func New(r *rig.Rig, settings plan.Settings, log *slog.Logger) *Storm {
	return &Storm{
		rig: r, settings: settings, log: log, images: map[int]*badregistry.Image{}, held: map[int]holding{},
		Figures: Figures{Faults: map[plan.Kind]int{}},
	}
}

// violate notes what must not happen. Round -1 stands for the run as a whole.
func (s *Storm) violate(round int, format string, args ...any) {
	when := fmt.Sprintf("round %d: ", round)
	if round < 0 {
		when = "at the end: "
	}
	text := when + fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.Violations, text) {
		return // a thief comes again
	}
	s.log.Error("violation", "what", text)
	s.Violations = append(s.Violations, text)
}

// known reports whether a digest belongs to an image that is still pulled, or is pinned.
func (s *Storm) known(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.pins, digest) {
		return true
	}
	for _, m := range s.images {
		for _, b := range m.Blobs {
			if b.Digest.String() == digest {
				return true
			}
		}
	}
	return false
}

// Round carries out one round, and waits until all is as before.
func (s *Storm) Round(ctx context.Context, r plan.Round) error {
	began := time.Now()
	m, err := s.bring(r)
	if err != nil {
		return err
	}
	images := s.kept()
	if r.Rate > 0 {
		if err := s.rig.SetRate(ctx, r.Rate); err != nil {
			return fmt.Errorf("round %d: %w", r.Number, err)
		}
	}
	began = time.Now()
	var faults, pulls errgroup.Group
	for _, f := range r.Faults {
		s.Figures.Faults[f.Kind]++
		faults.Go(func() error {
			sleep(ctx, time.Until(began.Add(f.At)))
			defer s.troubled(f, time.Now())
			return s.suffer(ctx, f, m)
		})
	}
	pulled := make([]puller.Result, len(r.Pulls))
	ends := make([]time.Time, len(r.Pulls))
	for i, p := range r.Pulls {
		pulls.Go(func() error {
			sleep(ctx, time.Until(began.Add(p.At)))
			bounded, cancel := context.WithTimeout(ctx, pullBound)
			defer cancel()
			pulled[i] = puller.Pull(bounded, s.spec(p.Node, images[r.Number-p.Back]))
			ends[i] = time.Now()
			return nil
		})
	}
	thieves, stop := context.WithCancel(ctx)
	var stealing sync.WaitGroup
	stealing.Go(func() { s.steal(thieves, r, began, images) })
	err = faults.Wait()
	_ = pulls.Wait() // their outcome is judged below
	stop()
	stealing.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if r.Rate > 0 {
		err = errors.Join(err, s.rig.SetRate(ctx, 0))
	}
	if err != nil {
		return fmt.Errorf("round %d: %w", r.Number, err)
	}
	for i, p := range r.Pulls {
		s.judgePull(r, p, images[r.Number-p.Back], pulled[i], ends[i])
	}
	s.judgeCopies(r, m)
	copies := float64(s.rig.Registry.Sent(m)) / float64(m.Size())
	busy := time.Since(began)
	s.rest(ctx, r, m)
	s.Figures.Rounds++
	s.log.Info("round", "number", r.Number, "faults", fmt.Sprint(r.Faults), "image", m.Size(), "private", m.Private,
		"copies", fmt.Sprintf("%.2f", copies), "pulls", busy.Round(time.Millisecond), "rest",
		(time.Since(began) - busy).Round(time.Millisecond))
	return context.Cause(ctx)
}

// bring makes the round's image, and those before it where the run did not begin with the first round. It forgets the
// one that nobody pulls any more.
func (s *Storm) bring(r plan.Round) (*badregistry.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := max(0, r.Number-plan.Kept); number <= r.Number; number++ {
		if s.images[number] != nil {
			continue
		}
		m, err := s.makeImage(plan.MakeRound(s.settings, number))
		if err != nil {
			return nil, err
		}
		s.images[number] = m
		s.rig.Registry.Add(m)
		if m.Private {
			l, err := m.Listing(listing(m))
			if err != nil {
				return nil, err
			}
			s.rig.Registry.Add(l)
		}
	}
	if old := s.images[r.Number-plan.Kept-1]; old != nil {
		s.rig.Registry.Remove(old.Repository)
		s.rig.Registry.Remove(listing(old))
		delete(s.images, r.Number-plan.Kept-1)
	}
	clear(s.held)
	s.troubles = nil
	return s.images[r.Number], nil
}

// makeImage makes images until one's largest layer is the coordinator's that the plan names.
func (s *Storm) makeImage(r plan.Round) (*badregistry.Image, error) {
	repository := fmt.Sprintf("public/round-%d", r.Number)
	if r.Image.Private {
		repository = fmt.Sprintf("private/round-%d", r.Number)
	}
	if r.Image.Asked {
		repository = rig.Asked + "/" + repository
	}
	for seed := r.Image.Seed; ; seed++ {
		m, err := badregistry.NewImage(repository, r.Image.Private, seed, r.Image.Layers...)
		if err != nil {
			return nil, err
		}
		m.Bearer = r.Image.Bearer
		if r.Image.Coordinator < 0 {
			return m, nil
		}
		largest := slices.MaxFunc(m.Blobs, func(a, b v1.Descriptor) int { return cmp.Compare(a.Size, b.Size) })
		if node, err := s.rig.Coordinator(largest.Digest); err != nil || node == r.Image.Coordinator {
			return m, err
		}
	}
}

// listing is the public repository of the same registry whose manifest lists what a private image has.
func listing(m *badregistry.Image) string { return "public/lists/" + m.Repository }

func (s *Storm) kept() map[int]*badregistry.Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.images)
}

func (s *Storm) spec(node int, m *badregistry.Image) puller.Spec {
	return puller.Spec{
		Image: m, Dial: s.rig.Nodes[node].Host.DialContext, Mirror: rig.Mirror, Registry: s.rig.RegistryURL,
		Namespace: rig.Namespace, Tokens: &s.tokens,
	}
}

// troubled notes in what time, now over, clients could not count on the registry.
func (s *Storm) troubled(f plan.Fault, begin time.Time) {
	node := -1
	switch {
	case f.Kind.OfRegistry(), f.Kind == plan.Revoke:
	case f.Kind == plan.Unplug:
		node = f.Nodes[0]
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = append(s.troubles, trouble{node: node, begin: begin, end: time.Now()})
}

// excused reports whether a client on a node could not count on the registry at some time between.
func (s *Storm) excused(node int, begin, end time.Time) bool {
	return slices.ContainsFunc(s.troubles, func(t trouble) bool {
		return (t.node == -1 || t.node == node) && t.begin.Before(end) && begin.Before(t.end)
	})
}

func (s *Storm) judgePull(r plan.Round, p plan.Pull, m *badregistry.Image, got puller.Result, end time.Time) {
	s.Figures.Pulls++
	s.Figures.Fallbacks += got.Fallbacks
	s.Figures.Resumed += got.Resumed
	s.Figures.Again += got.Tries - 1
	s.Figures.Slowest = max(s.Figures.Slowest, got.Took)
	s.Figures.Took = append(s.Figures.Took, got.Took)
	s.judgeBytes(r.Number, p.Node, got)
	if got.Err == nil {
		return
	}
	s.Figures.Failed++
	if errors.Is(got.Err, context.DeadlineExceeded) {
		s.violate(r.Number, "a pull of %s on node %d had not ended after %s: %v", m.Repository, p.Node, pullBound,
			got.Err)
		return
	}
	if !s.excused(p.Node, end.Add(-got.Took), end) {
		s.violate(r.Number, "a pull of %s on node %d, begun at %s, failed after %s and %d "+
			"tries with a good registry: %v",
			m.Repository, p.Node, p.At, got.Took.Round(time.Millisecond), got.Tries, got.Err)
	}
}

func (s *Storm) judgeBytes(round, node int, got puller.Result) {
	for _, bad := range got.Bad {
		if !bad.Clean {
			s.Figures.Aborted++
			continue
		}
		s.Figures.Clean++
		s.violate(round, "node %d gave %s and ended it as if all were well (rotten there: %v)",
			node, bad, s.rig.Nodes[node].Rotten(bad.Digest.String()))
	}
}

func (s *Storm) judgeCopies(r plan.Round, m *badregistry.Image) {
	if !r.CopiesBounded() {
		return
	}
	deaths, deaf := r.Deaths()
	if deaths+deaf == 0 {
		s.Figures.Alone.add(m, s.rig.Registry.Sent(m), 0)
		return
	}
	reading := int64(0)
	for _, b := range m.Blobs {
		reading += min(b.Size, leased)
	}
	c := &s.Figures.Bounded
	c.Deaths += deaths + deaf
	again := int64(deaths)*reading + int64(deaf)*m.Size()
	c.add(m, s.rig.Registry.Sent(m), again)
	// On a machine that is busy with other things one more may seem dead.
	if sent, most := s.rig.Registry.Sent(m), 1.05*float64(m.Size())+float64(again+reading); float64(sent) > most {
		s.violate(r.Number, "%d agents died and %d were deaf, and the registry sent %.2f copies, where %.2f are "+
			"what they were reading and one more may seem dead", deaths, deaf, float64(sent)/float64(m.Size()),
			most/float64(m.Size()))
	}
}

// add adds a round, in which so many bytes may have been read once more.
func (c *Copies) add(m *badregistry.Image, sent, again int64) {
	c.Rounds++
	c.Size += m.Size()
	c.Sent += sent
	c.Allowed += 1.05*float64(m.Size()) + float64(again)
	c.Largest = max(c.Largest, m.Size())
	c.Most = max(c.Most, float64(sent)/float64(m.Size()))
}

// JudgeCopies is for the end of a run, since a byte more or less of a single small image means little.
func (s *Storm) JudgeCopies() {
	for name, c := range map[string]Copies{"without faults": s.Figures.Alone,
		"in which agents died": s.Figures.Bounded, "when all was healed": s.Figures.Healed} {
		if float64(c.Sent) > c.Allowed+float64(c.Largest) {
			s.violate(-1, "in %d rounds %s the registry sent %.2f copies, and %.2f were allowed (%d deaths)",
				c.Rounds, name, c.PerImage(), c.Allowed/float64(c.Size), c.Deaths)
		}
	}
}

// steal tries to get private bytes of every node until ctx ends, of the round's image from the time that the round
// names.
func (s *Storm) steal(ctx context.Context, r plan.Round, began time.Time, images map[int]*badregistry.Image) {
	s.everywhere(func(node int) {
		for turn := 0; ctx.Err() == nil; turn++ {
			for number, m := range images {
				if ctx.Err() == nil && (number != r.Number || time.Since(began) >= r.Thieves) {
					s.stealFrom(ctx, r, node, m, puller.Thief(turn%int(puller.Revoked)), s.elsewhere(m, images))
				}
			}
			sleep(ctx, 500*time.Millisecond)
		}
	})
}

func (s *Storm) stealFrom(ctx context.Context, r plan.Round, node int, m *badregistry.Image, thief puller.Thief,
	elsewhere []string) {
	since := s.revokedFor(m)
	switch {
	case since > obeyed && r.RevocationJudged():
		thief = puller.Revoked
	case !m.Private:
		return
	}
	s.mu.Lock()
	s.Figures.Thefts++
	s.mu.Unlock()
	bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	stolen := puller.Steal(bounded, s.spec(node, m), thief, elsewhere...)
	if thief == puller.Revoked && s.revokedFor(m) < since {
		return // it may read again
	}
	for _, path := range stolen {
		s.violate(r.Number, "node %d gave private bytes to a caller %s at %s", node, thief, path)
	}
}

// revokedFor is for how long an image is that nobody may read any more.
func (s *Storm) revokedFor(m *badregistry.Image) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked.IsZero() || s.revokedImage != m {
		return 0
	}
	return time.Since(s.revoked)
}

// elsewhere are public repositories of the same registry, one of which lists what the image has, and the registry that
// claims to have everything.
func (s *Storm) elsewhere(private *badregistry.Image, images map[int]*badregistry.Image) []string {
	others := []string{
		rig.Namespace + "/" + listing(private), rig.Evil + "/any/image",
		rig.Evil + "/" + badregistry.Guessing + "image",
	}
	for _, m := range images {
		if !m.Private && m != private {
			return append(others, rig.Namespace+"/"+m.Repository)
		}
	}
	return others
}
