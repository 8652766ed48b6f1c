package bitswapnet

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	libp2p "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// idleTimeout is how long a stream is kept open for the next message. What a peer's end reserves for it grows with
	// use.
	idleTimeout = 5 * time.Second
	// maxIdle is how many streams to one peer are kept open.
	maxIdle = 4
)

// streams keeps those on which no message is under way. A new stream can take 256 KiB before its first round trip, so
// that a block on a stream of its own waits for the other side several times; one that was used before takes a block at
// once.
type streams struct {
	host host.Host

	mu   sync.Mutex
	idle idleStreams
}

// idleStreams are those to each peer, the one that was used the longest time ago first.
type idleStreams map[peer.ID][]*idleStream

type idleStream struct {
	libp2p.Stream
	close *time.Timer
}

// take returns a stream to p on which nobody else writes. used tells that it had a message before: it may be dead.
func (s *streams) take(ctx context.Context, p peer.ID) (stream libp2p.Stream, used bool, err error) {
	s.mu.Lock()
	for list := s.idle[p]; len(list) > 0; list = s.idle[p] {
		oldest := list[0] // by turns: the other side decodes each stream's messages one after another
		s.idle.remove(p, oldest)
		if oldest.close.Stop() && !oldest.Conn().IsClosed() {
			s.mu.Unlock()
			return oldest.Stream, true, nil
		}
	}
	s.mu.Unlock()
	stream, err = s.open(ctx, p)
	return stream, false, err
}

func (s *streams) open(ctx context.Context, p peer.ID) (libp2p.Stream, error) {
	return s.host.NewStream(ctx, p, protocols...)
}

// put keeps a stream for the next message.
func (s *streams) put(p peer.ID, stream libp2p.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle[p]) >= maxIdle {
		closeStream(stream)
		return
	}
	i := &idleStream{Stream: stream}
	i.close = time.AfterFunc(idleTimeout, func() {
		s.mu.Lock()
		s.idle.remove(p, i)
		s.mu.Unlock()
		closeStream(stream)
	})
	s.idle[p] = append(s.idle[p], i)
}

func (s *streams) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.idle {
		for _, i := range list {
			if i.close.Stop() {
				closeStream(i.Stream)
			}
		}
	}
	clear(s.idle)
}

// remove takes i out of the list of p.
func (all idleStreams) remove(p peer.ID, i *idleStream) {
	list := slices.DeleteFunc(all[p], func(other *idleStream) bool { return other == i })
	if len(list) == 0 {
		delete(all, p)
	} else {
		all[p] = list
	}
}
