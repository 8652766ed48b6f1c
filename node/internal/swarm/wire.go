package swarm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// Shoal's own protocols send frames: a uvarint length, then that many bytes of CBOR (RFC 8949). A frame is a map, and
// so is whatever it lists: each field has a number. A frame is at most maxFrame bytes, and its lists are at most
// maxList long.
//
// The wire grows by fields, not by versions, so that agents of two releases share one coordinator and one plan:
//
//   - A new field takes a new number. A receiver that does not know it passes over it, a sender leaves out what is
//     empty.
//   - What a field is without must mean what it meant before the field was there.
//   - A number is never given to another field, and a field never changes its type or its unit. Indexes and runs count
//     leaves. Those that count pieces are said by protocols of their own, see planProtocol.
//   - An enumeration treats a value that it does not know as its first one.
const (
	maxFrame = 1 << 20
	maxList  = 4096
)

var (
	errFrame = errors.New("malformed frame")

	encoding = must(cbor.EncOptions{}.EncMode())
	decoding = must(cbor.DecOptions{
		MaxArrayElements: maxList, MaxMapPairs: 64, MaxNestedLevels: 16, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, DupMapKey: cbor.DupMapKeyEnforcedAPF,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func writeFrame(w io.Writer, v any) error { return writeUpTo(w, v, maxFrame) }

// writeQuestion writes what is refused, and blamed on this node, where it is longer than maxShort.
func writeQuestion(w io.Writer, v any) error { return writeUpTo(w, v, maxShort) }

func writeUpTo(w io.Writer, v any, most int) error {
	body, err := encoding.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	if len(body) > most {
		return fmt.Errorf("encode %T: %d bytes long, %d are allowed", v, len(body), most)
	}
	frame := binary.AppendUvarint(make([]byte, 0, len(body)+binary.MaxVarintLen32), uint64(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

func frameLength(r *bufio.Reader, most uint64) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err == nil && n > most {
		err = fmt.Errorf("%w: %d bytes long, %d are allowed", errFrame, n, most)
	}
	return int64(n), err
}

func readBody(r io.Reader, n int64, v any) error {
	// The buffer grows with what comes: a length alone must not cost memory, since a peer may open many streams.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, n); err != nil {
		return err
	}
	if err := decoding.Unmarshal(body.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

const (
	// maxShort is the most bytes of a frame that asks or greets, and of most that answer.
	maxShort = 8 << 10
	// frameTimeout is what a frame may take from its first byte to its last.
	frameTimeout = 10 * time.Second
)

var errStalled = errors.New("a frame stopped in the middle")

// inbound reads the frames that a peer sends on a stream.
type inbound struct {
	stream network.Stream
	in     *bufio.Reader
	length int64 // bytes of the frame that was read last, or begun
}

func newInbound(stream network.Stream) *inbound {
	return &inbound{stream: stream, in: bufio.NewReader(stream)}
}

// work is what it costs to read the last frame, in microseconds, whatever is in it.
func (i *inbound) work() int { return int(i.length >> 7) }

// read waits for a frame for as long as idle says.
func (i *inbound) read(v any, most uint64, idle time.Duration) error {
	return i.readWithin(v, most, idle, min(idle, frameTimeout))
}

// readWithin waits for a frame, which may take so long from its first byte to its last.
func (i *inbound) readWithin(v any, most uint64, idle, within time.Duration) error {
	i.length = 0
	_ = i.stream.SetReadDeadline(time.Now().Add(idle))
	if _, err := i.in.Peek(1); err != nil {
		return err
	}
	_ = i.stream.SetReadDeadline(time.Now().Add(within))
	n, err := frameLength(i.in, most)
	if err == nil {
		i.length = n
	}
	if err == nil && n > maxShort {
		if err = i.stream.Scope().ReserveMemory(int(n), network.ReservationPriorityAlways); err == nil {
			defer i.stream.Scope().ReleaseMemory(int(n))
		}
	}
	if err == nil {
		err = readBody(i.in, n, v)
	}
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return fmt.Errorf("%w: %w", errStalled, err)
	}
	return err
}

// The coordinator protocol. The participant opens the stream with a hello and goes on with reports; the coordinator
// answers with a welcome and goes on with orders.
type (
	hello struct {
		Digest   string `cbor:"1,keyasint,omitempty"`
		Size     int64  `cbor:"2,keyasint,omitempty"`
		Zone     string `cbor:"3,keyasint,omitempty"`
		Upstream bool   `cbor:"4,keyasint,omitempty"`
		Whole    bool   `cbor:"5,keyasint,omitempty"`
		// Forced: the participant found no nearer coordinator alive, so this one is to take it.
		Forced bool `cbor:"6,keyasint,omitempty"`
		// Orphan: the coordinator that it took part with was lost just now.
		Orphan bool `cbor:"7,keyasint,omitempty"`
		// Held: the participant has heard of a holder.
		Held bool `cbor:"8,keyasint,omitempty"`
		// Again: what was gathered before did not match; see schedule.Join.
		Again bool `cbor:"9,keyasint,omitempty"`
		// Trace is the span that the participant is in; see trace.Parent. Empty: nobody looks.
		Trace []byte `cbor:"20,keyasint,omitempty"`
	}
	welcome struct {
		// Nearer is the peer that is the coordinator, where this one is not; empty where it is.
		Nearer []byte   `cbor:"1,keyasint,omitempty"`
		Addrs  [][]byte `cbor:"2,keyasint,omitempty"`
		Error  string   `cbor:"3,keyasint,omitempty"`
		// Plans: the nearer one has just said that it plans the blob.
		Plans bool `cbor:"4,keyasint,omitempty"`
	}
	run struct {
		First uint32 `cbor:"1,keyasint,omitempty"`
		Count uint32 `cbor:"2,keyasint,omitempty"`
	}
	claim struct {
		Index     uint32 `cbor:"1,keyasint,omitempty"`
		Sum       []byte `cbor:"2,keyasint,omitempty"`
		By        uint32 `cbor:"3,keyasint,omitempty"` // index into the frame's Peers
		Signature []byte `cbor:"4,keyasint,omitempty"`
	}
	failure struct {
		Run     run   `cbor:"1,keyasint,omitempty"`
		Trouble uint8 `cbor:"2,keyasint,omitempty"`
	}
	suspicion struct {
		Index uint32 `cbor:"1,keyasint,omitempty"`
		From  []byte `cbor:"2,keyasint,omitempty"`
	}
	report struct {
		Size     int64       `cbor:"1,keyasint,omitempty"`
		Peers    [][]byte    `cbor:"2,keyasint,omitempty"`
		Claims   []claim     `cbor:"3,keyasint,omitempty"`
		Have     []uint32    `cbor:"4,keyasint,omitempty"`
		Need     []run       `cbor:"5,keyasint,omitempty"`
		Leased   []run       `cbor:"6,keyasint,omitempty"` // in the first report only
		Failed   []failure   `cbor:"7,keyasint,omitempty"`
		Suspects []suspicion `cbor:"8,keyasint,omitempty"`
		Reading  bool        `cbor:"9,keyasint,omitempty"`
		Complete bool        `cbor:"10,keyasint,omitempty"`
		Load     uint32      `cbor:"11,keyasint,omitempty"`
		Gone     []uint32    `cbor:"12,keyasint,omitempty"`
		Slots    uint32      `cbor:"13,keyasint,omitempty"`
		MayRead  bool        `cbor:"14,keyasint,omitempty"`
	}
	assignment struct {
		Claim claim  `cbor:"1,keyasint,omitempty"`
		From  uint32 `cbor:"2,keyasint,omitempty"` // index into Peers
		Home  bool   `cbor:"3,keyasint,omitempty"`
		Held  bool   `cbor:"4,keyasint,omitempty"`
	}
	orders struct {
		Size     int64        `cbor:"1,keyasint,omitempty"`
		Leases   []run        `cbor:"2,keyasint,omitempty"`
		Peers    [][]byte     `cbor:"3,keyasint,omitempty"`
		Chunks   []assignment `cbor:"4,keyasint,omitempty"`
		Hopeless bool         `cbor:"5,keyasint,omitempty"`
		Awaited  bool         `cbor:"6,keyasint,omitempty"`
	}
)

// The map protocol: who has a blob whole answers with its zone, size and claims, in one mapHead and as many mapPart as
// there are; who has not, with a head that says so.
type (
	mapQuery struct {
		Digest string `cbor:"1,keyasint,omitempty"`
	}
	mapHead struct {
		Found bool   `cbor:"1,keyasint,omitempty"`
		Size  int64  `cbor:"2,keyasint,omitempty"`
		Zone  string `cbor:"3,keyasint,omitempty"`
		Plans bool   `cbor:"4,keyasint,omitempty"`
	}
	mapPart struct {
		Sums       []byte   `cbor:"1,keyasint,omitempty"` // 32 bytes for each chunk, in order
		Signatures [][]byte `cbor:"2,keyasint,omitempty"`
	}
)

// The tag protocol: one query, one answer.
type (
	tagQuery struct {
		Registry string `cbor:"1,keyasint,omitempty"`
		Name     string `cbor:"2,keyasint,omitempty"`
		Tag      string `cbor:"3,keyasint,omitempty"`
	}
	tagAnswer struct {
		Found     bool   `cbor:"1,keyasint,omitempty"`
		Digest    string `cbor:"2,keyasint,omitempty"`
		Size      int64  `cbor:"3,keyasint,omitempty"`
		MediaType string `cbor:"4,keyasint,omitempty"`
		Unix      int64  `cbor:"5,keyasint,omitempty"` // when upstream gave the answer, in seconds
	}
)

// The witness protocol: one query, one answer, which names contents by their place in the query. Field 2 of the answer
// is what Proven was when a few bytes that anyone can guess were proof enough: what older agents say there is not
// taken. Ages are in milliseconds. That of Public is 0 where the agent does not know it, and RefusedAge where it knows
// of no refusal: agents of before say neither.
type (
	witnessQuery struct {
		Source   string   `cbor:"1,keyasint"`
		Contents []string `cbor:"2,keyasint,omitempty"`
	}
	witnessAnswer struct {
		Public     bool  `cbor:"1,keyasint,omitempty"`
		Held       []int `cbor:"3,keyasint,omitempty"`
		Proven     []int `cbor:"4,keyasint,omitempty"`
		PublicAge  int64 `cbor:"5,keyasint,omitempty"`
		RefusedAge int64 `cbor:"6,keyasint,omitempty"`
	}
)

// The protocols of questions that one node asks for all. Who has one opens the stream with it. Its home answers that it
// knows, that this node is to ask, or that another is asking, and in the last case answers again. Ages are in
// milliseconds. Who waits on this stream is sent something every errandBeat: one that sets Beats knows that the answer
// "another is asking" may come again and again, and a result with Asking set says that there is none yet.
type (
	errandQuery struct {
		Key    string `cbor:"1,keyasint,omitempty"`
		MaxAge int64  `cbor:"2,keyasint,omitempty"`
		Beats  bool   `cbor:"3,keyasint,omitempty"`
	}
	errandAnswer struct {
		State errandState `cbor:"1,keyasint,omitempty"`
		Value []byte      `cbor:"2,keyasint,omitempty"`
		Age   int64       `cbor:"3,keyasint,omitempty"`
		Beats bool        `cbor:"4,keyasint,omitempty"`
	}
	// errandResult is what a node that was to ask has found out.
	errandResult struct {
		OK     bool   `cbor:"1,keyasint,omitempty"`
		Value  []byte `cbor:"2,keyasint,omitempty"`
		Asking bool   `cbor:"3,keyasint,omitempty"`
	}
	rememberQuery struct {
		Key string `cbor:"1,keyasint,omitempty"`
	}
)

// errandState is what a home says.
type errandState uint8

const (
	// errandAlone: each node is to ask by itself.
	errandAlone errandState = iota
	errandKnown
	errandAsk
	errandWaiting
)

// The file protocol: one query, one answer.
type (
	fileQuery struct {
		Root []byte `cbor:"1,keyasint,omitempty"`
	}
	fileAnswer struct {
		Found  bool   `cbor:"1,keyasint,omitempty"`
		Digest string `cbor:"2,keyasint,omitempty"`
		Size   int64  `cbor:"3,keyasint,omitempty"`
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
	return peerID(list[n])
}

// maxPeerID is more bytes than a peer's ID has.
const maxPeerID = 64

func peerID(raw []byte) (peer.ID, error) {
	if len(raw) == 0 || len(raw) > maxPeerID {
		return "", fmt.Errorf("%w: a peer's ID of %d bytes", errFrame, len(raw))
	}
	return peer.ID(raw), nil
}

func toClaim(t *peerTable, c schedule.Claim) claim {
	return claim{Index: uint32(c.Index), Sum: c.Sum[:], By: t.num(c.By), Signature: c.Signature}
}

func (c *claim) decode(peers [][]byte) (schedule.Claim, error) {
	by, err := peerAt(peers, c.By)
	if err != nil {
		return schedule.Claim{}, err
	}
	if len(c.Sum) != sha256.Size || len(c.Signature) > maxSignature {
		return schedule.Claim{}, fmt.Errorf("%w: a sum of %d and a signature of %d bytes", errFrame, len(c.Sum),
			len(c.Signature))
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
	out := []report{{Size: r.Size, Leased: toRuns(leased), Reading: r.Reading, Load: uint32(r.Load),
		Slots: uint32(r.Slots)}}
	for f := &out[0]; ; {
		var peers peerTable
		for _, c := range page(&r.Claims) {
			f.Claims = append(f.Claims, toClaim(&peers, c))
		}
		for _, i := range page(&r.Have) {
			f.Have = append(f.Have, uint32(i))
		}
		for _, i := range page(&r.Gone) {
			f.Gone = append(f.Gone, uint32(i))
		}
		f.Need = toRuns(page(&r.Need))
		for _, x := range page(&r.Failed) {
			f.Failed = append(f.Failed, failure{Run: toRuns([]schedule.Run{x.Run})[0], Trouble: uint8(x.Trouble)})
		}
		for _, x := range page(&r.Suspects) {
			f.Suspects = append(f.Suspects, suspicion{Index: uint32(x.Index), From: []byte(x.From)})
		}
		f.Peers = peers.list
		if len(r.Claims) == 0 && len(r.Have) == 0 && len(r.Gone) == 0 && len(r.Need) == 0 && len(r.Failed) == 0 &&
			len(r.Suspects) == 0 {
			f.Complete, f.MayRead = r.Complete, r.MayRead
			return out
		}
		out = append(out, report{Load: out[0].Load})
		f = &out[len(out)-1]
	}
}

// page takes as much off a list as a frame holds.
func page[T any](list *[]T) []T {
	n := min(len(*list), maxList)
	first := (*list)[:n]
	*list = (*list)[n:]
	return first
}

func (f *report) decode() (schedule.Report, error) {
	r := schedule.Report{Size: f.Size, Need: fromRuns(f.Need), Reading: f.Reading, Load: int(f.Load),
		Complete: f.Complete, Slots: int(f.Slots), MayRead: f.MayRead}
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
	for _, i := range f.Gone {
		r.Gone = append(r.Gone, int(i))
	}
	for _, x := range f.Failed {
		r.Failed = append(r.Failed, schedule.Failure{Run: x.Run.decode(), Trouble: schedule.Trouble(x.Trouble)})
	}
	for _, x := range f.Suspects {
		from, err := peerID(x.From)
		if err != nil {
			return r, err
		}
		r.Suspects = append(r.Suspects, schedule.Suspicion{Index: int(x.Index), From: from})
	}
	return r, nil
}

func toOrders(o schedule.Orders) []orders {
	out := []orders{{Size: o.Size, Leases: toRuns(o.Leases), Hopeless: o.Hopeless, Awaited: o.Awaited}}
	for f := &out[0]; ; {
		var peers peerTable
		for _, a := range page(&o.Chunks) {
			f.Chunks = append(f.Chunks, assignment{
				Claim: toClaim(&peers, a.Claim), From: peers.num(a.From), Home: a.Home, Held: a.Held,
			})
		}
		f.Peers = peers.list
		if len(o.Chunks) == 0 {
			return out
		}
		out = append(out, orders{})
		f = &out[len(out)-1]
	}
}

func (f *orders) decode() (schedule.Orders, error) {
	o := schedule.Orders{Size: f.Size, Leases: fromRuns(f.Leases), Hopeless: f.Hopeless, Awaited: f.Awaited}
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
		o.Chunks = append(o.Chunks, schedule.Assignment{Claim: c, From: from, Home: a.Home, Held: a.Held})
	}
	return o, nil
}

// maxSignature is more bytes than a signature has by a key that a peer's ID contains.
const maxSignature = 128

// work is what a report costs the table, in microseconds. Claims are charged for when they are verified.
func (f *report) work() int {
	return 20 + 4*len(f.Have) + 20*len(f.Gone) +
		2*(len(f.Need)+len(f.Leased)+len(f.Claims)) + 10*len(f.Failed) + 50*len(f.Suspects)
}

// Plan names what nodes plan together: a blob, and how finely they cut it.
type Plan struct {
	Digest digest.Digest
	Grain  content.Grain
}

func (p Plan) String() string { return p.Grain.String() + " of " + string(p.Digest) }

// claimBytes is what the signature of a claim is made over: a label, which is another for pieces than for leaves, the
// blob's digest, the chunk's index and its sum.
func claimBytes(p Plan, index int, sum schedule.Sum) []byte {
	label := "shoal chunk claim 1\x00"
	if p.Grain == content.Pieces {
		label = "shoal piece claim 1\x00"
	}
	b := append([]byte(label), p.Digest...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(index))
	return append(b, sum[:]...)
}

func signClaim(key crypto.PrivKey, by peer.ID, p Plan, index int, sum schedule.Sum) (schedule.Claim, error) {
	sig, err := key.Sign(claimBytes(p, index, sum))
	if err != nil {
		return schedule.Claim{}, fmt.Errorf("sign claim of chunk %d of the %s: %w", index, p, err)
	}
	return schedule.Claim{Index: index, Sum: sum, By: by, Signature: sig}, nil
}

// VerifyClaim reports whether the peer that a claim names really made it. A coordinator asks before it passes a claim
// on, a participant once a claim turned out wrong.
func VerifyClaim(p Plan, c schedule.Claim) error {
	key, err := c.By.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("claim of chunk %d of the %s by %s: %w", c.Index, p, c.By, err)
	}
	ok, err := key.Verify(claimBytes(p, c.Index, c.Sum), c.Signature)
	if err != nil || !ok {
		return fmt.Errorf("claim of chunk %d of the %s by %s: the signature is not that peer's", c.Index, p, c.By)
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
