package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestState(t *testing.T) {
	t.Parallel()
	const none = Answer(-1)
	type event struct {
		at     time.Duration
		answer Answer // none: a tick
		want   Action
	}
	const s = time.Second
	tick := func(at time.Duration, want Action) event { return event{at, none, want} }
	for name, events := range map[string][]event{
		"installs the mirror each time the agent answers": {
			tick(0, Nothing), {0, Well, Install}, tick(s, Nothing), {s, Well, Install},
		},
		"leaves the mirror in place while nobody listens, because the runtime is refused at once": {
			tick(0, Nothing), {0, Well, Install}, tick(s, Nothing), {s, Away, Nothing}, tick(2*s, Nothing),
		},
		"bears a silence that is shorter than its patience": {
			tick(0, Nothing), tick(s, Nothing), tick(3*s, Nothing), {0, Well, Install}, tick(4*s, Nothing),
			tick(5*s, Nothing), tick(7*s, Nothing), {6 * s, Well, Install},
		},
		"ends an agent that is silent for longer": {
			tick(0, Nothing), tick(s, Nothing), tick(3*s, Nothing), tick(5*s, End), {5 * s, Away, Nothing},
			tick(6*s, Nothing), {6 * s, Well, Install},
		},
		"removes the mirror where the end of the agent did not help, and ends it again": {
			tick(0, Nothing), tick(2*s, Nothing), tick(4*s, Nothing), tick(5*s, End), tick(6*s, Remove),
			tick(8*s, Remove), tick(10*s, End), tick(11*s, Remove), {11 * s, Well, Install},
		},
		"ends an agent that freezes again": {
			tick(0, Nothing), tick(2*s, Nothing), tick(4*s, Nothing), tick(5*s, End), {5 * s, Well, Install},
			tick(6*s, Nothing), tick(8*s, Nothing), tick(10*s, Nothing), tick(11*s, End),
		},
		"takes an answer that makes no sense for none": {
			tick(0, Nothing), {0, Silent, Nothing}, tick(2*s, Nothing), {2 * s, Silent, Nothing}, tick(4*s, Nothing),
			{4 * s, Silent, Nothing}, tick(5*s, End),
		},
		"removes the mirror at once where the agent says that it cannot serve, and leaves it to its open pulls": {
			tick(0, Nothing), {0, Sick, Remove}, tick(2*s, Nothing), {2 * s, Sick, Remove}, tick(4*s, Nothing),
			{4 * s, Sick, Remove}, tick(6*s, Nothing), {6 * s, Sick, Remove}, tick(8*s, Nothing), {8 * s, Well, Install},
		},
		"ends one that says so and then falls silent": {
			tick(0, Nothing), {0, Sick, Remove}, tick(s, Nothing), tick(3*s, Nothing), tick(5*s, Nothing),
			tick(6*s, End),
		},
		"lets somebody be who answers, while it looks for who he is": {
			tick(0, Nothing), {0, Somebody, Nothing}, tick(2*s, Nothing), {2 * s, Somebody, Nothing},
			tick(4*s, Nothing), {4 * s, Somebody, Nothing}, tick(6*s, Nothing), {6 * s, Somebody, Nothing},
			tick(8*s, Nothing), {7 * s, Well, Install},
		},
		"hears from an older look who that is": {
			tick(0, Nothing), tick(s, Nothing), {s, Somebody, Nothing}, tick(2*s, Nothing), {0, Stranger, Remove},
		},
		"goes by the newest look, whichever is answered last": {
			tick(0, Nothing), tick(s, Nothing), {s, Sick, Remove}, {0, Well, Nothing}, tick(2*s, Nothing),
			{2 * s, Well, Install},
		},
		"does not count the time for which it was held up itself": {
			tick(0, Nothing), tick(60*s, Nothing), tick(120*s, Nothing), tick(121*s, End),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			s := State{Patience: 5 * time.Second, Every: time.Second}
			for i, e := range events {
				at := start.Add(e.at)
				if e.answer == none {
					require.Equal(t, e.want, s.Tick(at), "event %d, the tick after %s", i, e.at)
				} else {
					require.Equal(t, e.want, s.Heard(at, e.answer), "event %d, the answer to the look at %s", i, e.at)
				}
			}
		})
	}
}
