package swarm

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An upstream may think for longer than a home that is silent is waited for. To ask it once more would have it think
// twice.
func TestErrands_WhoStillAsksIsWaitedFor(t *testing.T) {
	t.Parallel()
	const silence = 2 * time.Second
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	c := newTestSwarm(t, startingFrom(a, b))
	swarms := []*testSwarm{a, b, c}
	var all []*Errands
	for _, s := range swarms {
		var value atomic.Pointer[[]byte]
		e := NewErrands(s.Swarm, func(string) ([]byte, time.Duration, bool) {
			if v := value.Load(); v != nil {
				return *v, 0, true
			}
			return nil, 0, false
		}, func(_ string, v []byte, _ time.Duration) { value.Store(&v) })
		e.beat, e.silence = silence/20, silence
		all = append(all, e)
	}
	for _, e := range all {
		eventually(t, "all know each other", func() bool { return e.Peers() == len(all)-1 })
	}
	var asked atomic.Int32
	var wg sync.WaitGroup
	for _, e := range all {
		wg.Go(func() {
			value, _, err := e.Do(t.Context(), "question", time.Hour, func(context.Context) ([]byte, error) {
				asked.Add(1)
				<-time.After(2 * silence)
				return []byte("answer"), nil
			})
			require.NoError(t, err)
			require.Equal(t, "answer", string(value))
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, asked.Load())
}

// What a peer speaks comes once, after the connection is made, and on a busy machine it may be lost.
func TestErrands_APeerThatHasNotSaidWhatItSpeaksIsAsked(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	var all []*Errands
	for _, s := range []*testSwarm{a, b} {
		var value atomic.Pointer[[]byte]
		all = append(all, NewErrands(s.Swarm, func(string) ([]byte, time.Duration, bool) {
			if v := value.Load(); v != nil {
				return *v, 0, true
			}
			return nil, 0, false
		}, func(_ string, v []byte, _ time.Duration) { value.Store(&v) }))
	}
	for i, other := range []*testSwarm{b, a} {
		eventually(t, "both know each other", func() bool { return all[i].Peers() == 1 })
		require.NoError(t, all[i].swarm.host.Peerstore().SetProtocols(other.ID()))
	}
	var asked atomic.Int32
	for _, e := range all {
		_, _, err := e.Do(t.Context(), "question", time.Hour, func(context.Context) ([]byte, error) {
			asked.Add(1)
			return []byte("answer"), nil
		})
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, asked.Load())
}
