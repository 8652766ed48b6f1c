package swarm

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

const (
	// errandHomes is how many peers are tried as the home of a question before a node asks without one.
	errandHomes = 2
	// errandPatience bounds each word of a node that asks.
	errandPatience = 1500 * time.Millisecond
	// errandBeat is how often who is waited for says that it is still about it, and errandSilence for how long it may
	// say nothing. An upstream may take long: the others wait up to errandEnd for one who says so. One of the release
	// before says nothing, and has errandLease to ask. An upstream may also be out of reach of that one node, or that
	// node may lie, so after errandNext one of those who wait asks as well: clients give up after 10 s. Every
	// errandTurn from then on one more does: no sooner, for each is one more who reads from a slow upstream.
	errandBeat    = time.Second
	errandNext    = 4 * time.Second
	errandTurn    = 12 * time.Second
	errandSilence = 12 * time.Second
	errandLease   = 20 * time.Second
	errandEnd     = time.Minute
	// errandsAtOnce is how many errands this node runs away from home at one time, fewer than a peer takes. What is
	// beyond is asked without a home.
	errandsAtOnce = 96
	// beatWork is what a word of one who still asks costs, in microseconds.
	beatWork = 20
)

// Errands has one node ask for all what all want to know of an upstream. The home of a question is the live peer
// nearest to its key by the DHT's metric. It gives the answer to who comes later, has one node at a time ask, and has
// the others wait for it. It asks nothing itself, so whoever asks does so in the name of its own caller.
//
// A home that does not answer, and an errand that fails, leave each node to ask by itself.
type Errands struct {
	swarm *Swarm
	known knows
	told  func(key string, value []byte, age time.Duration)

	beat, second, turn, silence time.Duration
	abroad                      *semaphore.Weighted // errands away from home

	mu      sync.Mutex
	running map[string]*errand    // those that this node is the home of
	silent  map[peer.ID]time.Time // homes that did not answer, and when
}

// errand is a question that one node is asking now, or several.
type errand struct {
	done   chan struct{}
	askers int
	others bool      // there has been more than one
	since  time.Time // when the last of them began
	value  []byte
	ok     bool
}

// knows gives what this node knows under a key.
type knows = func(key string) (value []byte, age time.Duration, ok bool)

// NewErrands returns the swarm's errands. known gives what this node can tell who goes on one, and told has it know
// what another has found out. remembers gives what it has found out itself, for Recall of others.
func NewErrands(s *Swarm, known, remembers knows, told func(key string, value []byte, age time.Duration)) *Errands {
	e := &Errands{
		swarm: s, known: known, told: told, beat: errandBeat, second: s.opts.slack(errandNext),
		turn: s.opts.slack(errandTurn), silence: s.opts.slack(errandSilence),
		abroad: semaphore.NewWeighted(errandsAtOnce), running: map[string]*errand{}, silent: map[peer.ID]time.Time{},
	}
	s.host.SetStreamHandler(s.protocol("errand"), e.serve)
	answer(s, "remember", func(q rememberQuery) errandAnswer {
		value, age, ok := remembers(q.Key)
		if !ok {
			return errandAnswer{}
		}
		return errandAnswer{State: errandKnown, Value: value, Age: age.Milliseconds()}
	})
	return e
}

// Recall hands to take what connected peers remember, one value of each, one after the other. It takes at most about a
// second.
func (e *Errands) Recall(ctx context.Context, key string, take func(value []byte, age time.Duration)) {
	askPeersFor(ctx, e.swarm, "remember", rememberQuery{Key: key}, maxFrame, func(a errandAnswer) bool {
		if a.State == errandKnown {
			take(a.Value, a.age())
		}
		return false // another may know a newer one
	})
}

// Sign signs a statement in this node's name; see Swarm.Sign.
func (e *Errands) Sign(statement []byte) (by, signature []byte, err error) {
	return e.swarm.Sign(statement)
}

