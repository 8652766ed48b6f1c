package swarm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// grown is the frame of v as a later release would send it: with fields that this one does not know, at every level.
func grown(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := encoding.Marshal(v)
	require.NoError(t, err)
	var tree any
	require.NoError(t, cbor.Unmarshal(raw, &tree))
	body, err := encoding.Marshal(grow(tree))
	require.NoError(t, err)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

func grow(v any) any {
	switch v := v.(type) {
	case map[any]any:
		for k := range v {
			v[k] = grow(v[k])
		}
		v[uint64(40)] = 7
		v[uint64(41)] = []any{1.5, "text", []byte{1}, map[int]any{1: true, 2: nil}}
		v[-1] = map[string]any{"name": []int{1, 2, 3}}
	case []any:
		for i := range v {
			v[i] = grow(v[i])
		}
	}
	return v
}

// requireGrows: a receiver of this release reads of a later one's frame what it knows, and a later one reads this
// one's.
func requireGrows[T any](t *testing.T, v T) {
	t.Helper()
	var got T
	in := bufio.NewReader(bytes.NewReader(grown(t, v)))
	require.NoError(t, readFrame(in, &got))
	require.Equal(t, v, got)

	type later struct {
		Known T
		Added string `cbor:"40,keyasint,omitempty"`
	}
	raw, err := encoding.Marshal(v)
	require.NoError(t, err)
	var l later
	require.NoError(t, decoding.Unmarshal(raw, &l), "a field that is not there is no error")
	require.Empty(t, l.Added)
}

func TestFrame_FieldsOfALaterReleaseAreIgnored(t *testing.T) {
	t.Parallel()
	id := []byte(somePeer(t))
	c := claim{Index: 3, Sum: make([]byte, 32), By: 0, Signature: make([]byte, 64)}
	requireGrows(t, hello{Digest: "d", Size: 5, Zone: "a", Upstream: true, Whole: true, Forced: true, Held: true})
	requireGrows(t, welcome{Nearer: id, Addrs: [][]byte{{1, 2}}, Error: "e"})
	requireGrows(t, report{
		Size: 5, Peers: [][]byte{id}, Claims: []claim{c, c}, Have: []uint32{1, 2}, Need: []run{{1, 2}},
		Leased: []run{{0, 1}},
		Failed: []failure{{Run: run{3, 4}, Trouble: 2}}, Suspects: []suspicion{{Index: 1, From: id}}, Reading: true,
		Complete: true, Gone: []uint32{1}, Slots: 9, MayRead: true,
	})
	requireGrows(t, orders{
		Size: 5, Leases: []run{{1, 2}}, Peers: [][]byte{id}, Chunks: []assignment{{Claim: c, Home: true, Held: true}},
		Hopeless: true,
	})
	requireGrows(t, mapQuery{Digest: "d"})
	requireGrows(t, mapHead{Found: true, Size: 5, Zone: "z"})
	requireGrows(t, mapPart{Sums: make([]byte, 32), Signatures: [][]byte{{1}}})
	requireGrows(t, tagQuery{Registry: "r", Name: "n", Tag: "t"})
	requireGrows(t, tagAnswer{Found: true, Digest: "d", Size: 1, MediaType: "m", Unix: 1})
	requireGrows(t, witnessQuery{Source: "s", Contents: []string{"d"}})
	requireGrows(t, witnessAnswer{Public: true, Proven: []int{0}, Held: []int{1}, PublicAge: 1, RefusedAge: 1})
	requireGrows(t, fileQuery{Root: []byte{1}})
	requireGrows(t, fileAnswer{Found: true, Digest: "d", Size: 1})
}

// A trouble that a later release has added must not be taken for one that ends the participant's part.
func TestReport_ATroubleThatIsNotKnownIsATransientOne(t *testing.T) {
	t.Parallel()
	now := time.Now()
	id := somePeer(t)
	table := schedule.New(schedule.Config{})
	require.NoError(t, table.Join(now, id, schedule.Join{Upstream: true, Whole: true,
		Report: schedule.Report{Size: 5}}))
	table.Open(now)
	f := report{Failed: []failure{{Run: run{First: 0, Count: 1}, Trouble: 200}}}
	r, err := f.decode()
	require.NoError(t, err)
	require.NoError(t, table.Report(now, id, r))
	table.Take(func(peer.ID, schedule.Orders) {})
	table.Tick(now.Add(time.Hour))
	leased := false
	table.Take(func(_ peer.ID, o schedule.Orders) { leased = leased || len(o.Leases) > 0 })
	require.True(t, leased, "it is sent upstream again after a while")
}

func TestCoordinator_AParticipantOfALaterReleaseTakesPart(t *testing.T) {
	t.Parallel()
	s, later := newTestSwarm(t), newStranger(t)
	require.NoError(t, later.Connect(t.Context(), s.info()))
	stream, err := later.NewStream(t.Context(), s.ID(), s.protocol("coordinate"))
	require.NoError(t, err)
	defer func() { _ = stream.Reset() }()
	_ = stream.SetDeadline(time.Now().Add(time.Minute))
	h := hello{Digest: string(digest.FromString("x")), Size: 5 << 20, Upstream: true, Whole: true, Forced: true}
	for _, f := range []any{h, report{}, report{Reading: true}} {
		_, err = stream.Write(grown(t, f))
		require.NoError(t, err)
	}
	in := bufio.NewReader(stream)
	var w welcome
	require.NoError(t, readFrame(in, &w))
	require.Empty(t, w.Error)
	for leased := false; !leased; {
		var o orders
		require.NoError(t, readFrame(in, &o))
		leased = len(o.Leases) > 0
	}
}

func TestJoin_ACoordinatorOfALaterReleaseIsFollowed(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 2)
	later, s := nodes[0], nodes[1]
	later.host.SetStreamHandler(later.protocol("coordinate"), func(stream network.Stream) {
		_, _ = stream.Write(grown(t, welcome{}))
		_, _ = stream.Write(grown(t, orders{Size: 5 << 20, Leases: []run{{First: 1, Count: 2}}}))
		<-t.Context().Done()
		_ = stream.Reset()
	})
	session, err := s.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true})
	require.NoError(t, err)
	defer session.Close()
	require.Equal(t, later.ID(), session.Coordinator())
	o, err := session.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, schedule.Orders{Size: 5 << 20, Leases: []schedule.Run{{First: 1, Count: 2}}}, o)
}
