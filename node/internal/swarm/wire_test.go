package swarm

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/schedule"
)

func somePeer(t testing.TB) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(newKey(t))
	require.NoError(t, err)
	return id
}

func someClaims(by []peer.ID, n int) []schedule.Claim {
	out := make([]schedule.Claim, n)
	for i := range out {
		out[i] = schedule.Claim{Index: i, By: by[i%len(by)], Signature: make([]byte, 64)}
		_, _ = rand.Read(out[i].Sum[:])
		_, _ = rand.Read(out[i].Signature)
	}
	return out
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// everyOther lists n runs of one chunk with a gap after each.
func everyOther(n int) []schedule.Run {
	out := make([]schedule.Run, n)
	for i := range out {
		out[i] = schedule.Run{First: 2 * i, Count: 1}
	}
	return out
}

func readFrame(r *bufio.Reader, v any) error {
	n, err := frameLength(r, maxFrame)
	if err != nil {
		return err
	}
	return readBody(r, n, v)
}

// overTheWire writes frames and reads them back.
func overTheWire[T any](t *testing.T, frames []T) []T {
	t.Helper()
	var wire bytes.Buffer
	for _, f := range frames {
		require.NoError(t, writeFrame(&wire, f))
	}
	in := bufio.NewReader(&wire)
	var out []T
	for range frames {
		var f T
		require.NoError(t, readFrame(in, &f))
		out = append(out, f)
	}
	_, err := in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	return out
}

func TestAReportArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	peers := []peer.ID{somePeer(t), somePeer(t), somePeer(t)}
	for name, r := range map[string]schedule.Report{
		"that says nothing":    {},
		"of a size":            {Size: 1 << 40},
		"of claims by several": {Claims: someClaims(peers, 7)},
		"of chunks held":       {Have: upTo(100)},
		"of needs":             {Need: []schedule.Run{{First: 0, Count: 4}, {First: 9, Count: 1}}},
		"that reading goes on": {Reading: true},
		"of what was let go of, for want of slots": {Gone: upTo(maxList + 1), Slots: 32},
		"of what the node has to send":             {Have: upTo(maxList + 1), Load: 77},
		"that all is done":                         {Have: []int{3}, Complete: true},
		"of a caller who has come":                 {MayRead: true},
		"of troubles": {Failed: []schedule.Failure{{Run: schedule.Run{First: 5, Count: 2},
			Trouble: schedule.NoRange}}},
		"of suspicions": {Suspects: []schedule.Suspicion{{Index: 8, From: peers[1]},
			{Index: 9, From: peers[2]}}},
		"of more than a frame's list": {Claims: someClaims(peers, maxList+1), Have: upTo(2*maxList + 3),
			Complete: true},
		"of more runs than a frame's": {Need: everyOther(2*maxList + 1)},
		"of more suspicions than a frame's": {Suspects: slices.Repeat([]schedule.Suspicion{{Index: 8, From: peers[1]}},
			maxList+1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			leased := []schedule.Run{{First: 2, Count: 16}}
			frames := overTheWire(t, toReports(r, leased))
			require.Equal(t, leased, fromRuns(frames[0].Leased), "leases go into the first frame, the one that joins")
			var got schedule.Report
			for i := range frames {
				part, err := frames[i].decode()
				require.NoError(t, err)
				require.Equal(t, r.Complete && i == len(frames)-1, part.Complete,
					"it is complete only once all is said")
				got.Merge(part)
			}
			require.Equal(t, r, got)
		})
	}
}

func TestOrdersArriveAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	peers := []peer.ID{somePeer(t), somePeer(t), somePeer(t)}
	assignments := func(n int) []schedule.Assignment {
		out := make([]schedule.Assignment, n)
		for i, c := range someClaims(peers[:2], n) {
			out[i] = schedule.Assignment{Claim: c, From: peers[i%3], Home: i%2 == 0}
		}
		return out
	}
	for name, o := range map[string]schedule.Orders{
		"that say nothing":             {},
		"that all is lost":             {Hopeless: true},
		"that another reads":           {Awaited: true},
		"of leases":                    {Size: 5, Leases: []schedule.Run{{First: 0, Count: 3}, {First: 7, Count: 1}}},
		"of chunks":                    {Chunks: assignments(5)},
		"of more than a frame's list":  {Size: 5, Chunks: assignments(2*maxList + 1)},
		"of exactly a frame's list":    {Chunks: assignments(maxList)},
		"of leases and chunks at once": {Leases: []schedule.Run{{First: 1, Count: 1}}, Chunks: assignments(1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got schedule.Orders
			for _, f := range overTheWire(t, toOrders(o)) {
				part, err := f.decode()
				require.NoError(t, err)
				got.Merge(part)
			}
			require.Equal(t, o, got)
		})
	}
}

func TestAFrameNamesEachPeerOnce(t *testing.T) {
	t.Parallel()
	frames := toReports(schedule.Report{Claims: someClaims([]peer.ID{somePeer(t), somePeer(t)}, 1000)}, nil)
	require.Len(t, frames, 1)
	require.Len(t, frames[0].Peers, 2)
}

func TestAMalformedFrameIsAnError(t *testing.T) {
	t.Parallel()
	valid := func(v any) []byte {
		var b bytes.Buffer
		require.NoError(t, writeFrame(&b, v))
		return b.Bytes()
	}
	for name, raw := range map[string][]byte{
		"longer than allowed":    binary.AppendUvarint(nil, maxFrame+1),
		"a length without end":   bytes.Repeat([]byte{0xff}, 20),
		"shorter than it says":   valid(report{Have: []uint32{1, 2, 3}})[:4],
		"not CBOR":               {3, 0xff, 0xff, 0xff},
		"of another message":     valid(mapQuery{Digest: "x"}),
		"a list without end":     {5, 0xa1, 0x04, 0x9f, 0x00, 0xff},
		"an array":               valid([]any{1, 2, 3}),
		"a field twice":          {5, 0xa2, 0x01, 0x01, 0x01, 0x02},
		"a list of 4 Gi entries": {7, 0xa1, 0x04, 0x9a, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var f report
			require.Error(t, readFrame(bufio.NewReader(bytes.NewReader(raw)), &f))
		})
	}
}

// What it counts is what the whole process allocates.
//
//nolint:paralleltest // hence
func TestAFrameCostsNoMoreThanWhatCameOfIt(t *testing.T) {
	prefix := binary.AppendUvarint(nil, maxFrame)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		var q tagQuery
		require.Error(t, readFrame(bufio.NewReader(bytes.NewReader(prefix)), &q))
	}
	runtime.ReadMemStats(&after)
	require.Less(t, (after.TotalAlloc-before.TotalAlloc)/100, uint64(maxFrame/8),
		"bytes for a length that nothing follows")
}

func TestAClaimThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	id := []byte(somePeer(t))
	sum := make([]byte, sha256.Size)
	for name, f := range map[string]report{
		"by a peer that is not listed": {Peers: [][]byte{id}, Claims: []claim{{Sum: sum, By: 1}}},
		"by no one":                    {Claims: []claim{{Sum: sum}}},
		"with a short sum":             {Peers: [][]byte{id}, Claims: []claim{{Sum: sum[1:]}}},
		"with no sum":                  {Peers: [][]byte{id}, Claims: []claim{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := f.decode()
			require.ErrorIs(t, err, errFrame)
			o := orders{Peers: f.Peers, Chunks: []assignment{{Claim: f.Claims[0]}}}
			_, err = o.decode()
			require.ErrorIs(t, err, errFrame)
		})
	}
	o := orders{Peers: [][]byte{id}, Chunks: []assignment{{Claim: claim{Sum: sum}, From: 1}}}
	_, err := o.decode()
	require.ErrorIs(t, err, errFrame, "a source that is not listed")
}

