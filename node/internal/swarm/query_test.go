package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// answering has h answer what it is asked by a protocol of the swarm: say writes to the stream.
func answering(h host.Host, s *testSwarm, protocol string, say func(network.Stream)) {
	h.SetStreamHandler(s.protocol(protocol), func(stream network.Stream) {
		_, _ = stream.Read(make([]byte, 1)) // the question is coming
		say(stream)
		_ = stream.CloseWrite()
	})
}

func meet(t *testing.T, s *testSwarm, h host.Host) {
	t.Helper()
	require.NoError(t, h.Connect(t.Context(), s.info()))
	eventually(t, "connected", func() bool {
		return s.host.Network().Connectedness(h.ID()) == network.Connected
	})
}

// Who breaks the rules is named, whether it asks or is asked.
func TestAnswers_ThatAreNoneAreHeldAgainstWhoGivesThem(t *testing.T) {
	t.Parallel()
	nobody := func(context.Context) ([]byte, error) { return nil, content.ErrUnavailable }
	plan := leaves(digest.FromString("x"))
	for question, q := range map[string]struct {
		protocol string
		most     uint64
		ask      func(t *testing.T, s *testSwarm, e *Errands, p peer.ID)
	}{
		"what a tag is": {"tag", maxShort, func(t *testing.T, s *testSwarm, _ *Errands, _ peer.ID) {
			_, _, known := NewTags(s.Swarm, s.store.KV("tags")).Recall(t.Context(), content.Repository{}, "v1")
			require.False(t, known)
		}},
		"what is remembered": {"remember", maxFrame, func(t *testing.T, _ *testSwarm, e *Errands, _ peer.ID) {
			e.Recall(t.Context(), "x", func([]byte, time.Duration) { t.Error("nobody remembers it") })
		}},
		"the home of a question": {"errand", maxFrame, func(t *testing.T, _ *testSwarm, e *Errands, p peer.ID) {
			_, _, done, err := e.away(t.Context(), p, "x", 0, nobody)
			require.NoError(t, err)
			require.False(t, done)
		}},
		"who has a blob": {"map", maxShort, func(t *testing.T, s *testSwarm, _ *Errands, p peer.ID) {
			_, err := s.HeldBy(t.Context(), p, plan)
			require.Error(t, err)
		}},
		"to coordinate": {"coordinate", maxShort, func(t *testing.T, s *testSwarm, _ *Errands, p peer.ID) {
			_, _, err := s.joinRemote(t.Context(), p, plan, schedule.Join{}, false)
			require.Error(t, err)
		}},
	} {
		for answer, raw := range map[string][]byte{
			"noise":                   {5, 0xff, 0xff, 0xff, 0xff, 0xff},
			"longer than it could be": binary.AppendUvarint(nil, q.most+1),
		} {
			t.Run(question+" is answered by what is "+answer, func(t *testing.T) {
				t.Parallel()
				s, broken := newTestSwarm(t), newStranger(t)
				e := newErrands(s, func(string) ([]byte, time.Duration, bool) { return nil, 0, false },
					func(string, []byte, time.Duration) {})
				answering(broken, s, q.protocol, func(stream network.Stream) { _, _ = stream.Write(raw) })
				meet(t, s, broken)
				budget := s.guard.standing(broken.ID()).breaches
				budget.SetLimit(0.001)
				q.ask(t, s, e, broken.ID())
				require.Less(t, budget.Tokens(), float64(breachBurst-8))
			})
		}
	}
}

func TestAnswers_WhoGivesNoneThatCanBeReadIsBanned(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{
		"noise":            {5, 0xff, 0xff, 0xff, 0xff, 0xff},
		"half of one only": {5, 0xa1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, broken := newTestSwarm(t, func(o *Options) { o.Slack = 1 }), newStranger(t)
			tags := NewTags(s.Swarm, s.store.KV("tags"))
			broken.SetStreamHandler(s.protocol("tag"), func(stream network.Stream) {
				_, _ = stream.Write(raw)
				_, _ = io.Copy(io.Discard, stream) // until the other side has had enough
				_ = stream.Reset()
			})
			meet(t, s, broken)
			for end := time.Now().Add(time.Minute); s.admission.admits(broken.ID()); {
				require.True(t, time.Now().Before(end), "it is banned")
				var asking sync.WaitGroup
				for range questionsAtOnce / 2 {
					asking.Go(func() { tags.Recall(t.Context(), content.Repository{}, "v1") })
				}
				asking.Wait()
			}
		})
	}
}

// A hub's listing is longer than any other answer, and no fault.
func TestAnswers_ALongDocumentIsRecalledAndHeldAgainstNobody(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	document := bytes.Repeat([]byte("x"), 200<<10)
	newErrands(a, func(key string) ([]byte, time.Duration, bool) { return document, time.Hour, key == "listing" },
		func(string, []byte, time.Duration) {})
	asking := newErrands(b, func(string) ([]byte, time.Duration, bool) { return nil, 0, false },
		func(string, []byte, time.Duration) {})
	eventually(t, "they know each other", func() bool { return asking.Peers() == 1 })
	a.guard.standing(b.ID()).breaches.SetLimit(0.001)
	b.guard.standing(a.ID()).breaches.SetLimit(0.001)
	var got [][]byte
	asking.Recall(t.Context(), "listing", func(value []byte, _ time.Duration) { got = append(got, value) })
	require.Equal(t, [][]byte{document}, got)
	value, _, done, err := asking.away(t.Context(), a.ID(), "listing", 2*time.Hour, nil)
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, document, value)
	require.EqualValues(t, breachBurst, a.guard.standing(b.ID()).breaches.Tokens())
	require.EqualValues(t, breachBurst, b.guard.standing(a.ID()).breaches.Tokens())
}

