package bitswapnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	libp2p "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Service is the name by which libp2p's resource manager counts the streams that peers open for Bitswap, and the memory
// of the messages that are being read from them.
const Service = "shoal.bitswap"

// Guard bounds what one peer may cost.
type Guard interface {
	// Charge waits until p may cost as much more, in microseconds of work. It fails where p asks for too much, and when
	// ctx ends.
	Charge(ctx context.Context, p peer.ID, work int) error
	// Blame is told of a peer that broke a rule.
	Blame(p peer.ID, rule string, err error)
}

// The rules that a peer may break.
const (
	RuleStreams   = "streams"    // it opens too many
	RuleMemory    = "memory"     // its unfinished messages hold too much
	RuleStalled   = "stalled"    // it stops in the middle of a message
	RuleMalformed = "malformed"  // it sends what is no message
	RuleWork      = "work"       // it asks for too much
	RuleWrong     = "wrong-data" // it answers with other bytes than those that were asked for
)

const (
	// headSize is how much of a message is read before memory is taken for all of it, if that is not its eighth part.
	headSize = 64 << 10
	// frameTimeout is what a piece of a message may take. A sender gives up before.
	frameTimeout = 3 * pieceTimeout
	// streamIdle is how long a stream may be open between two messages.
	streamIdle = 5 * time.Minute
)

var errMemory = errors.New("too many bytes of unfinished messages")

// frames reads the messages of a stream. A length alone costs nothing: memory is taken as the bytes come, and reserved
// with the resource manager before that.
type frames struct {
	stream libp2p.Stream
	proven int // bytes of the longest message that came whole
}

// next is the next message, which is valid until release is called.
func (f *frames) next() (frame []byte, release func(), err error) {
	_ = f.stream.SetReadDeadline(time.Now().Add(streamIdle))
	length, err := binary.ReadUvarint(byteReader{f.stream})
	if err != nil {
		return nil, nil, err
	}
	if length > libp2p.MessageSizeMax {
		return nil, nil, fmt.Errorf("%w: a message of %d bytes, of which %d are allowed", errMalformed, length,
			libp2p.MessageSizeMax)
	}
	n := int(length)
	head := min(n, max(f.proven, headSize, n/8))
	buf, err := f.take(head)
	if err != nil {
		return nil, nil, err
	}
	if err := f.fill(buf); err != nil {
		f.give(buf)
		return nil, nil, err
	}
	if head < n {
		whole, err := f.take(n)
		if err != nil {
			f.give(buf)
			return nil, nil, err
		}
		copy(whole, buf)
		f.give(buf)
		buf = whole
		if err := f.fill(buf[head:]); err != nil {
			f.give(buf)
			return nil, nil, err
		}
	}
	f.proven = max(f.proven, n)
	return buf, func() { f.give(buf) }, nil
}

func (f *frames) take(n int) ([]byte, error) {
	if err := f.stream.Scope().ReserveMemory(n, libp2p.ReservationPriorityAlways); err != nil {
		return nil, fmt.Errorf("%w: %w", errMemory, err)
	}
	return pool.Get(n), nil
}

func (f *frames) give(buf []byte) {
	f.stream.Scope().ReleaseMemory(len(buf))
	pool.Put(buf)
}

// fill reads as many bytes as buf has, as long as they keep coming.
func (f *frames) fill(buf []byte) error {
	for len(buf) > 0 {
		_ = f.stream.SetReadDeadline(time.Now().Add(frameTimeout))
		n := min(len(buf), piece)
		if _, err := io.ReadFull(f.stream, buf[:n]); err != nil {
			if timedOut(err) {
				return fmt.Errorf("%w: %d bytes of a message are missing", errStalled, len(buf))
			}
			return err
		}
		buf = buf[n:]
	}
	return nil
}

var (
	errStalled   = errors.New("no bytes came")
	errMalformed = errors.New("malformed Bitswap message")
)

// ruleOf is the rule that a peer broke whose stream ended with err, "" where none.
func ruleOf(err error) string {
	switch {
	case errors.Is(err, errMemory):
		return RuleMemory
	case errors.Is(err, errStalled):
		return RuleStalled
	case errors.Is(err, errMalformed):
		return RuleMalformed
	}
	return ""
}

type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r.Reader, b[:])
	return b[0], err
}
