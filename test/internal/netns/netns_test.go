package netns

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTrafficCountsPayloadAsTheHostSeesIt(t *testing.T) {
	t.Parallel()
	traffic, err := parseTraffic([]byte(`[
		{"ifname":"h0","stats64":{"rx":{"bytes":10660,"packets":10},"tx":{"bytes":1132,"packets":2}}},
		{"ifname":"h1","stats64":{"rx":{"bytes":42,"packets":1},"tx":{"bytes":0,"packets":0}}},
		{"ifname":"up-zonea","stats64":{"rx":{"bytes":566,"packets":1},"tx":{"bytes":166,"packets":1}}},
		{"ifname":"down-zonea","stats64":{"rx":{"bytes":166,"packets":1},"tx":{"bytes":566,"packets":1}}}]`))
	require.NoError(t, err)
	require.Equal(t, map[string]Traffic{
		"h0":    {Sent: 10000, Received: 1000},
		"h1":    {}, // an ARP packet is shorter than the headers it lacks
		"zonea": {Sent: 100, Received: 500},
	}, traffic)
	require.Equal(t, Traffic{Sent: 9000, Received: 900}, traffic["h0"].Sub(Traffic{Sent: 1000, Received: 100}))
}

func TestTrafficRefusesWhatIsNoCounters(t *testing.T) {
	t.Parallel()
	_, err := parseTraffic([]byte("Device does not exist"))
	require.Error(t, err)
}

func TestOnlyNamespacesOfABenchmarkAreLeftovers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"sb-17-h0": 17, "sb-17": 0, "sb-x-h0": 0, "kt-17-h0": 0, "sb--1-net": 0} {
		pid, ok := runOf(name)
		require.Equal(t, want != 0, ok, name)
		if ok {
			require.Equal(t, want, pid, name)
		}
	}
}
