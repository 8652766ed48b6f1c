package upstream

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRefused_AreTheAddressesOfTheNodeItselfAndOfNobody(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.1": true, "::1": true, "::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true,
		"169.254.169.254": true, "fe80::1": true, "fe80::1%eth0": true, "::ffff:169.254.169.254": true, "64:ff9b::a9fe:a9fe": true,
		"0.0.0.0": true, "0.1.2.3": true, "::": true, "::ffff:0.0.0.0": true,
		"224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"fd00:ec2::254": true, "100.100.100.200": true, "168.63.129.16": true, "fec0::1": true,

		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "fd12::1": false, "100.64.0.1": false,
		"192.0.2.1": false, "2001:db8::1": false, "::ffff:10.0.0.1": false, "64:ff9b::808:808": false,
	} {
		require.Equal(t, want, refused(netip.MustParseAddr(address)) != "", address)
	}
}
