package swarm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var errLost = errors.New("lost")

// countedConn counts writes, and fails them from some moment on.
type countedConn struct {
	net.Conn
	writes atomic.Int32
	broken atomic.Bool
}

// SyscallConn implements syscall.Conn.
func (c *countedConn) SyscallConn() (syscall.RawConn, error) {
	return c.Conn.(syscall.Conn).SyscallConn()
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	if c.broken.Load() {
		return 0, errLost
	}
	return c.Conn.Write(p)
}

// newEnd is what one end of a connection is secured by.
func newEnd(t testing.TB, control func(net.Conn)) *batchedTLS {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	end, err := newTLS(control)(libp2ptls.ID, key, nil)
	require.NoError(t, err)
	return end
}

// A machine often learns the time when its agent runs already, and nobody takes a certificate before its time.
func TestTLS_WhoBeganByAClockThatWasAheadIsLetInOnceItIsSetBack(t *testing.T) {
	t.Parallel()
	one, other := newEnd(t, func(net.Conn) {}), newEnd(t, func(net.Conn) {})
	synctest.Test(t, func(t *testing.T) { // many years before
		near, far := net.Pipe()
		defer func() { _, _ = near.Close(), far.Close() }()
		accepted := make(chan error, 1)
		go func() {
			_, err := other.SecureInbound(t.Context(), far, "")
			accepted <- err
		}()
		_, err := one.SecureOutbound(t.Context(), near, "")
		require.NoError(t, err)
		require.NoError(t, <-accepted)
	})
}

// secured is both ends of a connection, and what is below the first.
func secured(t testing.TB) (sec.SecureConn, sec.SecureConn, *countedConn) {
	t.Helper()
	end := func() *batchedTLS {
		return newEnd(t, func(c net.Conn) { _ = setCongestion(c, []string{"reno"}) })
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	accepted := make(chan sec.SecureConn, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			close(accepted)
			return
		}
		c, err := end().SecureInbound(t.Context(), raw, "")
		if err != nil {
			close(accepted)
			return
		}
		accepted <- c
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	below := &countedConn{Conn: raw}
	a, err := end().SecureOutbound(t.Context(), below, peer.ID(""))
	require.NoError(t, err)
	b, ok := <-accepted
	require.True(t, ok)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b, below
}

func TestRecordsOfOneWriteAreSentTogether(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ size, most int }{
		"a message":         {100, 1},
		"a record":          {16 << 10, 1},
		"a frame of yamux":  {64<<10 + 12, 1},
		"more than is held": {1 << 20, 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, below := secured(t)
			data := make([]byte, c.size)
			_, err := rand.Read(data)
			require.NoError(t, err)
			before := below.writes.Load()
			got := make(chan []byte, 1)
			go func() {
				all := make([]byte, c.size)
				_, _ = io.ReadFull(b, all)
				got <- all
			}()
			n, err := a.Write(data)
			require.NoError(t, err)
			require.Equal(t, c.size, n)
			require.True(t, bytes.Equal(data, <-got))
			require.LessOrEqual(t, int(below.writes.Load()-before), c.most)
		})
	}
}

func TestAfterALostBatchNothingIsWritten(t *testing.T) {
	t.Parallel()
	a, _, below := secured(t)
	below.broken.Store(true)
	n, err := a.Write(make([]byte, 48<<10))
	require.ErrorIs(t, err, errLost)
	require.Zero(t, n)
	below.broken.Store(false)
	before := below.writes.Load()
	_, err = a.Write([]byte("after a gap"))
	require.ErrorIs(t, err, errLost)
	require.Equal(t, before, below.writes.Load())
}

// BenchmarkFrames sends frames as yamux does over loopback, and reports the processor time of both ends.
func BenchmarkFrames(b *testing.B) {
	frame := make([]byte, 64<<10+12)
	for _, name := range []string{"each record by itself", "records of a frame together"} {
		b.Run(name, func(b *testing.B) {
			from, to, _ := secured(b)
			if name == "each record by itself" {
				from = from.(*batchedConn).SecureConn
			}
			go func() { _, _ = io.Copy(io.Discard, to) }()
			b.SetBytes(int64(len(frame)))
			before := processorTime(b)
			for b.Loop() {
				if _, err := from.Write(frame); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((processorTime(b)-before).Seconds()*(1<<30)/float64(b.N*len(frame)), "cpu-s/GiB")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
