package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheConfigurationIsWhatTheChartWrites(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct{ file, problem string }{
		"every key of an upstream":    {"upstreams: [{registry: a.example, endpoints: ['http://10.0.0.1:5000'], insecureSkipVerify: true}]", ""},
		"nothing":                     {"upstreams: []", ""},
		"a key that is no upstream's": {"upstreams: [{registry: a.example, endpoint: 'http://10.0.0.1'}]", "endpoint"},
		"a key that is none":          {"upstream: []", "upstream"},
		"an endpoint that is none":    {"upstreams: [{registry: a.example, endpoints: [a.example]}]", "want http(s)://"},
		"a file that is missing":      {"upstreams: [{registry: a.example, caFile: /nonexistent}]", "CA file"},
		"no YAML":                     {"{", "config"},
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(path, []byte(tc.file), 0o600))
		_, err := readUpstreams(path, slog.New(slog.DiscardHandler))
		if tc.problem == "" {
			require.NoError(t, err, what)
			continue
		}
		require.ErrorContains(t, err, tc.problem, what)
		require.ErrorContains(t, err, "--config", what)
	}
	_, err := readUpstreams("", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
}
