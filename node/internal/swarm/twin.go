package swarm

import (
	"context"
	"crypto/rand"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// lookForTwinEvery is how often a node asks whether another process uses its identity, and askedForTwin of how many
	// peers. The first look is sooner, so that who has just copied a disk hears of it while he is there.
	lookForTwinFirst, lookForTwinEvery = 15 * time.Second, time.Minute
	askedForTwin                       = 4
	// twinWithin is how old a sign of life of another process may be.
	twinWithin = 3 * lookForTwinEvery
	// maxLives bounds of how many peers signs of life are kept.
	maxLives = 4096
)

// life is a sign of life of one process, signed with the key of its node. A node that starts anew is another process,
// but never at the same time.
type life struct {
	Process   []byte `cbor:"1,keyasint,omitempty"` // chosen at random when it starts
	At        int64  `cbor:"2,keyasint,omitempty"` // Unix seconds
	Signature []byte `cbor:"3,keyasint,omitempty"`
	// From is where the peer that passes it on has it from.
	From string `cbor:"4,keyasint,omitempty"`
}

func (l life) bytes() []byte {
	return strconv.AppendInt(append([]byte("shoal process\x00"), l.Process...), l.At, 10)
}

// processSize is the length of life.Process.
const processSize = 16

// twins finds out whether two processes have one identity, as after a disk was copied with the store on it. Each node
// shows a sign of its life to a few peers, the same for all processes with its identity, which show it that of another.
// Whoever lies about it would need the node's key.
type twins struct {
	swarm   *Swarm
	process []byte
	seen    *lru.Cache[peer.ID, []life] // of each peer the last of two processes, the newest last

	mu      sync.Mutex
	started time.Time
	first   life      // the first sign of what may be a twin
	until   time.Time // when the newest sign of a twin is too old
}

func newTwins(s *Swarm) *twins {
	t := &twins{
		swarm: s, process: make([]byte, processSize), started: time.Now(), seen: lru.New[peer.ID, []life](maxLives),
	}
	_, _ = rand.Read(t.process) // never fails, says crypto/rand
	answerFrom(s, "process", t.answer)
	return t
}

// answer takes in a peer's sign of life, and answers with that of another process with its identity; an empty one where
// none is known.
func (t *twins) answer(conn network.Conn, l life) life {
	if len(l.Process) != processSize || len(l.Signature) > 128 {
		return life{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l.From = conn.RemoteMultiaddr().String()
	known, _ := t.seen.Get(conn.RemotePeer())
	others := slices.DeleteFunc(slices.Clone(known), func(k life) bool { return slices.Equal(k.Process, l.Process) })
	if len(others) > 0 {
		others = others[len(others)-1:]
	}
	t.seen.Add(conn.RemotePeer(), append(others, l))
	if len(others) == 0 {
		return life{}
	}
	return others[0]
}

// run looks for a twin until ctx ends.
func (t *twins) run(ctx context.Context) {
	for wait := lookForTwinFirst; content.Sleep(ctx, wait); wait = lookForTwinEvery {
		t.look(ctx)
	}
}

// look shows this process to the peers that every process with its identity asks.
func (t *twins) look(ctx context.Context) {
	s := t.swarm
	own := life{Process: t.process, At: time.Now().Unix()}
	var err error
	if own.Signature, err = s.opts.Identity.Sign(own.bytes()); err != nil {
		s.log.Warn("sign of life not signed", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askedForTwin*s.opts.slack(queryTimeout))
	defer cancel()
	for _, p := range s.nearest(ctx, Plan{Digest: digest.FromString("process " + s.ID().String())}, askedForTwin+1) {
		if p != s.ID() {
			t.ask(ctx, p, own)
		}
	}
}

func (t *twins) ask(ctx context.Context, p peer.ID, own life) {
	ctx, cancel := context.WithTimeout(ctx, t.swarm.opts.slack(queryTimeout))
	defer cancel()
	var l life
	if t.swarm.query(ctx, p, "process", own, maxShort, &l) == nil {
		t.take(l)
	}
}

// take looks at what a peer passes on as a sign of another process with this node's identity.
func (t *twins) take(l life) {
	s, at := t.swarm, time.Unix(l.At, 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(l.Process) != processSize || slices.Equal(l.Process, t.process) ||
		time.Since(at) >= min(time.Since(t.started), twinWithin) || time.Until(at) > twinWithin {
		return // none, or of before this process started
	}
	if ok, err := s.opts.Identity.GetPublic().Verify(l.bytes(), l.Signature); err != nil || !ok {
		return
	}
	// The process before this one may have had a clock that was ahead, but it says nothing any more.
	if !slices.Equal(l.Process, t.first.Process) {
		t.first = l
	}
	if l.At == t.first.At {
		return
	}
	if !time.Now().Before(t.until) {
		s.log.Warn("another agent uses the identity of this node, as after a copy of its disk; others send to one "+
			"what they mean for the other. Stop one of the two, remove identity.key from its store.path, and "+
			"start it again", "peer", s.ID(), "other", l.From)
	}
	if until := time.Now().Add(twinWithin - time.Since(at)); until.After(t.until) {
		t.until = until
	}
}

// there reports whether another process uses this node's identity.
func (t *twins) there() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.until)
}
