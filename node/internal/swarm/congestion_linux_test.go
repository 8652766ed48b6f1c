package swarm

import (
	"net"
	"syscall"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCongestion_TheFirstThatTheKernelAllowsIsUsed(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		names []string
		want  string // "": what it was
		fails bool
	}{
		"nothing is asked for":             {},
		"what every kernel has":            {names: []string{"reno"}, want: "reno"},
		"an unknown one is passed over":    {names: []string{"no-such", "reno"}, want: "reno"},
		"what comes later does not matter": {names: []string{"reno", "no-such"}, want: "reno"},
		"none of them is there":            {names: []string{"no-such"}, fails: true},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			conn := connected(t)
			if c.want == "" {
				c.want = congestionOf(t, conn)
			}
			err := setCongestion(conn, c.names)
			require.Equal(t, c.fails, err != nil, "%v", err)
			require.Equal(t, c.want, congestionOf(t, conn))
		})
	}
}

func TestCongestion_IsSetAtBothEnds(t *testing.T) {
	t.Parallel()
	if congestionOf(t, connected(t)) == "reno" {
		t.Skip("the kernel's own is what would be set")
	}
	_, in, out := secured(t)
	require.Equal(t, "reno", congestionOf(t, in.(*batchedConn).out.Conn))
	require.Equal(t, "reno", congestionOf(t, out))
}

// connected is a connection as libp2p's TCP transport has it.
func connected(t *testing.T) manet.Conn {
	l, err := manet.Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	conn, err := manet.Dial(l.Multiaddr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func congestionOf(t *testing.T, c net.Conn) (name string) {
	raw, err := c.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}))
	require.NoError(t, err)
	return name
}
