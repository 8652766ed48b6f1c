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

// What a taken-over node does.
const (
	Mallory Kind = "mallory" // a peer of the swarm that breaks every rule
	Liar    Kind = "liar"    // a peer that keeps to the rules, and whose every answer is a lie
)

// Revoke has the registry refuse who could read the round's image before: everyone without credentials where it was
// public, and those with the credentials that were good where it was not.
const Revoke Kind = "revoke"

// Kinds are all ways.
func Kinds() []Kind {
	return []Kind{
		Kill, Freeze, Restart, Rolling, Unplug, Partition, Deaf, Loss, Slow, Full, ReadOnly, Rot,
		Down, Dead, Flap, Reset, Drip, Throttle, Errors, WrongData, WrongSize, NoRange, Encoded, Redirect, OddRange,
		Mallory, Stutter, Late, Liar, Revoke,
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
	// Rate is of the registry's link in Mbit/s, so that what dies in the round dies in the middle. 0: as fast as it is.
	Rate int
	// Thieves is from when on callers without credentials ask for the round's image.
	Thieves time.Duration
}

// Image is made anew for each round, so its first pulls are cold.
type Image struct {
	// Seed makes the bytes of the layers.
	Seed uint64
	// Private has the registry ask for credentials, Bearer for a token that it gives out for them.
	Private, Bearer bool
	// Asked has the agents ask the registry each time who may read it.
	Asked bool
	// Layers are sizes in bytes.
	Layers []int64
	// Coordinator is the node that is to coordinate the largest layer; -1: whichever it falls to.
	Coordinator int
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

// Deaths is how many agents lose what they have under way, each of which may cost what it was reading once more. Deaf
// is how many do not hear the others for a while: each is a swarm of its own, which may read all once more.
func (r Round) Deaths() (n, deaf int) {
	for _, f := range r.Faults {
		switch f.Kind {
		case Kill, Freeze, Restart, Rolling, Unplug, Stutter:
			n += len(f.Nodes)
		case Deaf:
			deaf += len(f.Nodes)
		}
	}
	return n, deaf
}

// RevocationJudged reports whether nothing in the round excuses an agent that lets somebody on whom the registry
// refuses: throttling is no outage.
func (r Round) RevocationJudged() bool {
	for _, f := range r.Faults {
		if f.Kind != Revoke && f.Kind != Throttle {
			return false
		}
	}
	return true
}

// CopiesBounded reports whether all that goes wrong in the round leaves a burst at one copy and what deaths cost. The
// registry's own faults take copies, a partition makes two swarms, a full disk keeps nothing, and damage is read again.
func (r Round) CopiesBounded() bool {
	for _, f := range r.Faults {
		switch f.Kind {
		case Kill, Freeze, Restart, Rolling, Unplug, Stutter, Deaf:
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
	switch {
	case len(s.Only) > 0:
		round.Faults = makeFaults(r, s)
	case number%6 == 1:
		makeDeaths(r, s, &round)
	case number%12 == 3:
		makeRevocation(r, &round)
	case number%12 == 9:
		makeLies(r, s, &round)
	default:
		round.Faults = makeFaults(r, s)
	}
	round.Image.Asked = round.Thieves > 0 ||
		slices.ContainsFunc(round.Faults, func(f Fault) bool { return f.Kind == Revoke })
	return round
}

// middle is for how long a burst lasts at least in a round of deaths, and deathsRate how many Mbit/s the registry's
// link then has.
const (
	middle     = 3 * time.Second
	deathsRate = 32
)

// makeDeaths has nothing happen in a round but that agents die while a burst is under way, among them who coordinates
// it. Such a round comes often, since what a death costs is bounded.
func makeDeaths(r *rand.Rand, s Settings, round *Round) {
	round.Rate = deathsRate
	free := r.Perm(s.Nodes)[:max(1, s.Nodes-1)] // one is left alone
	round.Image.Coordinator = free[0]
	round.Image.Layers = []int64{deathsRate<<20/8*int64(middle/time.Second) + r.Int64N(1<<20)}
	began := Span
	for i := range round.Pulls {
		if p := &round.Pulls[i]; p.Back == 0 {
			p.At /= 4 // where few pull, none might be under way at the deaths
			began = min(began, p.At)
		}
	}
	kinds := []Kind{Kill, Kill, Freeze, Restart, Unplug, Stutter}
	for _, node := range first(1+r.IntN(2), free) {
		f := Fault{Kind: kinds[r.IntN(len(kinds))], Nodes: []int{node}, Seed: r.Uint64()}
		f.At = min(began+middle/10+time.Duration(r.Int64N(int64(middle*6/10))), Span*3/4)
		f.For = Span/16 + time.Duration(r.Int64N(int64(Span-f.At-Span/16)))
		round.Faults = append(round.Faults, f)
	}
	slices.SortStableFunc(round.Faults, func(a, b Fault) int { return int(a.At - b.At) })
}

func first[T any](n int, list []T) []T { return list[:min(n, len(list))] }

// makeRevocation has those who could read an image be refused from the middle of the round on, often by a registry that
// throttles as well.
func makeRevocation(r *rand.Rand, round *Round) {
	f := Fault{Kind: Revoke, At: Span/4 + time.Duration(r.Int64N(int64(Span/4))), Seed: r.Uint64()}
	f.For = Span - f.At
	round.Faults = []Fault{f}
	if r.IntN(2) == 0 {
		round.Faults = append(round.Faults, Fault{Kind: Throttle, At: f.At + f.For/4, For: f.For / 2})
	}
}

// makeLies has a peer lie while the registry is away. Nobody without credentials has asked for the private image
// before, and one node has not pulled it: whether that may be read there is what the liar says, and nobody else.
func makeLies(r *rand.Rand, s Settings, round *Round) {
	// Who asks for a token has been refused first, so that there are nodes which know better than the liar.
	round.Image.Private, round.Image.Bearer = true, true
	without := r.IntN(s.Nodes)
	for i, p := range round.Pulls {
		if p.Node == without && p.Back == 0 {
			round.Pulls[i].Back = 1
		}
	}
	down := Fault{Kind: Down, At: Span/2 + time.Duration(r.Int64N(int64(Span/8)))}
	down.For = Span - down.At
	round.Faults = []Fault{{Kind: Liar, For: Span, Seed: r.Uint64()}, down}
	round.Thieves = down.At + Span/16
}

func makeImage(r *rand.Rand) Image {
	image := Image{Seed: r.Uint64(), Private: r.IntN(3) == 0, Bearer: r.IntN(2) == 0, Coordinator: -1}
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
	registry := false
	var once []Kind // of which there is one at a time
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
		case f.Kind == Mallory, f.Kind == Liar, f.Kind == Revoke:
			if slices.Contains(once, f.Kind) {
				continue
			}
			once, want = append(once, f.Kind), 0
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
