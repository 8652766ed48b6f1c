package fetch

import (
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// firstDoubt is for how long a peer's word on a registry's content is not taken after it was wrong for the first
	// time. It doubles with each further time that is remembered, up to longestDoubt. So whoever lies whenever it is
	// believed does so at most 17 times a day.
	firstDoubt, longestDoubt, remembered = 5 * time.Second, 6 * time.Hour, 24 * time.Hour
	// misledFor is for how long a node that a registry gave wrong bytes reads nothing from it for others, unless that
	// gives it a right blob sooner, and for how long a blob whose chunks were wrong is read through no window.
	misledFor = 10 * time.Minute
	// A peer that was wrong oftenWrong times within soon, each time about what was begun after the time before, is
	// banned where nobody else was wrong about the registry.
	oftenWrong, soon = 3, 10 * time.Minute
	// maxDoubts bounds of how many pairs of registry and peer it is known, maxCharges of how many blobs, and
	// maxSuspects how many claims are kept of all of these.
	maxDoubts, maxCharges, maxSuspects = 4096, 256, 1 << 16
)

// doubts are what this node knows of who was wrong about a registry's content.
//
// A peer that claims a wrong chunk may lie, or the registry may have given it other bytes than this node. Nothing that
// the peer can say tells one from the other. So a doubt is of both together: for a while this node does not take the
// peer's word on what comes from that registry, and takes it on all else as before. So a registry with two faces keeps
// nodes apart for its own content, and for no other.
//
// An honest node finds out that it was misled: what it has read by itself does not match. Then it reads nothing from
// that registry for others until the registry gives it a right blob. So a peer that is wrong again and again, while
// nobody else is, does not care about the truth.
//
// Where the registry gave this node wrong bytes of the same blob there is no doubt of others: it may mislead everyone,
// and to part those whom it misled would cost a copy for each.
//
// Where others are wrong about the registry too there is no ban, however often they are. Whoever can have a pod of his
// choice run can make a registry that misleads many nodes, and must not be able to part them. So peers that lie
// together cost what their doubts let through.
type doubts struct {
	self peer.ID
	mu   sync.Mutex
	of   *lru.Cache[pair, doubt]
	// passed are blobs of which windows gave wrong bytes. Who was wrong is found out as the whole is read again.
	passed *lru.Cache[digest.Digest, *charge]
}

type pair struct {
	registry string
	peer     peer.ID
}

type doubt struct {
	until time.Time
	times []time.Time // when it was wrong
}

func newDoubts(self peer.ID) *doubts {
	return &doubts{
		self: self, of: lru.New[pair, doubt](maxDoubts), passed: lru.New[digest.Digest, *charge](maxCharges),
	}
}

// wrong notes who was wrong about a blob of a registry that was begun at a time, this node itself among them if the
// registry misled it too. It returns whom to ban.
func (d *doubts) wrong(now, begun time.Time, registry string, peers []peer.ID) (ban []peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range peers {
		k := pair{registry, p}
		v, _ := d.of.Get(k)
		for len(v.times) > 0 && now.Sub(v.times[0]) > remembered {
			v.times = v.times[1:]
		}
		if n := len(v.times); n > 0 && !begun.After(v.times[n-1]) {
			continue // of several blobs that came at one time each is wrong
		}
		v.times = append(v.times, now)
		if p != d.self {
			v.until = now.Add(min(firstDoubt<<min(len(v.times)-1, 16), longestDoubt))
		}
		d.of.Add(k, v)
	}
	for _, p := range peers {
		v, _ := d.of.Peek(pair{registry, p})
		n := len(v.times)
		if p != d.self && n >= oftenWrong && now.Sub(v.times[n-oftenWrong]) <= soon && d.only(now, registry, p) {
			ban = append(ban, p)
		}
	}
	return ban
}

// only reports whether nobody but p was wrong about a registry of late.
func (d *doubts) only(now time.Time, registry string, p peer.ID) bool {
	for _, k := range d.of.Keys() {
		if k.registry != registry || k.peer == p {
			continue
		}
		v, _ := d.of.Peek(k)
		if n := len(v.times); n > 0 && now.Sub(v.times[n-1]) <= soon {
			return false
		}
	}
	return true
}

// doubted reports whether a peer's word on what a registry has is not taken.
func (d *doubts) doubted(now time.Time, registry string, p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.of.Peek(pair{registry, p})
	return ok && now.Before(v.until)
}

// misled notes that a registry gave this node a wrong blob, all of which the node had read itself.
func (d *doubts) misled(now time.Time, registry string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, _ := d.of.Get(pair{registry, d.self})
	v.times, v.until = []time.Time{now}, now.Add(misledFor)
	d.of.Add(pair{registry, d.self}, v)
}

// right notes that a registry gave this node a right blob, all of which the node had read itself.
func (d *doubts) right(now time.Time, registry string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, ok := d.of.Peek(pair{registry, d.self}); ok && now.Before(v.until) {
		v.until = now
		d.of.Add(pair{registry, d.self}, v)
	}
}

// wary reports whether this node is to read nothing from a registry for others.
func (d *doubts) wary(now time.Time, registry string) bool { return d.doubted(now, registry, d.self) }

// passedWrong notes that windows gave wrong bytes of a blob.
func (d *doubts) passedWrong(c charge) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passed.Add(c.digest, &c)
	kept := 0
	for _, c := range slices.Backward(d.passed.Values()) { // the newest first
		if kept+len(c.suspects) > maxSuspects {
			c.suspects = nil
		}
		kept += len(c.suspects)
	}
}

// passes reports whether windows gave wrong bytes of a blob of late, and whether it is still to be found out who was
// wrong.
func (d *doubts) passes(now time.Time, of digest.Digest) (wrong, open bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.passed.Peek(of)
	return ok && now.Sub(c.at) < misledFor, ok && len(c.suspects) > 0
}

// grain is how finely a blob that passed wrong was cut.
func (d *doubts) grain(of digest.Digest) content.Grain {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, ok := d.passed.Peek(of); ok {
		return c.grain
	}
	return content.Leaves
}

// take is what is charged of a blob that passed wrong, once.
func (d *doubts) take(of digest.Digest) (c charge) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := d.passed.Peek(of); ok {
		c, known.suspects = *known, nil
	}
	return c
}