// Signed reports whether a node that is admitted has signed a statement.
func (e *Errands) Signed(by, statement, signature []byte) bool {
	return e.swarm.Signed(by, statement, signature)
}

// Do gives the value of key that a node has and that is at most maxAge old, or else what ask gives, here or on another
// node. It fails only with ask's error, or when ctx ends.
func (e *Errands) Do(
	ctx context.Context, key string, maxAge time.Duration, ask func(context.Context) ([]byte, error),
) (value []byte, age time.Duration, err error) {
	for _, p := range e.homes(ctx, key) {
		var done bool
		if p == e.swarm.host.ID() {
			value, age, done, err = e.atHome(ctx, key, maxAge, ask)
		} else {
			value, age, done, err = e.away(ctx, p, key, maxAge, ask)
		}
		if done || err != nil {
			return value, age, err
		}
	}
	value, err = ask(ctx)
	return value, 0, err
}

// homes are the peers to try as the home of a key, which may be this node, the best first.
func (e *Errands) homes(ctx context.Context, key string) []peer.ID {
	peers := e.swarm.nearest(ctx, Plan{Digest: digest.FromString("errand " + key)}, askedAtOnce)
	return first(errandHomes, slices.DeleteFunc(peers, func(p peer.ID) bool {
		if p == e.swarm.host.ID() {
			return false
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if time.Since(e.silent[p]) < shunned {
			return true
		}
		return !e.serves(p)
	}))
}

func first[T any](n int, list []T) []T { return list[:min(n, len(list))] }

// atHome runs an errand whose home is this node. done is false where ask is to be called without a home.
func (e *Errands) atHome(
	ctx context.Context, key string, maxAge time.Duration, ask func(context.Context) ([]byte, error),
) (value []byte, age time.Duration, done bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, e.swarm.opts.slack(errandEnd))
	defer cancel()
	value, age, finish := e.enter(waiting, key, maxAge, nil)
	switch {
	case value != nil:
		return value, age, true, nil
	case finish == nil:
		return nil, 0, false, ctx.Err()
	}
	value, err = ask(ctx)
	finish(value, err == nil)
	return value, 0, true, err
}

// enter gives the value of a key at its home; or, where nobody is asking or those who are take long, a function that
// must be called with what was found out; or neither, where those who were asking have failed or ctx has ended. wait is
// called every errandBeat while another's answer is waited for, and before.
func (e *Errands) enter(ctx context.Context, key string, maxAge time.Duration,
	wait func()) (value []byte, age time.Duration, finish func([]byte, bool)) {
	if value, age, ok := e.known(key); ok && age <= maxAge {
		return value, age, nil
	}
	e.mu.Lock()
	r := e.running[key]
	if r == nil {
		r = &errand{done: make(chan struct{})}
		e.running[key] = r
	}
	e.mu.Unlock()
	finish = func(value []byte, ok bool) { e.finish(key, r, value, ok) }
	if e.takeTurn(key, r) {
		return nil, 0, finish
	}
	if wait == nil {
		wait = func() {}
	}
	wait()
	beat := time.NewTicker(e.beat)
	defer beat.Stop()
	for {
		select {
		case <-r.done:
			if r.ok {
				return r.value, 0, nil
			}
			return nil, 0, nil
		case <-beat.C:
			if e.takeTurn(key, r) {
				return nil, 0, finish
			}
			wait()
		case <-ctx.Done():
			return nil, 0, nil
		}
	}
}

// takeTurn reports whether it is the caller's turn to ask, and counts it as one who does then.
func (e *Errands) takeTurn(key string, r *errand) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[key] != r { // it is over
		return false
	}
	wait := e.second
	if r.others {
		wait = e.turn
	}
	if r.askers > 0 && time.Since(r.since) < wait {
		return false
	}
	r.others = r.others || r.askers > 0
	r.askers++
	r.since = time.Now()
	return true
}

