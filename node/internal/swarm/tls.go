package swarm

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// batchSize is how many bytes of records are handed to the kernel at one time: those of the largest frame that yamux
// writes, with what TLS adds.
const batchSize = 66 << 10

// batchedTLS is libp2p's TLS, but that all records of one Write go to the kernel together. crypto/tls makes a system
// call for each record of at most 16 KiB, and the network handles each by itself; for frames of 64 KiB that is a third
// of what the transport costs (BenchmarkFrames).
type batchedTLS struct {
	id protocol.ID
	// control sets how the connection below treats a link that is full.
	control func(net.Conn)
	anew    func() (*libp2ptls.Transport, error)

	mu   sync.Mutex
	last *libp2ptls.Transport
	at   time.Time // when that was made, by the clock of then
}

func newTLS(control func(net.Conn)) tlsMaker {
	return func(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (*batchedTLS, error) {
		anew := func() (*libp2ptls.Transport, error) { return libp2ptls.New(id, key, muxers) }
		first, err := anew()
		return &batchedTLS{id: id, control: control, anew: anew, last: first, at: time.Now().Round(0)}, err
	}
}

// ID implements sec.SecureTransport.
func (t *batchedTLS) ID() protocol.ID { return t.id }

// transport is libp2p's. Its certificate holds from an hour before it was made. Where the clock has been set back since
// then, as after a machine was started, another is made: peers would not take the first before its time.
func (t *batchedTLS) transport() *libp2ptls.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now().Round(0); now.Before(t.at) {
		if anew, err := t.anew(); err == nil { // else the next connection tries it again
			t.last, t.at = anew, now
		}
	}
	return t.last
}

// tlsMaker is what libp2p makes its security transport by.
type tlsMaker = func(protocol.ID, crypto.PrivKey, []upgrader.StreamMuxer) (*batchedTLS, error)

// SecureInbound implements sec.SecureTransport.
func (t *batchedTLS) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	t.control(insecure)
	out := &batch{Conn: insecure}
	c, err := t.transport().SecureInbound(ctx, out, p)
	return batched(c, out, err)
}

// SecureOutbound implements sec.SecureTransport.
func (t *batchedTLS) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	t.control(insecure)
	out := &batch{Conn: insecure}
	c, err := t.transport().SecureOutbound(ctx, out, p)
	return batched(c, out, err)
}

func batched(c sec.SecureConn, out *batch, err error) (sec.SecureConn, error) {
	if err != nil {
		return nil, err
	}
	return &batchedConn{SecureConn: c, out: out}, nil
}

type batchedConn struct {
	sec.SecureConn
	out *batch

	mu sync.Mutex // one Write at a time
}

func (c *batchedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.begin()
	n, err := c.SecureConn.Write(p)
	if lost := c.out.end(); err == nil && lost != nil {
		return 0, lost
	}
	return n, err
}

// batch is the connection below TLS. Between begin and end it gathers what is written. TLS writes in the order in which
// it numbers its records, and what it writes of its own accord in between, such as an alert, is gathered too.
type batch struct {
	net.Conn

	mu  sync.Mutex
	out *bufio.Writer // nil: nothing is gathered
	err error         // for good: what was gathered is lost, and with it the order of records
}

var batches = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, batchSize) }}

func (b *batch) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out = batches.Get().(*bufio.Writer)
	b.out.Reset(b.Conn)
}

// end writes what was gathered.
func (b *batch) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = cmp.Or(b.err, b.out.Flush())
	b.out.Reset(nil)
	batches.Put(b.out)
	b.out = nil
	return b.err
}

func (b *batch) Write(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return 0, b.err
	case b.out == nil:
		return b.Conn.Write(p)
	}
	n, b.err = b.out.Write(p)
	return n, b.err
}
