package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

const (
	// behindFirewall tells a test that it runs in a network of its own.
	behindFirewall = "SHOAL_CLIENTS_BEHIND_FIREWALL"
	// lostRegistry is an address (RFC 5737) to which the firewall drops every packet.
	lostRegistry = "198.51.100.1:5000"
	// siteNodes is how many nodes pull at once.
	siteNodes = 4
)

// The site of an administrator whose mirror alone has the images: the registry that they name is behind a firewall that
// drops packets. The nodes' agents read the mirror's name in hosts.toml, or know nothing of it, or are not there.
func TestAirGapped_TheSitesMirrorSendsOneCopy(t *testing.T) { //nolint:paralleltest // it counts what the mirror sends
	program(t, "shoal-node")
	needsRoot(t)
	if os.Getenv(behindFirewall) == "" {
		out, err := run(t.Context(), []string{behindFirewall + "=1"}, "unshare", "--net", os.Args[0],
			"-test.run=^"+t.Name()+"$", "-test.v")
		t.Log(out)
		require.NoError(t, err)
		require.NotContains(t, out, "--- SKIP")
		return
	}
	raiseFirewall(t)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "agents\tpull\tslowest\trequests at the mirror\tcopies\tpackets dropped")
	for _, s := range []struct {
		agents string
		// agent and reads tell whether there is an agent, and whether it reads hosts.toml.
		agent, reads bool
	}{
		{"none", false, false},
		{"that do not read hosts.toml", true, false},
		{"that read hosts.toml", true, true},
	} {
		t.Run("agents: "+s.agents, func(t *testing.T) {
			mirror := startRegistry(t, lostRegistry, nil)
			nodes := siteOf(t, mirror, s.agent, s.reads)
			for _, name := range []string{"first", "second"} {
				p := pullTogether(t, nodes, mirror)
				_, _ = fmt.Fprintf(w, "%s\t%s\t%.1f s\t%d\t%.2f\t%d\n", s.agents, name, p.slowest.Seconds(), p.requests,
					p.copies, p.dropped)
				if s.reads {
					require.LessOrEqual(t, p.copies, 1.05)
					require.Zero(t, p.dropped, "the registry behind the firewall was asked, and the mirror has all")
				}
				if name == "second" {
					require.Less(t, p.slowest, 5*time.Second, "an attempt to connect was waited for again")
				}
			}
		})
	}
	require.NoError(t, w.Flush())
	t.Logf("%d nodes with containerd %s pull an image that only the site's mirror has, all at once:\n%s", siteNodes,
		newest(t).version, table.String())
}

// raiseFirewall makes the network of this process one in which packets to lostRegistry are lost.
func raiseFirewall(t *testing.T) {
	t.Helper()
	host, _, _ := strings.Cut(lostRegistry, ":")
	for _, command := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "route", "add", host, "dev", "lo"},
		{"nft", "add table inet firewall; add counter inet firewall dropped; " +
			"add chain inet firewall out { type filter hook output priority 0; }; " +
			"add rule inet firewall out ip daddr " + host + " counter name dropped drop"},
	} {
		_, err := run(t.Context(), nil, command[0], command[1:]...)
		require.NoError(t, err)
	}
}

// dropped is how many packets the firewall has dropped.
func dropped(t *testing.T) int {
	t.Helper()
	out, err := run(t.Context(), nil, "nft", "list", "counter", "inet", "firewall", "dropped")
	require.NoError(t, err)
	packets := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	require.Len(t, packets, 2, out)
	n, err := strconv.Atoi(packets[1])
	require.NoError(t, err)
	return n
}

// siteOf starts the nodes of a site whose mirror stands in the _default of their containerd.
func siteOf(t *testing.T, mirror *registry, agent, reads bool) []*mirrorNode {
	t.Helper()
	nodes := make([]*mirrorNode, siteNodes)
	options := make([]agentOptions, siteNodes)
	for i := range nodes {
		nodes[i] = newMirrorNode(t, newest(t), configuration{configPath: new(oneDirectory), files: map[string]string{
			"containerd/certs.d/_default/hosts.toml": fmt.Sprintf(
				"[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror.url),
		}})
		if reads {
			options[i].mirror = map[string]any{"runtime": "containerd", "root": nodes[i].dir,
				"stateDir": filepath.Join(nodes[i].dir, "shoal")}
		}
		nodes[i].start(t)
	}
	if !agent {
		return nodes
	}
	for i, a := range startAgentsWith(t, options...) {
		_, err := nodes[i].mirror(t, "install", "--endpoint=http://"+a.front)
		require.NoError(t, err)
		_, err = nodes[i].mirror(t, "status", "--endpoint=http://"+a.front)
		require.NoError(t, err)
	}
	return nodes
}

// pulledTogether is what a pull of one image by all nodes took.
type pulledTogether struct {
	slowest  time.Duration
	requests int64
	copies   float64
	dropped  int
}

func pullTogether(t *testing.T, nodes []*mirrorNode, mirror *registry) (p pulledTogether) {
	t.Helper()
	img := mirror.push(t, unique())
	sent, asked, lost := mirror.sent.Load(), mirror.asked.Load(), dropped(t)
	var pulls errgroup.Group
	start := time.Now()
	for _, n := range nodes {
		pulls.Go(func() error { return n.pull(t, img.reference()) })
	}
	require.NoError(t, pulls.Wait())
	return pulledTogether{time.Since(start), mirror.asked.Load() - asked,
		float64(mirror.sent.Load()-sent) / float64(img.size), dropped(t) - lost}
}

// newest is the newest containerd that is here.
func newest(t *testing.T) daemon {
	t.Helper()
	all := daemons(t)
	return all[len(all)-1]
}
