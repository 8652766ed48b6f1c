// Package plan says what happens in a run before it begins: which images are pulled where and when, and what goes wrong
// in the meantime. It is pure: equal settings make equal plans, and a round is the same however many come before it. So
// a seed brings back what was seen, as far as clocks and the kernel allow.
package plan

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a way in which something fails.
type Kind string

// What happens to agents.
const (
	Kill    Kind = "kill"    // kill -9; it is started again when the fault ends
	Freeze  Kind = "freeze"  // SIGSTOP until the fault ends: to the agent its clocks jump forward
	Restart Kind = "restart" // SIGTERM, and started again at once
	Rolling Kind = "rolling" // Restart of one node after the other
	Stutter Kind = "stutter" // stopped for most of the time, as on an overloaded machine: all it says is late
)

// What happens to the network.
const (
	Unplug    Kind = "unplug"    // a node's link is down
	Partition Kind = "partition" // two groups of agents do not hear each other; both reach the registry
	Deaf      Kind = "deaf"      // a node does not hear the others, who hear it
	Loss      Kind = "loss"      // packets that arrive at a node are lost
	Slow      Kind = "slow"      // a node's link is slow
)

// What happens to disks.
const (
	Full Kind = "full" // something else fills a node's disk
	// a node's file system fails, and is mounted and the agent started again when the fault ends
	ReadOnly Kind = "readonly"
	Rot      Kind = "rot" // a byte of a committed blob changes
)

// What happens to the registry; see registry.Mode.
const (
	Down      Kind = "down"     // connections are refused
	Dead      Kind = "dead"     // connections are accepted, and nothing is ever answered
	Flap      Kind = "flap"     // every other second it is down
	Reset     Kind = "reset"    // one answer of three breaks off with a TCP reset
	Drip      Kind = "drip"     // bodies come slowly
	Throttle  Kind = "throttle" // half of the requests are answered with 429
	Errors    Kind = "errors"   // half of the requests are answered with 500, an HTML page and a length of its own
	WrongData Kind = "wrong"    // bodies have the right length and wrong bytes
	WrongSize Kind = "size"     // bodies are shorter or longer than the blob, and end cleanly
	NoRange   Kind = "norange"  // Range is answered with 200 and the whole
	Encoded   Kind = "encoded"  // bodies have a Content-Encoding that nobody asked for
	Redirect  Kind = "redirect" // blobs are redirected to an address that is not to be asked
	OddRange  Kind = "oddrange" // Content-Range says something else than was asked for
	Late      Kind = "late"     // every answer begins late
)

// Mallory is a peer of the swarm that breaks every rule.
const Mallory Kind = "mallory"

// Kinds are all ways.
func Kinds() []Kind {
	return []Kind{
		Kill, Freeze, Restart, Rolling, Unplug, Partition, Deaf, Loss, Slow, Full, ReadOnly, Rot,
		Down, Dead, Flap, Reset, Drip, Throttle, Errors, WrongData, WrongSize, NoRange, Encoded, Redirect, OddRange,
		Mallory, Stutter, Late,
	}
}

// OfRegistry reports whether a way to fail is the registry's.
func (k Kind) OfRegistry() bool {
	return slices.Contains([]Kind{
		Down, Dead, Flap, Reset, Drip, Throttle, Errors, WrongData, WrongSize, NoRange, Encoded, Redirect, OddRange,
		Late,
	}, k)
}

// Settings are what a plan is made of.
type Settings struct {
	Seed uint64
	// Nodes is how many agents there are, Pulls how many clients pull in a round at least.
	Nodes, Pulls int
	// Faults is how many things go wrong in a round at most; 0 stands for 3.
	Faults int
	// Only, where not empty, are the ways to fail.
	Only []Kind
}

// Span is how long faults of a round may last, from its beginning on.
const Span = 4 * time.Second

// Round is a burst of pulls, and what goes wrong meanwhile.
type Round struct {
	Number int
	Image  Image
	Pulls  []Pull
	Faults []Fault
}

// Image is made anew for each round, so its first pulls are cold.
type Image struct {
	// Seed makes the bytes of the layers.
	Seed uint64
	// Private has the registry ask for credentials.
	Private bool
	// Layers are sizes in bytes.
	Layers []int64
}

// Size is that of all layers.
func (m Image) Size() (total int64) {
	for _, size := range m.Layers {
		total += size
	}
	return total
}

// Pull is a client's.
type Pull struct {
	At   time.Duration
	Node int
	// Back is 0 for the image of this round, and n for that of n rounds before.
	Back int
}

// Fault is one thing that goes wrong.
type Fault struct {
	Kind Kind
	At   time.Duration
	// For is how long it lasts.
	For time.Duration
	// Nodes are those that it happens to, in order; none for faults of the registry.
	Nodes []int
	// Amount is thousandths of packets for Loss, and Mbit/s for Slow.
	Amount int
	// Seed chooses which byte rots.
	Seed uint64
}

