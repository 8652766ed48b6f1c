// Package hostile is an admitted peer that breaks the rules of the swarm, one at a time. Tests and the program in cmd
// put it beside agents, which have to go on as if it were not there. An attack on a protocol that the victim does not
// speak fails: it would show nothing.
package hostile

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/opencontainers/go-digest"
)

// Peer is a peer that keeps to no rule. It knows the wire, and nothing of how agents work.
type Peer struct {
	host.Host
	prefix string
}

// New starts a peer with a key, which makes it the one that is admitted. nil: a new key.
func New(key crypto.PrivKey, prefix string, listen ...string) (*Peer, error) {
	if key == nil {
		var err error
		if key, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
			return nil, err
		}
	}
	boundless, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), rcmgr.WithMetricsDisabled())
	if err != nil {
		return nil, err
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(listen...),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID,
			libp2ptls.New), libp2p.ResourceManager(boundless), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		return nil, err
	}
	return &Peer{Host: h, prefix: prefix}, nil
}

// Attack is one way to break the rules towards a victim. It returns when all was said, or the victim hears no more,
// which is no error.
type Attack func(ctx context.Context, p *Peer, victim peer.AddrInfo) error

// Attacks are all that this peer begins, by name. See Obey and Mislead for what it does when it is asked.
var Attacks = map[string]Attack{
	"hellos":     hellos,
	"passed-on":  passedOn,
	"witnesses":  witnesses,
	"words":      words,
	"errands":    errands,
	"rooms":      rooms,
	"frames":     unfinishedFrames,
	"blocks":     tinyBlocks,
	"needs":      needs,
	"suspicions": suspicions,
	"claims":     forgedClaims,
	"questions":  longQuestions,
	"records":    records,
	"garbage":    garbage,
	"silence":    silence,
}

