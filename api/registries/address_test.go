package registries

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRefused_AreTheAddressesOfTheNodeItselfAndOfNobody(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.1": true, "::1": true, "::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true,
		"169.254.169.254": true, "fe80::1": true, "fe80::1%eth0": true, "::ffff:169.254.169.254": true,
		"64:ff9b::a9fe:a9fe": true,
		"0.0.0.0":            true, "0.1.2.3": true, "::": true, "::ffff:0.0.0.0": true,
		"224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"fd00:ec2::254": true, "100.100.100.200": true, "168.63.129.16": true, "fec0::1": true,

		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "fd12::1": false, "100.64.0.1": false,
		"192.0.2.1": false, "2001:db8::1": false, "::ffff:10.0.0.1": false, "64:ff9b::808:808": false,
	} {
		require.Equal(t, want, refused(netip.MustParseAddr(address)) != "", address)
	}
}

// Anyone may have files asked for at the hosts of URLs, so those must not lead into the network around.
func TestDialer_OutwardLeadsIntoNoPrivateNetwork(t *testing.T) {
	t.Parallel()
	d := &Dialer{Outward: true}
	d.Name(&url.URL{Scheme: "https", Host: "files.example"})
	for address, want := range map[string]bool{
		"10.0.0.1": true, "172.16.0.1": true, "192.168.1.1": true, "fd12::1": true, "100.64.0.1": true,
		"::ffff:10.0.0.1": true, "64:ff9b::a00:1": true, "127.0.0.1": true, "169.254.169.254": true,
		"192.0.2.1": false, "2001:db8::1": false,
	} {
		at := &url.URL{Scheme: "http", Host: net.JoinHostPort(address, "80")}
		require.Equal(t, want, d.CheckURL(at) != nil, "as the URL says: %s", address)
		err := d.check("files.example:80", netip.MustParseAddr(address))
		require.Equal(t, want, err != nil, "as dialled: %s", address)
	}
	require.NoError(t, d.CheckURL(&url.URL{Scheme: "https", Host: "files.example"}))
	plain := &Dialer{}
	require.NoError(t, plain.check("registry:443", netip.MustParseAddr("10.0.0.1")), "registries may be there")
}

// names is a DNS server that answers questions for IPv4 addresses, each with the next address. The last answers all
// that follow.
func names(t *testing.T, addresses ...string) *net.Resolver {
	t.Helper()
	server, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buf := make([]byte, 512)
		for asked := 0; ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12 // of the question: header, name, type and class (RFC 1035, section 4.1)
			for buf[end] != 0 {
				end += 1 + int(buf[end])
			}
			end += 5
			kind := binary.BigEndian.Uint16(buf[end-4:])
			answer := append([]byte{}, buf[:min(end, n)]...)
			copy(answer[2:12], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
			if kind == 1 {
				answer[7] = 1
				ip := netip.MustParseAddr(addresses[min(asked, len(addresses)-1)]).As4()
				asked++
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				answer = append(answer, ip[:]...)
			}
			_, _ = server.WriteTo(answer, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

func TestAddresses_AreCheckedOfTheConnectionNotOfTheNameBefore(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "0.0.0.0:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	var accepted atomic.Int32
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			_ = conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	d := &Dialer{Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
	d.Resolver = names(t, "127.0.0.2", "127.0.0.1", "169.254.169.254")
	conn, err := d.DialContext(t.Context(), "tcp", "rebinding.test.:"+port)
	require.NoError(t, err, "where the name leads first is allowed")
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return accepted.Load() == 1 }, time.Minute, time.Millisecond)
	for range 2 {
		_, err = d.DialContext(t.Context(), "tcp", "rebinding.test.:"+port)
		require.ErrorIs(t, err, ErrAddress, "the same name leads elsewhere")
	}
	require.EqualValues(t, 1, accepted.Load())
}
