package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestState_Next(t *testing.T) {
	t.Parallel()
	type look struct {
		at     time.Duration
		answer Answer
		want   Action
	}
	for name, looks := range map[string][]look{
		"installs the mirror each time the agent answers": {
			{0, Well, Install}, {time.Second, Well, Install},
		},
		"leaves the mirror in place while nobody listens, for the runtime is refused at once": {
			{0, Well, Install}, {time.Second, Away, Nothing}, {time.Hour, Away, Nothing},
		},
		"bears a silence that is shorter than its patience": {
			{0, Silent, Nothing}, {4 * time.Second, Silent, Nothing}, {5 * time.Second, Well, Install},
			{6 * time.Second, Silent, Nothing}, {10 * time.Second, Silent, Nothing},
		},
		"ends an agent that is silent for longer": {
			{0, Silent, Nothing}, {5 * time.Second, Silent, End}, {6 * time.Second, Away, Nothing}, {9 * time.Second,
				Well, Install},
		},
		"removes the mirror where the end of the agent did not help": {
			{0, Silent, Nothing}, {5 * time.Second, Silent, End}, {6 * time.Second, Silent, Nothing},
			{7 * time.Second, Silent, Remove}, {8 * time.Second, Silent, Remove}, {13 * time.Second, Well, Install},
		},
		"ends an agent that freezes again": {
			{0, Silent, Nothing}, {5 * time.Second, Silent, End}, {6 * time.Second, Well, Install},
			{7 * time.Second, Silent, Nothing}, {12 * time.Second, Silent, End},
		},
		"ends an agent that was started and froze between two looks": {
			{0, Silent, Nothing}, {5 * time.Second, Silent, End}, {7 * time.Second, Silent, Remove},
			{10 * time.Second, Silent, End}, {11 * time.Second, Silent, Remove}, {15 * time.Second, Silent, End},
		},
		"does not count the time for which it was stopped itself": {
			{0, Silent, Nothing}, {time.Minute, Silent, Nothing}, {64 * time.Second, Silent,
				Nothing}, {65 * time.Second, Silent, End},
			{2 * time.Minute, Silent, Nothing}, {125 * time.Second, Silent, End},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			s := State{Patience: 5 * time.Second, Grace: 2 * time.Second}
			for _, l := range looks {
				require.Equal(t, l.want, s.Next(start.Add(l.at), l.answer), "after %s", l.at)
			}
		})
	}
}
