package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestTheConfigurationIsWhatTheChartWrites(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct{ file, problem string }{
		"every key of an upstream":              {"upstreams: [{registry: a.example, endpoints: ['http://10.0.0.1:5000'], insecureSkipVerify: true}]", ""},
		"nothing":                               {"upstreams: []", ""},
		"the own pin":                           {"ownPin: {artifacts: [{image: a.example/node:1}], replicas: All, nodeSelector: {matchLabels: {Zone: A}}}", ""},
		"addresses that are asked all the same": {"allowAddresses: [127.0.0.0/8, '::1/128']", ""},
		"addresses that are none":               {"allowAddresses: [localhost]", "localhost"},
		"a key that is no pin's":                {"ownPin: {artefacts: []}", "artefacts"},
		"a key that is no upstream's":           {"upstreams: [{registry: a.example, endpoint: 'http://10.0.0.1'}]", "endpoint"},
		"a key that is none":                    {"upstream: []", "upstream"},
		"an endpoint that is none": {"upstreams: [{registry: a.example, endpoints: [a.example]}]",
			"want http(s)://"},
		"a file that is missing": {"upstreams: [{registry: a.example, caFile: /nonexistent}]", "caFile: stat"},
		"no YAML":                {"{", "config"},
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(path, []byte(tc.file), 0o600))
		_, _, err := readFile(path, slog.New(slog.DiscardHandler))
		if tc.problem == "" {
			require.NoError(t, err, what)
			continue
		}
		require.ErrorContains(t, err, tc.problem, what)
		require.ErrorContains(t, err, "--config", what)
	}
	_, _, err := readFile("", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
}

func TestMetrics_TellWhichOperatorRuns(t *testing.T) {
	t.Parallel()
	require.NoError(t, testutil.CollectAndCompare(buildInfo(), strings.NewReader(
		"# HELP shoal_operator_build_info 1, with the version of the operator and of Go that built it.\n"+
			"# TYPE shoal_operator_build_info gauge\n"+
			`shoal_operator_build_info{goversion="`+runtime.Version()+`",version="dev"} 1`+"\n")))
}

func TestPullSecrets(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct {
		mode       string
		namespaces []string
		in, out    string // a namespace where they are allowed, and one where they are not
		problem    string
	}{
		"allowed everywhere":                 {mode: "All", in: "a"},
		"allowed nowhere":                    {mode: "Off", out: "a"},
		"allowed in some namespaces":         {mode: "Namespaces", namespaces: []string{"a"}, in: "a", out: "b"},
		"namespaces that are not named":      {mode: "Namespaces", problem: "--pull-secret-namespaces"},
		"namespaces that would do nothing":   {mode: "All", namespaces: []string{"a"}, problem: "only with"},
		"a word that is none of those known": {mode: "None", problem: "want All, Off or Namespaces"},
	} {
		scope, err := pullSecrets(tc.mode, tc.namespaces)
		if tc.problem != "" {
			require.ErrorContains(t, err, tc.problem, what)
			continue
		}
		require.NoError(t, err, what)
		require.True(t, tc.in == "" || scope.Allows(tc.in), what)
		require.False(t, tc.out != "" && scope.Allows(tc.out), what)
	}
}

func TestTheHubsEndpointIsAURL(t *testing.T) {
	t.Parallel()
	u, err := hubEndpoint("")
	require.NoError(t, err)
	require.Nil(t, u)
	u, err = hubEndpoint("https://hub.example/base")
	require.NoError(t, err)
	require.Equal(t, "hub.example", u.Host)
	for _, bad := range []string{"hub.example", "ftp://hub.example", "https://", ":"} {
		_, err := hubEndpoint(bad)
		require.ErrorContains(t, err, "--hub-endpoint")
	}
}

func TestHelp_OfACommandThatIsNoneIsAnError(t *testing.T) {
	t.Parallel()
	cmd := command()
	cmd.SetArgs([]string{"help", "nothing"})
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), `unknown command "nothing" for "shoal-operator"`)
}
