package swarm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/stretchr/testify/require"
)

// newErrands are those of a node that remembers what it has been told.
func newErrands(s *testSwarm, known knows, told func(key string, value []byte, age time.Duration)) *Errands {
	return NewErrands(s.Swarm, known, known, told)
}

// An upstream may think for longer than a home that is silent is waited for. To ask it once more would have it think
// twice.
func TestErrands_WhoStillAsksIsWaitedFor(t *testing.T) {
	t.Parallel()
	const silence = 8 * time.Second
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	c := newTestSwarm(t, startingFrom(a, b))
	swarms := []*testSwarm{a, b, c}
	var all []*Errands
	for _, s := range swarms {
		var value atomic.Pointer[[]byte]
		e := newErrands(s, func(string) ([]byte, time.Duration, bool) {
			if v := value.Load(); v != nil {
				return *v, 0, true
			}
			return nil, 0, false
		}, func(_ string, v []byte, _ time.Duration) { value.Store(&v) })
		e.beat, e.second, e.silence = silence/20, time.Minute, silence
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

// An upstream may be out of reach of one node only. The others wait for that one, but not for long.
func TestErrands_WhoIsAtItForLongIsNotWaitedForAlone(t *testing.T) {
	t.Parallel()
	require.LessOrEqual(t, errandNext+errandBeat, 5*time.Second, "a HEAD is answered within 9 s")
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	c := newTestSwarm(t, startingFrom(a, b))
	var all []*Errands
	for _, s := range []*testSwarm{a, b, c} {
		e := newErrands(s, func(string) ([]byte, time.Duration, bool) { return nil, 0, false },
			func(string, []byte, time.Duration) {})
		e.beat, e.second, e.turn = 50*time.Millisecond, 500*time.Millisecond, time.Minute
		all = append(all, e)
	}
	for _, e := range all {
		eventually(t, "all know each other", func() bool { return e.Peers() == len(all)-1 })
	}
	for first, stuck := range all {
		key := fmt.Sprint("question ", first)
		began, over := make(chan struct{}), make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _, _ = stuck.Do(t.Context(), key, time.Hour, func(context.Context) ([]byte, error) {
				close(began)
				<-over
				return nil, errors.New("black hole")
			})
		}()
		<-began
		var asked atomic.Int32
		var wg sync.WaitGroup
		for i, e := range all {
			if i == first {
				continue
			}
			wg.Go(func() {
				value, _, err := e.Do(t.Context(), key, time.Hour, func(context.Context) ([]byte, error) {
					asked.Add(1)
					return []byte("answer"), nil
				})
				require.NoError(t, err)
				require.Equal(t, "answer", string(value))
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, asked.Load(), "one more asks, for all others")
		close(over)
		<-ended
	}
}

// Each who asks is one more who reads from an upstream that is slow for all.
func TestErrands_OneAsksAsWellSoonAndTheNextLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &Errands{second: errandNext, turn: errandTurn, running: map[string]*errand{}}
		r, start := &errand{}, time.Now()
		e.running["question"] = r
		var began []time.Duration
		for time.Since(start) < 30*time.Second {
			if e.takeTurn("question", r) {
				began = append(began, time.Since(start))
			}
			time.Sleep(errandBeat)
		}
		require.Equal(t, []time.Duration{0, errandNext, errandNext + errandTurn, errandNext + 2*errandTurn}, began)
	})
}

// Results that do not come whole, and errands beyond number, are the peer's own harm.
func TestErrands_APeerThatStopsInTheMiddleHoldsLittleAndIsBlamed(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	c := newTestSwarm(t, startingFrom(a, b))
	value := []byte("answer")
	newErrands(a, func(key string) ([]byte, time.Duration, bool) { return value, 0, key == "known" },
		func(string, []byte, time.Duration) {})
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 2 && len(c.Peers()) == 2 })
	begun := 0
	for i := range 40 {
		stream, err := b.host.NewStream(t.Context(), a.ID(), b.protocol("errand"))
		if err != nil {
			break // it is banned
		}
		t.Cleanup(func() { _ = stream.Reset() })
		var answer errandAnswer
		if writeFrame(stream, errandQuery{Key: fmt.Sprint(i), Beats: true}) != nil || readFrame(bufio.NewReader(stream), &answer) != nil {
			continue
		}
		require.Equal(t, errandAsk, answer.State)
		_, err = stream.Write(append(binary.AppendUvarint(nil, maxFrame), make([]byte, 64<<10)...))
		if err == nil {
			begun++
		}
	}
	require.Greater(t, begun, 4)
	eventually(t, "blamed", func() bool { return a.guard.standing(b.ID()).breaches.Tokens() < breachBurst-8 })
	_ = a.host.Network().(interface {
		ResourceManager() network.ResourceManager
	}).ResourceManager().ViewService(
		serviceErrand, func(s network.ServiceScope) error {
			require.LessOrEqual(t, s.Stat().Memory, int64(4<<20))
			return nil
		})
	stream, err := c.host.NewStream(t.Context(), a.ID(), c.protocol("errand"))
	require.NoError(t, err)
	defer func() { _ = stream.Reset() }()
	require.NoError(t, writeFrame(stream, errandQuery{Key: "known", MaxAge: time.Hour.Milliseconds()}))
	var got errandAnswer
	require.NoError(t, readFrame(bufio.NewReader(stream), &got))
	require.Equal(t, value, got.Value)
}

// What a peer speaks comes once, after the connection is made, and on a busy machine it may be lost.
func TestErrands_APeerThatHasNotSaidWhatItSpeaksIsAsked(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	var all []*Errands
	for _, s := range []*testSwarm{a, b} {
		var value atomic.Pointer[[]byte]
		all = append(all, newErrands(s, func(string) ([]byte, time.Duration, bool) {
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
