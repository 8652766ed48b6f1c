package swarm

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// queryTimeout bounds the asking of peers, and the answering.
	queryTimeout = time.Second
	// queryWork is what an answer costs, in microseconds, and lookWork what it costs to look up one of the contents
	// that it is about.
	queryWork, lookWork = 200, 30
	// questionsAtOnce is how many questions this node asks of a peer at one time, fewer than a peer takes.
	questionsAtOnce = 48
)

// answer has the swarm's protocol name answer each question of a peer by f.
func answer[Question, Answer any](s *Swarm, name string, f func(Question) Answer) {
	answerFrom(s, name, func(_ network.Conn, q Question) Answer { return f(q) })
}

// answerFrom is answer by what is to know who asks.
func answerFrom[Question, Answer any](s *Swarm, name string, f func(network.Conn, Question) Answer) {
	s.host.SetStreamHandler(s.protocol(name), func(stream network.Stream) {
		if !s.guard.admit(stream, serviceQuery) {
			return
		}
		defer func() { _ = stream.Close() }()
		p := stream.Conn().RemotePeer()
		var q Question
		in := newInbound(stream)
		err := in.read(&q, maxShort, s.opts.slack(queryTimeout))
		if err == nil {
			err = s.guard.Charge(s.ctx, p, in.work()+workOf(q))
		}
		if err != nil {
			s.guard.breach(p, err)
			_ = stream.Reset()
			return
		}
		_ = stream.SetWriteDeadline(time.Now().Add(s.opts.slack(queryTimeout)))
		if writeFrame(stream, f(stream.Conn(), q)) != nil {
			_ = stream.Reset()
		}
	})
}

func (q witnessQuery) work() int { return lookWork * len(q.Contents) }

// workOf is what an answer to a question costs, in microseconds.
func workOf(question any) int {
	if q, long := question.(interface{ work() int }); long {
		return queryWork + q.work()
	}
	return queryWork
}

// askPeers puts a question to up to askedAtOnce connected peers at the same time, and hands their answers one by one to
// take, until that returns true, all have answered, or queryTimeout is over.
func askPeers[Answer any](ctx context.Context, s *Swarm, name string, question any, take func(Answer) (enough bool)) {
	askPeersFor(ctx, s, name, question, maxShort, take)
}

// askPeersFor is askPeers for answers of at most so many bytes.
func askPeersFor[Answer any](
	ctx context.Context, s *Swarm, name string, question any, most uint64, take func(Answer) (enough bool),
) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.slack(queryTimeout))
	defer cancel()
	if s.asking.Acquire(ctx, 1) != nil {
		return
	}
	defer s.asking.Release(1)
	var wg sync.WaitGroup
	var mu sync.Mutex
	enough := false
	for i, p := range s.host.Network().Peers() {
		if i == askedAtOnce {
			break
		}
		wg.Go(func() {
			var a Answer
			if s.query(ctx, p, name, question, most, &a) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if !enough && take(a) {
				enough = true
				cancel() // no need to hear the others
			}
		})
	}
	wg.Wait()
}

// query asks a peer one question, of whose answer most is the most bytes. It fails before it asks where the question is
// longer than a peer takes.
func (s *Swarm) query(ctx context.Context, p peer.ID, name string, question any, most uint64, answer any) error {
	stream, err := s.host.NewStream(ctx, p, s.protocol(name))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Reset() }()
	defer context.AfterFunc(ctx, func() { _ = stream.Reset() })() // a stream knows no context
	if err := writeQuestion(stream, question); err != nil {
		return err
	}
	in, wait := newInbound(stream), s.opts.slack(queryTimeout)
	within := wait
	if most <= maxShort { // it comes at one time, as a rule, so one that stops in the middle is noticed before ctx ends
		within /= 2
	}
	err = in.readWithin(answer, most, wait, within)
	s.guard.answered(in, err)
	return err
}
