package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/config"
)

func TestLook_SaysWhatIsMissingAndHowItIsUsed(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"where":             "where: IMAGE|DIGEST is missing, as in\n  shoal-node where",
		"where a b":         "where takes IMAGE|DIGEST alone, and was given a b",
		"where sha256:cut":  `"sha256:cut" is no whole digest; shoal-node ls lists whole ones`,
		"why nginx@sha256:": `"nginx@sha256:" is no whole digest`,
		"why a b":           "why takes [IMAGE] alone, and was given a b",
		"ls nginx":          "ls takes no arguments, and was given nginx; where IMAGE says what of an image is here",
		"version x":         "version takes no arguments, and was given x",
		"get":               "get: DIGEST is missing, as in\n  shoal-node get",
		"get a b":           "get takes DIGEST alone, and was given a b; -o FILE names the file to write",
		"get nginx -o -":    "shoal-node where docker.io/library/nginx:latest prints it",
		"get a -o /none/b":  "there is no folder /none",
		"add":               "add: FILE is missing, as in",
		"status -o xml":     `--output "xml": want json or yaml`,
		"help nothing":      `unknown command "nothing" for "shoal-node"`,
		"status --admin :1": "no agent answers at http://:1",
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(args))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), want, args)
	}
}

func TestWhy_NamesWhatItDoesNotRemember(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "[]")
	}))
	defer server.Close()
	for args, want := range map[string]string{
		"why": "this agent remembers no pull in the last two hours. Either it was longer ago, or the runtime did not ask " +
			"the agent: see shoal-node mirror status. why knows images alone",
		"why openai-community/gpt2": "this agent remembers no pull of docker.io/openai-community/gpt2:latest in the last " +
			"two hours. Either it was longer ago, or the runtime did not ask the agent: see shoal-node mirror status, or " +
			"the name is misspelt. why knows images alone, not what came through the hub front",
	} {
		cmd := command()
		cmd.SetArgs(append(strings.Fields(args), "--admin", server.URL))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), want, args)
	}
}

func TestLook_AFrozenAgentIsCalledFrozen(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	defer server.Close()
	_, err := ask[view.Node](t.Context(), &view.Client{HTTP: &http.Client{Timeout: 50 * time.Millisecond},
		Base: server.URL}, view.NodePath, nil)
	require.ErrorContains(t, err, "gives no answer within 20s: it may be frozen, so start it anew")
}

func TestStatus_SaysWhyTheMirrorIsNotKnown(t *testing.T) {
	t.Parallel()
	for want, m := range map[string]machine{
		"Mirror:  not known yet: nothing is installed so far": {
			Node: view.Node{MirrorUnknown: true, MirrorAwaited: true}},
		"Mirror:  not known (mirror.stateDir is not set)": {Node: view.Node{MirrorUnknown: true}},
		"Mirror:  the runtime asks this agent":            {},
	} {
		var out strings.Builder
		require.NoError(t, view.Output("").Print(&out, m, m.write))
		require.Contains(t, out.String(), want)
	}
}

// help is what a command says of itself.
func help(t *testing.T, args ...string) string {
	t.Helper()
	cmd, out := command(), new(strings.Builder)
	cmd.SetOut(out)
	cmd.SetArgs(append(args, "--help"))
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	return out.String()
}

func TestHelp_OfTheMirrorOffersNoFlagThatItRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"mirror"}, {"mirror", "install"}, {"mirror", "status"}, {"mirror", "guard"}} {
		require.NotRegexp(t, "--config[ =]", help(t, args...))
	}
	require.Regexp(t, "--config ", help(t))
	for _, args := range []string{"mirror status --config /etc/shoal/node.yaml", "--config /x mirror status"} {
		cmd := command()
		cmd.SetArgs(strings.Fields(args))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "mirror: --config is for the agent: give --endpoint")
	}
}

func TestHelp_ShowsTheFlagsOfTheConfigurationThatACommandUses(t *testing.T) {
	t.Parallel()
	flag := regexp.MustCompile(`--[a-z-]+`)
	for command, want := range map[string][]string{
		"status": {"--admin", "--config", "--help", "--output"},
		"ls":     {"--admin", "--config", "--help", "--output"},
		"where":  {"--admin", "--config", "--help", "--output"},
		"why":    {"--admin", "--config", "--help", "--output"},
		"get":    {"--config", "--help", "--output", "--store-path"},
		"add":    {"--config", "--digest", "--help", "--size", "--store-path"},
	} {
		_, flags, _ := strings.Cut(help(t, command), "\nFlags:\n")
		shown := flag.FindAllString(flags, -1)
		slices.Sort(shown)
		require.Equal(t, want, slices.Compact(shown), command)
	}
	require.Contains(t, help(t, "id"), "--swarm-zone")
	cmd := command()
	cmd.SetArgs([]string{"status", "--admin-listen", "127.0.0.1:1"})
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "no agent answers at http://127.0.0.1:1",
		"a flag that is not shown works")
}

func TestHelp_EndsWithTheKeysThatHaveNoFlag(t *testing.T) {
	t.Parallel()
	require.True(t, strings.HasSuffix(help(t), config.WithoutFlag), "%s", help(t))
	require.NotContains(t, help(t, "mirror"), config.WithoutFlag)
	for _, key := range []string{"upstreams", "policy.rules", "SHOAL_UPSTREAMS", "SHOAL_POLICY_RULES"} {
		require.Contains(t, config.WithoutFlag, key)
	}
}
