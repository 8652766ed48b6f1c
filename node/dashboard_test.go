package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDashboardAndAlerts_AskForMetricsThatAreExported compares the chart's queries with the metrics that the programs register.
func TestDashboardAndAlerts_AskForMetricsThatAreExported(t *testing.T) {
	t.Parallel()
	exported := map[string]bool{}
	definition := regexp.MustCompile(`Name:\s*"(shoal_\w+)"`)
	for _, dir := range []string{".", "../operator"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range definition.FindAllSubmatch(source, -1) {
				exported[string(m[1])] = true
			}
			return err
		}))
	}
	require.NotEmpty(t, exported)
	name := regexp.MustCompile(`\bshoal_\w+`)
	for _, file := range []string{"dashboard.json", "alerts.yaml"} {
		text, err := os.ReadFile("../charts/shoal/files/" + file)
		require.NoError(t, err)
		for _, asked := range name.FindAllString(string(text), -1) {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if base := strings.TrimSuffix(asked, suffix); exported[base] {
					asked = base
				}
			}
			require.True(t, exported[asked], "%s asks for %s, which nothing exports", file, asked)
		}
	}
}