// finish ends an errand with the first value that was found out, or when the last who asked has failed.
func (e *Errands) finish(key string, r *errand, value []byte, ok bool) {
	ok = ok && len(value) <= maxFrame/2
	if ok {
		e.told(key, value, 0)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r.askers--
	if e.running[key] != r || !ok && r.askers > 0 {
		return
	}
	r.value, r.ok = value, ok
	delete(e.running, key)
	close(r.done)
}

// away runs an errand whose home is p. done is false where p was of no use.
func (e *Errands) away(
	ctx context.Context, p peer.ID, key string, maxAge time.Duration, ask func(context.Context) ([]byte, error),
) (value []byte, age time.Duration, done bool, err error) {
	if !e.abroad.TryAcquire(1) {
		return nil, 0, false, nil
	}
	defer e.abroad.Release(1)
	patience := e.swarm.opts.JoinTimeout / 2 // a home is waited for like a coordinator
	opening, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stream, err := e.swarm.host.NewStream(opening, p, e.swarm.protocol("errand"))
	if err != nil {
		e.failed(ctx, p, err)
		return nil, 0, false, ctx.Err()
	}
	defer func() { _ = stream.Reset() }()
	_ = stream.SetWriteDeadline(time.Now().Add(patience))
	in := newInbound(stream)
	var a errandAnswer
	if err = writeQuestion(stream, errandQuery{Key: key, MaxAge: maxAge.Milliseconds(), Beats: true}); err == nil {
		a, err = e.word(ctx, in, patience)
	}
	if err != nil {
		e.failed(ctx, p, err)
		return nil, 0, false, ctx.Err()
	}
	for end := time.Now().Add(e.swarm.opts.slack(errandEnd)); a.State == errandWaiting; {
		if a, err = e.word(ctx, in, min(e.silence, time.Until(end))); err != nil { // it lives, and will be asked again
			return nil, 0, false, ctx.Err()
		}
	}
	switch a.State {
	case errandKnown:
		return a.Value, a.age(), true, nil
	case errandAsk:
	default:
		return nil, 0, false, ctx.Err()
	}
	beating := make(chan struct{})
	beaten := make(chan struct{})
	e.swarm.wg.Go(func() {
		defer close(beaten)
		if a.Beats {
			e.sayAsking(stream, beating)
		}
	})
	value, err = ask(ctx)
	close(beating)
	<-beaten
	_ = stream.SetDeadline(time.Now().Add(e.swarm.opts.slack(errandPatience)))
	if writeFrame(stream, errandResult{OK: err == nil, Value: value}) == nil {
		_ = stream.CloseWrite()
		_, _ = in.in.ReadByte() // until it has been taken in: a reset would overtake it
	}
	return value, 0, true, err
}

// word waits for what a home says next.
func (e *Errands) word(ctx context.Context, in *inbound, silence time.Duration) (a errandAnswer, err error) {
	err = in.read(&a, maxFrame, silence)
	e.swarm.guard.answered(in, err)
	if err == nil { // who says without end that another asks would keep this node busy
		err = e.swarm.guard.Charge(ctx, in.stream.Conn().RemotePeer(), beatWork+in.work())
	}
	return a, err
}

// sayAsking tells the home that this node is still asking, until it has asked.
func (e *Errands) sayAsking(stream network.Stream, asked <-chan struct{}) {
	beat := time.NewTicker(e.beat)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
			_ = stream.SetWriteDeadline(time.Now().Add(e.swarm.opts.slack(errandPatience)))
			if writeFrame(stream, errandResult{Asking: true}) != nil {
				return
			}
		case <-asked:
			return
		}
	}
}

func (e *Errands) failed(ctx context.Context, p peer.ID, err error) {
	if ctx.Err() != nil {
		return
	}
	e.swarm.log.Debug("home of a question did not answer", "peer", p, "error", err)
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.silent, func(_ peer.ID, at time.Time) bool { return time.Since(at) > shunned })
	e.silent[p] = time.Now()
}