// What claims take that holders are sending has a bound, for all of them.
func TestMap_WhoStopsInTheMiddleLeavesTheRoomOfItsClaims(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), content.ChunkSize+1)
	d := digest.FromBytes(data)
	s, broken := newTestSwarm(t), newStranger(t)
	holder := newTestSwarm(t, startingFrom(s))
	require.NoError(t, holder.store.Put(t.Context(), d, bytes.NewReader(data), int64(len(data))))
	part := mapPart{Sums: make([]byte, maxList*32), Signatures: make([][]byte, maxList)}
	answering(broken, s, "map", func(stream network.Stream) {
		err := writeFrame(stream, mapHead{Found: true, Size: content.MaxSize})
		for range claimsAtOnce/maxList + 1 {
			if err == nil {
				err = writeFrame(stream, part)
			}
		}
	})
	meet(t, s, broken)
	eventually(t, "the holder is here", func() bool {
		return s.host.Network().Connectedness(holder.ID()) == network.Connected
	})
	_, err := s.HeldBy(t.Context(), broken.ID(), leaves(d))
	require.ErrorIs(t, err, errTooMuch)
	claims, err := s.HeldBy(t.Context(), holder.ID(), leaves(d))
	require.NoError(t, err)
	require.Len(t, claims, 2)
}

// Claims are counted and not weighed.
func TestMap_ASignatureIsNoLongerThanSignaturesAre(t *testing.T) {
	t.Parallel()
	s, broken := newTestSwarm(t), newStranger(t)
	answering(broken, s, "map", func(stream network.Stream) {
		if writeFrame(stream, mapHead{Found: true, Size: 1}) == nil {
			_ = writeFrame(stream, mapPart{Sums: make([]byte, 32), Signatures: [][]byte{make([]byte, maxFrame/2)}})
		}
	})
	meet(t, s, broken)
	_, err := s.HeldBy(t.Context(), broken.ID(), leaves(digest.FromString("x")))
	require.ErrorIs(t, err, errFrame)
}

// paid has b's work at a be counted and not forgotten, and returns how much there was of it.
func paid(a, b *testSwarm) (work func() float64) {
	budget := a.guard.standing(b.ID()).work
	budget.SetLimit(1)
	before := budget.Tokens()
	return func() float64 { return before - budget.Tokens() }
}

func TestCharge_WhoIsSentOnToAnotherCoordinatorPaysAsWell(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 3)
	asked, from := nodes[1], nodes[2]
	work := paid(asked, from)
	stream, in := talk(t, from, asked, "coordinate")
	require.NoError(t, writeFrame(stream, hello{Digest: string(d)}))
	require.NoError(t, writeFrame(stream, report{Have: make([]uint32, maxList)}))
	var w welcome
	require.NoError(t, readFrame(in, &w))
	require.Equal(t, nodes[0].ID(), peer.ID(w.Nearer))
	require.Greater(t, work(), float64(4*maxList))
}

func TestCharge_AQuestionCostsWhatHasToBeLookedUpForIt(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	NewWitness(a.Swarm, func(string, []digest.Digest) Testimony { return Testimony{} })
	asking := NewWitness(b.Swarm, func(string, []digest.Digest) Testimony { return Testimony{} })
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	work := paid(a, b)
	require.True(t, asking.Hear(t.Context(), "registry.example/a", make([]digest.Digest, witnessed)).Everyone)
	require.Greater(t, work(), float64(lookWork*witnessed))
}

// A field that nobody knows has to be read as well.
func TestCharge_AFrameCostsItsLengthWhateverIsInIt(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 2)
	work := paid(nodes[0], nodes[1])
	stream, in := talk(t, nodes[1], nodes[0], "coordinate")
	require.NoError(t, writeFrame(stream, hello{Digest: string(d)}))
	require.NoError(t, writeFrame(stream, map[int][]byte{60: make([]byte, maxFrame-16)}))
	var w welcome
	require.NoError(t, readFrame(in, &w))
	require.Empty(t, w.Error)
	require.Greater(t, work(), float64(maxFrame/256))
}

func TestErrands_AHomeThatSaysWithoutEndThatAnotherAsksUsesUpItsBudget(t *testing.T) {
	t.Parallel()
	s, broken := newTestSwarm(t), newStranger(t)
	e := newErrands(s, func(string) ([]byte, time.Duration, bool) { return nil, 0, false },
		func(string, []byte, time.Duration) {})
	answering(broken, s, "errand", func(stream network.Stream) {
		for range 1000 {
			if writeFrame(stream, errandAnswer{State: errandWaiting}) != nil {
				return
			}
		}
	})
	meet(t, s, broken)
	standing := s.guard.standing(broken.ID())
	standing.work.SetLimit(1)
	standing.work.SetBurst(100 * beatWork)
	standing.breaches.SetLimit(0.001)
	_, _, done, err := e.away(t.Context(), broken.ID(), "x", 0, nil)
	require.NoError(t, err)
	require.False(t, done)
	require.Less(t, standing.breaches.Tokens(), float64(breachBurst-8))
}
