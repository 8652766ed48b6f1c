package e2e

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// shoal runs kubectl shoal, reads what it prints as JSON, and returns its exit code.
func (c *cluster) shoal(t *testing.T, into any, args ...string) int {
	t.Helper()
	out, err := run(t.Context(), "", setting(t, "SHOAL_E2E_PLUGIN"), append(args, "-o", "json")...)
	code := 0
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		code, err = ended.ExitCode(), nil
	}
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), into), "kubectl shoal %v printed %s", args, out)
	return code
}

// diagnosis is what check finds.
type diagnosis struct {
	Findings []struct {
		Reason, Node, Message, Mend string
		Grave                       bool
	}
}

// names reports whether there is a finding for a node with one of the reasons.
func (d diagnosis) names(node string, reasons ...string) bool {
	for _, f := range d.Findings {
		if f.Node == node && slices.Contains(reasons, f.Reason) {
			return true
		}
	}
	return false
}

// pluginWorks asks kubectl shoal of the cluster what people ask it, while all is well and while an agent is frozen.
func pluginWorks(t *testing.T, c *cluster) {
	var state struct {
		Agents, Ready, Admitted int
		Sums                    struct{ Saved int64 }
	}
	require.Equal(t, 0, c.shoal(t, &state, "status", "--wait", "--timeout", "2m"))
	require.Equal(t, []int{len(c.nodes), len(c.nodes), len(c.nodes)}, []int{state.Agents, state.Ready, state.Admitted})
	var found diagnosis
	require.Equal(t, 0, c.shoal(t, &found, "check"), "%+v", found)

	img := c.public.push(t, "asked/app", 8, 1)
	var pulled []struct {
		Node, Problem       string
		Bytes, FromUpstream int64
		FromPeers, Took     int64
	}
	require.Equal(t, 0, c.shoal(t, &pulled, "test", "--image", img.ref), "%+v", pulled)
	require.Len(t, pulled, len(c.nodes))
	var upstream int64
	for _, p := range pulled {
		require.Greater(t, p.Bytes, img.own, p.Node)
		upstream += p.FromUpstream
	}
	require.Less(t, float64(upstream), 1.3*float64(pulled[0].Bytes), "bytes from the registry: %+v", pulled)

	var places []struct {
		Node     string
		Complete bool
	}
	require.Equal(t, 0, c.shoal(t, &places, "where", img.ref))
	for _, p := range places {
		require.True(t, p.Complete, "%s holds what was pulled over it", p.Node)
	}
	var pulls []struct {
		Repository string
		Parts      []struct{ Digest string }
	}
	require.Equal(t, 0, c.shoal(t, &pulls, "why", img.ref, "--node", c.nodes[1]))
	require.Len(t, pulls, 1)
	require.Len(t, pulls[0].Parts, 4, "the manifest and three blobs")
	tell(t, "status, check, test, where and why say what they should; check finds a frozen agent:")

	c.signalGuard(t, c.nodes[1], "STOP") // it would end the agent before anybody can look
	defer c.signalGuard(t, c.nodes[1], "CONT")
	c.signalAgent(t, c.nodes[1], "STOP")
	defer c.signalAgent(t, c.nodes[1], "CONT")
	start := time.Now()
	found = diagnosis{}
	require.Equal(t, 1, c.shoal(t, &found, "check", "--agent-timeout", "2s"))
	require.NotEmpty(t, found.Findings)
	require.Equal(t, "AgentSilent", found.Findings[0].Reason)
	require.Equal(t, c.nodes[1], found.Findings[0].Node)
	require.Contains(t, found.Findings[0].Mend, "kubectl delete pod -n "+shoalNamespace)
	tell(t, "  after %s: %s; mend: %s", time.Since(start).Round(100*time.Millisecond), found.Findings[0].Message,
		found.Findings[0].Mend)
}
