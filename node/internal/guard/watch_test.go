package guard

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// scene is a node whose agent behaves in some way. It notes when the guard did what.
type scene struct {
	start    time.Time
	answers  func(ctx context.Context, since time.Duration) (Answer, string)
	immortal bool

	mu             sync.Mutex
	installed      bool
	removed, ended []time.Duration
}

func (s *scene) ask(ctx context.Context) (Answer, string) {
	s.mu.Lock()
	killed := !s.immortal && len(s.ended) > 0
	s.mu.Unlock()
	if killed {
		return Away, ""
	}
	return s.answers(ctx, time.Since(s.start))
}

func (s *scene) install() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.installed = true
}

func (s *scene) remove(string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.installed {
		s.installed = false
		s.removed = append(s.removed, time.Since(s.start))
	}
}

func (s *scene) end(string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = append(s.ended, time.Since(s.start))
}

func (s *scene) play(t *testing.T, last time.Duration) {
	t.Helper()
	g, err := newGuard(Options{Mirror: mirror.Options{
		Runtime: mirror.Containerd, Endpoint: "http://127.0.0.1:5050", StateDir: "/nowhere"}})
	require.NoError(t, err)
	g.node, s.start = s, time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), last)
	defer cancel()
	g.watch(ctx)
	synctest.Wait()
}

func after(d time.Duration, a Answer) func(context.Context) (Answer, string) {
	return func(ctx context.Context) (Answer, string) {
		select {
		case <-time.After(d):
			return a, "as it says"
		case <-ctx.Done():
			return Silent, ctx.Err().Error()
		}
	}
}

// The times are those that the package's documentation promises.
func TestGuard_UnplugsTheNodeWellWithinTenSeconds(t *testing.T) {
	t.Parallel()
	well, silent, sick := after(0, Well), after(time.Hour, Well), after(0, Sick)
	for name, tc := range map[string]struct {
		then     func(context.Context) (Answer, string)
		immortal bool
		unplugs  time.Duration
	}{
		"an agent that stops":                             {then: silent, unplugs: 6 * time.Second},
		"one that stops and cannot be ended":              {then: silent, immortal: true, unplugs: 7 * time.Second},
		"one that says that its disk hangs":               {then: sick, unplugs: time.Second},
		"one that says so slowly":                         {then: after(2*time.Second, Sick), unplugs: 3 * time.Second},
		"one that answers later than the guard's waiting": {then: after(6*time.Second, Well), unplugs: 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for tenth := range 10 {
				stops := 10*time.Second + time.Duration(tenth)*100*time.Millisecond + time.Millisecond
				synctest.Test(t, func(t *testing.T) {
					s := &scene{immortal: tc.immortal}
					s.answers = func(ctx context.Context, since time.Duration) (Answer, string) {
						if since < stops {
							return well(ctx)
						}
						return tc.then(ctx)
					}
					s.play(t, 40*time.Second)
					unplugged := append([]time.Duration{}, s.removed...)
					if !tc.immortal {
						unplugged = append(unplugged, s.ended...)
					}
					require.NotEmpty(t, unplugged, fmt.Sprint("stops after ", stops))
					require.Greater(t, slices.Min(unplugged), stops)
					require.LessOrEqual(t, slices.Min(unplugged)-stops, tc.unplugs)
				})
			}
		})
	}
}

func TestGuard_LeavesAnAgentAloneThatIsOnlySlow(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]func(ctx context.Context, since time.Duration) (Answer, string){
		"each answer takes almost as long as the guard waits": func(ctx context.Context, _ time.Duration) (Answer, string) {
			return after(4900*time.Millisecond, Well)(ctx)
		},
		"it stands still for four seconds of each six": func(ctx context.Context, since time.Duration) (Answer, string) {
			return after(max(0, 4*time.Second-since%(6*time.Second)), Well)(ctx)
		},
		"it answers while its process is looked for": func(_ context.Context, since time.Duration) (Answer, string) {
			if since > time.Second {
				return Somebody, ""
			}
			return Well, ""
		},
		"it answers one look of three": func(ctx context.Context, since time.Duration) (Answer, string) {
			if since/time.Second%3 != 0 {
				return after(time.Hour, Well)(ctx)
			}
			return Well, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &scene{answers: answers}
				s.play(t, 10*time.Minute)
				require.True(t, s.installed)
				require.Empty(t, s.ended)
				require.Empty(t, s.removed)
			})
		})
	}
}
