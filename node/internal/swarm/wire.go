package swarm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// Shoal's own protocols send frames: a uvarint length, then that many bytes of CBOR (RFC 8949), arrays in place of
// maps. A frame is at most maxFrame bytes, and lists in it are at most maxList long.
const (
	maxFrame = 1 << 20
	maxList  = 4096
)

var (
	errFrame = errors.New("malformed frame")

	encoding = must(cbor.EncOptions{}.EncMode())
	decoding = must(cbor.DecOptions{
		MaxArrayElements: maxList * 2, MaxMapPairs: 16, MaxNestedLevels: 8, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func writeFrame(w io.Writer, v any) error {
	body, err := encoding.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	if len(body) > maxFrame {
		return fmt.Errorf("encode %T: %d bytes is more than a frame may have", v, len(body))
	}
	frame := binary.AppendUvarint(make([]byte, 0, len(body)+binary.MaxVarintLen32), uint64(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

func readFrame(r *bufio.Reader, v any) error {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	if n > maxFrame {
		return fmt.Errorf("%w: %d bytes long", errFrame, n)
	}
	// The buffer grows with what comes: a length alone must not cost memory, for a peer may open many streams.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	if err := decoding.Unmarshal(body.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// The coordinator protocol. The participant opens the stream with a hello and goes on with reports; the coordinator
// answers with a welcome and goes on with orders.
type (
	hello struct {
		_        struct{} `cbor:",toarray"`
		Digest   string
		Size     int64
		Zone     string
		Upstream bool
		Whole    bool
		// Forced: the participant found no nearer coordinator alive, so this one is to take it.
		Forced bool
	}
	welcome struct {
		_ struct{} `cbor:",toarray"`
		// Nearer is the peer that is the coordinator, where this one is not; empty where it is.
		Nearer []byte
		Addrs  [][]byte
		Error  string
	}
	run struct {
		_     struct{} `cbor:",toarray"`
		First uint32
		Count uint32
	}
	claim struct {
		_         struct{} `cbor:",toarray"`
		Index     uint32
		Sum       []byte
		By        uint32 // index into the frame's Peers
		Signature []byte
	}
	failure struct {
		_       struct{} `cbor:",toarray"`
		Run     run
		Trouble uint8
	}
	suspicion struct {
		_     struct{} `cbor:",toarray"`
		Index uint32
		From  []byte
	}
	report struct {
		_        struct{} `cbor:",toarray"`
		Size     int64
		Peers    [][]byte
		Claims   []claim
		Have     []uint32
		Need     []run
		Leased   []run // in the first report only
		Failed   []failure
		Suspects []suspicion
		Reading  bool
		Complete bool
	}
	assignment struct {
		_     struct{} `cbor:",toarray"`
		Claim claim
		From  uint32 // index into Peers
		Root  bool
		Held  bool
	}
	orders struct {
		_        struct{} `cbor:",toarray"`
		Size     int64
		Leases   []run
		Peers    [][]byte
		Chunks   []assignment
		Hopeless bool
		Error    string
	}
)

// The map protocol: who has a blob whole answers with its zone, size and claims, in one mapHead and as many mapPart as
// there are; who has not, with a head that says so.
type (
	mapQuery struct {
		_      struct{} `cbor:",toarray"`
		Digest string
	}
	mapHead struct {
		_     struct{} `cbor:",toarray"`
		Found bool
		Size  int64
		Zone  string
	}
	mapPart struct {
		_          struct{} `cbor:",toarray"`
		Sums       []byte   // 32 bytes for each chunk, in order
		Signatures [][]byte
	}
)

// The tag protocol: one query, one answer.
type (
	tagQuery struct {
		_        struct{} `cbor:",toarray"`
		Registry string
		Name     string
		Tag      string
	}
	tagAnswer struct {
		_         struct{} `cbor:",toarray"`
		Found     bool
		Digest    string
		Size      int64
		MediaType string
		Unix      int64 // when upstream gave the answer, in seconds
	}
)

// The public protocol: one query, one answer.
type (
	publicQuery struct {
		_        struct{} `cbor:",toarray"`
		Registry string
		Name     string
	}
	publicAnswer struct {
		_      struct{} `cbor:",toarray"`
		Public bool
	}
)

// The file protocol: one query, one answer.
type (
	fileQuery struct {
		_    struct{} `cbor:",toarray"`
		Root []byte
	}
	fileAnswer struct {
		_      struct{} `cbor:",toarray"`
		Found  bool
		Digest string
		Size   int64
	}
)

// peerTable gives each peer ID of a frame a number, since a frame names few peers often.
type peerTable struct {
	list [][]byte
	nums map[peer.ID]uint32
}

func (t *peerTable) num(p peer.ID) uint32 {
	n, ok := t.nums[p]
	if !ok {
		if t.nums == nil {
			t.nums = map[peer.ID]uint32{}
		}
		n = uint32(len(t.list))
		t.nums[p] = n
		t.list = append(t.list, []byte(p))
	}
	return n
}

func peerAt(list [][]byte, n uint32) (peer.ID, error) {
	if int(n) >= len(list) {
		return "", fmt.Errorf("%w: peer %d of %d", errFrame, n, len(list))
	}
	return peer.ID(list[n]), nil
}

func toClaim(t *peerTable, c schedule.Claim) claim {
	return claim{Index: uint32(c.Index), Sum: c.Sum[:], By: t.num(c.By), Signature: c.Signature}
}

func (c *claim) decode(peers [][]byte) (schedule.Claim, error) {
	by, err := peerAt(peers, c.By)
	if err != nil {
		return schedule.Claim{}, err
	}
	if len(c.Sum) != sha256.Size {
		return schedule.Claim{}, fmt.Errorf("%w: a sum of %d bytes", errFrame, len(c.Sum))
	}
	return schedule.Claim{Index: int(c.Index), Sum: schedule.Sum(c.Sum), By: by, Signature: c.Signature}, nil
}

func toRuns(rs []schedule.Run) []run {
	out := make([]run, len(rs))
	for i, r := range rs {
		out[i] = run{First: uint32(r.First), Count: uint32(r.Count)}
	}
	return out
}

func (r run) decode() schedule.Run { return schedule.Run{First: int(r.First), Count: int(r.Count)} }

func fromRuns(rs []run) []schedule.Run {
	var out []schedule.Run
	for _, r := range rs {
		out = append(out, r.decode())
	}
	return out
}

// toReports splits a report into frames. leased goes into the first.
func toReports(r schedule.Report, leased []schedule.Run) []report {
	var out []report
	for first := true; first || len(r.Claims) > 0 || len(r.Have) > 0 || len(r.Need) > 0; first = false {
		var peers peerTable
		f := report{}
		if first {
			f.Size, f.Leased, f.Reading = r.Size, toRuns(leased), r.Reading
			for _, x := range r.Failed {
				f.Failed = append(f.Failed, failure{
					Run: run{First: uint32(x.Run.First), Count: uint32(x.Run.Count)}, Trouble: uint8(x.Trouble),
				})
			}
			for _, x := range r.Suspects {
				f.Suspects = append(f.Suspects, suspicion{Index: uint32(x.Index), From: []byte(x.From)})
			}
		}
		n := min(len(r.Claims), maxList)
		for _, c := range r.Claims[:n] {
			f.Claims = append(f.Claims, toClaim(&peers, c))
		}
		r.Claims = r.Claims[n:]
		n = min(len(r.Have), maxList)
		for _, i := range r.Have[:n] {
			f.Have = append(f.Have, uint32(i))
		}
		r.Have = r.Have[n:]
		n = min(len(r.Need), maxList)
		f.Need = toRuns(r.Need[:n])
		r.Need = r.Need[n:]
		f.Peers = peers.list
		out = append(out, f)
	}
	out[len(out)-1].Complete = r.Complete
	return out
}

func (f *report) decode() (schedule.Report, error) {
	r := schedule.Report{Size: f.Size, Need: fromRuns(f.Need), Reading: f.Reading, Complete: f.Complete}
	for i := range f.Claims {
		c, err := f.Claims[i].decode(f.Peers)
		if err != nil {
			return r, err
		}
		r.Claims = append(r.Claims, c)
	}
	for _, i := range f.Have {
		r.Have = append(r.Have, int(i))
	}
	for _, x := range f.Failed {
		r.Failed = append(r.Failed, schedule.Failure{Run: x.Run.decode(), Trouble: schedule.Trouble(x.Trouble)})
	}
	for _, x := range f.Suspects {
		r.Suspects = append(r.Suspects, schedule.Suspicion{Index: int(x.Index), From: peer.ID(x.From)})
	}
	return r, nil
}

func toOrders(o schedule.Orders) []orders {
	var out []orders
	for first := true; first || len(o.Chunks) > 0; first = false {
		var peers peerTable
		f := orders{}
		if first {
			f.Size, f.Leases, f.Hopeless = o.Size, toRuns(o.Leases), o.Hopeless
		}
		n := min(len(o.Chunks), maxList)
		for _, a := range o.Chunks[:n] {
			f.Chunks = append(f.Chunks, assignment{Claim: toClaim(&peers, a.Claim), From: peers.num(a.From), Root: a.Root, Held: a.Held})
		}
		o.Chunks = o.Chunks[n:]
		f.Peers = peers.list
		out = append(out, f)
	}
	return out
}

func (f *orders) decode() (schedule.Orders, error) {
	o := schedule.Orders{Size: f.Size, Leases: fromRuns(f.Leases), Hopeless: f.Hopeless}
	for i := range f.Chunks {
		a := &f.Chunks[i]
		c, err := a.Claim.decode(f.Peers)
		if err != nil {
			return o, err
		}
		from, err := peerAt(f.Peers, a.From)
		if err != nil {
			return o, err
		}
		o.Chunks = append(o.Chunks, schedule.Assignment{Claim: c, From: from, Root: a.Root, Held: a.Held})
	}
	return o, nil
}

// claimBytes is what the signature of a claim is made over: a label, the blob's digest, the chunk's index and its sum.
func claimBytes(d digest.Digest, index int, sum schedule.Sum) []byte {
	b := append([]byte("shoal chunk claim 1\x00"), d...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(index))
	return append(b, sum[:]...)
}

func signClaim(key crypto.PrivKey, by peer.ID, d digest.Digest, index int, sum schedule.Sum) (schedule.Claim, error) {
	sig, err := key.Sign(claimBytes(d, index, sum))
	if err != nil {
		return schedule.Claim{}, fmt.Errorf("sign claim of chunk %d of %s: %w", index, d, err)
	}
	return schedule.Claim{Index: index, Sum: sum, By: by, Signature: sig}, nil
}

// VerifyClaim tells whether the peer that a claim names really made it. A coordinator asks before it passes a claim on, a
// participant once a claim turned out wrong.
func VerifyClaim(d digest.Digest, c schedule.Claim) error {
	key, err := c.By.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("claim of chunk %d of %s by %s: %w", c.Index, d, c.By, err)
	}
	ok, err := key.Verify(claimBytes(d, c.Index, c.Sum), c.Signature)
	if err != nil || !ok {
		return fmt.Errorf("claim of chunk %d of %s by %s: the signature is not that peer's", c.Index, d, c.By)
	}
	return nil
}

// validDigest refuses what a peer may send in place of a digest.
func validDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if _, err := content.DigestCID(d); err != nil {
		return "", fmt.Errorf("%w: %w", errFrame, err)
	}
	return d, nil
}