// Frame is a message of the swarm's protocols: fields by their numbers, after the length.
func Frame(fields map[int]any) []byte {
	body, err := cbor.Marshal(fields)
	if err != nil {
		panic(err) // only a field that no CBOR can hold fails
	}
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

const (
	huge      = 1 << 40 // bytes
	hugeRun   = 1 << 20 // chunks of them
	listLimit = 4096
)

func run(first, count int) map[int]any { return map[int]any{1: first, 2: count} }

func hello(d digest.Digest, size int64) []byte {
	return Frame(map[int]any{1: string(d), 2: size, 4: true, 5: true, 6: true})
}

func (p *Peer) protocol(name string) protocol.ID {
	return protocol.ID(p.prefix + "/" + name + "/2.0.0")
}

func (p *Peer) open(ctx context.Context, victim peer.AddrInfo, protocols ...protocol.ID) (network.Stream, error) {
	if err := p.Connect(ctx, victim); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return p.NewStream(ctx, victim.ID, protocols...)
}

// errNotSpoken: the victim does not speak what is attacked.
var errNotSpoken = errors.New("the victim does not speak")

// speaks fails where the victim, which has said what it speaks, does not speak all of these protocols.
func (p *Peer) speaks(victim peer.ID, all ...protocol.ID) error {
	spoken, err := p.Peerstore().GetProtocols(victim)
	if err != nil || len(spoken) == 0 {
		return err // it has thrown us out before it said so
	}
	for _, id := range all {
		if !slices.Contains(spoken, id) {
			return fmt.Errorf("%w %s", errNotSpoken, id)
		}
	}
	return nil
}

// names are the swarm's own protocols, but for those of the plans.
var names = []string{"map", "map-pieces", "tag", "file", "witness", "errand", "remember"}

// spoken are all of the swarm's own protocols that the victim speaks. It fails where one of ours is not among them.
func (p *Peer) spoken(ctx context.Context, victim peer.AddrInfo) (all []protocol.ID, err error) {
	if err := p.Connect(ctx, victim); err != nil {
		return nil, err
	}
	ours := []protocol.ID{p.protocol("coordinate"), p.protocol("coordinate-pieces")}
	for _, name := range names {
		ours = append(ours, p.protocol(name))
	}
	if err := p.speaks(victim.ID, ours...); err != nil {
		return nil, err
	}
	all, err = p.Peerstore().GetProtocols(victim.ID)
	foreign := func(id protocol.ID) bool { return !strings.HasPrefix(string(id), p.prefix+"/") }
	return slices.DeleteFunc(all, foreign), err
}

// say opens n streams at most atOnce at a time, and writes to each what frames gives, until the victim hears no more.
func (p *Peer) say(
	ctx context.Context, victim peer.AddrInfo, id protocol.ID, n int, hold bool, frames func(i int) [][]byte,
) error {
	if err := p.Connect(ctx, victim); err != nil {
		return fmt.Errorf("connect to %s: %w", victim.ID, err)
	}
	if err := p.speaks(victim.ID, id); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	var held []network.Stream
	defer func() {
		for _, s := range held {
			_ = s.Reset()
		}
	}()
	slots := make(chan struct{}, 64)
	for i := range n {
		stream, err := p.open(ctx, victim, id)
		if err != nil {
			return ctx.Err() // it is turned away
		}
		held = append(held, stream)
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_ = stream.SetDeadline(time.Now().Add(10 * time.Second))
			for _, f := range frames(i) {
				if _, err := stream.Write(f); err != nil {
					return
				}
			}
			if !hold {
				_ = stream.CloseWrite()
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// hellos names blobs of 1 TiB, all of which it says to be reading already.
func hellos(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.say(ctx, victim, p.protocol("coordinate"), 30, true, func(i int) [][]byte {
		return [][]byte{hello(some(i), huge), Frame(map[int]any{6: []any{run(0, hugeRun)}})}
	})
}

// passedOn greets the victim about blobs that others are nearer to, as long as a greeting may be, and is sent on.
func passedOn(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	runs := make([]any, listLimit)
	for i := range runs {
		runs[i] = run(2*i, 1)
	}
	first := Frame(map[int]any{5: runs})
	return p.say(ctx, victim, p.protocol("coordinate-pieces"), 3000, false, func(i int) [][]byte {
		return [][]byte{Frame(map[int]any{1: string(some(i)), 2: int64(huge)}), first}
	})
}

// witnesses asks without end who holds what, with as many digests as a question has room for.
func witnesses(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	asked := make([]digest.Digest, 100)
	for i := range asked {
		asked[i] = some(i)
	}
	question := Frame(map[int]any{1: "oci images.test/team/app", 2: asked})
	return p.say(ctx, victim, p.protocol("witness"), 5000, false, func(int) [][]byte { return [][]byte{question} })
}

// words asks for what nobody knows, by names that are as long as a question may be.
func words(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	for _, name := range []string{"tag", "file", "remember"} {
		if err := p.say(ctx, victim, p.protocol(name), 2000, false, func(i int) [][]byte {
			long := strings.Repeat(fmt.Sprint(i), 7<<10)[:7<<10]
			question := map[int]any{1: long}
			if name == "file" {
				question = map[int]any{1: []byte(long)}
			}
			return [][]byte{Frame(question)}
		}); err != nil {
			return err
		}
	}
	return nil
}

// errands asks as if it wanted to know, is told to ask itself, and brings as much as it can: what nobody can read, and
// what is many times as large in memory as it is on the wire.
func errands(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	vouched := `{"vouched":[` + strings.Repeat("{},", (512<<10-64)/3) + `{}]}`
	results := [][]byte{
		Frame(map[int]any{1: true, 2: make([]byte, 1<<20-64)}), Frame(map[int]any{1: true, 2: []byte(vouched)}),
	}
	return p.say(ctx, victim, p.protocol("errand"), 1000, true, func(i int) [][]byte {
		question := Frame(map[int]any{1: string(some(i)), 3: true})
		return [][]byte{question, Frame(map[int]any{3: true}), results[i%len(results)]}
	})
}

// rooms has the victim coordinate one blob after the other that nobody wants.
func rooms(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.say(ctx, victim, p.protocol("coordinate"), 5000, false, func(i int) [][]byte {
		return [][]byte{hello(some(i), 0), Frame(nil)}
	})
}

// unfinishedFrames stops in the middle of Bitswap messages of 4 MiB.
func unfinishedFrames(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	part := make([]byte, 3<<20)
	return p.say(ctx, victim, "/ipfs/bitswap/1.2.0", 900, true, func(int) [][]byte {
		return [][]byte{binary.AppendUvarint(nil, 4<<20), part}
	})
}

// tinyBlocks sends Bitswap messages that are many times as large in memory as they are on the wire.
func tinyBlocks(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	var body []byte
	for i := uint32(0); len(body) < 4<<20-64; i++ {
		body = append(body, 0x1a, 12, 0x0a, 4, 1, 0x55, 0x12, 32, 0x12, 4)
		body = binary.BigEndian.AppendUint32(body, i)
	}
	frame := append(binary.AppendUvarint(nil, uint64(len(body))), body...)
	return p.say(ctx, victim, "/ipfs/bitswap/1.2.0", 40, true, func(int) [][]byte { return [][]byte{frame} })
}

// report is a session of one participant that says the same n times.
func (p *Peer) report(ctx context.Context, victim peer.AddrInfo, n int, fields map[int]any) error {
	return p.say(ctx, victim, p.protocol("coordinate-pieces"), 1, true, func(int) [][]byte {
		f := Frame(fields)
		return append([][]byte{hello(some(0), huge), Frame(nil)}, slices.Repeat([][]byte{f}, n)...)
	})
}

// needs says in every frame 4,096 times what it needs.
func needs(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	runs := make([]any, listLimit)
	for i := range runs {
		runs[i] = run(hugeRun-1-i, hugeRun)
		if i%2 == 0 {
			runs[i] = run(0, hugeRun)
		}
	}
	return p.report(ctx, victim, 20, map[int]any{5: runs})
}

// suspicions accuses peers that are not there.
func suspicions(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	list := make([]any, listLimit)
	for i := range list {
		id := make([]byte, 38)
		binary.BigEndian.PutUint32(id, uint32(i))
		list[i] = map[int]any{1: i % 7, 2: id}
	}
	return p.report(ctx, victim, 50, map[int]any{8: list})
}

// forgedClaims claims chunks in its own name, with signatures that are none.
func forgedClaims(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	list := make([]any, listLimit)
	for i := range list {
		list[i] = map[int]any{1: i, 2: make([]byte, 32), 4: make([]byte, 64)}
	}
	return p.report(ctx, victim, 50, map[int]any{2: [][]byte{[]byte(p.ID())}, 3: list})
}

// longQuestions announces messages of 4 MiB to the DHT, and sends none.
func longQuestions(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.say(ctx, victim, protocol.ID(p.prefix+"/kad/1.0.0"), 400, true, func(int) [][]byte {
		return [][]byte{binary.AppendUvarint(nil, 4<<20-1)}
	})
}

// records leaves provider records for blobs that it does not have.
func records(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.say(ctx, victim, protocol.ID(p.prefix+"/kad/1.0.0"), 1, true, func(int) [][]byte {
		id := []byte(p.ID())
		var all [][]byte
		for i := range 200_000 {
			key := append([]byte{0x12, 32}, make([]byte, 28)...)
			key = binary.BigEndian.AppendUint32(key, uint32(i))
			provider := append([]byte{0x0a, byte(len(id))}, id...)
			provider = append(provider, 0x12, 8, 4, 127, 0, 0, 1, 6, 0, 1)
			m := append([]byte{0x08, 2, 0x12, byte(len(key))}, key...)
			m = append(append(m, 0x4a, byte(len(provider))), provider...)
			all = append(all, append(binary.AppendUvarint(nil, uint64(len(m))), m...))
		}
		return all
	})
}

// garbage sends what is no message.
func garbage(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.each(ctx, victim, 100, []byte{5, 0xff, 0xff, 0xff, 0xff, 0xff})
}

// silence opens streams, and stops in the middle of a length on them.
func silence(ctx context.Context, p *Peer, victim peer.AddrInfo) error {
	return p.each(ctx, victim, 1000, []byte{0x85})
}

// each says one thing on so many streams of each protocol, as long as the victim hears.
func (p *Peer) each(ctx context.Context, victim peer.AddrInfo, n int, what []byte) error {
	all, err := p.spoken(ctx, victim)
	for _, id := range append(all, "/ipfs/bitswap/1.2.0") {
		if err == nil {
			err = p.say(ctx, victim, id, n, true, func(int) [][]byte { return [][]byte{what} })
		}
		if err == nil && p.Network().Connectedness(victim.ID) != network.Connected {
			return nil
		}
	}
	return err
}

// some is the i-th digest of a row that begins anew in every process.
func some(i int) digest.Digest {
	return digest.FromString(fmt.Sprint(seed, i))
}

var seed = rand.Text()

// Session is what a coordinator does with a participant once it has welcomed it: it writes orders until it ends.
type Session func(ctx context.Context, write func(fields map[int]any) error) error

// Coordinate has the peer coordinate every blob for which it is asked.
func (p *Peer) Coordinate(ctx context.Context, s Session) {
	coordinate := func(stream network.Stream) {
		defer func() { _ = stream.Reset() }()
		write := func(fields map[int]any) error {
			_, err := stream.Write(Frame(fields))
			return err
		}
		go func() { _, _ = io.Copy(io.Discard, bufio.NewReader(stream)) }()
		if write(nil) == nil {
			_ = s(ctx, write)
		}
	}
	p.SetStreamHandler(p.protocol("coordinate"), coordinate)
	p.SetStreamHandler(p.protocol("coordinate-pieces"), coordinate)
}

// Sessions are ways to coordinate badly, by name.
var Sessions = map[string]Session{
	// One lease, and then orders without any.
	"empty-orders": func(ctx context.Context, write func(map[int]any) error) error {
		if err := write(map[int]any{2: []any{run(0, 1)}}); err != nil {
			return err
		}
		return every(ctx, 2*time.Second, func() error { return write(nil) })
	},
	// A size that is none of the blob's.
	"huge-size": func(ctx context.Context, write func(map[int]any) error) error {
		return every(ctx, 2*time.Second, func() error { return write(map[int]any{1: int64(huge)}) })
	},
	// Leases without end.
	"huge-leases": func(ctx context.Context, write func(map[int]any) error) error {
		runs := make([]any, listLimit)
		for i := range runs {
			runs[i] = run(i, 1<<31)
		}
		return every(ctx, 10*time.Millisecond, func() error { return write(map[int]any{1: int64(huge), 2: runs}) })
	},
	// As many orders that say nothing as the participant reads.
	"flood": func(ctx context.Context, write func(map[int]any) error) error {
		return endlessly(ctx, func(int) error { return write(nil) })
	},
	// The same, each with another size.
	"size-flood": func(ctx context.Context, write func(map[int]any) error) error {
		return endlessly(ctx, func(i int) error { return write(map[int]any{1: int64(i)}) })
	},
	// The same, each with a chunk of a peer that is not there.
	"chunk-flood": func(ctx context.Context, write func(map[int]any) error) error {
		nobody := make([]byte, 38)
		return endlessly(ctx, func(i int) error {
			binary.BigEndian.PutUint32(nobody[2:], uint32(i))
			claim := map[int]any{1: 0, 2: make([]byte, 32), 3: 0, 4: make([]byte, 64)}
			return write(map[int]any{3: [][]byte{nobody}, 4: []any{map[int]any{1: claim, 2: 0, 4: true}}})
		})
	},
	// One lease, and then word without end that another reads.
	"promises": func(ctx context.Context, write func(map[int]any) error) error {
		if err := write(map[int]any{2: []any{run(0, 1)}}); err != nil {
			return err
		}
		return every(ctx, time.Second, func() error { return write(map[int]any{6: true}) })
	},
	"silent": func(ctx context.Context, _ func(map[int]any) error) error {
		<-ctx.Done()
		return ctx.Err()
	},
}

// endlessly writes for as long as the participant reads.
func endlessly(ctx context.Context, write func(i int) error) (err error) {
	for i := 1; err == nil && ctx.Err() == nil; i++ {
		err = write(i)
	}
	return err
}

func every(ctx context.Context, d time.Duration, do func() error) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		if err := do(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run attacks by name: an Attack, or a Session, a Holding, or both with a plus between, for as long as ctx lasts.
func (p *Peer) Run(ctx context.Context, name string, victim peer.AddrInfo) error {
	if attack, ok := Attacks[name]; ok {
		return attack(ctx, p, victim)
	}
	for part := range strings.SplitSeq(name, "+") {
		session, coordinates := Sessions[part]
		holding, holds := Holdings[part]
		switch {
		case coordinates:
			p.Coordinate(ctx, session)
		case holds:
			p.Hold(ctx, holding)
		default:
			return fmt.Errorf("unknown attack %q", part)
		}
	}
	// What it answers in is what the victim asks in.
	if _, err := p.spoken(ctx, victim); err != nil {
		return err
	}
	<-ctx.Done()
	if errors.Is(ctx.Err(), context.Canceled) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	return ctx.Err()
}