func TestTheSignatureOfAClaimCoversAllOfIt(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	by, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	d := digest.FromString("a blob")
	c, err := signClaim(key, by, leaves(d), 3, schedule.Sum{1})
	require.NoError(t, err)
	require.NoError(t, VerifyClaim(leaves(d), c))

	for name, change := range map[string]func(d *digest.Digest, c *schedule.Claim){
		"another blob":      func(d *digest.Digest, _ *schedule.Claim) { *d = digest.FromString("another") },
		"another chunk":     func(_ *digest.Digest, c *schedule.Claim) { c.Index++ },
		"another sum":       func(_ *digest.Digest, c *schedule.Claim) { c.Sum[31]++ },
		"another peer":      func(_ *digest.Digest, c *schedule.Claim) { c.By = somePeer(t) },
		"no peer ID":        func(_ *digest.Digest, c *schedule.Claim) { c.By = "nobody" },
		"no signature":      func(_ *digest.Digest, c *schedule.Claim) { c.Signature = nil },
		"half a signature":  func(_ *digest.Digest, c *schedule.Claim) { c.Signature = c.Signature[:32] },
		"a wrong signature": func(_ *digest.Digest, c *schedule.Claim) { c.Signature = make([]byte, 64) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, forged := d, c
			change(&d, &forged)
			require.Error(t, VerifyClaim(leaves(d), forged))
		})
	}
}

func TestWhatIsNoDigestIsRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc",
		strings.Repeat("x", 1<<16)} {
		_, err := validDigest(s)
		require.ErrorIs(t, err, errFrame, "%.20q", s)
	}
	want := digest.FromString("x")
	got, err := validDigest(string(want))
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// FuzzFrames feeds a stream of bytes, as a peer may send it, to every message's decoder. What is accepted must survive
// being sent on.
func FuzzFrames(f *testing.F) {
	id := somePeer(f)
	claims := someClaims([]peer.ID{id}, 3)
	seeds := []any{
		hello{Digest: string(digest.FromString("x")), Size: 5, Zone: "a", Upstream: true},
		welcome{Nearer: []byte(id), Addrs: [][]byte{{1, 2}}, Error: "e"},
		toReports(schedule.Report{Size: 5, Claims: claims, Have: []int{1}, Suspects: []schedule.Suspicion{{From: id}}},
			nil)[0],
		toOrders(schedule.Orders{Size: 5, Chunks: []schedule.Assignment{{Claim: claims[0], From: id}}})[0],
		mapQuery{Digest: "x"}, mapHead{Found: true, Size: 5, Zone: "z"}, mapPart{Sums: make([]byte, 32),
			Signatures: [][]byte{{1}}},
		tagQuery{Registry: "r", Name: "n", Tag: "t"}, tagAnswer{Found: true, Digest: "d", Size: 1, MediaType: "m",
			Unix: 1},
	}
	for _, v := range seeds {
		var b bytes.Buffer
		require.NoError(f, writeFrame(&b, v))
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r report
		if decodes(raw, &r) {
			if got, err := r.decode(); err == nil {
				resend(t, toReports(got, fromRuns(r.Leased)))
			}
		}
		var o orders
		if decodes(raw, &o) {
			if got, err := o.decode(); err == nil {
				resend(t, toOrders(got))
			}
		}
		resendIfDecoded[hello](t, raw)
		resendIfDecoded[welcome](t, raw)
		resendIfDecoded[mapQuery](t, raw)
		resendIfDecoded[mapHead](t, raw)
		resendIfDecoded[mapPart](t, raw)
		resendIfDecoded[tagQuery](t, raw)
		resendIfDecoded[tagAnswer](t, raw)
	})
}

func decodes(raw []byte, v any) bool {
	return readFrame(bufio.NewReader(bytes.NewReader(raw)), v) == nil
}

func resendIfDecoded[T any](t *testing.T, raw []byte) {
	var v T
	if decodes(raw, &v) {
		resend(t, []T{v})
	}
}

func resend[T any](t *testing.T, frames []T) {
	for _, f := range frames {
		var wire bytes.Buffer
		require.NoError(t, writeFrame(&wire, f))
		var again T
		require.NoError(t, readFrame(bufio.NewReader(&wire), &again))
	}
}