func (f Fault) String() string {
	s := fmt.Sprintf("%s at %.1fs for %.1fs", f.Kind, f.At.Seconds(), f.For.Seconds())
	if len(f.Nodes) > 0 {
		s += fmt.Sprintf(" of %v", f.Nodes)
	}
	if f.Amount > 0 {
		s += fmt.Sprintf(" (%d)", f.Amount)
	}
	return s
}

// Deaths is how many agents lost what they had under way, each of which may cost what it was reading once more.
func (r Round) Deaths() (n int) {
	for _, f := range r.Faults {
		switch f.Kind {
		case Kill, Freeze, Restart, Rolling, Unplug, ReadOnly, Deaf:
			n += len(f.Nodes)
		}
	}
	return n
}

// CopiesBounded reports whether all that goes wrong in the round leaves a burst at one copy and what deaths cost. The
// registry's own faults take copies, a partition makes two swarms, a full disk keeps nothing, and damage is read again.
func (r Round) CopiesBounded() bool {
	for _, f := range r.Faults {
		switch f.Kind {
		case Kill, Freeze, Restart, Rolling:
		default:
			return false
		}
	}
	return true
}

// MakeRound makes the round of the given number. It panics for fewer than two nodes, because then there are no peers.
func MakeRound(s Settings, number int) Round {
	if s.Nodes < 2 {
		panic("a plan needs two nodes")
	}
	var key [32]byte // so a round depends on seed and number alone
	binary.LittleEndian.PutUint64(key[:], s.Seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(number))
	r := rand.New(rand.NewChaCha8(key))
	round := Round{Number: number, Image: makeImage(r)}
	round.Pulls = makePulls(r, s, number)
	round.Faults = makeFaults(r, s)
	return round
}

func makeImage(r *rand.Rand) Image {
	image := Image{Seed: r.Uint64(), Private: r.IntN(3) == 0}
	for range 1 + r.IntN(3) {
		image.Layers = append(image.Layers, 1+r.Int64N(3<<20))
	}
	if r.IntN(4) == 0 {
		image.Layers = append(image.Layers, 4<<20) // whole chunks
	}
	return image
}

// makePulls has every node pull the new image, most of them at once, and some pull what was there before.
func makePulls(r *rand.Rand, s Settings, number int) (pulls []Pull) {
	together := time.Duration(r.Int64N(int64(time.Second)))
	for node := range s.Nodes {
		at := together
		if r.IntN(3) == 0 {
			at = time.Duration(r.Int64N(int64(Span)))
		}
		pulls = append(pulls, Pull{At: at, Node: node})
	}
	for len(pulls) < s.Pulls {
		p := Pull{At: time.Duration(r.Int64N(int64(Span))), Node: r.IntN(s.Nodes)}
		if number > 0 {
			p.Back = r.IntN(min(number, Kept) + 1)
		}
		pulls = append(pulls, p)
	}
	slices.SortStableFunc(pulls, func(a, b Pull) int { return int(a.At - b.At) })
	return pulls
}

// Kept is how many rounds' images, besides the newest, are still pulled.
const Kept = 3

// makeFaults lets a few things go wrong, the registry in one way at a time, and each node in one way at a time: so that
// what the healing of one undoes is not the other. A round of six goes without, as a measure of the others.
func makeFaults(r *rand.Rand, s Settings) (faults []Fault) {
	kinds := s.Only
	if len(kinds) == 0 {
		kinds = Kinds()
	}
	if len(s.Only) == 0 && r.IntN(6) == 0 {
		return nil
	}
	free := r.Perm(s.Nodes)
	free = free[:max(1, s.Nodes-1)] // one is left alone
	registry, mallory := false, false
	for range 1 + r.IntN(cmp.Or(s.Faults, 3)) {
		f := Fault{Kind: kinds[r.IntN(len(kinds))], Seed: r.Uint64()}
		f.At = time.Duration(r.Int64N(int64(Span * 3 / 4)))
		f.For = Span/16 + time.Duration(r.Int64N(int64(Span-f.At-Span/16)))
		want := 1
		switch {
		case f.Kind.OfRegistry():
			if registry {
				continue
			}
			registry, want = true, 0
		case f.Kind == Mallory:
			if mallory {
				continue
			}
			mallory, want = true, 0
		case f.Kind == Rolling, f.Kind == Partition:
			want = max(1, len(free)/2)
		case f.Kind == Loss:
			f.Amount = 10 + r.IntN(90)
		case f.Kind == Slow:
			f.Amount = 2 + r.IntN(20)
		}
		if want > len(free) {
			continue
		}
		if f.Kind == Partition && slices.ContainsFunc(faults, func(o Fault) bool { return o.Kind == Deaf }) ||
			f.Kind == Deaf && slices.ContainsFunc(faults, func(o Fault) bool { return o.Kind == Partition }) {
			continue
		}
		f.Nodes, free = slices.Clone(free[:want]), free[want:]
		slices.Sort(f.Nodes)
		faults = append(faults, f)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return int(a.At - b.At) })
	return faults
}