// serve is the home's side.
func (e *Errands) serve(stream network.Stream) {
	guard, p := e.swarm.guard, stream.Conn().RemotePeer()
	if !guard.admit(stream, serviceErrand) {
		return
	}
	defer func() { _ = stream.Close() }()
	in := newInbound(stream)
	var q errandQuery
	err := in.read(&q, maxShort, e.swarm.opts.slack(queryTimeout))
	if err == nil {
		err = guard.Charge(e.swarm.ctx, p, queryWork)
	}
	if err == nil {
		err = e.answer(in, p, q)
	}
	if err != nil {
		guard.breach(p, err)
		_ = stream.Reset()
	}
}

// answer gives p the value of the key that it asks for, or has it ask and takes in what it finds out.
func (e *Errands) answer(in *inbound, p peer.ID, q errandQuery) error {
	most := errandSilence // of one that takes a second word for the last
	if q.Beats {
		most = errandEnd
	}
	ctx, cancel := context.WithTimeout(e.swarm.ctx, e.swarm.opts.slack(most))
	defer cancel()
	say := func(a errandAnswer) error {
		_ = in.stream.SetWriteDeadline(time.Now().Add(e.swarm.opts.slack(queryTimeout)))
		return writeFrame(in.stream, a)
	}
	told := false
	value, age, finish := e.enter(ctx, q.Key, time.Duration(q.MaxAge)*time.Millisecond, func() {
		if told && !q.Beats {
			return
		}
		told = true
		if say(errandAnswer{State: errandWaiting}) != nil {
			cancel() // nobody waits any more
		}
	})
	switch {
	case value != nil:
		return say(errandAnswer{State: errandKnown, Value: value, Age: age.Milliseconds()})
	case finish == nil:
		return say(errandAnswer{State: errandAlone})
	}
	var r errandResult
	defer func() { finish(r.Value, r.OK) }()
	if err := say(errandAnswer{State: errandAsk, Beats: true}); err != nil {
		return err
	}
	var err error
	r, err = e.result(in, p, q.Beats)
	return err
}

// result is what p has found out, for which it is waited as long as it says that it asks.
func (e *Errands) result(in *inbound, p peer.ID, beats bool) (errandResult, error) {
	silence := e.swarm.opts.slack(errandLease)
	if beats {
		silence = e.silence
	}
	for end := time.Now().Add(e.swarm.opts.slack(errandEnd)); ; {
		var r errandResult
		if err := in.read(&r, maxFrame, min(silence, time.Until(end))); err != nil {
			return errandResult{}, err
		}
		if !r.Asking {
			return r, nil
		}
		if err := e.swarm.guard.Charge(e.swarm.ctx, p, beatWork+in.work()); err != nil {
			return errandResult{}, err
		}
	}
}

func (a errandAnswer) age() time.Duration { return max(0, time.Duration(a.Age)*time.Millisecond) }

// Peers is how many connected peers have said that they take errands.
func (e *Errands) Peers() (n int) {
	for _, p := range e.swarm.host.Network().Peers() {
		if _, errands := e.speaks(p); errands {
			n++
		}
	}
	return n
}

// serves reports whether p takes errands, as one does that serves the same kind of upstream. One that has not said what
// it speaks is asked: on a busy node that may never come, and nobody asks for it again.
func (e *Errands) serves(p peer.ID) bool {
	said, errands := e.speaks(p)
	return !said || errands
}

// speaks reports whether p has said what it speaks, and whether errands are among that.
func (e *Errands) speaks(p peer.ID) (said, errands bool) {
	all, err := e.swarm.host.Peerstore().GetProtocols(p)
	return err != nil || len(all) > 0, slices.Contains(all, e.swarm.protocol("errand"))
}
