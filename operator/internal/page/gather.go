package page

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

const (
	// leastPause is the time between two gatherings, at least; a slow one is followed by a pause restFactor times as
	// long, so that a large cluster is no busier with the page than a small one.
	leastPause = 4 * time.Second
	restFactor = 5
	// gatherTimeout bounds one gathering, and agentPatience one agent's answer.
	gatherTimeout = 30 * time.Second
	agentPatience = 3 * time.Second
	// mostAsked is how many agents are asked; of more, that many which are spread evenly over their names.
	mostAsked = 300
	// longestAnswer is how many bytes one view of an agent may have. What 5,000 peers are called fits, and an agent
	// that somebody has taken over does not fill the operator's memory.
	longestAnswer = 2 << 20
	// registriesEvery is the time between two questions which registries answer: for each, every agent asks them all.
	registriesEvery = 5 * time.Minute
)

// reader reads from the operator's cache what that holds anyway, and from the API server what it keeps a part of only:
// the agents' pods. A list of all nodes would be too much to ask for every few seconds.
type reader struct{ cached, live client.Reader }

func (r reader) of(o any) client.Reader {
	switch o.(type) {
	case *corev1.PodList, *appsv1.DaemonSetList:
		return r.live
	}
	return r.cached
}

func (r reader) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return r.of(o).Get(ctx, key, o, opts...)
}

func (r reader) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	return r.of(l).List(ctx, l, opts...)
}

// gathered is all that was found out at one time.
type gathered struct {
	at      time.Time // by the API server's clock
	cluster *survey.Cluster
	// asked: the agents were asked too; health and moving are what they said.
	asked  bool
	left   int // agents that were not asked, because there are too many
	health []survey.Answer[survey.Shown]
	moving []survey.Answer[[]view.Fetch]
}

// gatherer asks when somebody wants to know, and once for all who want to know at that time.
type gatherer struct {
	api       client.Reader
	agents    survey.Agents // nil: they are not asked
	namespace string
	clock     clock.PassiveClock
	// now is the API server's time, which what it holds is as old by as it says. The operator's own clock may be off.
	now func() time.Time

	asking singleflight.Group
	// registries are what agents said of them last, at lastRegistries. One gathering at a time uses them.
	registries     map[string][]view.Registry
	lastRegistries time.Time
	mu             sync.Mutex
	last           *gathered
	until          time.Time // last holds
}

// get gives what was gathered lately.
func (g *gatherer) get(ctx context.Context) (*gathered, error) {
	if last := g.fresh(); last != nil {
		return last, nil
	}
	// Who asked first may go away; the others still want the answer.
	answer := g.asking.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gatherTimeout)
		defer cancel()
		start := g.clock.Now()
		found, err := g.gather(ctx)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.last, g.until = found, g.clock.Now().Add(max(leastPause, restFactor*g.clock.Since(start)))
		return found, nil
	})
	select {
	case a := <-answer:
		found, _ := a.Val.(*gathered)
		return found, a.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *gatherer) fresh() *gathered {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last != nil && g.clock.Now().Before(g.until) {
		return g.last
	}
	return nil
}

func (g *gatherer) gather(ctx context.Context) (*gathered, error) {
	c, err := survey.Look(ctx, g.api, g.namespace)
	if err != nil {
		return nil, err
	}
	found := &gathered{at: g.now(), cluster: c}
	if g.agents == nil {
		return found, nil
	}
	found.asked = true
	type both struct {
		health survey.Shown
		moving []view.Fetch
	}
	ask := survey.AskQuietly
	anew := g.clock.Since(g.lastRegistries) >= registriesEvery
	if anew {
		ask, g.registries, g.lastRegistries = survey.AskHealth, map[string][]view.Registry{}, g.clock.Now()
	}
	pods := spread(survey.Running(c.Agents, ""), mostAsked)
	// One connection for all questions.
	answers := survey.AskAll(ctx, g.agents, agentPatience, pods,
		func(ctx context.Context, c *view.Client) (b both, err error) {
			c.MostBytes = longestAnswer
			if b.health, err = ask(ctx, c); err == nil {
				b.moving, err = view.Get[[]view.Fetch](ctx, c, view.FetchesPath, nil)
			}
			return b, err
		})
	if ctx.Err() != nil { // those whose turn did not come are not to blame
		answers = slices.DeleteFunc(answers, func(a survey.Answer[both]) bool { return a.Err != nil })
	}
	found.left = len(survey.Running(c.Agents, "")) - len(answers)
	for _, a := range answers {
		if anew {
			g.registries[a.Node] = a.Value.health.Registries
		}
		a.Value.health.Registries = g.registries[a.Node]
		found.health = append(found.health,
			survey.Answer[survey.Shown]{Node: a.Node, Value: a.Value.health, Err: a.Err})
		found.moving = append(found.moving,
			survey.Answer[[]view.Fetch]{Node: a.Node, Value: a.Value.moving, Err: a.Err})
	}
	return found, nil
}

// spread takes so many pods at most, evenly.
func spread(pods []corev1.Pod, most int) []corev1.Pod {
	if len(pods) <= most {
		return pods
	}
	some := make([]corev1.Pod, most)
	for i := range some {
		some[i] = pods[i*len(pods)/most]
	}
	return some
}
